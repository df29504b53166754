"""The demo's domain: questions and answers from the docstrings of the running Python.

Python modules are read as source, not imported: importing all of the standard library opens
browsers and prints poems. Only modules written in C, which have no source, are imported, in a
process of their own.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from edgeadapt.files import atomic_folder

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"

_LEFT_OUT = frozenset(
    {"antigravity", "distutils", "idlelib", "lib2to3", "pydoc_data", "test", "this", "tkinter",
     "turtle", "turtledemo"}
)  # fmt: skip
"""Jokes, tests, what newer Pythons dropped, and two widget sets that would be a quarter of it."""

_HELD_OUT_PERCENT = 10
_MIN_WORDS, _MAX_CHARACTERS = 4, 320

_Entry = tuple[str, str, str]
"""Kind (`function` or `class`), dotted name, docstring."""


def build_pydocs(out: Path) -> tuple[Path, Path]:
    """Write the dataset: one conversation for each documented public function, class and method.

    The answer is the first paragraph of the docstring. All of a top-level module is either
    trained on or held out, by a hash of its name, and no answer occurs twice.

    Args:
        out: folder to make, with `train.jsonl` and `held_out.jsonl`.

    Returns:
        The two files.

    Raises:
        InputError: `out` exists, or cannot be made.
    """
    rows: dict[str, list[dict[str, object]]] = {TRAIN: [], HELD_OUT: []}
    seen: set[str] = set()
    for kind, name, docstring in sorted(_entries()):
        answer = _summary(docstring)
        if answer is None or answer in seen:
            continue
        seen.add(answer)
        question = f"What {'is' if kind == 'class' else 'does'} `{name}`"
        question += " in Python?" if kind == "class" else " do in Python?"
        module = name.split(".")[0]
        row = _conversation(question.replace("`builtins.", "`"), answer) | {"group": module}
        rows[HELD_OUT if is_held_out(module) else TRAIN].append(row)
    with atomic_folder(out) as folder:
        for file, entries in rows.items():
            lines = (json.dumps(entry, ensure_ascii=False) for entry in entries)
            (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return out / TRAIN, out / HELD_OUT


def is_held_out(module: str) -> bool:
    """Whether a top-level module is kept for evaluation."""
    return int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) % 100 < _HELD_OUT_PERCENT


def _conversation(question: str, answer: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def _summary(docstring: str) -> str | None:
    """First paragraph as one line, or nothing if it explains nothing."""
    text = inspect.cleandoc(docstring)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    # Docstrings of C functions may open with the signature: `name(a, b) -> result`.
    if len(paragraphs) > 1 and re.fullmatch(r"[\w.]+\(.*\)( ?->.*)?", paragraphs[0]):
        del paragraphs[0]
    answer = re.sub(r"^[\w.]+\([^)]*\)( ?-> ?[\w. ]+)?( -+ |: )", "", paragraphs[0])
    if len(answer) > _MAX_CHARACTERS:
        answer = answer[: answer.rfind(". ", 0, _MAX_CHARACTERS) + 1]
    if len(answer.split()) < _MIN_WORDS or ">>>" in answer or not answer[0].isalpha():
        return None
    return answer


def _entries() -> Iterator[_Entry]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for module in sorted(sys.stdlib_module_names - _LEFT_OUT):
        if module.startswith("_"):
            continue
        if (library / f"{module}.py").is_file():
            yield from _from_source(library / f"{module}.py", module)
        elif (library / module).is_dir():
            yield from _from_package(library / module, module)
    yield from _from_c()


def _from_package(folder: Path, package: str) -> Iterator[_Entry]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if all(part.isidentifier() and not part.startswith("_") for part in parts) and not any(
            part in {"test", "tests", "idle_test"} for part in parts
        ):
            yield from _from_source(path, ".".join((package, *parts)))


def _from_source(path: Path, module: str) -> Iterator[_Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old files have invalid escapes
        tree = ast.parse(path.read_bytes())
    for name, node in _definitions(tree, module):
        docstring = ast.get_docstring(node)
        if docstring:
            yield "class" if isinstance(node, ast.ClassDef) else "function", name, docstring


def _definitions(
    tree: ast.Module | ast.ClassDef, prefix: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions and classes of a module, and the methods of these classes."""
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if node.name.startswith("_"):
            continue
        yield f"{prefix}.{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}.{node.name}")


def _from_c() -> list[_Entry]:
    """Look at C modules in a bare interpreter: programs replace functions of `sys` and others."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("pydocs_c.py"))]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    return [(kind, name, docstring) for kind, name, docstring in json.loads(done.stdout)]
