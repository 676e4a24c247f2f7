"""WAV files as samples in [-1, 1], and samples at another rate."""

from __future__ import annotations

import io
import math
import warnings
import wave

import numpy as np


def wav(data: bytes, who: str) -> tuple[np.ndarray, int]:
    """Samples float32 [n] in [-1, 1], the mean of the channels, and samples per second.

    PCM of 8, 16, 24 or 32 bits, or floating point.

    Raises:
        ValueError: cut, damaged, of another coding, without samples, or not finite.
    """
    try:
        with wave.open(io.BytesIO(data)) as f:
            channels, width, rate, frames = (
                f.getnchannels(),
                f.getsampwidth(),
                f.getframerate(),
                f.getnframes(),
            )
            raw = f.readframes(frames)
        if width not in (1, 2, 3, 4):
            raise ValueError(f"{who} has samples of {width} bytes, must be 1 to 4")
        if len(raw) != frames * channels * width:
            raise ValueError(
                f"{who} is cut: {len(raw):,} bytes of sound, {frames * channels * width:,} announced"
            )
        samples = _pcm(raw, width)
    except wave.Error as e:
        if "unknown format" not in str(e):
            raise ValueError(f"{who} is no readable WAV file ({e})") from e
        samples, rate, channels = _other(data, who)
    except (EOFError, RuntimeError, ArithmeticError) as e:  # what the reader lets through of a garbled header
        raise ValueError(f"{who} is no readable WAV file ({type(e).__name__})") from e
    if not len(samples) or rate <= 0:
        raise ValueError(f"{who} has no sound: {len(samples)} samples at {rate} per second")
    sound = samples.reshape(-1, channels).mean(axis=1)
    if not np.isfinite(sound).all():
        raise ValueError(f"{who} has samples that are no finite numbers")
    return sound.astype(np.float32), rate


def _pcm(raw: bytes, width: int) -> np.ndarray:
    if width == 1:  # unsigned
        return (np.frombuffer(raw, np.uint8) - 128.0) / 128
    if width == 3:
        bytes3 = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        padded = np.concatenate([np.zeros((len(bytes3), 1), np.uint8), bytes3], axis=1)
        return padded.reshape(-1).view("<i4") / 2.0**31
    return np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)


def _other(data: bytes, who: str) -> tuple[np.ndarray, int, int]:
    """What the standard library does not read: floating point and extensible headers."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rate, samples = wavfile.read(io.BytesIO(data))
    except Exception as e:
        raise ValueError(f"{who} is no readable WAV file ({type(e).__name__})") from e
    scale = {"f": 1.0, "i": 2.0 ** (8 * samples.itemsize - 1), "u": 128.0}[samples.dtype.kind]
    values = samples / scale - (samples.dtype.kind == "u")
    return values.reshape(-1), int(rate), 1 if samples.ndim == 1 else samples.shape[1]


def resampled(sound: np.ndarray, old: int, new: int) -> np.ndarray:
    """Samples at another rate, through a low-pass filter at half the lower of the two rates."""
    if old == new:
        return sound
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    return np.clip(resample_poly(sound, new // common, old // common), -1, 1).astype(np.float32)
