"""What `edgeadapt prompt` says of a dataset that it wrote: longer prompts, and their price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.prompting.base import Applied
    from edgeadapt.prompting.lengths import PromptLengths
    from edgeadapt.prompting.price import PromptPrice


def check_price(model: Path | None, devices: tuple[str, ...]) -> None:
    """Refuse what cannot be priced before any work."""
    from edgeadapt.artifact import open_artifact
    from edgeadapt.devices import load_profile

    for name in devices:
        load_profile(name)
    if devices and model is None:
        raise InputError("--device needs --model: the artifact that is prompted there")
    if model is not None:
        open_artifact(model)


def tell(
    applied: Applied,
    base: str,
    model: Path | None,
    devices: tuple[str, ...],
    more: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Print what was written, how much longer prompts are, and what that costs."""
    from edgeadapt.base_model import resolve_base
    from edgeadapt.prompting.lengths import prompt_lengths
    from edgeadapt.tokenizer import ModelTokenizer

    lengths = prompt_lengths(applied, ModelTokenizer.from_folder(resolve_base(base)))
    prices = [] if model is None else [_price(model, base, lengths, name) for name in devices]
    if as_json:
        emit_json(
            {
                "path": str(applied.path),
                "prompting": applied.name,
                "earlier_answers": applied.earlier_answers,
                "tokens": lengths.record(),
                **more,
                "price": [price.record() for price in prices],
            }
        )
        return
    emit(
        f"{applied.path}: {lengths.questions} questions, {lengths.plain_mean:.0f} tokens each and "
        f"{lengths.added_mean:.0f} added (most: {lengths.added_max}), {lengths.shared} of them "
        "alike in all"
    )
    if found := more.get("retrieval"):
        emit(
            f"{found['retrieved_mean']:.1f} of {found['passages']} passages a question; "
            f"{found['answer_in_a_passage']} answers stand in them; {found['left_out']} passages "
            "left out that were the example itself"
        )
    if applied.earlier_answers:
        emit(f"{applied.earlier_answers} earlier answers of conversations are not scored")
    for price in prices:
        emit(_price_line(price))
    emit(f"\nmeasure it: edgeadapt evaluate ARTIFACT --base {base} --data {applied.path} \\")
    emit(f"    --max-tokens {lengths.longest}")


def _price(model: Path, base: str, lengths: PromptLengths, device: str) -> PromptPrice:
    from edgeadapt.artifact import open_artifact
    from edgeadapt.devices import load_profile
    from edgeadapt.export import open_model
    from edgeadapt.planner.model import model_facts
    from edgeadapt.prompting.price import prompt_price
    from edgeadapt.runtimes.registry import runtimes_for

    artifact = open_artifact(model)
    profile = load_profile(device)
    able = runtimes_for(artifact.format)
    named = [choice.name for choice in profile.runtimes if choice.name in able]
    return prompt_price(
        profile,
        model_facts(open_model(base).source),
        lengths,
        runtime=(named or list(able))[0],
        format=artifact.format,
        quantization=artifact.quantization,
        size_bytes=artifact.size_bytes,
    )


def _price_line(price: PromptPrice) -> str:
    def seconds(interval: Any) -> str:
        return f"{interval.low:.2f}-{interval.high:.2f} s"

    line = (
        f"{price.device}, {price.runtime} on the CPU: +{price.kv_bytes_mean / 2**20:.1f} MiB of KV "
        f"cache (most: {price.kv_bytes_max / 2**20:.1f}), +{seconds(price.prefill_s)} to prefill"
    )
    if price.once_s.median:
        line += f", or {seconds(price.once_s)} once and {seconds(price.each_s)} each"
    return line


def draw_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows under each other; the first is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
