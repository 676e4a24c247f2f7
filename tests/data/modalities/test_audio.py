"""Sound: mu-law and learned codes with the error of a round trip, WAV files of every kind, hostile ones."""

from __future__ import annotations

import struct
import wave

import numpy as np
import pytest

from flopwise.data.modalities import modality
from flopwise.data.modalities.audio import from_mulaw, mulaw
from flopwise.data.modalities.sound import resampled, wav
from flopwise.errors import FlopwiseError

RNG = np.random.default_rng(0)


def write(path, sound, rate=8000, width=2):
    """PCM; `sound` [n] or [n, channels] in [-1, 1]."""
    sound = np.asarray(sound)
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
        f.setsampwidth(width)
        f.setframerate(rate)
        whole = np.rint(sound * (2 ** (8 * width - 1) - 1)).astype("<i4").reshape(-1)
        raw = (whole + 128 * (width == 1)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width]
        f.writeframes(raw.tobytes())


def speech_like(n, seed=0):
    """Noise through a resonance, with pauses: neighbours are alike, and most of it is quiet."""
    rng = np.random.default_rng(seed)
    x = np.zeros(n + 2)
    for i, e in enumerate(rng.normal(size=n), 2):
        x[i] = 1.7 * x[i - 1] - 0.8 * x[i - 2] + e
    return np.clip(x[2:] / 30 * (np.sin(np.arange(n) / 400) > 0), -1, 1)


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.wav", speech_like(4000 + i, i))
    return tmp_path


def opened(path, **options):
    m = modality("audio")
    stream = m.open({"path": str(path), "options": options})
    return m, stream, list(stream.documents)


@pytest.mark.parametrize("levels", [16, 64, 256])
def test_mulaw_error_is_within_its_bound(levels):
    x = np.concatenate([np.linspace(-1, 1, 100_001), RNG.normal(scale=1e-3, size=1000)])
    codes = mulaw(x, levels)
    assert codes.min() == 0 and codes.max() == levels - 1 and (np.diff(codes[:100_001]) >= 0).all()
    mu = levels - 1
    bound = (1 / mu + np.abs(x)) * ((1 + mu) ** (1 / mu) - 1)
    assert (np.abs(from_mulaw(codes, levels) - x) <= bound + 1e-7).all()
    # Decoded sound is coded as itself.
    assert np.array_equal(mulaw(from_mulaw(np.arange(levels), levels), levels), np.arange(levels))


def test_mulaw_is_the_published_function():
    """F(x) = sign(x) ln(1 + 255 |x|) / ln 256, by hand at three places."""
    for x, f in ((0.1, 0.591), (-0.5, -0.876), (0.01, 0.228)):
        assert abs(mulaw(np.array([x]))[0] - (f + 1) / 2 * 255) < 0.6


def test_a_folder_of_sound(folder):
    m, stream, documents = opened(folder)
    assert m.vocab_size({}) == 256 and len(documents) == 5 and sum(d.heldout for d in documents) == 2
    for d in documents:
        i = int(d.id[0])
        assert len(d.ids) == 4000 + i and d.n_bytes == 2 * len(d.ids)
        x = speech_like(4000 + i, i)
        error = np.abs(m.decode(d.ids, stream.options) - x)
        assert (error <= (1 / 255 + np.abs(x)) * 0.022 + 1e-4).all()


def test_documents_of_some_length(folder):
    _, _, documents = opened(folder, seconds=0.2, rate=4000)
    lengths = {}
    for d in documents:
        lengths.setdefault(d.id[0], []).append(len(d.ids))
    # 2,000 samples and a few at 4 kHz: two pieces of 800, and a rest that is half as long.
    assert all(v[:2] == [800, 800] and 400 <= v[2] <= 402 and len(v) == 3 for v in lengths.values())
    assert len({d.id[0] for d in documents if d.heldout} & {d.id[0] for d in documents if not d.heldout}) == 0


def test_residual_codes_get_closer_by_stages(folder):
    errors = []
    for stages in (1, 2, 3):
        options = {"tokens": "codes", "frame": 4, "codes": 32, "stages": stages}
        m, stream, documents = opened(folder, **options)
        assert m.vocab_size(options) == 32 * stages
        assert np.array(stream.options["codebooks"]).shape == (stages, 32, 4)
        total = signal = 0.0
        for d in documents:
            i = int(d.id[0])
            assert len(d.ids) == stages * ((4000 + i) // 4)
            assert (d.ids.reshape(-1, stages) // 32 == np.arange(stages)).all()
            x = speech_like(4000 + i, i)[: len(d.ids) // stages * 4]
            assert d.n_bytes == 2 * len(x)
            total += ((m.decode(d.ids, stream.options) - x) ** 2).sum()
            signal += (x**2).sum()
        errors.append(total / signal)
    assert errors[0] < 0.2 and errors[1] < 0.6 * errors[0] and errors[2] < 0.7 * errors[1]


def test_classes_are_folders(tmp_path):
    for i in range(6):
        (tmp_path / f"word{i % 3}").mkdir(exist_ok=True)
        write(tmp_path / f"word{i % 3}" / f"{i}.wav", speech_like(100, i))
    m, stream, documents = opened(tmp_path, label=True, classes=3)
    assert m.vocab_size({"label": True, "classes": 3}) == 259
    assert all(d.ids[0] == 256 + int(d.id[4]) and len(d.ids) == 101 for d in documents)
    assert len(m.decode(documents[0].ids, stream.options)) == 100
    with pytest.raises(FlopwiseError, match="has no class; put each class into a folder"):
        opened(str(tmp_path / "*" / "*.wav"), label=True)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_all_widths_and_stereo(tmp_path, width):
    x = np.stack([np.sin(np.arange(500) / 9), np.zeros(500)], axis=1)
    write(tmp_path / "x.wav", x, 16_000, width)
    sound, rate = wav((tmp_path / "x.wav").read_bytes(), "x")
    assert rate == 16_000 and sound.dtype == np.float32
    assert np.abs(sound - x.mean(axis=1)).max() <= 2 ** (1 - 8 * min(width, 3)) + 1e-6


def test_floating_point_sound(tmp_path):
    from scipy.io import wavfile

    x = RNG.uniform(-1, 1, 300).astype(np.float32)
    wavfile.write(tmp_path / "f.wav", 44_100, x)
    sound, rate = wav((tmp_path / "f.wav").read_bytes(), "f")
    assert rate == 44_100 and np.array_equal(sound, x)
    wavfile.write(tmp_path / "nan.wav", 44_100, np.full(10, np.nan, np.float32))
    with pytest.raises(ValueError, match="nan has samples that are no finite numbers"):
        wav((tmp_path / "nan.wav").read_bytes(), "nan")


def test_resampling_keeps_a_tone():
    t = np.arange(16_000) / 16_000
    for new in (8000, 11_025, 22_050):
        tone = resampled(0.5 * np.sin(2 * np.pi * 440 * t), 16_000, new)
        assert abs(len(tone) - new) <= 1
        there = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(tone)) / new)
        assert np.abs(tone - there)[200:-200].max() < 0.01


def test_hostile_sound_is_one_line(folder):
    whole = (folder / "0.wav").read_bytes()
    riff = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 0
    )
    cases = {
        "cut": (whole[:3000], "is cut: "), "head": (whole[:20], "no readable WAV file"),
        "empty": (b"", "no readable WAV file"), "text": (b"hello" * 20, "no readable WAV file"),
        "wide": (whole[:34] + b"\xff" + whole[35:], "no readable WAV file|samples of 32 bytes|is cut"),
        "chunk": (whole[:40] + b"\xff\xff\xff\x7f" + whole[44:], "is cut: "),
        "backwards": (whole[:16] + b"\xff\xff\xff\xff" + whole[20:], "no readable WAV file"),
        "silent": (riff, "has no sound: 0 samples"),
        "alaw": (whole[:20] + b"\x06" + whole[21:], "no readable WAV file"),
    }  # fmt: skip
    for name, (content, message) in cases.items():
        (folder / "x.wav").write_bytes(content)
        with pytest.raises(FlopwiseError, match=message) as e:
            opened(folder)
        assert "\n" not in str(e.value) and "x.wav" in str(e.value), name
    (folder / "x.wav").unlink()
    with pytest.raises(FlopwiseError, match=r"\d\.wav has 400\d samples, must have 4096"):
        opened(folder, tokens="codes", frame=4096)
    with pytest.raises(FlopwiseError, match=r"options\.rate is 0"):
        opened(folder, rate=0)
    (folder / "sub").mkdir()
    with pytest.raises(FlopwiseError, match=r"has no files; it needs \.wav"):
        opened(folder / "sub")
