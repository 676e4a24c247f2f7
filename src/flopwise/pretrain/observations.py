"""From finished runs of a ladder to the table that laws are fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.flops.count import count_params, six_nd, train_flops
from flopwise.models.config import ModelConfig

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import RunRecord


DENSE = {"E": 1.0, "S": 0.0, "G": 1.0}
"""Expansion, sparsity and granularity of a model without experts."""


def size_columns(cfg: ModelConfig, tokens: float, seq_len: int) -> dict[str, float]:
    """What a run's shape and tokens say before it is made.

    N counts non-embedding parameters (Kaplan et al., arXiv 2001.08361, section 2.1: the count that makes
    small models line up), N_active those a token uses, N_total all with the tables; C the exact training
    FLOPs, C_6nd the rule of thumb, N_flops = C / 6D the size that would cost as much by that rule. E is the
    expansion of the feed-forward part, S the share of experts at rest, G the granularity (1, 0, 1: dense);
    V the vocabulary.
    """
    params = count_params(cfg)
    C = tokens / seq_len * train_flops(cfg, seq_len).total
    used = cfg.experts_per_token * cfg.d_expert + cfg.d_shared
    held = cfg.n_experts * cfg.d_expert + cfg.d_shared
    return {
        "N": float(params.non_embedding), "N_active": float(params.active_non_embedding),
        "N_total": float(params.total), "N_embedding": float(params.embedding), "D": float(tokens), "C": C,
        "C_6nd": six_nd(cfg, tokens), "N_flops": C / 6 / tokens,
        "V": float(cfg.vocab_size), "E": held / used if used else 1.0,
        "S": 1 - cfg.experts_per_token / cfg.n_experts if cfg.n_experts else 0.0,
        "G": used / cfg.d_expert if cfg.n_experts else 1.0,
    }  # fmt: skip


def share_columns(mixture: dict[str, float]) -> dict[str, float]:
    """Of each source its share of the tokens, by what weighs it in a mixture.

    >>> share_columns({"text": 3, "image": 1})
    {'share_text': 0.75, 'share_image': 0.25}
    """
    return {f"share_{name}": share / sum(mixture.values()) for name, share in mixture.items()}


def observation(record: RunRecord) -> dict[str, Any]:
    """One row from a finished cooldown run.

    U: distinct tokens that could be shown, D tokens seen from the trunk's start, C the measured training
    FLOPs of its lineage, H the bytes that D stands for, where there is one source; `run` the trunk, which
    is the cluster: branches of one trunk share its noise.
    """
    assert record.model is not None and record.data is not None  # pretraining has both
    cfg, extra = ModelConfig(**record.model["architecture"]), record.extra
    D, variant = float(record.data["tokens_seen"]), str(extra.get("variant") or "base")
    row: dict[str, Any] = {
        "id": record.id, "variant": variant, "width": cfg.d_model, "seed": record.seed,
        **size_columns(cfg, D, cfg.max_seq_len), "C": float(record.lineage_spend.train_flops),
        "N": float(record.model["n_params_non_embedding"]), "N_total": float(record.model["n_params_total"]),
        "U": float(record.data.get("tokens_unique") or D), "batch": float(extra.get("batch_size") or 0),
        "rate": float(extra.get("rate_factor") or 1.0),
    }  # fmt: skip
    row |= share_columns(extra.get("mixture") or {})
    for name, metric in record.metrics.items():
        row[name] = metric.value
    if row.get("accuracy") is not None:
        row["error"] = 1 - row["accuracy"]
    sizes = [metric for name, metric in row.items() if name.startswith("bpb_")]
    if len(sizes) == 1 and sizes[0]:  # of several sources the bytes depend on their shares
        row["H"] = D * row["loss"] / (sizes[0] * math.log(2))
    row["loss_se"] = record.metrics["loss"].se
    trunk = f"w{cfg.d_model}-s{record.seed}"
    return row | {"run": trunk if variant == "base" else f"{variant}-{trunk}"}


def gather(runs: Iterable[RunFolder]) -> list[dict[str, Any]]:
    """Rows of finished runs, smallest first."""
    rows = [observation(folder.record()) for folder in runs]
    return sorted(rows, key=lambda r: (r["variant"], r["N"], r["seed"], r["D"]))


def columns(rows: Iterable[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as a table of those columns that all rows have. Where all are dense, what tells mixtures of
    experts apart is left out: its letters (E, S, G) are then free for the parameters of a formula."""
    rows = list(rows)
    shared = [key for key in rows[0] if all(row.get(key) is not None for row in rows)]
    if all(row.get(key) in (None, dense) for row in rows for key, dense in DENSE.items()):
        shared = [key for key in shared if key not in DENSE]
    return {key: np.array([row[key] for row in rows]) for key in shared}
