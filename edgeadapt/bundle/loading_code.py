"""Ready-to-paste code that loads each model of a bundle, and a Modelfile for Ollama."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import PurePosixPath

from edgeadapt.bundle.manifest import Variant

FOLDER = "loading"
_TEMPLATE = ".txt"
_MOST_CONTEXT = 2048
"""Tokens of KV cache in the examples; less where the model was made for less."""


def loading_files(variant: Variant, prompt: str, stops: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names in the bundle, and texts, of the code that loads a variant.

    Args:
        variant: what to load.
        prompt: the question that the examples ask.
        stops: texts of the tokens that end a generation.
    """
    path = PurePosixPath(variant.path)
    context = min(variant.context or _MOST_CONTEXT, _MOST_CONTEXT)
    values = _system_values(variant.system) | {
        "@MODEL@": variant.path,
        "@FILE@": path.name,
        "@STEM@": path.stem,
        "@CONTEXT@": str(context),
        "@MESSAGES@": _python_messages(variant.system, prompt),
    }
    marks = re.compile("|".join(values))  # at once: a text may hold what looks like another mark
    folder = f"{FOLDER}/{variant.name}"
    templates = files("edgeadapt.bundle") / "loading" / variant.format
    for entry in sorted(templates.iterdir(), key=lambda entry: entry.name):
        text = entry.read_text(encoding="utf-8")
        text = marks.sub(lambda found: values[found[0]], text)
        yield f"{folder}/{entry.name.removesuffix(_TEMPLATE)}", text
    if variant.format == "gguf":
        yield f"{folder}/Modelfile", modelfile(variant.path, context, stops, variant.system)


def _system_values(system: str | None) -> dict[str, str]:
    """What examples that are no Python say of a system message; empty without one."""
    quoted = json.dumps(system or "", ensure_ascii=False)
    note = f"Let it begin with the system message of the training: {quoted}"
    kotlin = quoted.replace("$", "\\$")
    texts = {
        "@SHELL_SYSTEM@": f" \\\n    --system-prompt {shlex.quote(system or '')}",
        "@KOTLIN_SYSTEM@": f"\n    engine.setSystemPrompt({kotlin})",
        "@KOTLIN_NOTE@": f"\n// {note}",
        "@SWIFT_NOTE@": f"\n/// {note}",
        "@SWIFT_METHOD_NOTE@": f"\n    /// {note}",
    }
    return dict.fromkeys(texts, "") if system is None else texts


def _python_messages(system: str | None, prompt: str) -> str:
    turns = [("user", prompt)] if system is None else [("system", system), ("user", prompt)]
    return "".join(
        f'\n    {{"role": "{role}", "content": {json.dumps(text, ensure_ascii=False)}}},'
        for role, text in turns
    )


def modelfile(path: str, context: int, stops: Sequence[str], system: str | None = None) -> str:
    """A Modelfile for Ollama (https://docs.ollama.com/modelfile).

    There is no TEMPLATE: Ollama's are Go templates, the model's is Jinja. Ollama recognises the
    common ones by the copy in the GGUF file and puts its own in their place; where it does not, it
    sends the bare prompt, and `ollama show --template` shows that. A text in three quotes has no
    escapes: a system message that holds three is told in a comment.
    """
    lines = [
        "# ollama create my-model -f Modelfile",
        "# Ollama derives its template from the Jinja one in the GGUF file, if it recognises it.",
        "# See what it took with: ollama show my-model --template",
        f"FROM ../../{path}",
        f"PARAMETER num_ctx {context}",
        "PARAMETER temperature 0",
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
    ]
    if system is not None:
        fits = '"""' not in system
        lines.append(f'SYSTEM """{system}"""' if fits else f"# SYSTEM: {json.dumps(system)}")
    return "\n".join(lines) + "\n"
