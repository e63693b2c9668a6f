"""Background noises, and how a clean recording of a word is made to sound like one from a room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from csengine import audio
from csengine.audio import CLIP_SAMPLES, SAMPLE_RATE, Float32

TRAINING_SHARE = 0.75
"""Training hears the first three quarters of every noise file, validation and test the last one."""


def make_noises(seconds: int, speech: list[Float32], rng: np.random.Generator) -> dict[str, Float32]:
    """One recording of every kind of background noise by name, each [seconds · 16000], peak 0.5.

    ``speech`` [clip][samples] is what babble is mixed from.
    """
    length = seconds * SAMPLE_RATE
    noises = {
        "white": coloured_noise(length, 0.0, rng),
        "pink": coloured_noise(length, 0.5, rng),
        "brown": coloured_noise(length, 1.0, rng),
        "hum": _hum(length, rng),
        "traffic": _swell(coloured_noise(length, 0.8, rng), rng),
        "wind": _swell(coloured_noise(length, 1.3, rng), rng, seconds_per_swell=0.7),
        "taps": _taps(length, rng),
        "chords": _chords(length, rng),
        "babble": _babble(length, speech, rng),
    }
    return {name: np.float32(0.5) * noise / np.abs(noise).max() for name, noise in noises.items()}


def coloured_noise(length: int, slope: float, rng: np.random.Generator) -> Float32:
    """Noise [length] whose amplitude spectrum falls as 1 / f^slope: 0 white, 0.5 pink, 1 brown; flat below 20 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    spectrum /= np.maximum(frequency, 20.0) ** slope
    return np.fft.irfft(spectrum, length).astype(np.float32)


def _swell(noise: Float32, rng: np.random.Generator, seconds_per_swell: float = 3.0) -> Float32:
    """Let noise come and go."""
    points = int(len(noise) / SAMPLE_RATE / seconds_per_swell) + 2
    level = np.interp(np.linspace(0, points - 1, len(noise)), np.arange(points), rng.uniform(0.05, 1, points))
    return (noise * level).astype(np.float32)


def _hum(length: int, rng: np.random.Generator) -> Float32:
    """Mains hum: harmonics of 50 Hz over faint white noise."""
    time = np.arange(length) / SAMPLE_RATE
    tones = sum(
        np.sin(2 * np.pi * 50 * order * time + rng.uniform(0, 2 * np.pi)) * rng.uniform(0.2, 1) / order
        for order in range(1, 30)
    )
    return (tones + 0.02 * rng.standard_normal(length)).astype(np.float32)


def _taps(length: int, rng: np.random.Generator) -> Float32:
    """Typing: short decaying bursts at random times over faint pink noise."""
    decay = np.exp(-np.arange(800) / 120)
    bursts = np.zeros(length)
    for start in rng.integers(0, length - len(decay), 6 * length // SAMPLE_RATE):
        bursts[start : start + len(decay)] += decay * rng.standard_normal(len(decay)) * rng.uniform(0.1, 1)
    pink = coloured_noise(length, 0.5, rng)
    return (bursts + 0.02 * pink / pink.std()).astype(np.float32)


def _chords(length: int, rng: np.random.Generator) -> Float32:
    """Music of a kind: three decaying harmonic tones every half second."""
    step = SAMPLE_RATE // 2
    time = np.arange(step) / SAMPLE_RATE
    music = np.zeros(length)
    for start in range(0, length - step + 1, step):
        for pitch in 110 * 2 ** (rng.integers(0, 36, 3) / 12):
            tone = sum(np.sin(2 * np.pi * pitch * order * time) / order for order in range(1, 6))
            music[start : start + step] += tone * np.exp(-3 * time)
    return (music + 0.01 * rng.standard_normal(length)).astype(np.float32)


def _babble(length: int, speech: list[Float32], rng: np.random.Generator) -> Float32:
    """Six people talking at once."""
    babble = 1e-3 * rng.standard_normal(length)
    for _ in range(6):
        position = int(rng.integers(0, SAMPLE_RATE // 2))
        while speech and position < length:
            word = speech[int(rng.integers(len(speech)))][: length - position]
            babble[position : position + len(word)] += word * rng.uniform(0.3, 1)
            position += len(word) + int(rng.integers(0, SAMPLE_RATE // 5))
    return babble.astype(np.float32)


def read_noises(root: Path, split: str) -> list[Float32]:
    """The part of every file in ``root/_background_noise_`` that belongs to ``split``; [file][samples].

    ``split`` is ``training``, or anything else for the part that is kept for validation and test.
    """
    noises = []
    for path in sorted((root / "_background_noise_").glob("*.wav")):
        noise = audio.read_wav(path)
        border = int(len(noise) * TRAINING_SHARE)
        part = noise[:border] if split == "training" else noise[border:]
        if len(part) < CLIP_SAMPLES:
            raise ValueError(f"{path}: {len(noise)} samples, expected at least four seconds of noise")
        noises.append(part)
    if not noises:
        raise FileNotFoundError(f"{root}/_background_noise_/*.wav: no noise found; is this a Speech Commands tree?")
    return noises


def cut_noise(noises: list[Float32], rng: np.random.Generator) -> Float32:
    """A random second [16000] of a random noise."""
    noise = noises[int(rng.integers(len(noises)))]
    start = int(rng.integers(len(noise) - CLIP_SAMPLES + 1))
    return noise[start : start + CLIP_SAMPLES]


def degrade(clip: Float32, noises: list[Float32], rng: np.random.Generator, speed: float = 1.1) -> Float32:
    """A clip [16000] as another room, distance and microphone would have given it: float32 [16000], peak at most 1.

    At random: speed and pitch together by a factor up to ``speed`` either way, shift up to 120 ms, reverberation, band
    limits, noise at 3 to 30 dB, and level.
    """
    factor = speed ** rng.uniform(-1, 1)
    clip = _shift(_change_speed(clip, factor), int(rng.integers(-1920, 1921)))
    if rng.random() < 0.3:
        clip = _reverberate(clip, rng)
    if rng.random() < 0.4:
        clip = _limit_band(clip, rng)
    if rng.random() < 0.8:
        clip = _mix(clip, cut_noise(noises, rng), rng.uniform(3, 30))
    peak = float(np.abs(clip).max(initial=1e-9))
    return (clip * (10 ** rng.uniform(-1.3, -0.02) / peak)).astype(np.float32)


def make_silence(noises: list[Float32], rng: np.random.Generator) -> Float32:
    """A clip [16000] without a word: noise of random level and colour; one in fifty is digital silence."""
    if rng.random() < 0.02:
        return np.zeros(CLIP_SAMPLES, np.float32)
    clip = cut_noise(noises, rng)
    if rng.random() < 0.5:
        clip = _mix(clip, cut_noise(noises, rng), rng.uniform(-10, 20))
    if rng.random() < 0.5:
        clip = _limit_band(clip, rng)
    return (clip * rng.uniform(0.02, 1)).astype(np.float32)


def _change_speed(clip: Float32, factor: float) -> Float32:
    """Play [samples] ``factor`` times faster about its middle, linear interpolation."""
    middle = (len(clip) - 1) / 2
    position = (np.arange(len(clip)) - middle) * factor + middle
    return np.interp(position, np.arange(len(clip)), clip, left=0, right=0).astype(np.float32)


def _shift(clip: Float32, by: int) -> Float32:
    """Delay [samples] by ``by`` samples (earlier if negative); zeros move in."""
    shifted = np.zeros_like(clip)
    if by >= 0:
        shifted[by:] = clip[: len(clip) - by]
    else:
        shifted[:by] = clip[-by:]
    return shifted


def _reverberate(clip: Float32, rng: np.random.Generator) -> Float32:
    """Add the tail of a room: exponentially decaying noise, 0.1 to 0.5 s to −60 dB."""
    seconds = rng.uniform(0.1, 0.5)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    tail *= rng.uniform(0.1, 0.5) / np.sqrt((tail**2).sum())
    tail[0] += 1
    return signal.fftconvolve(clip, tail.astype(np.float32))[: len(clip)].astype(np.float32)


def _limit_band(clip: Float32, rng: np.random.Generator) -> Float32:
    """The pass band of a cheap microphone or a telephone: 60–400 Hz to 2.8–7.5 kHz, second order."""
    band = (rng.uniform(60, 400), rng.uniform(2800, 7500))
    coefficients = signal.butter(1, band, "bandpass", fs=SAMPLE_RATE, output="sos")
    return signal.sosfilt(coefficients, clip).astype(np.float32)


def _mix(clip: Float32, noise: Float32, decibels: float) -> Float32:
    """Add noise at a signal-to-noise ratio over the whole clip."""
    ratio = _rms(clip) / max(_rms(noise), 1e-9) * 10 ** (-decibels / 20)
    return clip + np.float32(ratio) * noise


def _rms(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
