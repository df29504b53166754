from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from edgeadapt.bundle.loading_code import loading_files
from edgeadapt.bundle.manifest import Variant

SYSTEM = "Say 'no' or \"yes\".\nNever name @FILE@ or $HOME \\ ü."


def files(format: Literal["gguf", "onnx"], system: str | None) -> dict[str, str]:
    variant = Variant(
        name="v", format=format, quantization="Q8_0", path="models/m", bytes=1, sha256="0" * 64,
        devices={}, gates={}, passed=True, system=system,
    )  # fmt: skip
    found = loading_files(variant, "Where is @MODEL@?", ["<|im_end|>"])
    return {name.removeprefix("loading/v/"): text for name, text in found}


@pytest.mark.parametrize("format", ["gguf", "onnx"])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_conversations_begin_as_in_training(
    format: Literal["gguf", "onnx"], system: str | None
) -> None:
    found = files(format, system)
    (example,) = (text for name, text in found.items() if name.endswith(".py"))
    (messages,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "messages"
    )
    asked = {"role": "user", "content": "Where is @MODEL@?"}
    assert messages == ([] if system is None else [{"role": "system", "content": SYSTEM}]) + [asked]
    for name in ("Android.kt", "Model.swift"):
        assert ("system message" in found[name] or "setSystemPrompt" in found[name]) == bool(system)
        assert "_NOTE@" not in found[name] and "_SYSTEM@" not in found[name]
    if format == "gguf":
        assert (f'SYSTEM """{SYSTEM}"""' in found["Modelfile"]) == bool(system)


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_the_shell_gives_llama_cli_the_system_message(system: str | None, tmp_path: Path) -> None:
    program = tmp_path / "llama-cli"
    program.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    program.chmod(0o755)
    script = files("gguf", system)["llama-cpp.sh"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    assert words[:3] == ["--model", "models/m", "--jinja"]
    assert words[7:] == ([] if system is None else ["--system-prompt", SYSTEM])


def test_what_a_modelfile_cannot_quote_is_a_comment() -> None:
    lines = files("gguf", 'Say """.')["Modelfile"].splitlines()
    assert not [line for line in lines if line.startswith("SYSTEM")]
    assert lines[-1] == '# SYSTEM: "Say \\"\\"\\"."'
