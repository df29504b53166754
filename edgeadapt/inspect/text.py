"""A description as a person reads it, in 80 columns."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

WIDTH = 80
_LABEL = 16

Row = tuple[str, str | None]


def render(report: dict[str, Any]) -> str:
    """What `inspect_path` found, as text; rows without a value are left out."""
    rows = {"adapter": _adapter, "base": _base, "gguf": _gguf, "onnx": _onnx}[report["kind"]](
        report
    )
    title = f"{Path(report['path']).name or report['path']}: {_TITLES[report['kind']]}"
    lines = textwrap.wrap(title, WIDTH)
    for label, value in rows:
        if value is not None:
            lines += _row(label, value)
    for target in report.get("targets", []):
        lines += _row(f"{target['format']} {target['mode']}", _verdict(target))
    return "\n".join(lines)


_TITLES = {
    "adapter": "a PEFT adapter",
    "base": "a Hugging Face model",
    "gguf": "a GGUF file",
    "onnx": "an ONNX export",
}


def _row(label: str, value: str) -> list[str]:
    room = WIDTH - _LABEL - 2
    pieces = [
        piece
        for line in value.splitlines()
        # a path or hash that is wider than a line is cut, so that the columns hold
        for piece in textwrap.wrap(line, room) or [""]
    ]
    labels = [label, *[""] * (len(pieces) - 1)]
    return [
        f"  {name:<{_LABEL}}{piece}".rstrip() for name, piece in zip(labels, pieces, strict=True)
    ]


def _adapter(report: dict[str, Any]) -> list[Row]:
    base, share = report["base"], report["base"]["share"]
    of_base = f", {share:.2%} of the base's {_count(base['parameters'])}" if share else ""
    rank = None if report["r"] is None else f"{report['r']}, alpha {report['alpha'] or 'none'}"
    tokens = [f"{count} rows of {name}" for name, count in report["token_rows"].items()]
    return [
        ("method", report["method"]),
        ("rank", rank),
        (
            "modules",
            "\n".join(_group(group) for group in report["groups"]) or _plain(report["places"]),
        ),
        ("whole tensors", ", ".join(report["whole"]) or None),
        ("single tokens", ", ".join(tokens) or None),
        ("parameters", f"{_count(report['parameters'])}{of_base}"),
        ("stored as", f"{', '.join(report['dtypes'])}, {_size(report['bytes'])}"),
        ("base", f"{base['name']}{'' if base['found'] else ' (not here; give --base)'}"),
        ("trained", _training(report["record"])),
    ]


def _group(group: dict[str, Any]) -> str:
    text = f"{group['modules']} x{group['count']}"
    if group["r"] is None:
        return text
    return f"{text}: rank {group['r']}, alpha {group['alpha']:g}, scaling {group['scaling']:.4g}"


def _training(record: dict[str, Any]) -> str | None:
    if not record:
        return None
    parts = [str(record["method"])] if "method" in record else []
    if "quantization" in record:
        parts.append(f"on a {record['quantization']} base")
    parts += [f"{record[key]} {key}" for key in ("steps", "examples") if key in record]
    held_out = record.get("held_out") or {}
    if held_out.get("before") and held_out.get("after"):
        before, after = (held_out[key].get("perplexity") for key in ("before", "after"))
        if before and after:
            parts.append(f"held-out perplexity {before:.2f} -> {after:.2f}")
    return ", ".join(parts) or None


def _base(report: dict[str, Any]) -> list[Row]:
    dtypes = ", ".join(f"{_count(size)} {name}" for name, size in report["dtypes"].items())
    return [
        ("architecture", f"{report['architecture']} ({report['model_type']})"),
        ("parameters", f"{_count(report['parameters'])} in {report['tensors']} tensors"),
        ("stored as", f"{dtypes}; {_size(report['bytes'])} in all"),
        *_shape(report),
        ("head", "tied to the embedding" if report["tied"] else "a matrix of its own"),
        ("tokenizer", _tokenizer(report["tokenizer"])),
        ("lineage", _lineage(report["lineage"])),
    ]


def _gguf(report: dict[str, Any]) -> list[Row]:
    types = [
        f"{name}: {kind['tensors']} tensors, {_count(kind['parameters'])}, {_size(kind['bytes'])}"
        for name, kind in report["types"].items()
    ]
    adapter, files = report.get("adapter"), report["files"]
    holds = report["holds"] if adapter is None else (
        f"{adapter['type']} adapter: {adapter['tensors_changed']} tensors, "
        f"rank {_plain(adapter['ranks'])}, alpha {adapter['alpha']:g}"
    )  # fmt: skip
    model = report["holds"] == "model"
    return [
        ("holds", holds),
        ("name", report["name"]),
        ("architecture", report["architecture"]),
        ("quantization", report["quantization"]),
        ("parameters", _count(report["parameters"])),
        ("size", f"{_size(report['bytes'])}{f' in {len(files)} files' if len(files) > 1 else ''}"),
        ("types", "\n".join(types)),
        *(_shape(report) if model else []),
        ("head", "tied to the embedding" if model and report["tied"] else None),
        ("tokenizer", _tokenizer(report["tokenizer"]) if model else None),
        ("lineage", _lineage(report["lineage"])),
        *((name, str(value)) for name, value in report["edgeadapt"].items()),
    ]


def _onnx(report: dict[str, Any]) -> list[Row]:
    cache = report["kv_cache"]
    shared = {True: "shared buffer", False: "grows by copy"}.get(cache["shared_buffer"])
    layout = f"{cache['layout']} {cache['head_size']}{f'; {shared}' if shared else ''}"
    files = [f"{name}: {_size(size)}" for name, size in report["files"].items()]
    return [
        ("model type", str(report["model_type"])),
        ("precision", report["quantization"]),
        ("size", _size(report["bytes"])),
        *_shape(report),
        ("KV cache", layout),
        ("stop ids", _plain(report["stop_ids"])),
        ("tokenizer", _tokenizer(report["tokenizer"])),
        ("files", "\n".join(files)),
        ("lineage", _lineage(report["lineage"])),
    ]


def _shape(report: dict[str, Any]) -> list[Row]:
    parts = [
        f"{report[key]} {words}"
        for key, words in (
            ("layers", "layers"),
            ("hidden_size", "wide"),
            ("heads", "heads"),
            ("kv_heads", "key-value heads"),
        )
        if report.get(key) is not None
    ]
    context = report.get("context_length")
    window = report.get("sliding_window")
    words = f"{context} tokens{f', sliding window of {window}' if window else ''}"
    return [("shape", ", ".join(parts) or None), ("context", words if context else None)]


def _tokenizer(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none"
    parts = [str(tokenizer["kind"])]
    if tokenizer.get("pre_tokenizer"):
        parts.append(f"pre-tokenizer {tokenizer['pre_tokenizer']}")
    added = f" ({tokenizer['added']} added)" if tokenizer.get("added") else ""
    parts.append(f"{tokenizer['tokens']} tokens{added}")
    parts.append("chat template" if tokenizer["chat_template"] else "no chat template")
    return ", ".join(parts)


def _lineage(lineage: dict[str, Any] | None) -> str | None:
    if not lineage:
        return None
    base = lineage.get("base") or {}
    parts = [f"base {base.get('name')} ({str(base.get('sha256'))[:12]})"]
    adapters = lineage.get("adapters") or [lineage.get("adapter")]
    for adapter in filter(None, adapters):
        weight = "" if adapter.get("weight") is None else f" x{adapter['weight']:g}"
        parts.append(f"adapter {adapter.get('name')}{weight} ({adapter.get('method')})")
    untied = (lineage.get("merge") or {}).get("untied_head")
    return " + ".join(parts) + ("; the adapter untied the head" if untied else "")


def _verdict(target: dict[str, Any]) -> str:
    word = {True: "yes", False: "no", None: "depends on the base; give --base"}[target["possible"]]
    return "; ".join(filter(None, [word, target["reason"], *target["notes"]]))


def _plain(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or None
    return None if value is None else str(value)


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)


def _size(number: int) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
