"""Divergences between a teacher's and a student's distributions: values, gradients, what top-k leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.examples import Example, collate
from flopwise.posttrain.teacher import attach, top_of
from flopwise.train.distill_objectives import buckets, distillation, divergence
from flopwise.train.objectives import Batch, cross_entropy

V = 24
EXAMPLES = [Example((3, 4), (5, 6, 2)), Example((7,), (8, 9, 10, 2)), Example((3, 4, 5), (11, 2))]


def model(seed: int, width: int = 16) -> Transformer:
    out = Transformer(ModelConfig.from_width(width, 2, V, 32)).initialise(seed)
    with torch.no_grad():
        out.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return out


def taught(teacher: Transformer, k: int = V, temperature: float = 1.0) -> Batch:
    batch = collate(EXAMPLES, pad_id=1)
    return attach(batch, *top_of(teacher, batch, k, temperature))


def drawn(seed: int, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(F.log_softmax(torch.randn(rows, V, generator=rng), -1) for _ in range(2))  # type: ignore[return-value]


@given(st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_divergences_are_those_of_their_definitions(seed: int, beta: float) -> None:
    student, teacher = drawn(seed)
    q, p = student.double().exp(), teacher.double().exp()

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(1)

    m = beta * p + (1 - beta) * q
    wanted = {0.0: kl(p, q), 1.0: kl(q, p)}.get(beta, beta * kl(p, m) + (1 - beta) * kl(q, m))
    assert torch.allclose(divergence(student, teacher, beta).double(), wanted, atol=1e-5)
    assert divergence(student, student, beta).abs().max() < 1e-6


@given(st.integers(0, 99), st.integers(1, V), st.sampled_from([0.0, 0.3, 1.0]))
def test_the_likeliest_tokens_and_the_rest_bound_the_whole_divergence(seed: int, k: int, beta: float) -> None:
    student, teacher = drawn(seed)
    ids = teacher.topk(k).indices
    part = divergence(buckets(student, ids), buckets(teacher, ids), beta)
    whole = divergence(student, teacher, beta)
    assert (part <= whole + 1e-5).all() and (part >= -1e-6).all()
    assert torch.allclose(buckets(student, ids).exp().sum(1), torch.ones(len(ids)), atol=1e-5)
    if k == V:
        assert torch.allclose(part, whole, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [4, V])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(beta: float, k: int) -> None:
    student, batch = model(0), taught(model(0), k, temperature=2.0)
    loss, logs = distillation(beta, temperature=2.0)(student, batch)
    loss.backward()
    assert abs(logs["divergence"]) < 1e-6
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-5


def test_with_all_tokens_the_gradient_is_that_of_the_plain_forward_kl() -> None:
    teacher, batch = model(1), taught(model(1))
    a, b = model(0), model(0)
    distillation()(a, batch)[0].backward()
    where = batch.weights.flatten().nonzero()[:, 0]  # type: ignore[union-attr]
    with torch.no_grad():
        target = F.log_softmax(teacher(batch.ids).flatten(0, 1)[where], -1)
    logits = F.log_softmax(b(batch.ids).flatten(0, 1)[where], -1)
    F.kl_div(logits, target, reduction="batchmean", log_target=True).backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-5)  # type: ignore[arg-type]


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    """Hinton et al.: at high temperature the gradient of a logit tends to the difference of centred logits
    over V, whatever the temperature, because the loss carries its square."""
    sizes = []
    for temperature in (20.0, 40.0):
        student = model(0)
        distillation(temperature=temperature)(student, taught(model(1), temperature=temperature))[
            0
        ].backward()
        sizes.append(float(student.head.weight.grad.norm()))  # type: ignore[union-attr]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_hard_labels_alone_are_cross_entropy() -> None:
    a, b, batch = model(0), model(0), taught(model(1), k=4)
    loss, logs = distillation(hard_weight=1.0)(a, batch)
    plain, _ = cross_entropy(b, batch)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    assert logs["cross_entropy"] == pytest.approx(plain.item(), abs=1e-5)
    half = distillation(hard_weight=0.5)(a, batch)[0].item()
    assert half == pytest.approx(0.5 * logs["divergence"] + 0.5 * logs["cross_entropy"], abs=1e-5)


def test_only_learned_tokens_count_by_their_weights() -> None:
    student, teacher = model(0), model(1)
    weighted = [Example((3, 4), (5, 6, 2), (1.0, 0.0, 3.0))]
    batch = collate(weighted, pad_id=1)
    attach(batch, *top_of(teacher, batch, V))
    each = []
    for weights in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)):
        one = collate([Example((3, 4), (5, 6, 2), weights)], pad_id=1)
        each.append(distillation()(student, attach(one, *top_of(teacher, one, V)))[0].item())
    assert distillation()(student, batch)[0].item() == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-5)


def test_a_mass_near_one_keeps_its_digits() -> None:
    logits = torch.zeros(1, V)
    logits[0, 0] = 40.0
    rest = buckets(F.log_softmax(logits, -1), torch.tensor([[0]]))[0, 1]
    assert rest == pytest.approx(-30.0) and math.isfinite(rest)
    logits[0, 0] = 20.0
    rest = buckets(F.log_softmax(logits, -1), torch.tensor([[0]]))[0, 1]
    assert rest.item() == pytest.approx(math.log(V - 1) - 20, rel=1e-4)


def test_what_cannot_be_distilled_is_one_line() -> None:
    with pytest.raises(FlopwiseError, match="no teacher's log-probabilities"):
        distillation()(model(0), collate(EXAMPLES, pad_id=1))
    small = Transformer(ModelConfig.from_width(16, 1, V - 8, 32)).initialise(0)
    with pytest.raises(FlopwiseError, match="the student has 16; distil sequences"):
        distillation()(small, taught(model(1)))


def test_a_teacher_s_word_lies_where_it_belongs() -> None:
    teacher = model(1)
    batch = taught(teacher, k=3)
    logprobs = F.log_softmax(teacher(batch.ids), -1)
    for row, e in enumerate(EXAMPLES):
        for at in range(len(e.prompt) - 1, len(e) - 1):
            top = logprobs[row, at].topk(3)
            assert batch.extra["teacher_ids"][row, at].tolist() == top.indices.tolist()
            assert torch.allclose(batch.extra["teacher_logprobs"][row, at], top.values, atol=1e-5)
            others = [p for i, p in enumerate(logprobs[row, at].exp().tolist()) if i not in top.indices]
            rest = np.log(sum(others))
            assert batch.extra["teacher_rest"][row, at].item() == pytest.approx(rest, abs=1e-4)
