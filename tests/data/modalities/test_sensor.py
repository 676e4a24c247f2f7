"""Sensors: bins learned of the training part, layouts of channels, tables and arrays, hostile files."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.data.modalities import modality
from flopwise.errors import FlopwiseError


def opened(path, **options):
    m = modality("sensor")
    stream = m.open({"path": str(path), "options": options})
    return m, stream, list(stream.documents)


@pytest.fixture
def series(tmp_path):
    """Thirty recordings of 40 steps and three channels of very different sizes."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=(30, 40, 3)).cumsum(axis=1) * [1, 100, 1e-3] + [0, 5000, 1]
    np.save(tmp_path / "x.npy", data)
    return tmp_path / "x.npy", data


def index(document):
    return int(document.id[-6:])


def test_uniform_bins_are_within_half_a_width(series):
    path, data = series
    options = {"channels": 3, "bins": 50}
    m, stream, documents = opened(path, **options)
    assert m.vocab_size(options) == 150 and len(documents) == 30
    train = data[[index(d) for d in documents if not d.heldout]].reshape(-1, 3)
    low, high = train.min(axis=0), train.max(axis=0)
    np.testing.assert_allclose(np.array(stream.options["edges"])[:, [0, -1]].T, [low, high])
    for d in documents:
        back, there = m.decode(d.ids, stream.options), data[index(d)]
        inside = (there >= low) & (there <= high)
        assert (np.abs(back - there) <= (high - low) / 100 * (1 + 1e-9))[inside].all()
        # What lies outside is in the outermost bin.
        assert (back[there > high] >= (high - (high - low) / 99 + 0 * there)[there > high]).all()
        assert (d.ids.reshape(40, 3) // 50 == np.arange(3)).all() and d.n_bytes == 4 * 120


def test_quantile_bins_hold_equally_many(series):
    path, data = series
    m, stream, documents = opened(path, channels=3, bins=16, binning="quantile")
    ids = np.concatenate([d.ids.reshape(-1, 3) for d in documents if not d.heldout])
    counts = np.stack([np.bincount(ids[:, c] - 16 * c, minlength=16) for c in range(3)])
    assert np.abs(counts - len(ids) / 16).max() <= 1
    train = data[[index(d) for d in documents if not d.heldout]].reshape(-1, 3)
    back = np.concatenate([m.decode(d.ids, stream.options) for d in documents if not d.heldout])
    # A bin stands for the mean of its values, so the mean of all is kept.
    np.testing.assert_allclose(back.mean(axis=0), train.mean(axis=0), rtol=1e-9)


def test_channels_may_have_tokens(series):
    path, _ = series
    options = {"channels": 3, "bins": 20, "channel": "token"}
    m, stream, documents = opened(path, **options)
    assert m.vocab_size(options) == 23
    offset = opened(path, **options | {"channel": "offset"})
    for d, e in zip(documents, offset[2], strict=True):
        pairs = d.ids.reshape(40, 3, 2)
        assert (pairs[..., 0] == 20 + np.arange(3)).all() and (pairs[..., 1] < 20).all()
        assert np.array_equal(m.decode(d.ids, stream.options), m.decode(e.ids, offset[1].options))


def test_held_out_recordings_teach_nothing(series):
    path, data = series
    options = {"channels": 3, "binning": "quantile"}
    _, stream, documents = opened(path, **options)
    held = [index(d) for d in documents if d.heldout]
    assert len(held) == 2
    data[held] *= 1000
    np.save(path, data)
    assert opened(path, **options)[1].options == stream.options


def test_recordings_are_cut_in_time_but_not_split(series):
    _, _, documents = opened(series[0], channels=3, steps=16)
    assert sorted(len(d.ids) for d in documents) == [24] * 30 + [48] * 60
    held = {d.id.split("#")[1] for d in documents if d.heldout}
    assert len(held) == 2 and not held & {d.id.split("#")[1] for d in documents if not d.heldout}


def test_nothing_may_stand_somewhere(tmp_path):
    data = np.arange(80.0).reshape(8, 5, 2)
    data[3, 2, 1] = np.nan
    np.save(tmp_path / "x.npy", data)
    with pytest.raises(FlopwiseError, match=r"x\.npy#000003 has nan in row 3, channel 2; correct it, or set"):
        opened(tmp_path / "x.npy", channels=2)
    for channel in ("offset", "token"):
        options = {"channels": 2, "bins": 8, "missing": "token", "channel": channel, "label": False}
        m, stream, documents = opened(tmp_path / "x.npy", **options)
        assert m.vocab_size(options) == (17 if channel == "offset" else 11)
        (d,) = [d for d in documents if index(d) == 3]
        assert (d.ids == m.vocab_size(options) - 1).sum() == 1
        back = m.decode(d.ids, stream.options)
        assert np.isnan(back[2, 1]) and np.isfinite(back).sum() == 9
    data[3, 2, 1] = np.inf
    np.save(tmp_path / "x.npy", data)
    with pytest.raises(FlopwiseError, match="has inf in row 3"):
        opened(tmp_path / "x.npy", **options)


def test_one_table_of_many_recordings(tmp_path):
    rows = ["id,time,kind,x,y"]
    for r in range(6):
        rows += [f"r{r},{t},{'up' if r % 2 else 'down'},{r + t},{10 * t}" for t in (2, 0, 1)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    options = {
        "channels": 2, "bins": 64, "id_column": "id", "time_column": "time", "class_column": "kind",
        "label": True, "classes": 2,
    }  # fmt: skip
    m, stream, documents = opened(tmp_path / "t.csv", **options)
    assert sorted(d.id for d in documents) == [f"t.csv#r{r}" for r in range(6)]
    assert stream.options["labels"] == ["down", "up"]
    for d in documents:
        r = int(d.id[-1])
        assert d.ids[0] == 128 + r % 2
        if not d.heldout:
            there = [[r + t, 10 * t] for t in range(3)]
            np.testing.assert_allclose(m.decode(d.ids, stream.options), there, atol=0.2)
    with pytest.raises(FlopwiseError, match="has no column 'who'; there are id, time, kind, x, y"):
        opened(tmp_path / "t.csv", **options | {"id_column": "who"})
    with pytest.raises(FlopwiseError, match="has 3 classes in 'x', must have one"):
        opened(tmp_path / "t.csv", **options | {"class_column": "x", "columns": ["x", "y"]})
    with pytest.raises(FlopwiseError, match=r"2 columns are named, channels is 1"):
        opened(tmp_path / "t.csv", columns=["x", "y"])


def test_a_folder_of_tables_and_ts_files(tmp_path):
    for r in range(5):
        (tmp_path / f"{r}.csv").write_text("a;b\n" + "\n".join(f"{r};{t}" for t in range(4)))
    _, _, documents = opened(tmp_path, channels=2)
    assert len(documents) == 5 and all(len(d.ids) == 8 for d in documents)
    (tmp_path / "more.ts").write_text("@classLabel true a b\n@data\n" + "1,2:3,4:a\n5,6:7,8:b\n" * 3)
    _, _, documents = opened(tmp_path / "more.ts", channels=2, label=True)
    assert len(documents) == 6 and all(len(d.ids) == 5 for d in documents)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3,x\n", r"x\.csv: column 'b' holds 'x' in row 2"), ("", r"x\.csv"),
        ("a,b\n", "has no rows"),
        ("a\n1\n2\n", r"x\.csv has 1 channels, options\.channels is 2; set it"),
        ("a,b\n1,2\n3,\n", r"has nan in row 2, channel 2"), ("\x00\x01\x02", r"x\.csv"),
    ],
)  # fmt: skip
def test_hostile_tables_are_one_line(tmp_path, content, message):
    for r in range(5):
        (tmp_path / f"{r}.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(FlopwiseError, match=message) as e:
        opened(tmp_path, channels=2)
    assert "\n" not in str(e.value)


def test_corpora_know_their_channels():
    m = modality("sensor")
    assert m.vocab_size({"bins": 32}, "motions") == 6 * 32
    assert m.vocab_size({"label": True}, "vowels") == 12 * 64 + 9
    with pytest.raises(FlopwiseError, match="decode with the options that `open` returned"):
        m.decode(np.array([1]), {})
    with pytest.raises(FlopwiseError, match="must be 1 lists of 3"):
        m.decode(np.array([1]), {"bins": 2, "edges": [[0.0, 1.0]], "centres": [[0.5]]})
