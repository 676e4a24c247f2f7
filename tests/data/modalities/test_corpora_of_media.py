"""Shipped corpora that are no text: parsers on small files, the pinned carriers where they can be had."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flopwise.data import carriers, media
from flopwise.data.carriers import CorpusUnavailable, Deb
from flopwise.data.checksums import sha256
from flopwise.data.modalities import modality
from flopwise.errors import FlopwiseError

TS = """# A comment
@problemName Two
@timestamps false
@dimensions 2
@classLabel true up down
@data
1,2,3:4,5,6:up
# between
7,?:9,10:down
"""


def deb(files: dict[str, bytes], member: bytes = b"data.tar.xz") -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out = b"!<arch>\n"
    for name, content in ((b"debian-binary", b"2.0\n1"), (member, lzma.compress(tar.getvalue()))):
        head = b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(content))
        out += head + content + b"\n" * (len(content) % 2)
    return out


def test_deb_members(tmp_path):
    path = tmp_path / "x.deb"
    path.write_bytes(deb({"./usr/a.wav": b"sound", "./usr/b.txt": b"no", "./usr/c.wav": b""}))
    assert list(carriers.deb_members(path, ".wav")) == [("usr/a.wav", b"sound"), ("usr/c.wav", b"")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:40], lambda d: d[:-30], lambda d: b"x" + d[1:], lambda d: d[:8],
        lambda d: d.replace(b"data.tar.xz", b"none.tar.xz"), lambda d: d[:200] + b"\0" * 8 + d[208:],
    ],
)  # fmt: skip
def test_damaged_deb(tmp_path, damage):
    path = tmp_path / "x.deb"
    path.write_bytes(damage(deb({"./a.wav": bytes(range(256)) * 20})))
    with pytest.raises((ValueError, EOFError)):
        list(carriers.deb_members(path, ".wav"))


def test_idx():
    data = struct.pack(">HBBII", 0, 8, 2, 2, 3) + bytes(range(6))
    assert media.idx(data, 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    for wrong in (data[:-1], data + b"x", struct.pack(">HBBII", 0, 9, 2, 2, 3) + bytes(6)):
        with pytest.raises(ValueError, match="IDX"):
            media.idx(wrong, 2)
    with pytest.raises(ValueError, match="IDX"):
        media.idx(data, 3)


def test_ts():
    (a, up), (b, down) = media.ts(TS)
    assert (up, down) == ("up", "down")
    assert a.tolist() == [[1, 4], [2, 5], [3, 6]]
    np.testing.assert_equal(b, [[7, 9], [np.nan, 10]])
    assert [(s.tolist(), c) for s, c in media.ts("@classLabel false\n@data\n1,2\n")] == [([[1], [2]], None)]


@pytest.mark.parametrize(
    "text",
    [
        "1,2:3,4",
        "@timestamps true\n@data\n(1,2):x",
        "@data\n1,2:3\n",
        "@classlabel true a\n@data\nup\n",
        "@data\nx\n",
    ],
)
def test_ts_refuses(text):
    with pytest.raises(ValueError):
        list(media.ts(text))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache whose carriers are small files that the pins are set to; nothing can be fetched."""
    sklearn = tmp_path / media.SKLEARN.file
    sklearn.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = "\n".join(",".join(map(str, [*rng.integers(17, size=64), i % 10])) for i in range(200))
    with zipfile.ZipFile(sklearn, "w") as z:
        z.writestr("sklearn/datasets/data/digits.csv.gz", gzip.compress(rows.encode()))
    pinned = replace(media.SKLEARN, sha256=sha256(sklearn))
    for name in ("digits", "moving-digits"):
        monkeypatch.setitem(media.MEDIA, name, replace(media.MEDIA[name], carrier=pinned))
    monkeypatch.setenv("FLOPWISE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_digits_are_lossless(cache):
    m = modality("image")
    stream = m.open({"corpus": "digits"})
    assert (stream.license, stream.source) == ("CC-BY-4.0", "scikit-learn 1.9.1")
    items = {item.id: item for item in media.load("digits")}
    documents = list(stream.documents)
    assert len(documents) == 200 and sum(d.heldout for d in documents) == 8
    for d in documents:
        assert len(d.ids) == d.n_bytes == 64
        assert np.array_equal(m.decode(d.ids, stream.options), items[d.id].data[..., 0])


def test_moving_digits_keep_sprites_apart(cache):
    m = modality("video")
    stream = m.open({"corpus": "moving-digits", "options": {"clips": 120, "frames": 6}, "seed": 3})
    documents = list(stream.documents)
    items = {i.id: i for i in media.load("moving-digits", n=120, frames=6)}
    held = {items[d.id].group for d in documents if d.heldout}
    assert (
        len(documents) == 120 and held and not held & {items[d.id].group for d in documents if not d.heldout}
    )
    clip = items["moving-digits/000007"].data
    assert clip.shape == (6, 16, 16, 1)
    # A later clip does not depend on how many are made, and something moves in every clip.
    assert np.array_equal(media.load("moving-digits", n=8, frames=6)[7].data, clip)
    assert all((np.diff(i.data.astype(int), axis=0) != 0).any() for i in items.values())
    d = next(d for d in documents if d.id == "moving-digits/000007")
    assert len(d.ids) == 6 * 257 and np.array_equal(m.decode(d.ids, stream.options), clip[..., 0])


def test_sprites_stay_in_the_frame_and_bounce():
    rng = np.random.default_rng(0)
    for _ in range(20):
        path = np.array(media._path(200, np.array([8, 5]), (1.0, 2.5), rng))
        assert path.min() >= 0 and (path <= [8, 5]).all()
        assert (path == 0).any(axis=0).all() and (path == [8, 5]).any(axis=0).all()
        assert np.abs(np.diff(path, axis=0)).max() <= 3


def test_where_nothing_can_be_fetched_one_line_says_what_to_do(cache):
    for name, hint in (("speech", "folder of .wav files"), ("fashion-mnist", "use the corpus digits")):
        with pytest.raises(CorpusUnavailable, match=hint) as e:
            media.load(name)
        assert "apt-get" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(CorpusUnavailable, match=r"aeon==1\.6\.0 cannot be fetched"):
        media.load("motions")
    assert not media.entry("motions")["cached"] and media.entry("digits")["cached"]


def test_apt_downloads_and_the_file_is_checked(cache, tmp_path, monkeypatch):
    content = deb({"./x/en_US_f_Allison/a.wav": b""})
    (tmp_path / "made.deb").write_bytes(content)
    tool = tmp_path / "apt-get"
    tool.write_text(f'#!/bin/sh\n[ "$1" = download ] && /bin/cp {tmp_path}/made.deb ./some_1_all.deb\n')
    tool.chmod(0o755)
    carrier = Deb("some", "1", sha256(tmp_path / "made.deb"), 0.1)
    path = carriers.fetch(carrier, "speech", "try another")
    assert path == tmp_path / "debs/some-1.deb" and path.read_bytes() == content
    with pytest.raises(CorpusUnavailable, match="must be 000000000000"):
        carriers.fetch(replace(carrier, version="2", sha256="0" * 64), "speech", "try another")
    tool.write_text("#!/bin/sh\necho 'E: Unable to locate package some' >&2\nexit 100\n")
    with pytest.raises(
        CorpusUnavailable, match=r"cannot be fetched \(E: Unable to locate package some\); try"
    ):
        carriers.fetch(replace(carrier, version="3"), "speech", "try another")


def test_damaged_carrier_is_named(cache, monkeypatch):
    path = cache / media.SKLEARN.file
    path.write_bytes(b"no zip")
    broken = replace(media.SKLEARN, sha256=sha256(path))
    monkeypatch.setitem(media.MEDIA, "digits", replace(media.MEDIA["digits"], carrier=broken))
    with pytest.raises(CorpusUnavailable, match="cannot be read"):
        media.load("digits")


def test_a_corpus_has_one_modality():
    with pytest.raises(FlopwiseError, match="digits is of modality image, not audio"):
        modality("audio").open({"corpus": "digits"})
    with pytest.raises(FlopwiseError, match="unknown; there are digits, "):
        modality("image").open({"corpus": "nothing"})
    with pytest.raises(FlopwiseError, match="either corpus"):
        modality("image").open({})
    with pytest.raises(FlopwiseError, match="calibration is of modality calibration"):
        modality("image").open({"corpus": "calibration"})
    assert {corpus.modality for corpus in media.MEDIA.values()} == {
        "image", "video", "audio", "sensor", "calibration"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "documents", "tokens"),
    [
        ("digits", 1797, 115_008), ("motions", 80, 48_000), ("vowels", 640, 12 * 9961),
        ("power", 1096, 26_304), ("appliances", 200, 292_000), ("speech", 558, 11_789_778),
        ("fashion-mnist", 70_000, 54_880_000),
    ],
)  # fmt: skip
def test_the_pinned_carriers(name, documents, tokens):
    try:
        items = media.load(name)
    except CorpusUnavailable as e:
        pytest.skip(str(e))
    assert len(items) == documents == len({item.id for item in items})
    assert sum(item.data.size for item in items) == tokens
    assert all(np.isfinite(item.data).all() for item in items if item.data.dtype != np.uint8)
