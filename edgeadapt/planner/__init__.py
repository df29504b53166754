"""Which format and quantization to make for a device: what fits, how fast, how good, which to take.

`make_plan` weighs every candidate of a device's profile; `choose` is the short way to its choice.
"""

from edgeadapt.planner.better import next_better
from edgeadapt.planner.candidates import Budget, Candidate, candidates, default_budget
from edgeadapt.planner.choice import Choice, Plan, choose, make_plan
from edgeadapt.planner.model import BITS_PER_WEIGHT, ModelFacts, model_facts

__all__ = [
    "BITS_PER_WEIGHT",
    "Budget",
    "Candidate",
    "Choice",
    "ModelFacts",
    "Plan",
    "candidates",
    "choose",
    "default_budget",
    "make_plan",
    "model_facts",
    "next_better",
]
