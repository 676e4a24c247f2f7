"""What a plan is made for: the demand, what must hold, the machine; and what a point costs.

FLOPs are 6 N per token trained (pretraining or post-training) and 2 N per token read or written at inference
(Kaplan et al., arXiv 2001.08361, section 2.1; Sardana et al., arXiv 2401.00448, eq. 1); the samples of a
question share the reading of its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.hardware import PROFILES, Profile, profile

Array = np.ndarray
HOUR, DAY = 3600.0, 86400.0
MFU = 0.4
"""Assumed where none is stated: share of the peak that training reaches."""
SERVING_MFU = 0.2
"""Assumed: the same of serving, which waits for memory."""
OVERHEAD = 1.2
"""Assumed: memory at inference over that of the weights (keys, values, activations)."""
PUE = 1.2
"""Assumed: energy of the building over that of the boards."""
CARBON = 0.45
"""Assumed: kg of CO2 for a kWh, about the world's mean of electricity."""
REUSE = 15.387756
"""RD* of Muennighoff et al. 2023 (arXiv 2305.16264), published: passes after which repetition has lost
most."""


@dataclass(frozen=True)
class Demand:
    """What will be asked over the model's life: `queries`, each with a prompt and up to `samples_max`
    answers, and `tokens` more that are processed once."""

    queries: float = 0.0
    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    samples_max: float = 1.0
    tokens: float = 0.0

    def per_parameter(self, k: Any, answer_cost: float = 2.0) -> Any:
        """FLOPs of the whole demand per parameter, with k samples a question."""
        asked = self.queries * (self.prompt_tokens + self.answer_tokens * k)
        return answer_cost * (self.tokens + asked)


@dataclass(frozen=True)
class Machine:
    """Hardware that is used or rented: a profile, how many, what an hour of one costs, what share is
    reached."""

    profile: Profile
    price: float | None = None
    mfu: float = MFU
    serving_mfu: float = SERVING_MFU
    devices: float = 1.0
    carbon: float = CARBON
    assumed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str | None = None, price: float | None = None, mfu: float | None = None,
        devices: float | None = None, serving_mfu: float | None = None, carbon: float | None = None,
    ) -> Machine:  # fmt: skip
        """By name of a profile; what is not stated is assumed, and named so."""
        chosen = profile(name) if name else PROFILES["h100"]
        said = [
            *([] if name else ["hardware h100"]),
            *([] if mfu else [f"training at {MFU:.0%} of its peak"]),
            *([] if serving_mfu else [f"serving at {SERVING_MFU:.0%} of its peak"]),
            *([] if carbon else [f"{CARBON:g} kg of CO2 a kWh"]),
            f"buildings use {PUE - 1:.0%} more power than boards",
        ]
        for label, value, most in (
            ("mfu", mfu, 1.0), ("serving_mfu", serving_mfu, 1.0), ("price", price, 1e9),
            ("devices", devices, 1e9), ("carbon", carbon, 100.0),
        ):  # fmt: skip
            if value is not None and not 0 < value <= most:
                raise FlopwiseError(f"plan: {label} is {value:g}, must be above 0 and at most {most:g}")
        return cls(
            chosen,
            price,
            mfu or MFU,
            serving_mfu or SERVING_MFU,
            devices or 1.0,
            carbon or CARBON,
            tuple(said),
        )

    def bill(self, trained: float, answered: float) -> dict[str, Any]:
        """Hours of one device, days, kWh, kg of CO2 and money of FLOPs trained and answered with."""
        hours = [trained / (self.profile.peak * self.mfu) / HOUR,
                 answered / (self.profile.peak * self.serving_mfu) / HOUR]  # fmt: skip
        kwh = sum(hours) * self.profile.watts / 1000 * PUE
        return {
            "hardware": self.profile.name, "training_device_hours": hours[0],
            "serving_device_hours": hours[1],
            "training_days": hours[0] / self.devices / 24, "devices": self.devices, "energy_kwh": kwh,
            "carbon_kg": kwh * self.carbon, "money": None if self.price is None else sum(hours) * self.price,
            "price_per_hour": self.price, "mfu": self.mfu, "serving_mfu": self.serving_mfu,
        }  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What must hold, None where nothing must.

    `memory` in bytes at inference; `latency` in seconds for all samples of a question, in parallel; `data` in
    unique tokens; `base` the N and D of a model that exists (its training is paid); `deadline` in seconds.
    """

    memory: float | None = None
    latency: float | None = None
    data: float | None = None
    base: tuple[float, float] | None = None
    deadline: float | None = None
    bytes_per_weight: float = 2.0

    def given(self) -> dict[str, Any]:
        """Those that must hold, by name."""
        names = ("memory", "latency", "data", "base", "deadline")
        return {name: v for name in names if (v := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Setting:
    """Everything but the laws and the budget."""

    demand: Demand = field(default_factory=Demand)
    limits: Limits = field(default_factory=Limits)
    machine: Machine | None = None
    train_cost: float = 6.0
    """FLOPs per parameter and token trained."""
    answer_cost: float = 2.0

    def answering(self, N: Any, k: Any) -> Any:
        """FLOPs of the whole demand."""
        return N * self.demand.per_parameter(k, self.answer_cost)

    def training(self, N: Any, D: Any) -> Any:
        """FLOPs of pretraining on D tokens, less what was paid."""
        return self.train_cost * N * (D - self.sunk)

    def tuning(self, N: Any, post: Any) -> Any:
        """FLOPs of `post` tokens of post-training."""
        return self.train_cost * N * post

    @property
    def sunk(self) -> float:
        """Tokens that the model to start from has seen."""
        return self.limits.base[1] if self.limits.base else 0.0

    def total(self, N: Any, D: Any, post: Any, k: Any) -> Any:
        """FLOPs in all."""
        return self.training(N, D) + self.tuning(N, post) + self.answering(N, k)

    def most_trained(self) -> float:
        """FLOPs of training that the deadline leaves time for."""
        if self.limits.deadline is None:
            return np.inf
        m = self.machine or Machine.of()
        return m.profile.peak * m.mfu * m.devices * self.limits.deadline

    def largest(self) -> float:
        """Parameters that fit into memory at inference."""
        if self.limits.memory is None:
            return np.inf
        return self.limits.memory / (self.limits.bytes_per_weight * OVERHEAD)

    def seconds(self, N: Any, k: Any) -> Any:
        """Time to answer one question: the prompt at serving speed, then tokens one after another, each as
        long as reading the weights or multiplying k samples with them takes."""
        m = self.machine or Machine.of()
        rate = m.profile.peak * m.serving_mfu
        read = self.limits.bytes_per_weight * N / m.profile.bandwidth
        return (
            self.answer_cost * N * self.demand.prompt_tokens / rate
            + self.demand.answer_tokens * np.maximum(read, self.answer_cost * N * k / rate)
        )

    def fits(self, N: Any, k: Any) -> Any:
        """Whether memory and latency allow it."""
        ok = np.asarray(N) <= self.largest() * (1 + 1e-9)
        if self.limits.latency is not None:
            ok = ok & (self.seconds(N, k) <= self.limits.latency)
        return ok

    def columns(self, variables: frozenset[str], N: Any, D: Any, post: Any, k: Any) -> dict[str, Any]:
        """What a law is asked with: where data are short, their own U, or tokens that count less."""
        out = {"N": N, "D": D, "post": post, "k": k}
        U = self.limits.data
        if "U" in variables:
            out["U"] = D if U is None else np.minimum(D, U)
        elif U is not None:
            out["D"] = effective(D, U)
        return {name: v for name, v in out.items() if name in variables}

    def assumed(self) -> list[str]:
        """What was not stated but taken, in words."""
        said = [] if self.machine is None else list(self.machine.assumed)
        limits = self.limits
        if self.machine is None and (limits.latency is not None or limits.deadline is not None):
            said += list(Machine.of().assumed)
        if limits.memory is not None:
            said.append(
                f"{limits.bytes_per_weight:g} bytes a weight and {OVERHEAD - 1:.0%} more for the rest"
            )
        if limits.data is not None:
            said.append(f"repeated data lose their worth as published for C4 (RD* {REUSE:.1f})")
        return said


def effective(D: Any, U: float) -> Any:
    """Tokens without repetition that D tokens from U different ones are worth (Muennighoff et al. 2023, arXiv
    2305.16264, eq. 5).

    >>> float(effective(1e9, 2e9)), round(float(effective(4e9, 1e9)) / 1e9, 2)
    (1000000000.0, 3.73)
    """
    again = np.maximum(np.asarray(D) / U - 1, 0)
    return np.where(again > 0, U * (1 + REUSE * -np.expm1(-again / REUSE)), D)
