"""What does `edgeadapt bench` cost? Its decode loop against bare llama_decode calls.

    python benchmarks/decode_overhead.py MODEL.gguf [--repetitions 11] [--decode-tokens 64]

Both run in this one process over the same library and the same loaded file, in turns. The bare
loop decodes one fixed token again and again: no argmax, no logits copied, no Python beyond the
call. Medians over the repetitions; the ratio is to stay within 5%.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from edgeadapt.artifact import open_artifact
from edgeadapt.bench.protocol import prompt_ids, repetition
from edgeadapt.jobs import available_threads
from edgeadapt.runtimes.base import SessionSettings
from edgeadapt.runtimes.llama_cpp import LlamaCppRuntime
from edgeadapt.runtimes.llama_cpp.library import library


def bare_loop(session: Any, prompt: list[int], decode_tokens: int) -> float:
    """Tokens per second of llama_decode alone, after the same prefill."""
    lib, context = library(), session._context
    session.reset()
    session.forward(prompt)
    token = (lib.llama_token * 1)(prompt[0])
    batch = lib.llama_batch_get_one(token, 1)
    start = time.perf_counter()
    for _ in range(decode_tokens):
        if lib.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(context)
    return decode_tokens / (time.perf_counter() - start)


def bench_loop(session: Any, prompt: list[int], decode_tokens: int) -> float:
    """Tokens per second as `edgeadapt bench` reports them."""
    steps = repetition(session, prompt, decode_tokens).steps_s
    return len(steps) / sum(steps)


def main() -> None:
    """Parse, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=available_threads())
    options = parser.parse_args()

    context = options.prompt_tokens + options.decode_tokens
    session = LlamaCppRuntime().load(
        open_artifact(options.model), SessionSettings(threads=options.threads, context=context)
    )
    prompt = prompt_ids(session, options.prompt_tokens)
    loops = {"bare llama_decode": bare_loop, "edgeadapt bench": bench_loop}
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(options.repetitions + 1):  # the first warms up and is not counted
        # Who goes first alternates, so that neither always follows a rest of the other.
        for name in sorted(loops, reverse=bool(number % 2)):
            speed = loops[name](session, prompt, options.decode_tokens)
            if number:
                speeds[name].append(speed)
    session.close()

    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"{options.model.name}, {options.threads} threads, {options.repetitions} repetitions")
    print(f"{'loop':<20}{'median tok/s':>14}{'lowest':>9}{'highest':>9}")
    for name, values in speeds.items():
        print(f"{name:<20}{medians[name]:>14.2f}{min(values):>9.2f}{max(values):>9.2f}")
    ratio = medians["edgeadapt bench"] / medians["bare llama_decode"]
    print(f"ratio {ratio:.4f} (held to: within 5%)")


if __name__ == "__main__":
    main()
