"""Ready-to-paste code that loads each model of a bundle, and a Modelfile for Ollama."""

from __future__ import annotations

import json
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
    values = {
        "@MODEL@": variant.path,
        "@FILE@": path.name,
        "@STEM@": path.stem,
        "@CONTEXT@": str(context),
        "@PROMPT@": json.dumps(prompt, ensure_ascii=False),
    }
    folder = f"{FOLDER}/{variant.name}"
    templates = files("edgeadapt.bundle") / "loading" / variant.format
    for entry in sorted(templates.iterdir(), key=lambda entry: entry.name):
        text = entry.read_text(encoding="utf-8")
        for mark, value in values.items():
            text = text.replace(mark, value)
        yield f"{folder}/{entry.name.removesuffix(_TEMPLATE)}", text
    if variant.format == "gguf":
        yield f"{folder}/Modelfile", modelfile(variant.path, context, stops)


def modelfile(path: str, context: int, stops: Sequence[str]) -> str:
    """A Modelfile for Ollama (https://docs.ollama.com/modelfile).

    There is no TEMPLATE: Ollama's are Go templates, the model's is Jinja. Ollama recognises the
    common ones by the copy in the GGUF file and puts its own in their place; where it does not, it
    sends the bare prompt, and `ollama show --template` shows that.
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
    return "\n".join(lines) + "\n"
