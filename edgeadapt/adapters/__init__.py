"""Adapters: what they are, and the weights of a base with one or more of them merged in."""

from edgeadapt.adapters.merged import merged_source
from edgeadapt.adapters.separate import low_rank_updates
from edgeadapt.adapters.spec import AdapterSpec, read_spec
from edgeadapt.adapters.stack import AdapterChoice, AdapterGiven, parse_adapters, stacked_source

__all__ = [
    "AdapterChoice",
    "AdapterGiven",
    "AdapterSpec",
    "low_rank_updates",
    "merged_source",
    "parse_adapters",
    "read_spec",
    "stacked_source",
]
