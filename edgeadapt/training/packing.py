"""Several short examples in one row, none of which attends to another.

Imports torch; import it only to train.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch

from edgeadapt.errors import UnsupportedError

_PROBE_TOKENS = 12
"""In each of the two examples of the probe."""

_LEAK = 1e-4
"""Largest share of the logits that another neighbour may change: noise of the arithmetic. What a
mask hides is weighted with exactly zero."""

_ALONE = 0.05
"""Largest share by which logits in a row may differ from those alone, as far as 16 bits go."""


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Distribute examples over rows: best fit, the longest first.

    Args:
        lengths: tokens of each example, at most `room`.
        room: most tokens of a row.

    Returns:
        The numbers of the examples in each row; every example is in exactly one.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, row), ascending
    for example in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(left, (lengths[example], -1))
        if place < len(left):
            free, row = left.pop(place)
        else:
            free, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        insort(left, (free - lengths[example], row))
    return rows


def check_packing(model: Any) -> None:
    """Try on the model itself that examples in a row are as if they were alone.

    Position ids that start anew are how transformers tells packed examples apart where it masks
    attention. Recurrent layers and short convolutions carry a state across, and models that count
    positions by themselves number the second example wrongly.

    Args:
        model: a transformers model, or a PEFT model around one.

    Raises:
        UnsupportedError: the second of two examples sees the first, or is read otherwise.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    numbers = torch.arange(3 * _PROBE_TOKENS, device=next(model.parameters()).device)
    first, other, second = (numbers * 7919 % vocabulary).split(_PROBE_TOKENS)
    restarted = numbers[:_PROBE_TOKENS].repeat(2)[None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = model(input_ids=second[None], use_cache=False).logits[0].float()
            beside, beside_other = (
                model(
                    input_ids=torch.cat([neighbour, second])[None], position_ids=restarted,
                    use_cache=False,
                ).logits[0, _PROBE_TOKENS:].float()
                for neighbour in (first, other)
            )  # fmt: skip
    except TypeError as error:
        raise UnsupportedError(_refusal(model, "takes no position ids")) from error
    finally:
        model.train(was_training)
    scale = alone.abs().max()
    if (beside - beside_other).abs().max() > _LEAK * scale:
        raise UnsupportedError(_refusal(model, "lets one example of a row see another"))
    if (beside - alone).abs().max() > _ALONE * scale:
        raise UnsupportedError(_refusal(model, "reads an example in a row otherwise than alone"))


def _refusal(model: Any, what: str) -> str:
    return f"a model of type {model.config.model_type} {what}; leave the setting `packing` out"
