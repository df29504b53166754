"""One target under atheris, in a process of its own: `python -m tests.fuzz.child TARGET CASES`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgeadapt"]):
    from tests.fuzz.targets import SEEDS, TARGETS, all_seeds, case_folder, run_case

SECONDS, MIB = 5, 1024
_LONGEST = 16 << 10
"""Bytes in a case."""


def main(name: str, cases: str) -> None:
    """Fuzz; libFuzzer ends the process, and keeps what did harm in the target's seeds."""
    target = TARGETS[name]
    kept = SEEDS / name
    kept.mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp(prefix="edgeadapt-corpus-"))
    for number, data in enumerate(all_seeds(target)):
        (corpus / f"seed-{number}").write_bytes(data)
    with case_folder(target) as folder:
        options = [
            f"-runs={cases}", f"-timeout={SECONDS}", f"-rss_limit_mb={MIB}",
            f"-max_len={_LONGEST}", f"-artifact_prefix={kept}/", "-print_final_stats=1",
            str(corpus),
        ]  # fmt: skip
        atheris.Setup(
            [sys.argv[0], *options],
            lambda data: run_case(target, data, folder),
            internal_libfuzzer=True,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
