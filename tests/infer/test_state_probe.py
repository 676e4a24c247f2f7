"""A probe finds what the states tell, measures itself on other problems, and refuses those it knows."""

import json

import numpy as np
import pytest
from tiny_models import make_model
from typer.testing import CliRunner

from flopwise.cli import command_line
from flopwise.data.tasks import task
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.infer.asking import Asked
from flopwise.infer.local import LocalEngine
from flopwise.infer.probe import Probe, fit_probe, logistic
from flopwise.infer.room import Room
from flopwise.infer.strategies import make
from flopwise.models import hf

TASK, TOK = task("countdown"), ByteTokenizer()
PROBLEMS = TASK.generate(60, 1)


def room(problems, scorers=None):
    asked = Asked.of(TASK, problems, "plain", 4, TOK, None)
    engine = LocalEngine(make_model(vocab=TOK.vocab_size))
    return Room(engine, TOK, TASK, problems, asked, 8, scorers=scorers or {})


@pytest.fixture
def states_tell(monkeypatch):
    """An answer is right where the embedding of its last token points somewhere: its state tells, roughly."""
    toward = np.random.default_rng(0).normal(size=make_model(vocab=TOK.vocab_size).cfg.d_model)
    right = make_model(vocab=TOK.vocab_size).embed.weight.detach().numpy() @ toward > 0
    monkeypatch.setattr(Room, "_verdict", lambda self, w: (bool(w.tokens) and bool(right[w.tokens[-1]]), "x"))


def test_logistic_regression_finds_the_weights_that_made_the_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 6)) * [1, 2, 3, 1, 1, 1] + 5
    true, bias = np.array([1.0, -0.5, 0.3, 0, 0, 0]), -1.0
    right = rng.random(4000) < 1 / (1 + np.exp(-(x @ true + bias)))
    weights, b, _ = logistic(x, right, np.arange(4000) // 8)
    assert np.abs(weights - true).max() < 0.15 and abs(b - bias) < 0.8
    noise = logistic(x, rng.random(4000) < 0.5, np.arange(4000) // 8)
    assert noise[2] >= 0.01 and np.abs(noise[0] * x.std(axis=0)).max() < 0.1


def test_a_probe_ranks_answers_to_problems_it_has_not_seen(states_tell, tmp_path):
    fitted = fit_probe(room(PROBLEMS[:40]), 8, seed=2)
    assert fitted.about["auc_within"] > 0.8 and fitted.about["held_out_problems"] == 8
    model = tmp_path / "model"
    hf.save(make_model(vocab=TOK.vocab_size), model, TOK)
    from flopwise.infer.store import model_hash

    fitted.about["model"] = model_hash(model)
    fitted.save(tmp_path / "probe")
    fresh = room(PROBLEMS[40:])
    loaded = Probe.load(tmp_path / "probe", model, fresh.engine)
    fresh.scorers["probe"] = loaded
    samples = fresh.samples(8, 3, ["probe"])
    chosen, any_ = (make(n).replay(samples, 8).mean() for n in ("best_of_n:probe", "best_of_n:verifier"))
    assert chosen > samples.correct.mean() + 0.2 and chosen <= any_
    assert (samples.score_flops["probe"] > 0).all()
    known = room(PROBLEMS[39:41], {"probe": loaded})
    with pytest.raises(FlopwiseError, match="1 of the problems were used to fit it"):
        known.samples(1, 0, ["probe"])
    hf.save(make_model(vocab=TOK.vocab_size, seed=5), tmp_path / "other", TOK)
    with pytest.raises(FlopwiseError, match="fitted to another model"):
        Probe.load(tmp_path / "probe", tmp_path / "other", fresh.engine)
    (tmp_path / "probe" / "probe.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(FlopwiseError, match="holds no probe"):
        Probe.load(tmp_path / "probe", model, fresh.engine)


def test_what_cannot_be_learned_from_is_one_line(monkeypatch):
    with pytest.raises(FlopwiseError, match="at least 10 are needed"):
        fit_probe(room(PROBLEMS[:5]))
    with pytest.raises(FlopwiseError, match="some right and some wrong"):
        fit_probe(room(PROBLEMS[:12]), 2)


def test_the_command_fits_and_eval_uses_it(states_tell, tmp_path):
    hf.save(make_model(vocab=TOK.vocab_size), tmp_path / "model", TOK)

    def run(*arguments):
        out = CliRunner().invoke(command_line(), [str(a) for a in arguments], catch_exceptions=False)
        assert out.exit_code == 0, out.output
        return out.output

    how = ("--max-tokens", 8, "--task", "countdown")
    said = run("probe", tmp_path / "model", "-o", tmp_path / "probe", "--problems", 20, "-n", 4, *how)
    assert "held-out problems" in said and "--strategy best_of_n:probe" in said
    found = run("eval", tmp_path / "model", "--strategy", "best_of_n:probe,weighted:probe,best_of_n", "-n", 2,
                "--problems", 8, "--probe", tmp_path / "probe", "--json", *how)  # fmt: skip
    found = json.loads(found[found.index("{") :])
    assert [s["name"] for s in found["strategies"]] == [
        "best_of_n:probe",
        "weighted:probe",
        "best_of_n:verifier",
    ]
    costs = [s["points"][-1]["flops"] for s in found["strategies"]]
    assert costs[0] == costs[1] > costs[2]
