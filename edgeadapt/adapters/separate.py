"""An adapter as a file of its own: what it adds to each tensor, not merged into anything."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from edgeadapt.adapters.contents import WHOLE, AdapterContents, changes, lora_keys
from edgeadapt.adapters.merged import check_changes_weights
from edgeadapt.adapters.sequential import FORMS
from edgeadapt.adapters.spec import AdapterSpec, read_spec
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.weights import (
    HEAD,
    Float32Array,
    LowRankUpdate,
    WeightSource,
    find_embedding,
    is_tied,
)

_MORE_THAN_LORA = {
    "lora_magnitude_vector": "DoRA rescales each output by the norm of the whole weight",
    "lora_B.bias": "it trained biases beside B (lora_bias)",
    "token_adapter.trainable_tokens_delta": "it replaces rows of single tokens",
    "ia3_l": "IA3 multiplies and adds nothing",
    "bias": "it holds trained biases",
    "base_layer.bias": "it holds trained biases",
    "weight": "it holds whole copies of tensors (modules_to_save, or a resized vocabulary)",
    "base_layer.weight": "it holds whole copies of tensors (a resized vocabulary)",
}
"""Parts that scale * B @ A alone cannot express, and why."""


def not_plain_lora(spec: AdapterSpec, base: WeightSource | None) -> list[str]:
    """Why an adapter is more, or other, than scale * B @ A on some tensors; empty if it is not.

    Args:
        spec: the adapter.
        base: to tell changed copies of tensors from idle ones; unknown, all count as idle.

    Raises:
        AdapterError: a tensor of a LoRA or IA3 adapter is of no known kind.
        UnsupportedError: the method changes no weight.
    """
    check_changes_weights(spec)
    if spec.peft_type == BOTTLENECK:
        return ["it makes the feed-forward blocks wider, which changes the shape of the base's own"]
    if spec.peft_type in FORMS:
        return ["its bottlenecks stand behind the blocks, as nodes of the graph"]
    if spec.peft_type not in {"LORA", "IA3"}:
        return [f"{spec.method} is not a product of two small matrices"]
    contents = AdapterContents(spec)
    modules = contents.modules if base is None else changes(contents, base)
    found = {part for parts in modules.values() for part in parts}
    if base is None:
        found -= WHOLE
    return list(dict.fromkeys(why for part, why in _MORE_THAN_LORA.items() if part in found))


def low_rank_updates(base: WeightSource, adapter: Path) -> list[LowRankUpdate]:
    """What a LoRA adds to each tensor of the base.

    Raises:
        AdapterError: the adapter does not fit this base.
        UnsupportedError: it is not a plain LoRA; the message says why not.
    """
    spec = read_spec(adapter)
    if spec.peft_type in FORMS:
        raise UnsupportedError(
            f"the adapter {adapter} cannot be a file of its own: its bottlenecks are nodes of the "
            "graph; export it with --format onnx, without --adapter-mode separate"
        )
    if reasons := not_plain_lora(spec, base):
        raise UnsupportedError(
            f"the adapter {adapter} cannot be a file of its own: {'; '.join(reasons)}; "
            "merge it: --adapter-mode merged"
        )
    contents, tensors = AdapterContents(spec), base.tensors()
    tied = is_tied(base)
    ends = {HEAD, find_embedding(base)}
    updates = []
    for module, parts in changes(contents, base).items():
        name = f"{module}.weight"
        if tied and name in ends:
            raise UnsupportedError(
                f"the adapter {adapter} changes {name!r}, which the base uses both as embedding "
                "and as head: kept apart, a change of one would be a change of both; merge it: "
                "--adapter-mode merged"
            )
        if name not in tensors:
            raise AdapterError(
                f"the adapter changes {name!r}, which the base does not have; it was trained on "
                f"{spec.base_model or 'another base'}: give that base with --base"
            )
        keys = lora_keys(contents, module, parts, tensors[name])
        if keys.transposed and not keys.embedding:
            raise UnsupportedError(
                f"{module!r} is stored transposed (fan_in_fan_out); merge it: --adapter-mode merged"
            )

        def read(a: str = keys.a, b: str = keys.b) -> tuple[Float32Array, Float32Array]:
            return contents.read(a), contents.read(b)

        updates.append(LowRankUpdate(name, keys.rank, keys.scale, keys.embedding, read))
    return updates
