"""Push to and pull from a Hugging Face repository, on a server that speaks the hub's language."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.make import BundleSettings, make_bundle
from edgeadapt.bundle.manifest import digest_bytes
from edgeadapt.cli import cli
from edgeadapt.errors import InputError
from edgeadapt.registry.push import push_bundle
from tests.registry.hub_server import REPO, TOKEN, Hub, hub_server
from tests.registry.test_oci import MODEL, contents, nothing_but

ROOT = Path(__file__).parents[2]
REFERENCE = f"hf://{REPO}"
Run = Callable[..., Any]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


@pytest.fixture
def run(hub: Hub, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on that hub; gives its JSON, or what it said when it refused."""
    # The library reads these variables once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.environment["HF_ENDPOINT"])
    template = hub.environment["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def run(*arguments: object, refused: int = 0, token: str = TOKEN) -> Any:
        command = [*map(str, arguments), "--json"]
        done = CliRunner().invoke(cli, command, env={"HF_TOKEN": token})
        assert done.exit_code == refused, done.output
        return done.stderr if refused else json.loads(done.stdout)

    return run


def keys(lines: list[dict[str, Any]]) -> dict[str, str]:
    """What a commit did, by path."""
    assert lines[0]["key"] == "header"
    return {line["value"]["path"]: line["key"] for line in lines[1:]}


def test_commits_hold_exactly_what_changed(
    made: Path, newer_run: Path, hub: Hub, run: Run, tmp_path: Path
) -> None:
    files = contents(made)
    hub.commits[0]["theirs/notes.txt"] = b"not ours"
    pushed = run("push", made, REFERENCE)
    assert pushed["pinned"] == f"{REFERENCE}@{hub.oid()}"
    assert keys(hub.operations[0]) == {
        name: "lfsFile" if name == MODEL else "file" for name in files
    }
    assert hub.operations[0][0]["value"]["parentCommit"] == hub.oid(0)
    assert hub.commits[1]["README.md"].startswith(b"---\n")

    # an earlier bundle had one file more, and one under another name
    hub.commits[1] |= {"loading/old.txt": b"old", "model.sig": b"{}", "model.sig.sha256": b"x"}
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["loading/old.txt"] = {"size": 3, "sha256": "0" * 64}
    data = json.dumps(manifest).encode()
    hub.commits[1] |= {"manifest.json": data, "manifest.sha256": digest_bytes(data)}

    make_bundle(newer_run, tmp_path / "new", BundleSettings(golden=False))
    write_archive(tmp_path / "new", tmp_path / "new.zip")
    new = contents(tmp_path / "new")
    deleted = ["loading/old.txt", "model.sig", "model.sig.sha256"]
    pushed = run("push", tmp_path / "new.zip", REFERENCE)
    assert pushed["deleted"] == deleted
    changed = [name for name in new if files.get(name) != new[name]]
    assert keys(hub.operations[1]) == (
        dict.fromkeys(changed, "file") | dict.fromkeys(deleted, "deletedFile")
    )
    assert hub.uploads == 1
    assert hub.commits[2] == new | {
        ".gitattributes": b"*\n", "theirs/notes.txt": b"not ours"
    }  # fmt: skip


def test_a_pull_is_of_one_commit_and_takes_the_bundle_alone(
    made: Path, hub: Hub, run: Run, tmp_path: Path
) -> None:
    pinned = run("push", made, REFERENCE)["pinned"]
    hub.commits.append({"README.md": b"something else"})
    pulled = run("pull", pinned, "--out", tmp_path / "got")
    assert contents(tmp_path / "got") == contents(made)
    assert pulled["pinned"] == pinned and pulled["reference"] == pinned
    told = run("pull", REFERENCE, "--out", tmp_path / "other", refused=2)
    assert "has no manifest.json: it is no edgeadapt bundle" in told
    assert nothing_but(tmp_path, "got")


def test_a_delta_is_for_the_bundle_that_is_there_and_comes_back_whole(
    made: Path, newer_run: Path, hub: Hub, run: Run, tmp_path: Path
) -> None:
    make_bundle(newer_run, tmp_path / "new", BundleSettings(golden=False))
    make_bundle(newer_run, tmp_path / "delta", BundleSettings(golden=False, since=made))
    told = run("push", tmp_path / "delta", REFERENCE, refused=2)
    assert "holds only what changed since tiny" in told and "holds none; push that one" in told
    run("push", made, REFERENCE)
    assert run("push", tmp_path / "delta", REFERENCE)["deleted"] == []
    run("pull", REFERENCE, "--out", tmp_path / "got")
    got, new = contents(tmp_path / "got"), contents(tmp_path / "new")
    assert {n: d for n, d in got.items() if not n.startswith("manifest.")} == {
        n: d for n, d in new.items() if not n.startswith("manifest.")
    }


def test_what_the_hub_changed_is_refused(made: Path, hub: Hub, run: Run, tmp_path: Path) -> None:
    run("push", made, REFERENCE)
    model = hub.commits[-1][MODEL]
    card = hub.commits[-1]["README.md"]
    hub.commits[-1]["README.md"] = card.replace(b"license: mit", b"license: xyz")
    hub.commits[-1][MODEL] = bytes([model[0] ^ 1]) + model[1:]
    told = run("pull", REFERENCE, "--out", tmp_path / "got", refused=1)
    assert f"{MODEL} was changed" in told  # from the hub's list, before anything is fetched
    hub.commits[-1][MODEL] = model
    told = run("pull", REFERENCE, "--out", tmp_path / "got", refused=1)
    assert "README.md was changed" in told
    assert nothing_but(tmp_path)


def test_refusals_say_what_to_do(made: Path, hub: Hub, run: Run, tmp_path: Path) -> None:
    assert "hf auth login" in run("push", made, REFERENCE, refused=2, token="hf_other")
    assert "hf repos create team/none --private" in run("push", made, "hf://team/none", refused=2)
    told = run("pull", f"{REFERENCE}@v9", "--out", tmp_path / "got", refused=2)
    assert f"{REPO} has no revision 'v9'" in told
    assert hub.operations == []


@pytest.mark.e2e  # the library waits between its five tries
def test_an_interrupted_pull_leaves_nothing(made: Path, hub: Hub, run: Run, tmp_path: Path) -> None:
    run("push", made, REFERENCE)
    hub.break_after = len(hub.commits[-1]["manifest.json"]) + 1000
    told = run("pull", REFERENCE, "--out", tmp_path / "got", refused=2)
    assert "the connection broke" in told
    assert nothing_but(tmp_path)


def test_the_hub_is_where_the_environment_says(made: Path, hub: Hub, tmp_path: Path) -> None:
    def program(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        names = {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | hub.environment | variables
        return subprocess.run(
            [sys.executable, "-m", "edgeadapt", *map(str, arguments)],
            env=os.environ | names, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = program("push", made, REFERENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{REFERENCE}@{hub.oid()}"
    assert contents(made).items() <= hub.commits[-1].items()
    nobody = program("push", made, REFERENCE, HF_ENDPOINT="http://127.0.0.1:9")
    assert nobody.returncode == 2
    assert f"cannot reach the hub for {REPO}" in nobody.stderr


def test_offline_is_offline(made: Path) -> None:
    with pytest.raises(InputError, match="while HF_HUB_OFFLINE is set; unset it"):
        push_bundle(made, REFERENCE)
