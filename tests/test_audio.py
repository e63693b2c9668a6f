"""csengine.audio: WAV reading, and the features against librosa."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from csengine import audio
from csengine.errors import ShapeError


def tone(rate: int = 16_000, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def clips(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    noise = rng.standard_normal(16_000)
    time = np.arange(16_000) / 16_000
    return {
        "noise": 0.1 * noise,
        "burst": noise * np.exp(-(((time - 0.5) / 0.05) ** 2)),  # mostly below -80 dB
        "sweep": np.sin(2 * np.pi * (100 * time + 3900 * time**2)),
        "faint": 1e-4 * noise,
        "click": np.eye(1, 16_000, 8_000)[0],
    }[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["noise", "burst", "sweep", "faint", "click"])
def test_features_equal_librosa(kind: str) -> None:
    pytest.importorskip("librosa")
    import librosa.feature

    clip = clips(kind)
    mel = librosa.feature.melspectrogram(y=clip, sr=16_000, n_fft=2048, hop_length=512, n_mels=32)
    expected = librosa.power_to_db(mel, ref=np.max)
    ours = audio.log_mel(clip)
    assert ours.shape == (32, 32)
    # Both compute in float32: near the floor of 1e-10 a rounding error of the loudest band is worth 1e-3 dB.
    np.testing.assert_allclose(ours, expected, atol=5e-3)


def test_filters_equal_librosa() -> None:
    pytest.importorskip("librosa")
    import librosa.filters

    np.testing.assert_allclose(
        audio.mel_filters(), librosa.filters.mel(sr=16_000, n_fft=2048, n_mels=32), rtol=1e-4, atol=1e-8
    )


def test_network_input_is_a_batch_of_pictures_in_the_unit_range() -> None:
    x = audio.network_input(np.stack([clips("noise"), clips("burst")]))
    assert x.shape == (2, 1, 32, 32)
    assert x.dtype == np.float32
    assert x.min() == 0
    np.testing.assert_array_equal(x.max(axis=(1, 2, 3)), 1)


def test_a_batch_equals_its_clips() -> None:
    batch = np.stack([clips("noise"), clips("sweep")])
    np.testing.assert_array_equal(audio.network_input(batch)[1:], audio.network_input(batch[1]))


def test_level_does_not_matter() -> None:
    np.testing.assert_allclose(audio.log_mel(clips("sweep")), audio.log_mel(0.25 * clips("sweep")), atol=1e-3)


def test_digital_silence_is_defined() -> None:
    np.testing.assert_array_equal(audio.network_input(np.zeros(16_000)), np.ones((1, 1, 32, 32)))


@pytest.mark.parametrize("shape", [(15_999,), (2, 16_001), (1, 1, 16_000), (0,)])
def test_wrong_lengths_are_explained(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        audio.network_input(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_clips_are_refused(value: float) -> None:
    clip = np.zeros(16_000)
    clip[7] = value
    with pytest.raises(ShapeError, match="NaN or infinity"):
        audio.network_input(clip)


@pytest.mark.parametrize("length", [0, 1, 15_999, 16_000, 16_001, 40_000])
def test_fit_length_pads_and_cuts_at_both_ends(length: int) -> None:
    samples = np.arange(1, length + 1)
    fitted = audio.fit_length(samples)
    assert fitted.shape == (16_000,)
    kept = fitted[fitted != 0]
    assert len(kept) == min(length, 16_000)
    if length > 16_000:
        assert kept[0] == (length - 16_000) // 2 + 1
    elif length:
        assert np.flatnonzero(fitted)[0] == (16_000 - length) // 2


def test_fit_length_refuses_channels() -> None:
    with pytest.raises(ShapeError, match="mono"):
        audio.fit_length(np.zeros((5, 2)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("uint8", 1 / 128), ("int16", 1e-4), ("int32", 1e-6), ("float32", 1e-6), ("float64", 1e-6)],
)
def test_wav_formats_agree(tmp_path: Path, dtype: str, tolerance: float) -> None:
    samples = tone()
    if dtype == "uint8":
        data = np.rint(samples * 127 + 128).astype(np.uint8)
    elif dtype.startswith("int"):
        data = np.rint(samples * np.iinfo(dtype).max).astype(dtype)
    else:
        data = samples.astype(dtype)
    wavfile.write(tmp_path / "tone.wav", 16_000, data)
    read = audio.read_wav(tmp_path / "tone.wav")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, samples, atol=tolerance)


def test_wav_of_24_bits(tmp_path: Path) -> None:
    samples = tone()
    pcm = np.rint(samples * (2**23 - 1)).astype("<i4")
    data = pcm.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    header = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    fields = ((1, 2), (1, 2), (16_000, 4), (48_000, 4), (3, 2), (24, 2))
    header += b"".join(value.to_bytes(size, "little") for value, size in fields)
    (tmp_path / "tone.wav").write_bytes(header + b"data" + len(data).to_bytes(4, "little") + data)
    np.testing.assert_allclose(audio.read_wav(tmp_path / "tone.wav"), samples, atol=1e-6)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "two.wav", 16_000, np.stack([tone(), 0 * tone()], axis=1).astype(np.float32))
    np.testing.assert_allclose(audio.read_wav(tmp_path / "two.wav"), tone() / 2, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    wavfile.write(tmp_path / "tone.wav", rate, tone(rate).astype(np.float32))
    read = audio.read_wav(tmp_path / "tone.wav")
    assert len(read) == 16_000
    inner = slice(200, -200)  # the filter's edges differ
    np.testing.assert_allclose(read[inner], tone()[inner], atol=5e-3)


def test_metadata_chunks_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    wavfile.write(path, 16_000, tone().astype(np.float32))
    content = path.read_bytes() + b"junk" + (4).to_bytes(4, "little") + b"abcd"
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:])
    assert len(audio.read_wav(path)) == 16_000


@pytest.mark.parametrize("content", [b"", b"no wav at all, but long enough to look at", b"RIFF\x00\x00\x00\x00WAVE"])
def test_files_that_are_no_wav_are_explained(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(ShapeError, match=r"bad\.wav"):
        audio.read_wav(tmp_path / "bad.wav")


def test_empty_and_non_finite_wav_are_explained(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "empty.wav", 16_000, np.zeros(0, np.int16))
    with pytest.raises(ShapeError, match="no samples"):
        audio.read_wav(tmp_path / "empty.wav")
    wavfile.write(tmp_path / "nan.wav", 16_000, np.full(9, np.nan, np.float32))
    with pytest.raises(ShapeError, match="NaN"):
        audio.read_wav(tmp_path / "nan.wav")


def test_truncated_wav_never_crashes(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    wavfile.write(path, 16_000, (tone(seconds=0.01) * 32767).astype(np.int16))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with contextlib.suppress(ShapeError):
            assert np.isfinite(audio.read_wav(path)).all()


def test_load_input_reads_any_length(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "long.wav", 8_000, tone(8_000, 2.5).astype(np.float32))
    assert audio.load_input(tmp_path / "long.wav").shape == (1, 1, 32, 32)


def test_import_needs_neither_torch_nor_librosa() -> None:
    code = "import sys, csengine.audio; assert not {'torch', 'librosa'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
