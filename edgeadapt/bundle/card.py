"""The bundle's README.md: a model card in Hugging Face's format, filled from the manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from edgeadapt.bundle.manifest import MANIFEST, Manifest, Variant
from edgeadapt.extras import need

CARD = "README.md"
_MIB = 2**20
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(manifest: Manifest, samples: Sequence[tuple[str, str]]) -> str:
    """The whole text, with the YAML block that the hub reads.

    Args:
        manifest: of the bundle; its `files` may still be empty.
        samples: questions and a variant's answers.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = need("huggingface_hub", "writing a model card")
    base = manifest.base
    formats = sorted({variant.format for variant in manifest.variants})
    data = hub.ModelCardData(
        model_name=manifest.name,
        base_model=base.name if _HUB_ID.fullmatch(base.name) else None,
        license=base.license or ("other" if base.license_files else None),
        pipeline_tag="text-generation",
        tags=["edgeadapt", *formats],
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_lines(manifest, samples))


def _lines(manifest: Manifest, samples: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f"# {manifest.name}\n"
    yield " ".join(_origin(manifest)) + "\n"
    if manifest.forced:
        yield "**Shipped although not every gate was kept** (`--force`):\n"
        yield from (f"- {line}" for line in manifest.forced)
        yield ""
    yield "## What is in it\n"
    yield "| file | format | quantization | MiB | for |"
    yield "|---|---|---|---|---|"
    for variant in manifest.variants:
        yield (
            f"| `{variant.path}` | {variant.format} | {variant.quantization} | "
            f"{variant.bytes / _MIB:.1f} | {', '.join(variant.devices) or '-'} |"
        )
    systems = dict.fromkeys(variant.system for variant in manifest.variants if variant.system)
    for system in systems:
        yield "\nTrained under this system message, which conversations should begin with:\n"
        yield "\n".join(f"> {line}" for line in system.splitlines())
    yield "\n`loading/` has code to paste for each, `tokenizer/` the tokenizer and chat template."
    yield f"`{MANIFEST}` names every file with its hash. To check what you received:\n"
    yield "```console\nedgeadapt verify . --run"
    yield "python selftest.py   # the same, without edgeadapt\n```\n"
    yield from _quality(manifest.variants)
    yield from _speed(manifest.variants)
    yield from _licence(manifest)
    if samples:
        yield "## Sample answers\n"
        for question, answer in samples:
            yield f"**{_one_line(question)}**\n"
            yield "\n".join(f"> {line}" for line in answer.splitlines() or [""]) + "\n"


def _origin(manifest: Manifest) -> Iterator[str]:
    base = manifest.base
    yield f"Made from `{base.name}` (sha256 `{base.sha256[:12]}`)"
    for adapter in manifest.adapters:
        rank = f" of rank {adapter.rank}" if adapter.rank else ""
        data = f", trained on data `{adapter.data_sha256[:12]}`" if adapter.data_sha256 else ""
        yield f"with an adapter ({adapter.method or 'unknown method'}{rank}{data})"
    yield "by edgeadapt: merged, quantized and measured on the runtimes named below."


def _quality(variants: Sequence[Variant]) -> Iterator[str]:
    judged = [(v, name, gates) for v in variants for name, gates in v.gates.items() if gates]
    if not judged:
        return
    yield "## Quality\n"
    yield "Against the merged model in float32, on held-out text. Gates and their limits:\n"
    yield "| variant | runtime | gate | figure | limit | |"
    yield "|---|---|---|---|---|---|"
    for variant, runtime, gates in judged:
        for gate in gates:
            figure = "" if gate.figure is None else f"{gate.figure:.4g}"
            limit = "" if isinstance(gate.limit, bool) else f"{gate.limit:.4g}"
            verdict = "kept" if gate.passed else "**failed**"
            note = f" ({_one_line(gate.note)})" if gate.note else ""
            yield (
                f"| {variant.name} | {runtime} | {gate.gate} | {figure} | {limit} | "
                f"{verdict}{note} |"
            )
    yield ""


def _speed(variants: Sequence[Variant]) -> Iterator[str]:
    rows = [(variant, m) for variant in variants for m in variant.measurements]
    if not rows:
        return
    yield "## Measured\n"
    yield "| variant | runtime | machine | threads | first token s | decode tok/s | own MiB |"
    yield "|---|---|---|---|---|---|---|"
    for variant, m in rows:
        memory = "" if m.peak_anonymous is None else f"{m.peak_anonymous / _MIB:.0f}"
        yield (
            f"| {variant.name} | {m.runtime} {m.runtime_version} | {_one_line(m.machine)} | "
            f"{m.threads} | {m.ttft_s:.2f} ({m.prompt_tokens} tokens) | {m.decode_tps:.1f} | "
            f"{memory} |"
        )
    yield "\nOther devices differ; `manifest.json` says why each variant was chosen for its own.\n"


def _licence(manifest: Manifest) -> Iterator[str]:
    base = manifest.base
    yield "## Licence\n"
    if base.license_files:
        named = ", ".join(f"`{name}`" for name in base.license_files)
        yield f"The base's terms hold for these files too: {named}.\n"
    elif base.license:
        yield f"The base names its licence as `{base.license}`; it came without a licence file.\n"
    else:
        yield "The base came without a licence file, and names none: ask where it came from.\n"


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
