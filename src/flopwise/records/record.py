"""RunRecord: one run, as `run.json` holds it. Fields are a contract: extend them, never rename them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    field_serializer,
    field_validator,
)

from flopwise.errors import FlopwiseError, one_line
from flopwise.flops.spend import Spend

Status = Literal["running", "done", "failed"]
RunId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""The name of a run's folder, never a path."""


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

    id: RunId
    name: str | None = None
    kind: str
    method: str
    parents: list[RunId] = []
    roles: dict[str, RunId] = {}
    references: dict[str, RunId] = {}
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


def read_record(path: Path) -> RunRecord:
    """The record in the file `path`, which lies in the folder of its run.

    Raises:
        FileNotFoundError: there is none.
        FlopwiseError: it is cut, garbled, or another run's.
    """
    content = path.read_bytes()
    try:
        record = RunRecord.model_validate_json(content)
    except ValidationError as e:
        first = e.errors(include_input=False)[0]
        reason = one_line(" ".join([".".join(map(str, first["loc"])), first["msg"]]), 120)
        raise FlopwiseError(f"record {path} is damaged ({reason}); start again to make it anew") from e
    if record.id != path.parent.name:
        raise FlopwiseError(f"record {path} is that of run {record.id}: the folder was renamed or copied")
    return record
