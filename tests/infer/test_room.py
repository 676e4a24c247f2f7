"""A room counts what strategies spend, and draws the same whatever else is asked."""

import numpy as np
import pytest
from tiny_models import make_model

from flopwise.data.tasks import task
from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.flops.count import decode_flops, generate_flops, prefill_flops, score_flops
from flopwise.infer.asking import Asked
from flopwise.infer.local import LocalEngine
from flopwise.infer.room import Room
from flopwise.infer.scorers import OutcomeScorer, ProcessScorer
from flopwise.infer.strategies import Choice

TASK, TOK = task("countdown"), ByteTokenizer()
PROBLEMS = TASK.generate(4, 1)
MODEL = make_model(vocab=TOK.vocab_size)
SCORER = LocalEngine(make_model(1, vocab=TOK.vocab_size))
LIMIT = 12


def room(problems=PROBLEMS, limit=LIMIT):
    asked = Asked.of(TASK, problems, "plain", 4, TOK, None)
    scorers = {"reward": OutcomeScorer(SCORER), "process": ProcessScorer(SCORER, TASK, TOK)}
    return Room(LocalEngine(MODEL), TOK, TASK, problems, asked, limit, scorers=scorers)


def nodes(rows):
    return [(r.problem, r.tokens) for r in rows]


def test_a_prompt_is_read_once_for_all_its_samples():
    r = room()
    samples = r.samples(3, 1, ["reward"])
    for p in range(4):
        prompt = len(r.asked.ids[p])
        lengths = samples.tokens[p].tolist()
        whole = generate_flops(MODEL.cfg, prompt, lengths).total
        assert samples.prefill_flops[p] == prefill_flops(MODEL.cfg, prompt).total
        assert samples.prefill_flops[p] + samples.decode_flops[p].sum() == pytest.approx(whole)
        scored = sum(score_flops(MODEL.cfg, prompt + m, n_logits=0).total for m in lengths)
        assert samples.score_flops["reward"][p].sum() == pytest.approx(scored)
        spent = sum(flops[p] for flops in r.flops.values())
        assert spent == pytest.approx(whole + scored)
        assert r.tokens[p] == sum(lengths)
    assert r.usage.flops == pytest.approx(r.flops["prefill"].sum() + r.flops["decode"].sum())
    again = r.samples(2, 2)
    assert again.prefill_flops.sum() == 0  # it was read before
    assert r.fresh().flops["prefill"].sum() == 0


def test_going_on_costs_the_last_token_and_what_is_new():
    r = room()
    first = r.sample([(0, ())], 1, limit=5)[0]
    before = {name: flops[0] for name, flops in r.flops.items()}
    second = r.sample([(0, first.tokens)], 1, limit=3)[0]
    prompt = len(r.asked.ids[0])
    read = r.flops["prefill"][0] - before["prefill"]
    # Reading one more token at that place is what decoding one is.
    assert read == pytest.approx(decode_flops(MODEL.cfg, prompt + 5).total)
    wrote = r.flops["decode"][0] - before["decode"]
    assert wrote == pytest.approx(sum(decode_flops(MODEL.cfg, prompt + 5 + i).total for i in (1, 2)))
    r.sample([(0, first.tokens)], 1, limit=3, seed=5)
    assert r.flops["prefill"][0] - before["prefill"] == read  # its logits are known
    # Going back into what was written reads that one token again.
    r.sample([(0, (first.tokens + second.tokens)[:6])], 1, limit=1)
    again = r.flops["prefill"][0] - before["prefill"] - read
    assert again == pytest.approx(decode_flops(MODEL.cfg, prompt + 6).total)
    # A text that nobody wrote is read as far as it is new.
    r2 = room()
    r2.sample([(0, (5, 6, 7))], 1, limit=1)
    assert r2.flops["prefill"][0] == prefill_flops(MODEL.cfg, prompt + 3).total


def test_draws_do_not_depend_on_what_else_is_asked():
    everything, alone = room(), room(PROBLEMS[2:3])
    both = everything.sample([(0, ()), (2, ()), (1, ())], 2, limit=4, seed=9)
    one = alone.sample([(0, ())], 2, limit=4, seed=9)
    assert [r.tokens for r in both[2:4]] == [r.tokens for r in one]
    on = everything.sample([(0, both[0].tokens), (2, both[2].tokens)], 1, seed=10)
    assert on[1].tokens == alone.sample([(0, one[0].tokens)], 1, seed=10)[0].tokens
    assert everything.samples(2, 3).texts[2] == alone.samples(2, 3).texts[0]
    # The same prefix twice goes on in two ways.
    twice = everything.sample([(0, ()), (0, ())], 1, seed=9)
    assert twice[0].tokens != twice[1].tokens
    assert twice[0].tokens[:4] == both[0].tokens


def test_a_completion_never_gets_longer_than_allowed():
    r = room()
    first = r.sample([(0, ())], 1, limit=LIMIT - 2)[0]
    rows = r.sample([(0, first.tokens), (1, ()), (2, (9,) * LIMIT)], 1, limit=100)
    assert [len(row.tokens) for row in rows] == [2, LIMIT, 0]
    assert not any(row.finished for row in rows)
    # The limit of one does not touch what another gets.
    assert room().sample([(1, ())], 1, limit=100)[0].tokens == rows[1].tokens
    # Nor beyond the context, whoever else has room.
    wide = room(limit=1000)
    context = MODEL.cfg.max_seq_len
    far = (9,) * (context - len(wide.asked.ids[0]) - 3)
    rows = wide.sample([(0, far), (1, ())], 1)
    for row, most in zip(rows, (3, context - len(wide.asked.ids[1])), strict=True):
        assert len(row.tokens) == most or (row.ended and 0 < len(row.tokens) < most)


def test_stops_end_a_piece_or_the_completion():
    r = room()
    row = next(x for s in range(50) for x in r.sample([(0, ())], 8, seed=s) if len(x.tokens) > 3)
    step, end = row.tokens[2], row.tokens[1]
    r.asked.stop.append(end)
    rows = r.sample([(p, ()) for p in range(4)], 16, stop=[*r.asked.stop, step], seed=3)
    for x in rows:
        assert x.finished == (x.tokens[-1] in (TOK.eos_id, step, end))
        assert x.ended == (x.tokens[-1] in (TOK.eos_id, end))
        assert not set(x.tokens[:-1]) & {TOK.eos_id, step, end}


def test_values_and_scores_are_charged_to_their_problems():
    r = room()
    rows = r.sample([(0, ()), (1, ())], 2, limit=4)
    values = r.values(nodes(rows))
    assert ((values > 0) & (values < 1)).all()
    one = score_flops(MODEL.cfg, len(r.asked.ids[0]) + 4, n_logits=0).total
    assert r.flops["score"][0] == pytest.approx(2 * one) and r.flops["score"][2] == 0
    assert np.allclose(values, r.values(nodes(rows), by="process"))
    text = tuple(TOK.encode("2+3=6,")), tuple(TOK.encode("2+3=5,"))
    assert r.fresh().values([(0, text[0]), (0, text[1])], by="checker")[0] == 0.5
    assert r.values([]).shape == (0,)
    with pytest.raises(FlopwiseError, match="goes by judge, which is not there; name it with --judge"):
        r.values(nodes(rows), by="judge")
    assert "process" in r.clock and r.clock["process"] > 0


def test_candidates_are_judged_by_verifier_and_scorers():
    r = room()
    worked = tuple(TOK.encode(TASK.demonstration(PROBLEMS[0], 0)))
    right, cut = r.candidates(
        [(0, (*worked, TOK.eos_id)), (0, worked)], [-2.0, -1.5], ["process_min", "reward"]
    )
    assert right.correct and right.answer and not cut.correct and cut.answer is None
    assert right.tokens == len(worked) + 1 and right.logprob == -2.0
    assert set(right.scores) == {"reward", "process_min", "process_last", "process_product"}
    assert len(right.steps) > 1 and all(0 <= v <= 1 for v in right.steps)
    odds = np.log(right.steps) - np.log1p(-np.array(right.steps))
    assert right.scores["process_min"] == pytest.approx(odds.min(), abs=1e-4)
    outcome = r.outcome(0, [right], Choice(0), [])
    assert outcome.chosen is right and outcome.flops["score"] > 0 and outcome.flops["prefill"] == 0


def test_samples_equal_the_pieces_of_them():
    r = room()
    samples = r.samples(2, 7, ["process_last"])
    again = r.fresh().sample([(p, ()) for p in range(4)], 2, seed=7)
    assert [len(x.tokens) for x in again] == samples.tokens.ravel().tolist()
    assert [r.text(x.tokens) for x in again] == [t for row in samples.texts for t in row]
    scored = r.candidates(nodes(again), scores=["process_last"])
    assert np.allclose([c.scores["process_last"] for c in scored], samples.scores["process_last"].ravel())
    assert [c.correct for c in scored] == samples.correct.ravel().tolist()


def test_a_scorer_that_is_not_there_is_one_line():
    with pytest.raises(FlopwiseError, match="samples goes by probe"):
        room().samples(1, 0, ["probe"])


def test_a_scorer_that_keeps_what_it_read_reads_only_what_is_new():
    asked = Asked.of(TASK, PROBLEMS, "plain", 4, TOK, None)
    keeps = LocalEngine(SCORER.model, prefix_cache=1 << 24)
    rooms = [
        Room(LocalEngine(MODEL), TOK, TASK, PROBLEMS, asked, LIMIT, scorers={"process": scorer})
        for scorer in (ProcessScorer(SCORER, TASK, TOK), ProcessScorer(keeps, TASK, TOK))
    ]
    short = [(p, (5, 6, 7)) for p in range(4)]
    longer = [(p, (5, 6, 7, 8, 9 + p)) for p in range(4)]
    for nodes_ in (short, longer, longer):
        whole, new = (r.values(nodes_) for r in rooms)
        assert np.allclose(whole, new, atol=1e-5)
    for p in range(4):
        size = len(asked.ids[p])
        first, second = (score_flops(SCORER.cfg, size + n, n_logits=0).total for n in (3, 5))
        assert rooms[0].flops["score"][p] == pytest.approx(first + 2 * second)
        # Of five tokens three were read before; the very same text is known.
        assert rooms[1].flops["score"][p] == pytest.approx(first + second * 2 / (size + 5))
    assert keeps.values_after([[1, 2, 3]])[0][0] == pytest.approx(SCORER.reward([[1, 2, 3]])[0][0], abs=1e-5)
