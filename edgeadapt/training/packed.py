"""A frozen base that stays as its GGUF file stores it, and is dequantized in each pass.

Training takes products with the frozen weights, forwards and backwards, and nothing else. The file
is mapped into memory, so that the system drops and reads again what it has no room for.

Imports torch; import it only to train.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

from edgeadapt.cpu import usable_cpus
from edgeadapt.errors import UnsupportedError
from edgeadapt.weights import Float32Array, WeightSource, find_embedding, read_tensor, row_chunks

_THREADS = usable_cpus()
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="dequantize")


class StoredWeight:
    """A tensor of a source, shape (rows, columns), read anew each time."""

    def __init__(self, source: WeightSource, name: str) -> None:
        self._source, self._name = source, name
        self._chunks = list(row_chunks(source.tensors()[name]))
        self.shape = source.tensors()[name].shape

    def chunks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """First row, row after the last, and the rows between them, in order.

        Some are read ahead in other threads; never are more than a few in memory.
        """
        ahead: deque[tuple[int, int, Future[Float32Array]]] = deque()
        for start, stop in self._chunks:
            ahead.append((start, stop, _POOL.submit(self._source.rows, self._name, start, stop)))
            if len(ahead) > _THREADS:
                yield _arrived(*ahead.popleft())
        while ahead:
            yield _arrived(*ahead.popleft())

    def row(self, number: int) -> Float32Array:
        """One row, shape (columns,)."""
        rows = self._source.rows(self._name, number, number + 1)
        return rows.reshape(-1)


def _arrived(start: int, stop: int, rows: Future[Float32Array]) -> tuple[int, int, torch.Tensor]:
    return start, stop, torch.from_numpy(rows.result())


class _Product(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """x W^T, of which nothing is kept for the backward pass but where W lies."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: StoredWeight) -> torch.Tensor:
        ctx.weight = weight
        outputs = inputs.new_empty(*inputs.shape[:-1], weight.shape[0])
        for start, stop, rows in weight.chunks():
            outputs[..., start:stop] = inputs @ rows.T
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        inputs = gradient.new_zeros(*gradient.shape[:-1], ctx.weight.shape[1])
        for start, stop, rows in ctx.weight.chunks():
            inputs += gradient[..., start:stop] @ rows
        return inputs, None


class PackedLinear(torch.nn.Linear):  # type: ignore[misc]  # torch is untyped here
    """A frozen linear layer; its `weight` is empty, for code that asks for device and type."""

    def __init__(self, weight: StoredWeight, bias: torch.Tensor | None) -> None:
        torch.nn.Module.__init__(self)
        self.stored = weight
        self.out_features, self.in_features = weight.shape
        self.weight = _empty(self.out_features)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Shape (..., out_features) of (..., in_features)."""
        outputs: torch.Tensor = _Product.apply(inputs, self.stored)
        return outputs if self.bias is None else outputs + self.bias


class PackedEmbedding(torch.nn.Embedding):  # type: ignore[misc]  # torch is untyped here
    """A frozen lookup table, of which the rows of a batch's tokens are read."""

    def __init__(self, weight: StoredWeight, padding: int | None) -> None:
        torch.nn.Module.__init__(self)
        self.stored = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx, self.max_norm, self.norm_type = padding, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.weight = _empty(self.num_embeddings)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Shape (..., embedding_dim) of (...)."""
        tokens, places = ids.unique(return_inverse=True)
        rows = torch.stack([torch.from_numpy(self.stored.row(token)) for token in tokens.tolist()])
        return rows[places]


def _empty(rows: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(rows, 0), requires_grad=False)


def load_packed(folder: Path, source: WeightSource) -> Any:
    """A transformers model whose matrices are read from a source in each pass, in eval mode.

    Args:
        folder: where its config.json lies.
        source: its weights; what is no matrix is taken into memory, in float32.

    Raises:
        UnsupportedError: the model has weights that are not those of linear layers, lookup tables
            or vectors.
    """
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with accelerate.init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    known = source.tensors()
    for name, module in list(model.named_modules()):
        stored = f"{name}.weight"
        if isinstance(module, torch.nn.Embedding):
            weight = StoredWeight(source, stored)
            model.set_submodule(name, PackedEmbedding(weight, module.padding_idx))
        elif isinstance(module, torch.nn.Linear):
            weight = StoredWeight(source, stored if stored in known else find_embedding(source))
            bias = None
            if module.bias is not None:
                bias = torch.from_numpy(read_tensor(source, f"{name}.bias"))
            model.set_submodule(name, PackedLinear(weight, bias))
    vectors = {
        name: torch.from_numpy(read_tensor(source, name))
        for name, parameter in model.named_parameters()
        if parameter.is_meta and len(parameter.shape) == 1 and name in known
    }
    model.load_state_dict(vectors, strict=False, assign=True)
    if left := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise UnsupportedError(
            f"{left[0]} of this model is neither a matrix of a layer nor a vector, and cannot be "
            "held packed; train with --set base_weights=dequantized"
        )
    return model.eval()
