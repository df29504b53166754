"""Trials as `run_trial` returns them, with figures of one's choice."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeadapt.comparison.figures import contenders, record
from edgeadapt.comparison.recipe import ComparisonRecipe
from edgeadapt.comparison.verdict import judge
from edgeadapt.devices import load_profile

QUESTIONS, TOKENS = 40, 10


def trial(
    label: str,
    *,
    method: str = "lora",
    gain: float = 0.0,
    lost: float = 0.0,
    noise: float = 0.05,
    seed: int = 0,
    ship: str = "merged",
    prompt: float = 20,
    size: int = 100 << 20,
    beside: int = 0,
    training_s: float | None = 60.0,
    quantization: str = "Q4_K_M",
    task: list[float] | None = None,
) -> dict[str, Any]:
    """One whose answers are `gain` nats a token likelier than the plain base's 3."""
    random = np.random.default_rng(sum(label.encode()) + seed)
    domain = TOKENS * (3 - gain + noise * random.standard_normal(QUESTIONS))
    general = TOKENS * (2 + lost + noise * random.standard_normal(QUESTIONS))
    training = {
        "trained_parameters": 1_000_000, "steps": 60, "learning_rate": 1e-3, "losses": [3.0],
        "examples": 9, "quantization": "float32", "seconds": training_s, "peak_memory": 1 << 30,
        "joules": None, "resumed": False,
    }  # fmt: skip
    return {
        "method": method,
        "label": label,
        "seed": seed,
        "fraction": 1.0,
        "training": training if training_s is not None else None,
        "prompting": None,
        "prompting_s": None,
        "entries": [
            {
                "ship": ship,
                "quantization": quantization,
                "artifact": {"path": "x.gguf", "bytes": size},
                "positions": 0,
                "model": {
                    "parameters": 134_515_008, "active": 134_515_008,
                    "kv_bytes_per_token": 23040, "max_context": 8192,
                },
                "beside": {"path": "y", "bytes": beside} if beside else None,
                "domain": {"nll": domain.tolist(), "tokens": [TOKENS] * QUESTIONS},
                "general": {"nll": general.tolist(), "tokens": [TOKENS] * QUESTIONS},
                "task": task and {"metric": "f1", "values": task},
                "fidelity": None,
                "prompt": {"mean": prompt, "max": round(prompt) + 5},
                "bench": {
                    "ttft_s": {"median": 0.1}, "decode_tps": {"median": 80.0},
                    "memory": {"peak_anonymous": 50 << 20},
                },
            }
        ],
    }  # fmt: skip


def plain(**changes: Any) -> dict[str, Any]:
    """The base itself."""
    return trial("none", **{"method": "none", "ship": "separate", "training_s": None} | changes)


def document() -> dict[str, Any]:
    """What `edgeadapt compare` would say of eight such contenders on two devices."""
    trials = [
        plain(),
        trial("few-shot", method="few-shot", gain=0.9, ship="separate", prompt=170, beside=900,
              training_s=None),
        trial("rag", method="rag", gain=0.4, ship="separate", prompt=700, beside=3 << 20,
              training_s=None),
        trial("prefix", method="prefix", gain=1.0, ship="separate", beside=1 << 20),
        trial("adapter", method="adapter", gain=1.3, size=109 << 20),
        trial("lora", gain=1.3),
        trial("a name that is rather long", method="dora", gain=1.31, lost=0.2),
        trial("full", method="full", gain=-0.3, lost=1.5, size=64 << 30),
    ]  # fmt: skip
    recipe = ComparisonRecipe.model_validate({
        "name": "a-comparison", "base": "default", "data": {"train": "python-docs"},
        "methods": ["none", "lora"], "devices": ["laptop-x86", "raspberry-pi-5"],
    })  # fmt: skip
    found = contenders(trials)
    return {
        "name": recipe.name,
        "edgeadapt": "0.1.0",
        "recipe": recipe.model_dump(mode="json"),
        "base": {"name": "default", "parameters": 134_515_008},
        "machine": {"cpu": "a CPU"},
        "questions": {
            what: {"examples": QUESTIONS, "answer_tokens": QUESTIONS * TOKENS, "groups": None}
            for what in ("domain", "general")
        },
        "level": 0.95,
        "trials": trials,
        "contenders": [record(one, found, 134_515_008) for one in found],
        "failed": [],
        "devices": [judge(load_profile(name), found, recipe) for name in recipe.devices],
    }
