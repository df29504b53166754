"""Check this bundle: every file's hash, and that each model says here what it said when recorded.

Needs Python 3.10 or newer, and llama-cpp-python for GGUF files or onnxruntime-genai for ONNX
folders; nothing else. Run it in the bundle's folder:

    python selftest.py [--threads N]

Ends with 0 if all is well, 1 if something differs, 2 if no model could be run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONTEXT_ROOM = 64
"""Tokens of context beyond the longest recorded sequence."""


def log_softmax(logits: Any) -> Any:
    """Log-probabilities in float64, shape (vocabulary,), of logits of that shape."""
    import numpy as np

    wide = np.asarray(logits, dtype=np.float64).reshape(-1)
    wide = wide - wide.max()
    return wide - np.log(np.exp(wide).sum())


def compare(recorded: dict[str, Any], replayed: dict[str, Any], first: float, later: float) -> Any:
    """Differences between a recorded prompt and what a runtime made of it now.

    Args:
        recorded: `ids`, `top` (pairs of token id and log-probability of the first answer token)
            and `steps` (`token`, `logprob` and `margin` to the second best, one for each token).
        replayed: `ids`, `first` (log-probabilities of the ids in `top`) and `steps` (`greedy`, the
            best token here, and `logprob` of the recorded one), the recorded tokens being fed.
        first: how far the first token's log-probabilities may be off, in nats.
        later: the same for the tokens after it; where the recorded margin is smaller, either token
            may be the best one.

    Returns:
        Sentences, and the largest differences at the first token and later.
    """
    if recorded["ids"] != replayed["ids"]:
        return ["the prompt became other tokens than recorded"], 0.0, 0.0
    pairs = zip(recorded["top"], replayed["first"], strict=True)
    worst_first = max(abs(logprob - now) for (_, logprob), now in pairs)
    problems = []
    if not worst_first <= first:
        problems.append(
            f"log-probabilities of the first token are off by {worst_first:.3f}, expected at most "
            f"{first:.3f}"
        )
    worst_later = 0.0
    for number, (then, now) in enumerate(zip(recorded["steps"], replayed["steps"], strict=True)):
        if number:
            worst_later = max(worst_later, abs(then["logprob"] - now["logprob"]))
        if then["token"] != now["greedy"] and then["margin"] > later:
            problems.append(
                f"token {number + 1} of the answer is {now['greedy']}, expected {then['token']}"
            )
            break
    if not worst_later <= later:
        problems.append(
            f"log-probabilities of the answer are off by {worst_later:.3f}, expected at most "
            f"{later:.3f}"
        )
    return problems, worst_first, worst_later


class LlamaCpp:
    """llama-cpp-python."""

    name, module, format = "llama-cpp", "llama_cpp", "gguf"

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        import llama_cpp

        self._lib = llama_cpp
        # Flash attention is llama.cpp's own default, and what the vectors were recorded with.
        self._model = llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0,
            flash_attn=True, verbose=False,
        )  # fmt: skip

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def start(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after a fresh sequence."""
        self._model.reset()
        return self.feed(ids)

    def feed(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after some more tokens."""
        import numpy as np

        self._model.eval(list(ids))
        pointer = self._lib.llama_get_logits_ith(self._model.ctx, -1)
        return log_softmax(np.ctypeslib.as_array(pointer, shape=(self._model.n_vocab(),)))


class OrtGenai:
    """onnxruntime-genai."""

    name, module, format = "ort-genai", "onnxruntime_genai", "onnx"

    def __init__(self, path: Path, context: int, threads: int | None) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(path))
        if threads:
            options = {"session_options": {"intra_op_num_threads": threads}}
            config.overlay(json.dumps({"model": {"decoder": options}}))
        self._og, self._context = og, context
        self._model = og.Model(config)
        self._tokenizer = og.Tokenizer(self._model)
        self._tokenizer.update_options(add_special_tokens="false")

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def start(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after a fresh sequence."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=self._context, do_sample=False)
        self._generator = self._og.Generator(self._model, params)
        return self.feed(ids)

    def feed(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after some more tokens."""
        import numpy as np

        self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
        return log_softmax(self._generator.get_logits()[0, -1])


ENGINES = (LlamaCpp, OrtGenai)


def replay(engine: Any, recorded: dict[str, Any]) -> dict[str, Any]:
    """What an engine makes of a recorded prompt, in the form that `compare` takes."""
    ids = engine.encode(recorded["text"])
    if ids != recorded["ids"]:
        return {"ids": ids, "first": [], "steps": []}
    row = engine.start(ids)
    result: dict[str, Any] = {
        "ids": ids,
        "first": [float(row[token]) for token, _ in recorded["top"]],
        "steps": [],
    }
    for number, step in enumerate(recorded["steps"]):
        if number:
            row = engine.feed([recorded["steps"][number - 1]["token"]])
        result["steps"].append(
            {"greedy": int(row.argmax()), "logprob": float(row[step["token"]])}
        )  # fmt: skip
    return result


def longest(cases: Sequence[dict[str, Any]]) -> int:
    """Tokens of context that the recorded sequences need."""
    return max(len(case["ids"]) + len(case["steps"]) for case in cases) + CONTEXT_ROOM


def check_hashes(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of listed files that are missing or differ."""
    wrong = []
    for name, entry in manifest["files"].items():
        digest, path = hashlib.sha256(), folder / name
        if path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        if digest.hexdigest() != entry["sha256"]:
            wrong.append(name)
    return wrong


def check_variant(folder: Path, golden: dict[str, Any], variant: str, threads: int | None) -> Any:
    """Sentences on what differs, or None if no engine for it is installed."""
    entry = golden["variants"][variant]
    engine_class = next(engine for engine in ENGINES if engine.format == entry["format"])
    try:
        importlib.import_module(engine_class.module)
    except ImportError:
        say(f"{variant}: skipped, {engine_class.module} is not installed")
        return None
    recorded = entry["runtimes"].get(engine_class.name) or next(iter(entry["runtimes"].values()))
    engine = engine_class(folder / entry["path"], longest(recorded["cases"]), threads)
    tolerances = golden["first_token_tolerance"], golden["later_tolerance"]
    found, first, later = [], 0.0, 0.0
    for number, case in enumerate(recorded["cases"], 1):
        problems, a, b = compare(case, replay(engine, case), *tolerances)
        found += [f"{variant}, prompt {number}: {problem}" for problem in problems]
        first, later = max(first, a), max(later, b)
    say(
        f"{variant}: {len(recorded['cases'])} prompts on {engine_class.name}, off by at most "
        f"{first:.4f} (first token) and {later:.4f} (later) nats"
    )
    return found


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description="Check this bundle's files and models.")
    parser.add_argument("--threads", type=int, help="threads to compute with")
    threads = parser.parse_args(arguments).threads
    folder = Path(__file__).resolve().parent
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    problems = [f"{name} is missing or was changed" for name in check_hashes(folder, manifest)]
    ran = False
    for variant in golden["variants"] if not problems else ():
        found = check_variant(folder, golden, variant, threads)
        ran = ran or found is not None
        problems += found or []
    for problem in problems:
        say(f"FAILED: {problem}")
    if problems:
        return 1
    if not ran:
        say("no model was run: pip install llama-cpp-python, or onnxruntime-genai")
        return 2
    say("all is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
