"""Facts for planning from a model that is ready to be exported."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from edgeadapt.errors import MissingExtraError
from edgeadapt.export import ModelToExport, plan_export
from edgeadapt.planner.model import ModelFacts, model_facts


def facts_of(model: ModelToExport) -> ModelFacts:
    """What planning needs to know of a base with its adapters, sizes as its converters plan them.

    Raises:
        CorruptFileError: the config does not give the size of the KV cache.
    """

    @cache
    def exact_size(format: str, quantization: str) -> int | None:
        try:
            plan = plan_export(model, format, quantization, Path(f"model.{format}"))
        except MissingExtraError:  # the header's size needs the tokenizer; an estimate does not
            return None
        return plan.output if plan.exact else None

    return model_facts(model.source, exact_size)
