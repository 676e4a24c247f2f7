"""The `train:` section: what is accepted, what is refused, and in what words."""

from __future__ import annotations

import pytest

from flopwise.errors import FlopwiseError
from flopwise.train.settings import PLAIN, Settings


@pytest.mark.parametrize("section", [None, {}])
def test_nothing_asked_for_is_done_plainly(section) -> None:
    settings = Settings.from_dict(section)
    assert settings == PLAIN
    assert (settings.precision, settings.compile, settings.device, settings.processes) == (
        "fp32",
        "off",
        "cpu",
        1,
    )


@pytest.mark.parametrize("keep", ["last", "best", 1, 20, {"every": 100}])
def test_rules_for_keeping(keep) -> None:
    assert Settings.from_dict({"keep": keep}).to_dict()["keep"] == keep


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"precision": "fp16"}, "train.precision is 'fp16', must be one of auto, fp32, bf16"),
        ({"parallel": "tp"}, "train.parallel is 'tp', must be one of ddp, fsdp, ep"),
        ({"compile": True}, "train.compile is True, must be one of auto, on, off"),
        ({"device": "tpu"}, "train.device is 'tpu', must be one of auto, cpu, cuda"),
        ({"processes": 0}, "train.processes is 0, must be a whole number of at least 1"),
        ({"processes": 1.5}, "train.processes is 1.5"),
        ({"keep": "all"}, "train.keep is 'all', must be last, best"),
        ({"keep": 0}, "train.keep is 0"),
        ({"keep": True}, "train.keep is True"),
        ({"keep": {"every": 0}}, "train.keep is"),
        ({"keep": {"each": 5}}, "train.keep is"),
        ({"speed": "high"}, "train.speed is unknown; there are precision, compile"),
    ],
)
def test_what_is_refused(section, message) -> None:
    with pytest.raises(FlopwiseError) as e:
        Settings.from_dict(section)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)
