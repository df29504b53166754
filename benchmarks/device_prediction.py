"""Score the shipped speed prediction on published measurements.

    python benchmarks/device_prediction.py ROWS.csv [--json] [--rows]

ROWS.csv has the columns of benchmarks/data/device_rows.csv. A device that has a profile is
predicted from it, any other from the facts in its row and its class, and the table says so. Rows
that nothing can be predicted for are refused, each with its reason. On the rows that the
prediction was fitted to this shows how well they are reproduced, not how well others are foretold:
that is what `python benchmarks/fit_prediction.py` prints.

Error: |predicted median / measured - 1|. Coverage: part of the rows inside their 80% interval.
Width: upper bound over lower bound, the median of the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeadapt.errors import EdgeAdaptError
from edgeadapt.prediction.rows import Refused, Row, read_rows
from edgeadapt.prediction.scoring import Scored, groups, score_row, summary


def document(items: Sequence[Row | Refused]) -> tuple[dict[str, Any], dict[str, list[Scored]]]:
    """Figures for JSON, and the scored rows of each quantity."""
    rows = [item for item in items if isinstance(item, Row)]
    refused = [item for item in items if isinstance(item, Refused)]
    scored = {
        quantity: [s for row in rows if (s := score_row(row, quantity)) is not None]
        for quantity in ("decode", "prefill")
    }
    by_kind = groups(scored["decode"])
    result: dict[str, Any] = {**summary(scored["decode"]), "refused": len(refused)}
    for kind, part in by_kind.items():
        result[kind] = {**summary(part), "refused": sum(r.backend == kind for r in refused)}
    with_profile = [s for s in scored["decode"] if s.row.hardware.basis.startswith("profile")]
    result["with_profile"] = summary(with_profile)
    result["from_class_facts"] = summary([s for s in scored["decode"] if s not in with_profile])
    result["prefill"] = summary(scored["prefill"])
    result["refusals"] = [
        {"line": item.line, "row": item.label, "reason": item.reason} for item in refused
    ]
    return result, scored


def print_table(result: dict[str, Any]) -> None:
    """The figures for a person."""
    titles = ("refused", "median", "p90", "in 80%")
    print(f"{'decode':18} {'rows':>5} {' '.join(f'{title:>8}' for title in titles)} {'width':>7}")
    for name, part in (("all", result), *((kind, result[kind]) for kind in ("cpu", "gpu", "npu"))):
        print_line(name, part)
    print_line("with a profile", result["with_profile"])
    print_line("from class facts", result["from_class_facts"])
    print_line("prefill, all", result["prefill"])
    for refusal in result["refusals"]:
        print(f"refused, line {refusal['line']}: {refusal['row']}: {refusal['reason']}")


def print_line(name: str, part: dict[str, Any]) -> None:
    """One line of the table."""
    head = f"{name:18} {part['rows']:5} {part.get('refused', ''):>8}"
    if not part["rows"]:
        print(head)
        return
    print(
        f"{head} {part['median_error']:8.1%} {part['p90_error']:8.1%} "
        f"{part['coverage_80']:8.1%} {part['median_interval_width']:7.2f}"
    )


def print_rows(scored: Sequence[Scored]) -> None:
    """Each row: measured, predicted, and what the prediction rests on."""
    for item in scored:
        mark = " " if item.measured in item.predicted else "!"
        row = item.row
        print(
            f"{mark} line {row.line:4}: {item.measured:8.2f} tok/s, predicted {item.predicted} "
            f"[{row.hardware.basis}] {row.label}"
        )


def main() -> int:
    """Parse, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, metavar="ROWS.csv")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--rows", action="store_true", help="also each row")
    options = parser.parse_args()
    try:
        result, scored = document(list(read_rows(options.table)))
    except EdgeAdaptError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    if options.rows:
        print_rows(scored["decode"])
    print_table(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
