"""From a WAV file to the input of a keyword-spotting network: one second of sound as a 32×32 log-mel image.

The preprocessing is the one of the Google Speech Commands networks in the paper: 16 kHz, one second, 32 mel bands
(Slaney's scale and area normalisation), FFT of 2048 samples every 512, power in decibels relative to the maximum,
floored at −80 dB. It agrees numerically with ``librosa.feature.melspectrogram`` followed by
``librosa.power_to_db(ref=np.max)``, which the tests check; nothing but NumPy and SciPy is needed here.
"""

from __future__ import annotations

import struct
import warnings
from functools import lru_cache
from math import gcd
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal
from scipy.io import wavfile

from csengine.errors import ShapeError

SAMPLE_RATE = 16_000
"""Samples per second of everything after :func:`read_wav`."""
CLIP_SAMPLES = 16_000
"""Samples of one clip: one second."""
FFT_SIZE = 2048
HOP = 512
MEL_BANDS = 32
FRAMES = 1 + CLIP_SAMPLES // HOP
"""Frames of one clip: 32, one every 32 ms, the first centred on sample 0."""
TOP_DB = 80.0
"""Depth of the picture in decibels below the loudest band."""

_POWER_FLOOR = 1e-10

# What SciPy's reader raises for damaged files.
_BAD_WAV = (ValueError, ArithmeticError, EOFError, LookupError, TypeError, UnboundLocalError, struct.error)

Float32 = NDArray[np.float32]


def read_wav(path: str | PathLike[str], sample_rate: int = SAMPLE_RATE) -> Float32:
    """Read a WAV file as mono samples at ``sample_rate`` hertz.

    Any PCM width and float format that SciPy reads; channels are averaged, other rates resampled (polyphase).

    Returns float32 of shape [samples]; integer formats are scaled so that full scale is ±1.
    Raises ``ShapeError`` if the file is no WAV file, is empty, or holds NaN or infinity; ``OSError`` if unreadable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of metadata it does not know
        try:
            rate, data = wavfile.read(path)
        except _BAD_WAV as error:
            raise ShapeError(f"{path}: not a readable WAV file ({error}); expected PCM or float WAV") from error
    samples = _to_unit_range(data)
    if samples.ndim == 2:
        samples = samples.mean(axis=1, dtype=np.float64)
    if not samples.size:
        raise ShapeError(f"{path}: the WAV file holds no samples; record at least a few milliseconds")
    if not np.isfinite(samples).all():
        raise ShapeError(f"{path}: the samples contain NaN or infinity; write the file again with finite values")
    return resample(samples, rate, sample_rate)


def _to_unit_range(data: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Scale integer PCM (unsigned 8-bit is offset by 128) to ±1; leave floats as they are."""
    if data.dtype.kind == "f":
        return data
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128) / 128
    return data / float(2 ** (8 * data.dtype.itemsize - 1))


def resample(samples: NDArray[Any], rate: int, sample_rate: int = SAMPLE_RATE) -> Float32:
    """Resample [samples] from ``rate`` to ``sample_rate`` hertz (polyphase filter); float32."""
    if rate <= 0:
        raise ShapeError(f"a sampling rate of {rate} Hz is impossible; expected a positive rate")
    if rate != sample_rate:
        common = gcd(rate, sample_rate)
        samples = signal.resample_poly(np.asarray(samples, np.float64), sample_rate // common, rate // common)
    return np.asarray(samples, np.float32)


def fit_length(samples: NDArray[Any], length: int = CLIP_SAMPLES) -> Float32:
    """Bring [samples] to ``length`` samples: pad with zeros or cut, equally at both ends."""
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise ShapeError(f"got samples of shape {samples.shape}, expected one mono channel [samples]")
    surplus = len(samples) - length
    if surplus >= 0:
        start = surplus // 2
        return samples[start : start + length]
    before = -surplus // 2
    return np.pad(samples, (before, -surplus - before))


def log_mel(clips: NDArray[Any]) -> Float32:
    """Log-mel spectrograms of clips [..., samples] at 16 kHz, in decibels below each clip's own maximum.

    Returns float32 [..., 32 bands, 1 + samples // 512 frames] in [−80, 0]. Frames are centred and the ends padded
    with zeros. A clip of nothing but zeros has no maximum to refer to: it is 0 dB everywhere, flat like any
    spectrum without structure (librosa answers the same).
    """
    clips = np.asarray(clips, np.float32)
    padded = np.pad(clips, [(0, 0)] * (clips.ndim - 1) + [(FFT_SIZE // 2, FFT_SIZE // 2)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE, axis=-1)[..., ::HOP, :]
    spectrum = fft.rfft(frames * _window(), axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    bands = np.swapaxes(power @ mel_filters().T, -1, -2)
    return _decibels(bands)


def _decibels(power: Float32) -> Float32:
    """10·log10 of power [..., bands, frames] relative to its maximum over bands and frames, at least −80."""
    level = 10 * np.log10(np.maximum(power, _POWER_FLOOR))
    level -= level.max(axis=(-2, -1), keepdims=True)
    return np.asarray(np.maximum(level, -TOP_DB), np.float32)


@lru_cache(maxsize=1)
def _window() -> Float32:
    window: Float32 = signal.get_window("hann", FFT_SIZE, fftbins=True).astype(np.float32)
    return window


@lru_cache(maxsize=1)
def mel_filters() -> Float32:
    """The mel filter bank, float32 [32 bands, 1025 FFT bins]: triangles of unit area, 0 to 8 kHz, Slaney's scale."""
    bins = np.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    corners = _mel_to_hertz(np.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), MEL_BANDS + 2))
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (bins - low) / (centre - low)
    falling = (high - bins) / (high - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(triangles * 2 / (high - low), np.float32)


# Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.
_MEL_PER_HERTZ = 3 / 200
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ * _MEL_PER_HERTZ
_LOG_STEP = np.log(6.4) / 27


def _hertz_to_mel(hertz: float) -> float:
    """Mel of a frequency above the break."""
    return float(_BREAK_MEL + np.log(hertz / _BREAK_HERTZ) / _LOG_STEP)


def _mel_to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BREAK_HERTZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel / _MEL_PER_HERTZ, above)


def network_input(clips: NDArray[Any]) -> Float32:
    """The network's input for clips [n, 16000] (or one clip [16000]): float32 [n, 1, 32, 32], NCHW, in [0, 1].

    Rows are mel bands (low first), columns are frames; 1 is the clip's maximum and 0 is 80 dB or more below it, so
    that an unsigned integer input with zero point 0 holds it.
    Raises ``ShapeError`` for another length or for NaN and infinity.
    """
    clips = np.atleast_2d(np.asarray(clips, np.float32))
    if clips.ndim != 2 or clips.shape[1] != CLIP_SAMPLES:
        raise ShapeError(
            f"got clips of shape {clips.shape}, expected [n, {CLIP_SAMPLES}]: 1 s at 16 kHz; see fit_length"
        )
    if not np.isfinite(clips).all():
        raise ShapeError("the clips contain NaN or infinity; expected finite samples")
    return np.asarray(log_mel(clips) / TOP_DB + 1, np.float32)[:, None]


def load_input(path: str | PathLike[str]) -> Float32:
    """The network input [1, 1, 32, 32] of a WAV file of any length: its middle second, see :func:`fit_length`."""
    return network_input(fit_length(read_wav(path)))
