"""What does `edgeadapt bench` cost? Its decode speed against llama.cpp's own llama-bench.

    edgeadapt setup llama-tools
    python benchmarks/decode_overhead.py MODEL.gguf [--rounds 11] [--threads 1] [--against bare]

llama-bench is linked to the very libraries that `bench` runs (see `edgeadapt setup llama-tools`).
Both are started in turns, who goes first alternates, and each measures decoding at the same depth
in a process of its own, with our sampler watching ours. Medians over all repetitions; they are to
be within 2%. Other programs only ever slow a run down, so the fastest of each are shown too.

`--against bare` compares our step with a bare llama_decode call in one process instead, token by
token in turns: no argmax, no Python beyond the call. With `--clock cpu --threads 1` it counts the
thread's own seconds of CPU and not the time that passed: for a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edgeadapt.artifact import open_artifact
from edgeadapt.bench.protocol import prompt_ids
from edgeadapt.bench.run import bench_artifact
from edgeadapt.console import set_verbosity
from edgeadapt.jobs import available_threads
from edgeadapt.runtimes.base import SessionSettings
from edgeadapt.runtimes.llama_cpp import LlamaCppRuntime
from edgeadapt.runtimes.llama_cpp.library import library
from edgeadapt.setup.llama_tools import installed_tool

LIMIT = 0.02

Speeds = list[float]


def llama_bench(options: argparse.Namespace) -> Speeds:
    """Tokens per second of llama-bench's repetitions."""
    command = [
        options.tool or installed_tool("llama-bench"), "-m", options.model, "-p", 0,
        "-n", options.decode_tokens, "-d", options.prompt_tokens, "-t", options.threads,
        "-r", options.repetitions, "-o", "json",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    (found,) = json.loads(done.stdout)
    speeds: Speeds = found["samples_ts"]
    return speeds


def ours(options: argparse.Namespace) -> Speeds:
    """Tokens per second as `edgeadapt bench` reports them."""
    measured = bench_artifact(
        options.model,
        runtime="llama-cpp",
        threads=options.threads,
        prompt_tokens=options.prompt_tokens,
        decode_tokens=options.decode_tokens,
        repetitions=options.repetitions,
    )
    return list(measured.decode_tps.samples)


def steps(options: argparse.Namespace) -> dict[str, Speeds]:
    """Our steps and bare ones, in turns in one sequence; tokens per second of each."""
    context = options.prompt_tokens + 2 * options.decode_tokens
    session = LlamaCppRuntime().load(
        open_artifact(options.model), SessionSettings(threads=options.threads, context=context)
    )
    lib, prompt = library(), prompt_ids(session, options.prompt_tokens)
    batch = lib.llama_batch_get_one((lib.llama_token * 1)(prompt[0]), 1)
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    found: dict[str, Speeds] = {"bare llama_decode": [], "edgeadapt bench": []}
    for number in range(options.rounds + 1):  # the first warms up and is not counted
        session.reset()
        session.forward(prompt)
        token = session.greedy()
        for _ in range(options.decode_tokens):
            start = clock()
            lib.llama_decode(session._context, batch)
            lib.llama_synchronize(session._context)
            middle = clock()
            session.forward([token])
            token = session.greedy()
            end = clock()
            if number:
                found["bare llama_decode"].append(1 / (middle - start))
                found["edgeadapt bench"].append(1 / (end - middle))
    session.close()
    return found


def in_turns(options: argparse.Namespace) -> dict[str, Speeds]:
    """Processes of llama-bench and of `edgeadapt bench`; tokens per second of each repetition."""
    sides = {"llama-bench": llama_bench, "edgeadapt bench": ours}
    found: dict[str, Speeds] = {name: [] for name in sides}
    for number in range(options.rounds + 1):  # the first warms up and is not counted
        for name in sorted(sides, reverse=bool(number % 2)):
            speeds = sides[name](options)
            if number:
                found[name] += speeds
    return found


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repetitions", type=int, default=3, help="in each process")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--against", choices=("llama-bench", "bare"), default="llama-bench")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="of --against bare"
    )
    parser.add_argument("--tool", help="a llama-bench elsewhere")
    return parser.parse_args()


def main() -> int:
    """Measure in turns, print; 1 if the medians are further apart than `LIMIT`."""
    options = parse()
    set_verbosity(-1)
    speeds = (steps if options.against == "bare" else in_turns)(options)
    other = next(iter(speeds))
    print(
        f"{options.model.name}, {options.threads} threads, {options.rounds} rounds, "
        f"{options.clock} time, load average "
        f"{os.getloadavg()[1]:.1f} over 5 minutes"
    )
    print(f"{'':<20}{'median tok/s':>14}{'lowest':>9}{'highest':>9}")
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{name:<20}{middle:>14.2f}{min(values):>9.2f}{max(values):>9.2f}")
    ratios = {
        word: of(speeds["edgeadapt bench"]) / of(speeds[other])
        for word, of in (("medians", statistics.median), ("highest", max))
    }
    print(
        f"ratio of the medians {ratios['medians']:.4f} (held to: within {LIMIT:.0%}), "
        f"of the highest {ratios['highest']:.4f}"
    )
    return int(abs(ratios["medians"] - 1) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
