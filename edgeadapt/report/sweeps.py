"""What a comparison's sweeps tried: for each method its combinations, and which was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeadapt.report.tables import Table

_ENDED = {"done": "", "stopped": "stopped early", "diverged": "diverged"}


def sweep_tables(trials: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table for each method that was swept, in the order of the trials."""
    swept: dict[str, list[Mapping[str, Any]]] = {}
    for trial in trials:
        if (trial["training"] or {}).get("sweep"):
            swept.setdefault(trial["label"], []).append(trial)
    return [_table(label, own) for label, own in swept.items()]


def _table(label: str, trials: Sequence[Mapping[str, Any]]) -> Table:
    names = list(trials[0]["training"]["sweep"]["tried"][0]["values"])
    # What all trials have in common is not worth a column.
    parts = [
        (title, key)
        for title, key in (("Data", "fraction"), ("Seed", "seed"))
        if len({trial[key] for trial in trials}) > 1
    ]
    rows = []
    for trial in trials:
        sweep = trial["training"]["sweep"]
        for one in sweep["tried"]:
            step, loss = one["losses"][-1] if one["losses"] else ("-", None)
            mark = "taken" if one["values"] == sweep["chosen"] else _ENDED[one["ended"]]
            rows.append((
                *(_value(trial[key]) for _, key in parts),
                *(_value(one["values"][name]) for name in names),
                "-" if loss is None else f"{loss:.4f}", str(step), mark or "-",
            ))  # fmt: skip
    asked = {trial["training"]["sweep"]["validation_examples"] for trial in trials}
    columns = (*(title for title, _ in parts), *names, "Loss", "Steps", "")
    return Table(
        f"Settings tried for {label}",
        columns,
        tuple(rows),
        "Loss: nats an answer token, after so many steps, on training examples put aside for it ("
        + " or ".join(str(count) for count in sorted(asked))
        + "). Stopped early: at a ninth or a third of the steps it was not among the best third.",
        numeric=frozenset(range(len(columns) - 1)),
        detail=True,
    )


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
