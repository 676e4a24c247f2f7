"""The calibration source: its entropy is what its tokens show, and documents depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from flopwise.data.modalities import modality
from flopwise.data.modalities.calibration import CalibrationOptions, Entropy, entropy, tables
from flopwise.errors import FlopwiseError

SMALL = {"vocab": 8, "candidates": 3, "tokens": 200_000, "document_tokens": 20_000}


def probabilities(options: CalibrationOptions) -> np.ndarray:
    """p(c | a, b), written out one by one."""
    t, v = tables(options), options.vocab
    p = np.empty((v, v, v))
    for a in range(v):
        for b in range(v):
            for c in range(v):
                second = sum(r for r, x in zip(t.rank, t.bigram[b], strict=True) if x == c)
                third = sum(r for r, x in zip(t.rank, t.trigram[a, b], strict=True) if x == c)
                p[a, b, c] = t.weights @ [t.unigram[c], second, third]
    return p


def test_entropy_is_that_of_the_stationary_chain():
    options = CalibrationOptions(vocab=6, candidates=2)
    p = probabilities(options)
    np.testing.assert_allclose(p.sum(axis=2), 1)
    # The chain of pairs as one matrix; its stationary distribution is an eigenvector.
    chain = np.zeros((36, 36))
    for a in range(6):
        for b in range(6):
            chain[6 * a + b, 6 * b : 6 * b + 6] = p[a, b]
    values, vectors = np.linalg.eig(chain.T)
    pi = np.real(vectors[:, np.argmax(values.real)])
    pi /= pi.sum()
    rate = -(pi[:, None] * p.reshape(36, 6) * np.log(p.reshape(36, 6))).sum()
    single = pi.reshape(6, 6).sum(axis=1)
    found = entropy(options)
    assert found.rate == pytest.approx(rate, rel=1e-10)
    assert found.first == pytest.approx(-(single * np.log(single)).sum(), rel=1e-10)
    assert found.second == pytest.approx(-(pi * np.log(pi)).sum() - found.first, rel=1e-9)
    assert found.rate < found.second < found.first < np.log(6)


def test_a_perfect_model_loses_the_entropy_on_the_tokens():
    m = modality("calibration")
    stream = m.open({"corpus": "calibration", "options": SMALL})
    p = probabilities(CalibrationOptions.model_validate(SMALL))
    losses = []
    for document in stream.documents:
        ids = document.ids
        losses.append(-np.log(p[ids[:-2], ids[1:-1], ids[2:]]))
    loss = np.concatenate(losses)
    error = loss.std() / len(loss) ** 0.5
    assert abs(loss.mean() - stream.extra["entropy"]) < 4 * error < 0.02


def test_default_entropy():
    """The number that recipes are graded by: a change of the source must not go unnoticed."""
    exact = entropy(CalibrationOptions())
    assert exact == pytest.approx(Entropy(3.08627438, 3.72718824, 4.27082723), abs=1e-7)


def test_documents_depend_on_the_seed_alone():
    m = modality("calibration")
    few = list(m.documents({"options": SMALL | {"tokens": 100_000}}))
    many = list(m.documents({"options": SMALL}))
    assert [len(few), len(many)] == [5, 10] and [d.heldout for d in few] == [False] * 3 + [True] * 2
    for a, b in zip(few, many, strict=False):
        assert a.id == b.id and np.array_equal(a.ids, b.ids) and a.n_bytes == 20_000
    other = next(m.documents({"options": SMALL | {"seed": 1}}))
    assert not np.array_equal(other.ids, few[0].ids)
    assert m.vocab_size(SMALL) == 8 and max(d.ids.max() for d in many) == 7
    assert np.array_equal(m.decode(few[0].ids, SMALL), few[0].ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 1000}, "lower options.document_tokens"),
        ({"vocab": 1}, "options.vocab is 1"),
        ({"weights": [0, 0.5, 0.5]}, "the first above"),
        ({"vocabulary": 3}, "did you mean 'vocab'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(FlopwiseError, match=message) as e:
        modality("calibration").open({"options": options})
    assert "\n" not in str(e.value)
