"""Trials on a real Ray cluster of several nodes on this machine, one of them killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
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
from edgeadapt.comparison import run
from edgeadapt.comparison.cluster import driver, node
from edgeadapt.comparison.cluster.connection import ray_cluster
from edgeadapt.comparison.cluster.driver import declared_memory
from edgeadapt.comparison.ground import find_ground
from edgeadapt.comparison.recipe import load_comparison
from edgeadapt.comparison.trial import run_trial
from edgeadapt.errors import InputError, RuntimeFailure
from edgeadapt.jobs import available_threads
from tests.comparison.test_compare import without_times
from tests.questions import write_questions
from tests.tiny import save_llama

pytest.importorskip("llama_cpp")
ray = pytest.importorskip("ray")

METHODS: list[Any] = ["none", "lora", "rag"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    save_llama(folder / "base", hidden=64, layers=2)
    write_questions(folder, train=16, held=4, general=4)
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

    def tuning(self, number: int) -> list[psutil.Process]:
        """What a node's combinations of a sweep are trained in now."""
        raylet = self.nodes[number].all_processes["raylet"][0].process
        found = []
        for process in psutil.Process(raylet.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                maps = [entry.path for entry in process.memory_maps()]
                if any("xxhash" in path for path in maps):  # which the datasets library imports
                    found.append(process)
        return found

    def kill(self, number: int) -> None:
        self._cluster.remove_node(self.nodes[number], allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """This machine's, which not every cluster asks for; Ray reads it once in a process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the order of sums is that of one thread
    found = Cluster()
    yield found
    found.end()


@pytest.mark.e2e
def test_a_node_killed_in_the_middle_changes_no_figure(workplace: Path, cluster: Cluster) -> None:
    recipe = load_comparison(str(write_recipe(workplace)))
    landed: list[str] = []
    lost: list[psutil.Process] = []

    def kill_one() -> None:
        while not lost:
            time.sleep(0.05)
            lost.extend(cluster.trainings(1))
        cluster.kill(1)

    killer = threading.Thread(target=kill_one, daemon=True)
    with ray_cluster(cluster.address) as execute:

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


@pytest.mark.e2e
def test_a_sweep_on_ray_chooses_what_it_chooses_alone(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rates = [1e-2, 1e-9, 1e30]
    lora = {"method": "lora", "sweep": {"learning_rate": rates}}
    path = write_recipe(
        workplace, name="sweep", methods=["none", lora], seeds=[0],
        cluster={"memory_gib": 0.2, "cpus": available_threads()},  # one at a time
    )  # fmt: skip
    recipe = load_comparison(str(path))
    with ray_cluster("local") as execute:
        found = run.compare_methods(recipe, workplace / "sweep-ray", execute=execute)
    assert not ours()
    alone = run.compare_methods(recipe, workplace / "sweep-alone")
    one, other = (document["trials"][1]["training"] for document in (found, alone))
    assert one["sweep"]["chosen"] == other["sweep"]["chosen"] == {"learning_rate": 1e-2}
    assert one["losses"] == other["losses"]
    assert one["sweep"]["tried"] == other["sweep"]["tried"]
    tried = one["sweep"]["tried"]
    assert [entry["values"]["learning_rate"] for entry in tried] == rates
    assert [entry["ended"] for entry in tried] == ["done", "stopped", "diverged"]
    assert [step for step, _ in tried[0]["losses"]] == [1, 4]


@pytest.mark.e2e
def test_a_sweep_that_loses_a_node_tries_each_combination_once(
    workplace: Path, cluster: Cluster
) -> None:
    rates = [1e-2, 1e-3, 1e-9]
    lora = {"method": "lora", "sweep": {"learning_rate": rates}}
    changes: dict[str, Any] = {
        "methods": ["none", lora], "seeds": [0],
        "train": {"max_steps": 300, "batch_size": 2},
    }  # fmt: skip
    recipe = load_comparison(str(write_recipe(workplace, name="sweep-lost", **changes)))
    lost: list[psutil.Process] = []

    def kill_one() -> None:
        while not lost:
            time.sleep(0.05)
            lost.extend(cluster.tuning(1))
        time.sleep(5)  # it trains by now
        cluster.kill(1)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with ray_cluster(cluster.address) as execute:
        found = run.compare_methods(recipe, workplace / "sweep-lost", execute=execute)
    killer.join(10)
    assert lost and not any(process.is_running() for process in lost)
    alone = run.compare_methods(recipe, workplace / "sweep-kept")
    one, other = (document["trials"][1]["training"] for document in (found, alone))
    tried = one["sweep"]["tried"]
    assert [entry["values"]["learning_rate"] for entry in tried] == rates
    for entry, expected in zip(tried, other["sweep"]["tried"], strict=True):
        steps = [step for step, _ in entry["losses"]]
        assert steps == sorted(set(steps))  # nothing of the part that was lost
        shared = min(len(entry["losses"]), len(expected["losses"]))
        assert entry["losses"][:shared] == expected["losses"][:shared] != []
    assert one["sweep"]["chosen"] == other["sweep"]["chosen"] == {"learning_rate": 1e-2}
    assert one["losses"] == other["losses"]


def ours() -> list[str]:
    """Processes of Ray that this one started."""
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    return [name for name in names if name in ("raylet", "gcs_server") or name.startswith("ray::")]


@pytest.mark.e2e
def test_a_trial_fails_with_the_sentence_that_it_has_without_ray(workplace: Path) -> None:
    diverging = {"method": "lora", "train": {"learning_rate": 1e30}}
    swept = {"method": "lora", "name": "swept", "sweep": {"learning_rate": [1e29, 1e30]}}
    recipe = write_recipe(workplace, name="bad", methods=["none", diverging, swept], seeds=[0])
    words = ["compare", str(recipe), "--runs", str(workplace / "runs")]
    found = [CliRunner().invoke(cli, words + more) for more in (["--ray", "local"], [])]
    for one in found:
        assert one.exit_code == 2, one.exception
    sentences = [
        [line for line in one.output.splitlines() if "(seed 0) failed: " in line] for one in found
    ]
    assert "lora (seed 0) failed: training diverged: the loss" in sentences[0][0]
    assert "swept (seed 0) failed: training diverged with every" in sentences[0][1]
    assert sentences[0] == sentences[1]
    assert not ours()


@pytest.mark.e2e
def test_what_no_machine_has_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "PATIENCE_S", 1.0)
    changes: dict[str, Any] = {"cluster": {"memory_gib": 0.2, "gpus": 1}, "seeds": [0]}
    recipe = load_comparison(str(write_recipe(workplace, name="gpus", **changes)))
    with (
        ray_cluster("local") as execute,
        pytest.raises(RuntimeFailure, match=r"needs \d CPUs with 1 GPUs with 0\.2 GiB"),
    ):
        run.compare_methods(recipe, workplace / "gpus", execute=execute)
    assert not ours()


@pytest.mark.e2e
def test_an_interrupted_comparison_leaves_no_process(workplace: Path) -> None:
    recipe = write_recipe(workplace, name="interrupted")
    words = [str(recipe), "--runs", str(workplace / "runs"), "--ray", "local"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeadapt", "compare", *words], cwd=Path(__file__).parents[2]
    )
    started = psutil.Process(process.pid)

    def below() -> list[psutil.Process]:
        return started.children(recursive=True) if process.poll() is None else []

    def training() -> bool:
        for child in below():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("ray::") and child.children():
                    return True
        return False

    while process.poll() is None and not training():
        time.sleep(0.1)
    left = below()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    gone, alive = psutil.wait_procs(left, timeout=20)
    assert len(gone) > 3 and not alive


def test_a_machine_that_shares_no_disk_finds_the_same_ground(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_comparison(str(write_recipe(workplace, name="apart", methods=["none"])))
    (plain,) = recipe.trials()
    ground = find_ground(recipe, workplace / "apart")
    elsewhere = node.Driver(Path("/no/such/folder"), "token", 1, node.identity(ground), -1)
    before = Path.cwd()
    answer = node.do_trial(ground, plain, elsewhere)
    assert Path.cwd() == before
    expected = run_trial(ground, plain)["entries"][0]
    (found,) = answer["result"]["entries"]
    assert Path(found["artifact"]["path"]).is_relative_to(os.environ["EDGEADAPT_CACHE"])
    for figure in ("domain", "general", "prompt"):
        assert found[figure] == expected[figure]

    other = elsewhere.identity | {"training data": "0" * 64}
    refused = node.do_trial(ground, plain, node.Driver(elsewhere.cwd, "token", 1, other, -1))
    assert refused["error"]["type"] == "InputError"
    assert "another training data under the name in the recipe" in refused["error"]["message"]


def test_another_version_is_refused(workplace: Path) -> None:
    recipe = load_comparison(str(write_recipe(workplace, methods=["none"])))
    (plain,) = recipe.trials()
    old = node.Driver(Path.cwd(), "token", 1, {}, -1, version="0.0.1")
    refused = node.do_trial(find_ground(recipe, workplace / "apart"), plain, old)
    assert "install the same on all" in refused["error"]["message"]


def test_memory_is_declared_by_the_recipe_or_by_the_bases_size(workplace: Path) -> None:
    def declared(**changes: Any) -> list[int]:
        recipe = load_comparison(str(write_recipe(workplace, seeds=[0], **changes)))
        ground = find_ground(recipe, workplace / "memory")
        return [declared_memory(ground, trial) for trial in recipe.trials()]

    assert declared(cluster={"memory_gib": 0.5}) == [2**29] * len(METHODS)
    plain, lora, full = declared(cluster={}, methods=["none", "lora", "full"])
    assert plain == lora and full - 2**30 == 2 * (lora - 2**30) > 0


def test_an_address_without_a_cluster_is_refused(workplace: Path) -> None:
    words = ["compare", str(write_recipe(workplace)), "--ray", "127.0.0.1:9"]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 2 and "say --ray local" in found.stderr
    assert not ours()


def test_a_trial_is_done_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PATIENCE_S", 0.6)
    with (
        node.alone(tmp_path / "trial"),
        pytest.raises(InputError, match="another edgeadapt run"),
        node.alone(tmp_path / "trial"),
    ):
        pass
    with node.alone(tmp_path / "trial"):
        pass
