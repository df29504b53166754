"""What the inputs and outputs of a decoder's graph are called, by us as by the two exporters.

A runtime reads the names from genai_config.json, where `genai_names` puts them.
"""

from __future__ import annotations

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"

KINDS = ("key", "value")
"""Of the tensors that a layer's KV cache is made of."""

_PAST, _PRESENT = "past_key_values.{}.{}", "present.{}.{}"


def past(layer: int, kind: str) -> str:
    """The input for what a layer's KV cache holds."""
    return _PAST.format(layer, kind)


def present(layer: int, kind: str) -> str:
    """The output for what it holds afterwards."""
    return _PRESENT.format(layer, kind)


def genai_names(*, positions: bool) -> dict[str, dict[str, str]]:
    """`inputs` and `outputs` of the decoder in genai_config.json.

    Args:
        positions: the graph wants to be told the tokens' positions.
    """
    told = {POSITIONS: POSITIONS} if positions else {}
    return {
        "inputs": {IDS: IDS, MASK: MASK}
        | told
        | {f"past_{kind}_names": _PAST.format("%d", kind) for kind in KINDS},
        "outputs": {LOGITS: LOGITS}
        | {f"present_{kind}_names": _PRESENT.format("%d", kind) for kind in KINDS},
    }
