"""A tiny model, data and recipes with every stage of a run, and programs started on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.questions import write_questions
from tests.tiny import save_llama

MARK = "EDGEADAPT_TEST_RUN"
"""An environment variable that every process of one run has in its environment."""

RECIPE = """
name: tiny
base: base
data: {train: train.jsonl, held_out: held.txt}
train: {method: qlora, r: 4, max_steps: 6, max_tokens: 32, learning_rate: 0.01, save_every_s: 0}
export:
  - {format: gguf, quantization: Q8_0}
  - {format: gguf, max_size: 85KiB}
  - {format: onnx, quantization: int8}
evaluate: {max_tokens: 32}
gates: {min_retention: null, max_kl: null, min_top1: null, max_perplexity_ratio: null}
bench: {prompt_tokens: 8, decode_tokens: 4, repetitions: 2, threads: 1, reference: false}
"""


def make_workplace(folder: Path) -> Path:
    """Inputs of a run, and its recipe, in a new folder."""
    save_llama(folder / "base", hidden=64, layers=2)
    write_questions(folder, train=12)
    text = "".join(f"What is held {i}? It is {i} dogs. " * 2 for i in range(4))
    (folder / "held.txt").write_text(text)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


class Program:
    """`edgeadapt run`, started in a session of its own, and what it has said so far."""

    def __init__(
        self,
        workplace: Path,
        runs: Path,
        cache: Path,
        *,
        log: str = "stderr.log",
        **environment: str,
    ) -> None:
        self.mark = f"{runs}-{time.monotonic_ns()}"
        self.log = workplace / log
        own = {
            MARK: self.mark, "EDGEADAPT_CACHE": str(cache), "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1", **environment,
        }  # fmt: skip
        with self.log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgeadapt", "run", "tiny.yaml", "--resume", "--runs", runs],
                cwd=workplace, env=os.environ | own, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text(encoding="utf-8")

    @property
    def stages(self) -> list[str]:
        """The stages that it began, as its log says, after `start`."""
        return ["start", *(line[3:] for line in self.said.splitlines() if line.startswith("== "))]

    def steps(self) -> Iterator[str]:
        """Each stage at the moment that it begins, until the end of the program."""
        seen = 0
        while True:
            ended = self.process.poll() is not None
            stages = self.stages
            yield from stages[seen:]
            seen = len(stages)
            if ended:
                return
            time.sleep(0.005)

    def kill(self, group: bool) -> None:
        """SIGKILL to the program, or to its whole process group, if it has not ended."""
        if group and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def left(self) -> list[str]:
        """Processes of the run that still live, a few seconds after its end."""
        deadline = time.monotonic() + 15  # other tests may keep the cores busy
        while (found := self._living()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _living(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(f"{process.pid}: {' '.join(process.cmdline())}")
            except psutil.Error:
                continue
        return found


@contextmanager
def started(workplace: Path, runs: Path, cache: Path, **options: str) -> Iterator[Program]:
    """A program that does not outlive the test; options as `Program` has them."""
    program = Program(workplace, runs, cache, **options)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.kill(group=True)


def finish(workplace: Path, runs: Path, cache: Path, **environment: str) -> Program:
    """Run to the end, which must be a good one."""
    with started(workplace, runs, cache, **environment) as program:
        code = program.process.wait(600)
    assert code == 0, program.said
    return program
