"""RunRecord: one run, as `run.json` holds it. Fields are a contract: extend them, never rename them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_serializer, field_validator

from flopwise.flops.spend import Spend

Status = Literal["running", "done", "failed"]


class Metric(BaseModel):
    """A measured value with its standard error and the number of independent units behind it."""

    model_config = ConfigDict(frozen=True)

    value: float | None
    se: float | None = None
    n: int | None = None


class RunRecord(BaseModel):
    """What one run was and what it cost.

    `parents` are the ids of the runs it was made from, by role in `roles`; `lineage_spend` is its own spend
    plus that of all distinct ancestors. `data` and `model` are null where a run has none; `extra` holds what
    is particular to a kind. `reason` says why a run failed.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    name: str | None = None
    kind: str
    method: str
    parents: list[str] = []
    roles: dict[str, str] = {}
    references: dict[str, str] = {}
    model: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    spend: Spend = Spend()
    lineage_spend: Spend = Spend()
    metrics: dict[str, Metric] = {}
    seed: int = 0
    status: Status = "running"
    reason: str | None = None
    versions: dict[str, str] = {}
    created: str | None = None
    extra: dict[str, Any] = {}

    @field_validator("spend", "lineage_spend", mode="before")
    @classmethod
    def _read_spend(cls, value: Any) -> Any:
        return Spend.from_dict(value) if isinstance(value, dict) else value

    @field_serializer("spend", "lineage_spend")
    def _write_spend(self, value: Spend) -> dict[str, Any]:
        return value.to_dict()
