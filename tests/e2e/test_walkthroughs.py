"""Every command of docs/walkthroughs.md, in order, in one folder, with real tools."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeadapt.recipe import load_recipe
from tests.registry.oci_server import oci_server
from tests.transports.ssh_server import ROOT, ssh_server

pytestmark = pytest.mark.e2e

TEXT = (ROOT / "docs/walkthroughs.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
BLOCK = re.compile(
    r"^```(console|yaml (?P<file>\S+))\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader is; `edgeadapt` and `python` are the ones that are tested."""
    folder = tmp_path_factory.mktemp("reader")
    programs = folder / "bin"
    programs.mkdir()
    python = shlex.quote(sys.executable)
    for name, call in (("edgeadapt", "-m edgeadapt"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {python} {call} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def instead(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What is run in place of what the text says: less work, and other machines."""
    with (
        ssh_server(tmp_path_factory.mktemp("board")) as board,
        oci_server(tmp_path_factory.mktemp("registry")) as registry,
    ):
        program = board.edgeadapt()
        host = f"-p {board.link.port} {board.url().split('/')[2].partition(':')[0]}"
        yield {
            "--max-steps 60": "--max-steps 4 --max-tokens 128 --held-out-examples 4",
            "--examples 32": "--examples 8 --max-tokens 128 --gate min_retention=null",
            "edgeadapt bench": (
                "edgeadapt bench --prompt-tokens 16 --decode-tokens 4 --repetitions 1"
            ),
            '--prompt "': '--max-tokens 8 --prompt "',
            "0,512": "0,64",
            "--context 1024": "--context 64",
            "--sustain 10m": "--sustain 2s",
            # another recipe, whose run all tests share, in place of one that takes minutes more
            "edgeadapt run docs-helper.yaml": f"cd {run} && edgeadapt run small.yaml",
            "runs/docs-helper": str(run / "runs/small"),
            "ssh://pi@raspberrypi": board.url(program),
            "ssh pi@raspberrypi edgeadapt": f"{board.client} {host} {program}",
            "registry.example": registry.host,
            "EDGEADAPT_SSH": board.client,
        }


def substituted(text: str, instead: dict[str, str]) -> str:
    for said, done in instead.items():
        text = text.replace(said, done)
    return text


def test_every_substitution_is_of_something(instead: dict[str, str]) -> None:
    assert [said for said in instead if said not in TEXT and said != "EDGEADAPT_SSH"] == []
    assert len(SECTIONS) == 3


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_every_command_works(title: str, text: str, folder: Path, instead: dict[str, str]) -> None:
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "EDGEADAPT_SSH": instead["EDGEADAPT_SSH"],
    }
    commands = 0
    for block in BLOCK.finditer(text):
        content = substituted(block["text"], instead)
        if block["file"]:
            (folder / block["file"]).write_text(content)
            load_recipe(str(folder / block["file"]))
            continue
        for command in content.replace("\\\n", " ").splitlines():
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            commands += 1
    assert commands >= 4
