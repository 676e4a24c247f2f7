"""Images and clips: round trips with their error, layouts of tokens, somebody's own files, hostile ones."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from flopwise.data.modalities import modality, pixels, quantise
from flopwise.errors import FlopwiseError

RNG = np.random.default_rng(0)


def opened(name, path, **options):
    m = modality(name)
    stream = m.open({"path": str(path), "options": options})
    return m, stream, list(stream.documents)


@pytest.fixture
def images(tmp_path):
    """Twelve images of 8 x 12 pixels as an array."""
    data = RNG.integers(256, size=(12, 8, 12), dtype=np.uint8)
    np.save(tmp_path / "images.npy", data)
    return tmp_path / "images.npy", data


@pytest.mark.parametrize("levels", [2, 16, 17, 100, 256])
def test_raster_round_trip_is_within_half_a_level(images, levels):
    path, data = images
    m, stream, documents = opened("image", path, levels=levels)
    assert len(documents) == 12 and sum(d.heldout for d in documents) == 2
    for d in documents:
        back = m.decode(d.ids, stream.options)
        # Half a level, and half a grey value of rounding to bytes.
        assert np.abs(back - data[int(d.id[-6:])].astype(float)).max() <= 255 / (levels - 1) / 2 + 0.5 * (
            levels < 256
        )
        assert (
            d.ids.dtype == np.int64
            and d.ids.min() >= 0
            and d.ids.max() < levels == m.vocab_size({"levels": levels})
        )
        assert len(d.ids) == d.n_bytes == 96


def test_rows_classes_and_colour(tmp_path):
    data = RNG.integers(256, size=(9, 4, 6, 3), dtype=np.uint8)
    labels = np.array([5, 7, 10] * 3)
    np.savez(tmp_path / "x.npz", images=data, labels=labels)
    options = {"levels": 256, "channels": "rgb", "row_marker": True, "label": True, "classes": 3}
    m, stream, documents = opened("image", tmp_path / "x.npz", **options)
    assert m.vocab_size(options) == 256 + 1 + 3 and stream.options["labels"] == ["5", "7", "10"]
    for d in documents:
        i = int(d.id[-6:])
        assert d.ids[0] == 257 + i % 3 and len(d.ids) == 1 + 4 * (6 * 3 + 1)
        assert (np.flatnonzero(d.ids == 256) == 19 * np.arange(1, 5)).all()
        assert np.array_equal(m.decode(d.ids, stream.options), data[i])
    grey = opened("image", tmp_path / "x.npz", levels=256)[2]
    luma = np.rint(data[0] @ [0.299, 0.587, 0.114])
    assert np.array_equal(next(d for d in grey if d.id.endswith("000000")).ids, luma.reshape(-1))
    with pytest.raises(FlopwiseError, match=r"3 classes, options\.classes is 2; raise it"):
        opened("image", tmp_path / "x.npz", **options | {"classes": 2})


def test_patches_are_learned_from_the_training_part_alone(tmp_path):
    data = np.kron(RNG.integers(256, size=(40, 2, 2), dtype=np.uint8), np.ones((4, 4), dtype=np.uint8))
    np.save(tmp_path / "x.npy", data)
    options = {"tokens": "patches", "patch": 4, "codes": 16}
    m, stream, documents = opened("image", tmp_path / "x.npy", **options)
    assert all(len(d.ids) == 4 and d.n_bytes == 64 for d in documents) and m.vocab_size(options) == 16
    held = [int(d.id[-6:]) for d in documents if d.heldout]
    changed = data.copy()
    changed[held] = 255 - changed[held]
    np.save(tmp_path / "x.npy", changed)
    other = opened("image", tmp_path / "x.npy", **options)[1]
    assert other.options["codebooks"] == stream.options["codebooks"]
    # The nearest code of each flat patch: about half the distance between 16 grey values spread over 256.
    errors = [np.abs(m.decode(d.ids, stream.options) - data[int(d.id[-6:])].astype(float)) for d in documents]
    assert np.mean(errors) < 10
    # What was learned serves other data, too.
    again = opened("image", tmp_path / "x.npy", **stream.options)[1]
    assert again.options == stream.options


def test_parts_have_codebooks_of_their_own(images):
    path, data = images
    options = {"tokens": "patches", "patch": 4, "codes": 8, "parts": 4}
    m, stream, documents = opened("image", path, **options)
    assert m.vocab_size(options) == 32 and np.array(stream.options["codebooks"]).shape == (4, 8, 4)
    for d in documents:
        assert (d.ids.reshape(-1, 4) // 8 == np.arange(4)).all() and len(d.ids) == 6 * 4
        assert m.decode(d.ids, stream.options).shape == (8, 12)
    fine = np.mean(
        [(m.decode(d.ids, stream.options) - data[int(d.id[-6:])].astype(float)) ** 2 for d in documents]
    )
    m, stream, documents = opened("image", path, **options | {"parts": 1})
    coarse = np.mean(
        [(m.decode(d.ids, stream.options) - data[int(d.id[-6:])].astype(float)) ** 2 for d in documents]
    )
    assert fine < 0.6 * coarse


def test_resize_is_the_mean_of_areas():
    x = RNG.uniform(size=(2, 6, 9, 3))
    np.testing.assert_allclose(pixels.resize(x, 2, 3), x.reshape(2, 2, 3, 3, 3, 3).mean(axis=(2, 4)))
    np.testing.assert_allclose(pixels.resize(x, 6, 9), x)
    np.testing.assert_allclose(pixels.resize(x, 4, 5).mean(axis=(1, 2)), x.mean(axis=(1, 2)))
    np.testing.assert_allclose(pixels.resize(x, 12, 18), x.repeat(2, axis=1).repeat(2, axis=2))


def test_kmeans_finds_clusters_and_is_reproducible():
    centres = RNG.uniform(-10, 10, size=(6, 3))
    x = (centres[:, None] + RNG.normal(scale=0.01, size=(6, 50, 3))).reshape(-1, 3)
    book = quantise.kmeans(x, 6, seed=1)
    assert np.array_equal(book, quantise.kmeans(x, 6, seed=1))
    order = np.lexsort((*centres.T[::-1], centres.mean(axis=1)))
    np.testing.assert_allclose(book, centres[order], atol=0.02)
    assert len(np.unique(quantise.nearest(x, book))) == 6
    # Fewer distinct vectors than codes: the rest stay unused.
    book = quantise.kmeans(np.repeat([[0.0], [1.0]], 5, axis=0), 4, seed=0)
    assert set(book.ravel()) == {0.0, 1.0}
    with pytest.raises(FlopwiseError, match=r"needs as many vectors, the training part has 300; lower"):
        quantise.kmeans(x, 301, seed=0)


def test_a_models_tokens_are_shown_whatever_they_are(images):
    m, stream, documents = opened("image", images[0], row_marker=True, label=False)
    ids = documents[0].ids
    whole = m.decode(ids, stream.options)
    assert m.decode(ids[:50], stream.options).shape == whole.shape == (8, 12)
    assert np.array_equal(m.decode(np.append(ids, ids), stream.options), whole)
    assert (m.decode(np.full(3, 16), stream.options) == 0).all()
    for wrong in (np.array([17]), np.array([-1]), np.array([[1]]), np.array([0.5])):
        with pytest.raises(FlopwiseError, match="modality image: id"):
            m.decode(wrong, stream.options)
    with pytest.raises(FlopwiseError, match="decode with the options that `open` returned"):
        m.decode(ids % 16, {})
    with pytest.raises(FlopwiseError, match="decode with the options that `open` returned"):
        m.decode(ids % 16, {"tokens": "patches", "size": [8, 12]})


def test_clips(tmp_path):
    data = RNG.integers(256, size=(5, 21, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "clips.npy", data)
    options = {"frames": 5, "stride": 2, "levels": 256}
    m, stream, documents = opened("video", tmp_path / "clips.npy", **options)
    assert m.vocab_size(options) == 257 and len(documents) == 10
    for d in documents:
        name, piece = d.id.rsplit("#", 1)
        clip = data[int(name[-6:]), ::2][5 * int(piece) :][:5]
        assert np.array_equal(m.decode(d.ids, stream.options), clip)
        assert (d.ids.reshape(5, 17)[:, 0] == 256).all() and d.n_bytes == 80
    # Both halves of a recording lie on the same side.
    sides = {}
    for d in documents:
        sides.setdefault(d.id.rsplit("#", 1)[0], set()).add(d.heldout)
    assert all(len(side) == 1 for side in sides.values()) and sum(True in s for s in sides.values()) == 2
    with pytest.raises(
        FlopwiseError, match=r"clips\.npy#00000\d has 21 frames \(1 in 1\), options\.frames is 22"
    ):
        opened("video", tmp_path / "clips.npy", frames=22)


def test_one_long_recording_is_split_in_time(tmp_path):
    data = RNG.integers(256, size=(80, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "long.npy", data)
    _, _, documents = opened("video", tmp_path / "long.npy", frames=8)
    assert len(documents) == 10 and [d.id for d in documents if d.heldout] == ["long.npy#8", "long.npy#9"]


def test_pictures_in_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    data = RNG.integers(256, size=(6, 5, 7, 3), dtype=np.uint8)
    for i, pixels_ in enumerate(data):
        folder = tmp_path / ("cats" if i % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        image.fromarray(pixels_).save(folder / f"{i}.png")
    options = {"channels": "rgb", "levels": 256, "label": True, "classes": 2}
    m, stream, documents = opened("image", tmp_path, **options)
    assert sorted(d.id for d in documents) == [f"cats/{i}.png" for i in (1, 3, 5)] + [
        f"dogs/{i}.png" for i in (0, 2, 4)
    ]
    for d in documents:
        assert np.array_equal(m.decode(d.ids, stream.options), data[int(d.id[5])])
        assert d.ids[0] == 256 + d.id.startswith("dogs")
    # Other sizes are scaled to the first one's, and other kinds of pictures are read.
    image.fromarray(RNG.integers(65536, size=(9, 9)).astype(np.uint16)).save(tmp_path / "deep.png")
    image.new("RGBA", (8, 8), (200, 100, 50, 0)).save(tmp_path / "clear.png")
    image.new("P", (8, 8)).save(tmp_path / "palette.png")
    image.new("1", (8, 8), 1).save(tmp_path / "white.png")
    image.fromarray(data[0]).save(tmp_path / "x.jpeg")
    m, stream, documents = opened("image", tmp_path, levels=256, size=[4, 4])
    shown = {d.id: m.decode(d.ids, stream.options) for d in documents}
    assert len(shown) == 11 and (shown["clear.png"] == 0).all() and (shown["white.png"] == 255).all()
    assert 90 < shown["deep.png"].mean() < 165


def test_animations(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(4):
        frames = [image.new("RGB", (6, 6), (40 * i + 10 * t, 0, 0)) for t in range(8)]
        frames[0].save(tmp_path / f"{i}.gif", save_all=True, append_images=frames[1:])
    m, stream, documents = opened("video", tmp_path, channels="rgb", levels=256, frames=8)
    for d in documents:
        clip = m.decode(d.ids, stream.options)
        assert clip.shape == (8, 6, 6, 3)
        assert np.abs(clip[:, 0, 0, 0].astype(int) - 40 * int(d.id[0]) - 10 * np.arange(8)).max() <= 3


def huge_npy(path, shape, descr="|u1"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (117 - len(header)) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64))


def hostile(tmp_path):
    """Files that cannot be images, and what is said of each."""
    (tmp_path / "empty.npy").write_bytes(b"")
    yield "empty.npy", "no readable array"
    huge_npy(tmp_path / "huge.npy", (10**6, 10**6, 10**6))
    yield "huge.npy", "no readable array"
    huge_npy(tmp_path / "pickle.npy", (3,), "|O")
    yield "pickle.npy", "no readable array"
    np.save(tmp_path / "wide.npy", np.zeros((4, 2, 5000), np.uint8))
    yield "wide.npy", "limit 4096 pixels a side"
    np.save(tmp_path / "nan.npy", np.full((4, 2, 2), np.nan))
    yield "nan.npy", "has pixels from nan to nan; float64 must lie in 0 to 1"
    np.save(tmp_path / "big.npy", np.full((4, 2, 2), 256))
    yield "big.npy", "int64 must lie in 0 to 255"
    np.save(tmp_path / "texts.npy", np.array([["a"]]))
    yield "texts.npy", "needs numbers in"
    np.save(tmp_path / "flat.npy", np.zeros(5))
    yield "flat.npy", "needs numbers in"
    np.save(tmp_path / "deep.npy", np.zeros((4, 2, 2, 2), np.uint8))
    yield "deep.npy", r"holds uint8 \[4, 2, 2, 2\]; image needs"
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 2, 2)), b=np.zeros((4, 2, 2)))
    yield "two.npz", "has 2 arrays of two dimensions or more"
    np.savez(tmp_path / "labels.npz", a=np.zeros((4, 2, 2)), labels=np.zeros(5))
    yield "labels.npz", "but 5 labels"
    np.savez(tmp_path / "cut.npz", a=np.zeros((4, 2, 2)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-40])
    yield "cut.npz", "no readable array"
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as z:
        z.writestr("a.npy", b"no array")
    yield "liar.npz", "has 0 arrays of two dimensions or more"
    (tmp_path / "folder").mkdir()
    yield "folder", "has no files; it needs .png"
    (tmp_path / "folder" / "x.txt").write_text("x")
    yield "folder", "has 1 files, none of them .png"
    yield "absent", "no such file or folder, and nothing that matches"
    np.save(tmp_path / "three.npy", np.zeros((3, 2, 2), np.uint8))
    yield "three.npy", "3 documents from 3 recordings are too few"


def test_hostile_arrays_are_one_line(tmp_path):
    for name, message in hostile(tmp_path):
        with pytest.raises(FlopwiseError, match=message) as e:
            opened("image", tmp_path / name)
        assert "\n" not in str(e.value) and (name in str(e.value) or name == "three.npy")


def test_hostile_pictures_are_one_line(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    image.new("L", (5000, 1)).save(tmp_path / "wide.png")
    cases = {
        "wide": "5000 x 1 pixels, limit 4096 a side",
        "text": "no readable picture",
        "cut": "cut or damaged",
    }
    (tmp_path / "text.png").write_text("<svg>")
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    frames = [image.new("RGB", (9, 9), (20 * i, 0, 0)) for i in range(9)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    animation = (tmp_path / "clip.gif").read_bytes()
    for damaged in (animation[: len(animation) // 2], animation[:60] + b"\xff" * 40 + animation[100:]):
        (tmp_path / "clip.gif").write_bytes(damaged)
        with pytest.raises(FlopwiseError, match=r"clip\.gif (is cut or damaged|has \d frames)") as e:
            opened("video", tmp_path / "clip.gif")
        assert "\n" not in str(e.value)
    for name, message in cases.items():
        with pytest.raises(FlopwiseError, match=message) as e:
            opened("image", tmp_path / f"{name}.png")
        assert "\n" not in str(e.value) and name in str(e.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 3}, "options.level is unknown; did you mean 'levels'"),
        ({"levels": 257}, "options.levels is 257"),
        ({"size": [0, 3]}, "options.size.0 is 0"),
        ({"size": [9, 8], "tokens": "patches"}, "multiples of patch 4"),
        ({"tokens": "patches", "parts": 5}, "must divide the 16 values"),
        ({"tokens": "words"}, "options.tokens is words"),
        (
            {"codebooks": [[[1.0]]], "tokens": "patches", "patch": 1, "size": [8, 12]},
            "must be 1 lists of 256 codes",
        ),
    ],
)
def test_options_are_checked(images, options, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        opened("image", images[0], **options)
    assert "\n" not in str(e.value)
