"""Corpora that are no text: which carrier holds them, under which licence, and how to read them.

Everything is read out of pinned packages (`carriers`) by the parsers below; nothing of a carrier is executed.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.data import carriers
from flopwise.data.carriers import Carrier, CorpusUnavailable, Deb, Wheel
from flopwise.data.modalities.base import Item
from flopwise.errors import FlopwiseError, one_line

POOLS = 50
"""Moving pictures are drawn from so many pools of sprites; a pool lies on one side of the split."""
IDX_UBYTE = 8
"""Type code of unsigned bytes in an IDX file."""

SKLEARN = Wheel(
    "scikit-learn", "1.9.1", "e5d7b18a5b9dca241a74695f3275fa4c895a9dadc72b3d8df5fa9d1083c9b83e", 9.2,
    pip=("--platform", "manylinux_2_27_x86_64", "--platform", "manylinux_2_28_x86_64", "--python-version",
         "3.12", "--implementation", "cp", "--abi", "cp312"),
)  # fmt: skip
AEON = Wheel("aeon", "1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409", 6.4)
FASHION = Deb(
    "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0", 30.9,
)  # fmt: skip
SOUNDS = Deb(
    "asterisk-core-sounds-en-wav", "1.6.1-1",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d", 18.3,
)  # fmt: skip


@dataclass(frozen=True)
class Media:
    """A corpus of one modality; `carrier` is None where the data are made, not fetched."""

    modality: str
    carrier: Carrier | None
    license: str
    about: str
    read: Callable[..., Iterator[Item]] | None
    instead: str = "use a folder of your own (path)"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of its modality, where the corpus says more than the defaults."""


def load(name: str, cache: Path | None = None, **made: int) -> list[Item]:
    """All items of a corpus, fetched if need be; `made` is how many clips to make, and their frames.

    Raises:
        FlopwiseError: there is no such corpus. CorpusUnavailable: it cannot be fetched or read.
    """
    corpus = named(name)
    if corpus.carrier is None or corpus.read is None:
        raise FlopwiseError(f"corpus {name} is made, not read: open it by its modality, {corpus.modality}")
    path = carriers.fetch(corpus.carrier, name, corpus.instead, cache)
    try:
        return list(corpus.read(path, **made))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, zlib.error, struct.error) as e:
        raise CorpusUnavailable(
            f"corpus {name}: {path} cannot be read ({type(e).__name__}); delete it"
        ) from e


def named(name: str) -> Media:
    """The corpus of this name.

    Raises:
        FlopwiseError: there is none.
    """
    if name not in MEDIA:
        raise FlopwiseError(f"corpus {name!r:.60} is unknown; there are {', '.join(MEDIA)}")
    return MEDIA[name]


def entry(name: str, cache: Path | None = None) -> dict[str, Any]:
    """What is known of a corpus without a network."""
    corpus = named(name)
    path = None if corpus.carrier is None else carriers.cached(corpus.carrier, cache)
    return {
        "name": name, "modality": corpus.modality, "about": corpus.about, "license": corpus.license,
        "source": origin(name), "megabytes": corpus.carrier.megabytes if corpus.carrier else 0.0,
        "cached": corpus.carrier is None or path is not None, "path": None if path is None else str(path),
    }  # fmt: skip


def origin(name: str) -> str:
    """Package and version a corpus comes from."""
    carrier = named(name).carrier
    return "made by flopwise" if carrier is None else f"{carrier.package} {carrier.version}"


def digits(path: Path) -> Iterator[Item]:
    """1,797 images of 8 x 8 pixels with 17 grey values, as bytes: value v of 16 becomes 255 v / 16."""
    with zipfile.ZipFile(path) as z:
        table = np.loadtxt(
            io.BytesIO(gzip.decompress(z.read("sklearn/datasets/data/digits.csv.gz"))), delimiter=","
        )
    if table.ndim != 2 or table.shape[1] != 65:
        raise ValueError("digits.csv.gz has not 65 columns")
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    for i, (image, label) in enumerate(zip(pixels, table[:, 64].astype(int), strict=True)):
        yield Item(f"digits/{i:04d}", image, str(label))


def fashion(path: Path) -> Iterator[Item]:
    """70,000 images of 28 x 28 grey pixels: training and test part of Fashion-MNIST."""
    files = {Path(name).name: data for name, data in carriers.deb_members(path, "-ubyte.gz")}
    for part in ("train", "t10k"):
        images = idx(gzip.decompress(files[f"{part}-images-idx3-ubyte.gz"]), 3)
        labels = idx(gzip.decompress(files[f"{part}-labels-idx1-ubyte.gz"]), 1)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield Item(f"fashion-mnist/{part}/{i:05d}", image[..., None], str(label))


def idx(data: bytes, dims: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes: two zeros, type, number of dimensions, sizes, data.

    Source: LeCun, Cortes and Burges, the MNIST database, "File formats".

    Raises:
        ValueError: of another type, or not as long as its header says.
    """
    zeros, kind, n = struct.unpack(">HBB", data[:4])
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims]) if n == dims else ()
    if zeros or kind != IDX_UBYTE or n != dims or len(data) != 4 + 4 * dims + math.prod(shape):
        raise ValueError(f"not an IDX file of bytes in {dims} dimensions")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def speech(path: Path) -> Iterator[Item]:
    """558 prompts of a telephone system, one speaker, 8,000 samples/s, without its ten files of silence."""
    from flopwise.data.modalities.sound import wav

    for name, data in carriers.deb_members(path, ".wav"):
        if "/silence/" in name:
            continue
        sound, rate = wav(data, name)
        yield Item(f"speech/{name.rpartition('en_US_f_Allison/')[2]}", sound, rate=rate)


def archived(problem: str) -> Callable[[Path], Iterator[Item]]:
    """Reader of a problem of the UEA and UCR archive: its training and test parts together."""

    def read(path: Path) -> Iterator[Item]:
        with zipfile.ZipFile(path) as z:
            for part in ("TRAIN", "TEST"):
                text = z.read(f"aeon/datasets/data/{problem}/{problem}_{part}.ts").decode()
                for i, (series, label) in enumerate(ts(text)):
                    yield Item(f"{problem}/{part.lower()}/{i:04d}", series, label)

    return read


def ts(text: str) -> Iterator[tuple[np.ndarray, str | None]]:
    """Series [steps, channels] float64 and class of a .ts file; `?` is a missing value, NaN.

    Header lines begin with # or @; after @data each line is a case: channels separated by colons, values by
    commas, the class last where @classLabel is true. Source: aeon documentation, "The .ts file format".

    Raises:
        ValueError: not such a file, time stamps, or channels of one case that differ in length.
    """
    header, found, body = text.partition("@data")
    settings = dict(
        line[1:].lower().split(maxsplit=1)
        for line in header.splitlines()
        if line.startswith("@") and " " in line
    )
    if not found:
        raise ValueError("no line @data")
    if settings.get("timestamps", "false").split()[0] == "true":
        raise ValueError("time stamps are not supported")
    labelled = settings.get("classlabel", "false").split()[0] == "true"
    for line in body.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        *channels, last = line.strip().split(":")
        label = last.strip() if labelled else None
        columns = [channel.split(",") for channel in (channels if labelled else [*channels, last])]
        if not columns or len({len(c) for c in columns}) != 1:
            raise ValueError(f"case {one_line(line, 40)} has no channels, or some of different lengths")
        values = [[math.nan if v.strip() in ("?", "") else float(v) for v in c] for c in columns]
        yield np.array(values, dtype=np.float64).T, label


def moving(
    sprites: Callable[[Path], Iterator[Item]], name: str, canvas: int, speed: tuple[float, float]
) -> Callable[..., Iterator[Item]]:
    """Reader that makes clips of two sprites that bounce in a square of `canvas` pixels.

    After the idea of Srivastava, Mansimov and Salakhutdinov 2015 (arXiv 1502.04681): starts are uniform, the
    direction is uniform on the circle, the speed uniform in `speed` pixels per frame, and sprites lie over
    each other. Every clip draws from one of 50 pools of sprites, and the pool is its group: no sprite of a
    held-out clip is in a training clip. Clip i depends on i alone.
    """

    def read(path: Path, n: int = 2000, frames: int = 8) -> Iterator[Item]:
        images = [item.data for item in sprites(path)]
        for i in range(n):
            rng = np.random.default_rng((0x6D6F76, i))
            pool = int(rng.integers(POOLS))
            pictures = [images[j] for j in POOLS * rng.integers(len(images) // POOLS, size=2) + pool]
            clip = np.zeros((frames, canvas, canvas, 1), dtype=np.uint8)
            for picture in pictures:
                for t, (y, x) in enumerate(_path(frames, canvas - np.array(picture.shape[:2]), speed, rng)):
                    window = clip[t, y : y + picture.shape[0], x : x + picture.shape[1]]
                    np.maximum(window, picture, out=window)
            yield Item(f"{name}/{i:06d}", clip, group=f"pool {pool:02d}")

    return read


def _path(
    frames: int, room: np.ndarray, speed: tuple[float, float], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Corners [frames] of a sprite that flies straight and is reflected at the walls of `room`."""
    angle, pace = rng.uniform(0, 2 * np.pi), rng.uniform(*speed)
    velocity = pace * np.array([np.sin(angle), np.cos(angle)])
    where = rng.uniform(0, room) + np.arange(frames)[:, None] * velocity
    # A reflected walk is the free one, folded: distance to the nearest even multiple of the room.
    folded = room - np.abs(np.mod(where, 2 * room) - room)
    return [(int(y), int(x)) for y, x in np.rint(folded)]


UCI = "CC-BY-4.0"
ARCHIVE = "none stated; carrier BSD-3-Clause"
MEDIA: dict[str, Media] = {
    "digits": Media(
        "image", SKLEARN, UCI, "1,797 handwritten digits, 8 x 8 (UCI: optical recognition)", digits,
        options={"levels": 17},
    ),
    "fashion-mnist": Media(
        "image", FASHION, "MIT", "70,000 pictures of clothes, 28 x 28", fashion, "use the corpus digits",
    ),
    "moving-digits": Media(
        "video", SKLEARN, UCI, "two handwritten digits bouncing, 16 x 16",
        moving(digits, "moving-digits", 16, (1.0, 2.5)), options={"levels": 17},
    ),
    "moving-fashion": Media(
        "video", FASHION, "MIT", "two pieces of clothing bouncing, 64 x 64",
        moving(fashion, "moving-fashion", 64, (3.0, 8.0)), "use the corpus moving-digits",
    ),
    "speech": Media(
        "audio", SOUNDS, "CC-BY-SA-3.0", "25 minutes of telephone prompts, one speaker", speech,
        "use a folder of .wav files of your own (path)",
    ),
    "motions": Media(
        "sensor", AEON, ARCHIVE, "80 recordings of a smart watch, 6 channels (BasicMotions)",
        archived("BasicMotions"), options={"channels": 6, "classes": 4, "binning": "quantile"},
    ),
    "vowels": Media(
        "sensor", AEON, UCI, "640 spoken vowels as 12 cepstral coefficients (JapaneseVowels)",
        archived("JapaneseVowels"), options={"channels": 12, "classes": 9},
    ),
    "power": Media(
        "sensor", AEON, ARCHIVE, "1,096 days of Italy's power demand, by hour (ItalyPowerDemand)",
        archived("ItalyPowerDemand"), options={"classes": 2},
    ),
    "appliances": Media(
        "sensor", AEON, ARCHIVE, "200 recordings of the power of household appliances (ACSF1)",
        archived("ACSF1"),
    ),
    "calibration": Media(
        "calibration", None, "made, none needed", "tokens of known entropy, to grade a fitted floor E", None,
    ),
}  # fmt: skip
