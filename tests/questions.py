"""Datasets of questions and answers that a tiny tokenizer can spell."""

from __future__ import annotations

import json
from pathlib import Path


def write_questions(folder: Path, *, groups_of: int | None = None, **counts: int) -> None:
    """Write NAME.jsonl with so many different examples, for each name, in groups of so many."""
    for name, count in counts.items():
        lines = [
            json.dumps(
                {"prompt": f"What is {name} {i}?", "completion": f"It is {i} dogs."}
                | ({} if groups_of is None else {"group": f"{name} {i // groups_of}"})
            )
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
