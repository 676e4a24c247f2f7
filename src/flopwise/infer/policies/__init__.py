"""What to do with each prompt: when to stop, how hard it is, how to split a total over prompts.

All replay from `infer.samples.Samples`; numpy and scipy alone.
"""

from __future__ import annotations

from flopwise.infer.policies.difficulty import Beta, Difficulty
from flopwise.infer.policies.options import Option, parallel, stopping
from flopwise.infer.policies.report import policies
from flopwise.infer.policies.rules import KINDS, Rule, make_rule
from flopwise.infer.policies.spending import Spending, spend, spread

__all__ = [
    "KINDS", "Beta", "Difficulty", "Option", "Rule", "Spending", "make_rule", "parallel", "policies", "spend",
    "spread", "stopping",
]  # fmt: skip
