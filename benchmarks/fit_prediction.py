"""Fit the speed prediction to published measurements, and say how good it is on unseen sources.

    python benchmarks/fit_prediction.py [--rows benchmarks/data/device_rows.csv] [--write]

Every source is predicted from all the others (leave one source out), and that is what the tables
show. A source is a page, an issue or a file; `--strict` takes all of a site or repository as one.
`--write` puts the values fitted to
all of them, with their spread, into edgeadapt/prediction/fitted.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import edgeadapt.prediction
from edgeadapt.files import write_json
from edgeadapt.prediction.fitted import Fitted
from edgeadapt.prediction.fitting import Observation, fit, observation
from edgeadapt.prediction.rows import Refused, Row, read_rows
from edgeadapt.prediction.scoring import Scored, groups, score_row, summary

HERE = Path(__file__).parent
FITTED = Path(edgeadapt.prediction.__file__).parent / "fitted.json"


def held_out(rows: list[Row], quantity: str) -> list[tuple[Scored, bool]]:
    """Each row predicted without its source, and whether other sources have its class."""
    pairs = [(row, o) for row in rows if (o := observation(row, quantity)) is not None]
    result = []
    for source in sorted({row.source for row, _ in pairs}):
        others = [(row, o) for row, o in pairs if row.source != source]
        here = {o.backend for row, o in pairs if row.source == source}
        fitted = fit([o for _, o in others if o.backend in here], quantity)
        classes = {(row.hardware.backend, row.hardware.family) for row, _ in others}
        for row, _ in pairs:
            if row.source == source:
                scored = score_row(row, quantity, fitted)
                assert scored is not None
                result.append((scored, (row.hardware.backend, row.hardware.family) in classes))
    return result


def widening(scored: list[Scored]) -> float:
    """Factor on the interval's log width with which it holds 80%.

    Of the rows; or more, where rows of small sources lie farther out: then halfway (geometrically)
    to what would hold 80% if every source counted alike, so that one long table does not decide.
    """
    if len(scored) < 8:
        return 1.0
    reach = np.array(
        [
            abs(np.log(s.measured / s.predicted.median))
            / np.log(s.predicted.high / s.predicted.median)
            for s in scored
        ]
    )
    sources = [s.row.source for s in scored]
    weights = np.array([1 / sources.count(source) for source in sources])
    order = np.argsort(reach)
    held = np.cumsum(weights[order]) / weights.sum()
    by_source = reach[order][np.searchsorted(held, 0.8)]
    by_row = np.quantile(reach, 0.8)
    return float(np.clip(max(by_row, np.sqrt(by_row * by_source)), 0.6, 2.5))


def widened(scored: Scored, factor: float) -> Scored:
    """The same with its interval widened."""
    p = scored.predicted
    reach = (p.high / p.median) ** factor
    interval = dataclasses.replace(p, low=p.median / reach, high=p.median * reach)
    return dataclasses.replace(scored, predicted=interval)


def line(name: str, scored: list[Scored]) -> str:
    """One line of the table."""
    s = summary(scored)
    if not s["rows"]:
        return f"{name:34} {0:5}"
    return (
        f"{name:34} {s['rows']:5} {s['median_error']:8.1%} {s['p90_error']:8.1%} "
        f"{s['coverage_80']:9.1%} {s['median_interval_width']:8.2f}"
    )


def report(rows: list[Row], quantity: str, verbose: bool) -> Fitted:
    """Print the leave-one-source-out table; returns the fit to all rows."""
    scored = held_out(rows, quantity)
    factors = {
        kind: widening([s for s, _ in scored if s.row.hardware.backend == kind])
        for kind in ("cpu", "gpu", "npu")
    }
    scored = [(widened(s, factors[s.row.hardware.backend]), known) for s, known in scored]
    print(f"\n{quantity}, each source predicted from the others")
    print(f"{'':34} {'rows':>5} {'median':>8} {'p90':>8} {'in 80%':>9} {'width':>8}")
    for kind, items in groups(s for s, _ in scored).items():
        known = [s for s, k in scored if k and s.row.hardware.backend == kind]
        print(line(f"{kind}, class in other sources", known))
        print(line(f"{kind}, class in no other source", [s for s in items if s not in known]))
    print(line("all", [s for s, _ in scored]))
    print("widening of the intervals: " + ", ".join(f"{k} {v:.2f}" for k, v in factors.items()))
    for source in sorted({s.row.source for s, _ in scored}) if verbose else ():
        print(line(f"  {source[:32]}", [s for s, _ in scored if s.row.source == source]))
    if verbose:
        for s, known in sorted(scored, key=lambda pair: -pair[0].error):
            print(
                f"  {s.predicted.median / s.measured - 1:+6.0%} {s.measured:8.2f} in {s.predicted}"
                f" ({'known' if known else 'new'} {s.row.hardware.family}) {s.row.label[:80]}"
            )
    observations: list[Observation] = [o for r in rows if (o := observation(r, quantity))]
    return dataclasses.replace(fit(observations, quantity), widening=factors)


def main() -> None:
    """Parse, fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=HERE / "data" / "device_rows.csv")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="every source and every row")
    parser.add_argument("--strict", action="store_true", help="a whole repository is one source")
    options = parser.parse_args()
    read = list(read_rows(options.rows))
    if options.strict:
        read = [
            dataclasses.replace(r, source=r.publisher) if isinstance(r, Row) else r for r in read
        ]
    rows = [row for row in read if isinstance(row, Row)]
    print(f"{len(rows)} rows of {len({row.source for row in rows})} sources")
    for item in read:
        if isinstance(item, Refused):
            print(f"refused, line {item.line}: {item.label}: {item.reason}")
        elif item.suspect:
            print(f"left out, line {item.line}: {item.label}: its source calls it suspect")
    record = {
        quantity: report(rows, quantity, options.verbose).record()
        for quantity in ("decode", "prefill")
    }
    if options.write:
        write_json(FITTED, record)
        print(f"\nwritten: {FITTED}")


if __name__ == "__main__":
    main()
