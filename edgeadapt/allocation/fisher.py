"""How much the output changes when weights do: the Fisher information, from gradients.

A small change d of the weights moves the output by KL(p || p') = 1/2 d^T F d, to second order,
where F = E[g g^T] and g is the gradient of log p(y) for a y that is drawn from the model's own p
(not the text's next token: the model need not be right).

Rounding errors of different weights are nearly independent, so for them the diagonal decides. Of
each matrix it is kept as row and column sums, whose product is the rank-one guess of Adafactor
(https://arxiv.org/abs/1804.04235): two vectors of memory. What an adapter did is not independent,
all of it points one way, and so does its loss; for that the products g^T (what it did) are kept.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.allocation.torch_weights import Place
from edgeadapt.console import Advance
from edgeadapt.extras import need
from edgeadapt.weights import WeightSource, read_tensor

Float64Array = npt.NDArray[np.float64]

_SEED = 0


@dataclass(frozen=True)
class Diagonal:
    """Of the matrices in a parameter, as products: rows[i] * columns[j] / sum(rows).

    Per token of text, so that 1/2 sum(F * d**2) is a mean KL divergence in nats.
    """

    rows: Float64Array
    """Sums over a matrix's columns, shape (matrices, rows)."""
    columns: Float64Array
    """Sums over its rows, shape (matrices, columns)."""

    def of(self, matrix: int, first: int, stop: int) -> tuple[Float64Array, Float64Array]:
        """Factors for rows [first, stop) of a matrix: F[i, j] is the product of both."""
        total = self.rows[matrix].sum()
        scale = 1.0 / total if total > 0 else 0.0
        return self.rows[matrix, first:stop], self.columns[matrix] * scale


@dataclass(frozen=True)
class Fisher:
    """What is kept of the Fisher information."""

    diagonals: Mapping[str, Diagonal]
    """By the model's parameter."""
    pulls: Mapping[str, Float64Array]
    """By checkpoint tensor that the adapter changes: g^T (its change) of each chunk, shape
    (chunks,), scaled so that losing shares s of the changes costs 1/2 |sum s pull|^2 in KL."""


def measure_fisher(
    model: Any,
    places: Mapping[str, Place],
    chunks: Sequence[Sequence[int]],
    base: WeightSource,
    changed: frozenset[str],
    advance: Advance,
) -> Fisher:
    """Run text forward and back, one chunk after another.

    Beside the model and one chunk's activations, memory holds one parameter's gradient at a time.

    Args:
        model: a transformers causal language model in float32.
        places: of the matrices that are asked for, by checkpoint name.
        chunks: token ids; each chunk is one draw, so many short ones say more than a long one.
        base: the weights before the adapter.
        changed: the checkpoint tensors that the adapter changes.
        advance: called with 1 after each chunk.
    """
    torch = need("torch", "measuring what each weight matters")
    sums = _Sums(places, base, changed & places.keys())
    generator = torch.Generator().manual_seed(_SEED)
    with torch.inference_mode(False), _watching(model, sums):
        for chunk in chunks:
            sums.chunk += 1
            with torch.enable_grad():
                logits = model(input_ids=torch.tensor([list(chunk)]), use_cache=False).logits[0]
                chances = logits.detach().float().softmax(-1)
                drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)
                del chances
                torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
            advance(1)
    return sums.fisher(model, len(chunks), sum(len(chunk) for chunk in chunks))


class _Sums:
    """Takes each parameter's gradient as soon as it is ready, and drops it."""

    def __init__(
        self, places: Mapping[str, Place], base: WeightSource, changed: frozenset[str]
    ) -> None:
        self.names = sorted({place.parameter for place in places.values()})
        self.chunk = -1
        self._base = base
        self._changed: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        for name in sorted(changed):
            self._changed[places[name].parameter].append((name, places[name]))
        self._rows: dict[str, Float64Array] = {}
        self._columns: dict[str, Float64Array] = {}
        self._pulls: dict[tuple[str, int], float] = {}

    def take(self, name: str, parameter: Any) -> None:
        torch = need("torch", "measuring what each weight matters")
        gradient, parameter.grad = parameter.grad, None
        for tensor, place in self._changed.get(name, ()):
            before = torch.from_numpy(read_tensor(self._base, tensor))
            moved = place.of(parameter.data) - before
            self._pulls[tensor, self.chunk] = float((place.of(gradient) * moved).sum())
        squares = gradient.square_().reshape(-1, *gradient.shape[-2:])
        for kept, axis in ((self._rows, 2), (self._columns, 1)):
            values = squares.sum(axis).double().numpy()
            kept[name] = kept[name] + values if name in kept else values

    def fisher(self, model: Any, chunks: int, tokens: int) -> Fisher:
        diagonals = {}
        for name in self.names:
            shape = model.get_parameter(name).shape
            unseen = np.zeros((int(np.prod(shape[:-2])), 1))  # experts that no token chose
            diagonals[name] = Diagonal(
                self._rows.get(name, unseen.repeat(shape[-2], 1)) / tokens,
                self._columns.get(name, unseen.repeat(shape[-1], 1)) / tokens,
            )
        pulls = {
            tensor: np.array([self._pulls.get((tensor, i), 0.0) for i in range(chunks)])
            / np.sqrt(tokens)
            for tensor in {tensor for tensor, _ in self._pulls}
        }
        return Fisher(diagonals, pulls)


@contextlib.contextmanager
def _watching(model: Any, sums: _Sums) -> Iterator[None]:
    """Gradients for the parameters that are asked for alone."""
    wanted, before = set(sums.names), {}
    with contextlib.ExitStack() as stack:
        for name, parameter in model.named_parameters():
            before[name] = parameter.requires_grad
            parameter.requires_grad_(name in wanted)
            if name in wanted:
                hook = parameter.register_post_accumulate_grad_hook(
                    lambda ready, name=name: sums.take(name, ready)
                )
                stack.callback(hook.remove)
        try:
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(before[name])
