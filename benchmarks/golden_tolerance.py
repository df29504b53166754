"""How far golden vectors move: by another way to compute, and by another quantization.

    python benchmarks/golden_tolerance.py m-Q4_K_M.gguf --other m-Q5_K_M.gguf --other m-Q4_K_S.gguf

Records prompts on the first artifact and replays them on it with other thread counts, token by
token, and at the engine's least rounding; then on the others. The largest differences of
log-probability, in nats, are what a tolerance has to lie above and below. docs/golden-vectors.md
has the figures that edgeadapt's own were chosen by.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeadapt.artifact import open_artifact
from edgeadapt.bundle import golden, selftest
from edgeadapt.runtimes.base import SessionSettings
from edgeadapt.runtimes.registry import get_runtime, installed_runtimes

PROMPTS = (
    "What does `textwrap.shorten` do in Python?",
    "What does `statistics.median` do in Python?",
    "What does `shutil.copytree` do in Python?",
    *golden.DEFAULT_PROMPTS,
)


class OneByOne(golden._Engine):
    """Feeds a prompt token by token: another order of the same sums."""

    def start(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after a fresh sequence."""
        self._session.reset()
        for token in ids:
            row = self.feed([token])
        return row


def replayed(path: Path, runtime: str, cases: list[Any], how: str, threads: int) -> str:
    """A row: the largest and mean differences at the first token and later, prompts that fail."""
    settings = SessionSettings(threads=threads, context=1024, exact=how == "exact")
    session = get_runtime(runtime).load(open_artifact(path), settings)
    engine = OneByOne(session) if how == "one by one" else golden._Engine(session)
    first, later, failed = [], [], 0
    for case in cases:
        problems, a, b = selftest.compare(
            case, selftest.replay(engine, case), golden.FIRST_TOKEN_TOLERANCE,
            golden.LATER_TOLERANCE,
        )  # fmt: skip
        first.append(a)
        later.append(b)
        failed += bool(problems)
    session.close()
    return (
        f"| {path.stem} | {runtime} | {how} | {threads} | {max(first):.4f} | "
        f"{sum(first) / len(first):.4f} | {max(later):.4f} | {sum(later) / len(later):.4f} | "
        f"{failed}/{len(cases)} |"
    )


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--other", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    artifact = open_artifact(arguments.artifact)
    runtimes = installed_runtimes(artifact.format)
    recorded = golden.record(artifact.path, artifact.sha256(), runtimes[0], PROMPTS)["cases"]
    print("| artifact | runtime | how | threads | first, max | mean | later, max | mean | failed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for runtime in runtimes:
        for how, threads in (
            ("as recorded", 2),
            ("as recorded", 1),
            ("one by one", 2),
            ("exact", 2),
        ):
            print(replayed(artifact.path, runtime, recorded, how, threads), flush=True)
    for path in arguments.other:
        runtime = installed_runtimes(open_artifact(path).format)[0]
        print(replayed(path, runtime, recorded, "as recorded", 2), flush=True)


if __name__ == "__main__":
    main()
