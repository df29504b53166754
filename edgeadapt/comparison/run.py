"""The whole of `edgeadapt compare`, read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeadapt import __version__
from edgeadapt.bench.machine import this_machine
from edgeadapt.comparison.figures import Groups, common_base, contenders, record
from edgeadapt.comparison.ground import Ground, find_ground
from edgeadapt.comparison.recipe import ComparisonRecipe, Trial
from edgeadapt.comparison.statistics import LEVEL
from edgeadapt.comparison.trial import attempt
from edgeadapt.comparison.verdict import judge
from edgeadapt.console import log
from edgeadapt.devices import DeviceProfile, load_profile
from edgeadapt.files import sweep_cache, write_json
from edgeadapt.pipeline.run import check_target
from edgeadapt.pipeline.workspace import locked

SCHEMA_VERSION = 1
FILE = "compare.json"

Execute = Callable[[Ground, Sequence[Trial]], Iterable[tuple[str, dict[str, Any]]]]
"""Does trials somewhere, in any order; gives each one's slug and result once."""


def one_after_another(
    ground: Ground, trials: Sequence[Trial]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Trials in this process."""
    for number, trial in enumerate(trials, 1):
        log.info("=== %s (%d of %d)", trial, number, len(trials))
        yield trial.slug, attempt(ground, trial)


def compare_methods(
    recipe: ComparisonRecipe, root: Path, *, execute: Execute = one_after_another
) -> dict[str, Any]:
    """Do every trial, judge them, and write `compare.json` and the reports.

    What was done before is taken as it is, so that a comparison that was killed goes on.

    Args:
        recipe: what to compare.
        root: folder of the comparison.
        execute: how trials are done.

    Returns:
        The document; methods that failed are in its `failed`.

    Raises:
        InputError: the recipe names something that does not exist or does not fit.
        EdgeAdaptError: a trial could not be done for a reason that is not its method's; those
            before it are kept.
    """
    from edgeadapt.report.comparison import write_comparison

    profiles = [load_profile(name) for name in recipe.devices]
    for quantization in recipe.quantizations:
        check_target("gguf", quantization)
    with locked(root):
        sweep_cache()
        ground = find_ground(recipe, root)
        trials = list(recipe.trials())
        # The plain base first: its files are what most others stand on.
        first = [trial for trial in trials if trial.wish.method == "none"]
        rest = [trial for trial in trials if trial.wish.method != "none"]
        results = dict(one_after_another(ground, first)) | dict(execute(ground, rest))
        document = _document(ground, [results[trial.slug] for trial in trials], profiles)
        write_json(root / FILE, document)
        write_comparison(document, root)
    return document


def _group_count(groups: Groups, what: str) -> int | None:
    """How many groups questions are of; None where each is its own."""
    return max(groups[what]) + 1 if what in groups else None


def _document(
    ground: Ground, results: list[dict[str, Any]], profiles: Sequence[DeviceProfile]
) -> dict[str, Any]:
    recipe = ground.recipe
    groups = ground.groups()
    found = contenders(results, groups)
    plain = common_base(found)
    parameters = plain.model.parameters
    return {
        "schema_version": SCHEMA_VERSION,
        "edgeadapt": __version__,
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "base": {
            "name": recipe.base,
            "sha256": ground.inputs.base_sha256,
            "parameters": parameters,
        },
        "machine": this_machine().model_dump(mode="json"),
        "questions": {
            what: {
                "examples": len(plain.tokens(what)),
                "answer_tokens": int(plain.tokens(what).sum()),
                "groups": _group_count(groups, what),
            }
            for what in ("domain", "general")
        }
        | (
            {"task": {"examples": plain.task.shape[1], "groups": _group_count(groups, "task")}}
            if plain.task is not None
            else {}
        ),
        "level": LEVEL,
        "contenders": [record(one, found, parameters, recipe.judged_by) for one in found],
        "failed": [
            {key: result[key] for key in ("label", "seed", "fraction", "failed")}
            for result in results
            if "failed" in result
        ],
        "trials": results,
        "devices": [judge(profile, found, recipe) for profile in profiles],
    }
