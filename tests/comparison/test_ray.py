"""Trials on a real Ray cluster of several nodes on this machine, one of them killed."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import CliRunner

from edgeadapt.cli import cli
from edgeadapt.comparison import ray_, run
from edgeadapt.comparison.ground import find_ground
from edgeadapt.comparison.recipe import load_comparison
from edgeadapt.errors import HostFailure, InputError, RuntimeFailure
from tests.comparison.test_compare import without_times
from tests.tiny import save_llama

pytest.importorskip("llama_cpp")
ray = pytest.importorskip("ray")

METHODS: list[Any] = ["none", "lora", "ia3", "rag"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    save_llama(folder / "base", hidden=64, layers=2)
    for name, count in (("train", 16), ("held", 4), ("general", 4)):
        lines = [
            json.dumps({"prompt": f"What is {name} {i}?", "completion": f"It is {i} dogs."})
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def write_recipe(workplace: Path, **changes: Any) -> Path:
    recipe = {
        "name": "tiny",
        "base": str(workplace / "base"),
        "data": {name: str(workplace / f"{file}.jsonl") for name, file in (
            ("train", "train"), ("held_out", "held"), ("general", "general"),
        )},
        "train": {"max_steps": 4, "batch_size": 2, "save_every_s": 0},
        "methods": METHODS,
        "seeds": [0, 1],
        "quantizations": ["Q8_0"],
        "devices": ["laptop-x86"],
        "evaluate": {"answer_tokens": 4, "retention": False},
        "bench": {"repetitions": 1, "threads": 1},
        "cluster": {"memory_gib": 0.2},
    } | changes  # fmt: skip
    path = workplace / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


class Cluster:
    """A head that works at nothing, and two nodes with a core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Local

        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        self._cluster = Local(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        small.pop("include_dashboard")
        self.nodes = [self._cluster.add_node(num_cpus=1, memory=2**30, **small) for _ in range(2)]
        self.address = self._cluster.address

    def trainings(self, number: int) -> list[psutil.Process]:
        """What a node's trials are training now."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            raylet = self.nodes[number].all_processes["raylet"][0].process
            for process in psutil.Process(raylet.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "edgeadapt.worker" in process.cmdline():
                        found.append(process)
        return found

    def kill(self, number: int) -> None:
        self._cluster.remove_node(self.nodes[number], allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the order of sums is that of one thread
    found = Cluster()
    yield found
    found.end()


@pytest.mark.e2e
def test_a_node_killed_in_the_middle_changes_no_figure(
    workplace: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_comparison(str(write_recipe(workplace)))
    landed: list[str] = []
    orphans: list[psutil.Process] = []

    def kill_one() -> None:
        while not (orphans := cluster.trainings(1)):
            time.sleep(0.05)
        lost.extend(orphans)
        cluster.kill(1)

    lost: list[psutil.Process] = []
    killer = threading.Thread(target=kill_one, daemon=True)
    with ray_.ray_cluster(cluster.address) as execute:

        def noted(ground: Any, trials: Any) -> Any:
            killer.start()
            for slug, result in execute(ground, trials):
                landed.append(slug)
                yield slug, result

        found = run.compare_methods(recipe, workplace / "ray/tiny", execute=noted)
    killer.join(10)
    assert lost and not any(process.is_running() for process in lost)
    expected = [trial.slug for trial in recipe.trials() if trial.wish.method != "none"]
    assert sorted(landed) == sorted(expected)  # each once

    alone = run.compare_methods(recipe, workplace / "alone/tiny")
    for one, other in zip(found["contenders"], alone["contenders"], strict=True):
        assert without_times(one) == without_times(other)
    for one, other in zip(found["trials"], alone["trials"], strict=True):
        assert [e["domain"] for e in one["entries"]] == [e["domain"] for e in other["entries"]]
        if one["training"]:
            assert one["training"]["losses"] == other["training"]["losses"]
