"""A board without Python: llama-bench there, its figures here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeadapt.bench.llama_bench import Imported
from edgeadapt.cli import cli
from edgeadapt.errors import InputError, MissingSetupError
from edgeadapt.setup.llama_tools import installed_tool
from edgeadapt.transports.llama_bench import llama_bench_arguments
from tests.transports.ssh_server import SshServer

try:
    TOOL: Path | None = installed_tool("llama-bench")  # before tests get a cache of their own
except MissingSetupError:
    TOOL = None

SHORT = ("--prompt-tokens=8", "--decode-tokens=4", "--repetitions=2", "--threads=1,2")


def bench(server: SshServer, *arguments: object) -> Result:
    if TOOL is None:
        pytest.skip("no llama-bench here; type: edgeadapt setup llama-tools")
    return CliRunner().invoke(cli, ["bench", *map(str, arguments), "--on", server.url(TOOL)])


def test_its_figures_join_the_report(server: SshServer, tiny_gguf: Path) -> None:
    done = bench(server, tiny_gguf, *SHORT, "--depths", "16", "--json")
    assert done.exit_code == 0, done.output
    found = [Imported.model_validate(record) for record in json.loads(done.stdout)]
    assert [record.threads for record in found] == [1, 2]
    for record in found:
        assert record.model == str(tiny_gguf)
        assert [(s.tokens, s.depth, s.tps.count) for s in record.prefill] == [(8, 16, 2)]
        assert [(s.tokens, s.depth, s.tps.count) for s in record.decode] == [(4, 16, 2)]
    assert server.left_behind() == []


def test_a_table_of_them(server: SshServer, tiny_gguf: Path) -> None:
    done = bench(server, tiny_gguf, *SHORT)
    assert done.exit_code == 0, done.output
    assert "tiny.gguf" in done.stdout
    assert "llama-bench" in done.stdout


def test_what_it_has_no_option_for_is_refused(server: SshServer, tiny_gguf: Path) -> None:
    done = bench(server, tiny_gguf, "--cold", "--runtime", "torch")
    assert done.exit_code == 2
    assert "llama-bench has nothing like --cold, --runtime; leave it out" in done.stderr
    assert list(server.artifacts.iterdir()) == []


def test_only_gguf(tiny_model: Path) -> None:
    from edgeadapt.artifact import open_artifact

    with pytest.raises(InputError, match="llama-bench does not load"):
        llama_bench_arguments({"0/model": open_artifact(tiny_model)}, {})
