"""Squared activations of every linear layer, per input column, while torch runs the model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.adapters.sequential import form_of
from edgeadapt.console import progress
from edgeadapt.converters.gguf.imatrix import Entry
from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.extras import need
from edgeadapt.weights import WeightSource, read_tensor

Float64Array = npt.NDArray[np.float64]

_EXPERTS = re.compile(r"layers\.(\d+)\..*experts$")


class Collector:
    """Sums of squares, in float64: over many tokens float32 loses the small ones."""

    def __init__(self) -> None:
        self._sums: dict[str, Float64Array] = {}
        self._counts: dict[str, Float64Array] = {}

    def add(self, names: Sequence[str], inputs: Any, matrix: int = 0, matrices: int = 1) -> None:
        """Add a torch tensor of activations, shape (..., columns), to each name's statistics."""
        inputs = inputs.detach().reshape(-1, inputs.shape[-1])
        squares = inputs.double().square_().sum(0).numpy()
        for name in names:
            if name not in self._sums:
                self._sums[name] = np.zeros((matrices, squares.size))
                self._counts[name] = np.zeros(matrices)
            self._sums[name][matrix] += squares
            self._counts[name][matrix] += len(inputs)

    def entries(self) -> dict[str, Entry]:
        """What was added up.

        Raises:
            CorruptFileError: activations became NaN or infinite.
        """
        for name, sums in self._sums.items():
            if not np.isfinite(sums).all() or sums.max() > np.finfo(np.float32).max:
                raise CorruptFileError(
                    f"the model's activations overflow before {name}; its weights are damaged"
                )
        return {
            name: Entry(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in sorted(self._sums.items())
        }


def load_model(source: WeightSource) -> Any:
    """The model as a transformers module in float32, from its tensors.

    Raises:
        UnsupportedError: transformers does not know the architecture, or lacks tensors of it.
    """
    torch = need("torch", "calibrating")
    transformers = need("transformers", "calibrating")
    settings = {key: value for key, value in source.config.items() if key != "auto_map"}
    try:
        config = transformers.AutoConfig.for_model(**settings)
        kind = getattr(transformers, config.architectures[0])
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict={
                name: torch.from_numpy(read_tensor(source, name)) for name in source.tensors()
            },
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (AttributeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UnsupportedError(f"transformers cannot load this model: {error}") from error
    if report["missing_keys"]:
        raise UnsupportedError(f"the model lacks the tensor {sorted(report['missing_keys'])[0]!r}")
    if form_of(source.config):
        from edgeadapt.training.sequential import attach_from

        attach_from(model, source)
    return model.eval()


def collect(
    model: Any, chunks: Sequence[Sequence[int]], gguf_names: Mapping[str, Sequence[str]]
) -> dict[str, Entry]:
    """Run the model over chunks of token ids.

    Args:
        model: a transformers causal language model, float32.
        chunks: token ids.
        gguf_names: name of a weight in the checkpoint -> GGUF tensors that it goes into.

    Returns:
        Statistics by GGUF name.
    """
    torch = need("torch", "calibrating")
    collector = Collector()
    body = model.base_model  # the head is large, and llama.cpp's matrices leave it out
    with (
        torch.inference_mode(),
        _hooks(model, collector, gguf_names),
        progress("calibrating", len(chunks), "chunks") as advance,
    ):
        for chunk in chunks:
            body(input_ids=torch.tensor([list(chunk)]), use_cache=False)
            advance(1)
    return collector.entries()


@contextlib.contextmanager
def _hooks(
    model: Any, collector: Collector, gguf_names: Mapping[str, Sequence[str]]
) -> Iterator[None]:
    torch = need("torch", "calibrating")
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            match = _EXPERTS.search(name)
            hook = None
            if match and hasattr(module, "gate_up_proj") and hasattr(module, "down_proj"):
                hook = _experts_hook(collector, int(match[1]))
            elif isinstance(module, torch.nn.Linear) and (
                targets := gguf_names.get(f"{name}.weight")
            ):
                hook = _linear_hook(collector, targets)
            if hook is not None:
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _linear_hook(collector: Collector, names: Sequence[str]) -> Any:
    def see(_module: Any, inputs: tuple[Any, ...]) -> None:
        collector.add(names, inputs[0])

    return see


def _experts_hook(collector: Collector, layer: int) -> Any:
    """A mixture's experts are two stacked matrices: gate and up in one, then down.

    The input of `down` never leaves the module, so it is computed once more here.
    """
    gate, up, down = (f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))

    def see(module: Any, inputs: tuple[Any, ...]) -> None:
        torch = need("torch", "calibrating")
        states, chosen = inputs[0].reshape(-1, inputs[0].shape[-1]), inputs[1]
        count = module.gate_up_proj.shape[0]
        for expert in range(count):
            tokens = (chosen == expert).any(-1).nonzero()[:, 0]
            seen = states[tokens]
            gates, ups = torch.nn.functional.linear(seen, module.gate_up_proj[expert]).chunk(2, -1)
            collector.add((gate, up), seen, expert, count)
            collector.add((down,), module.act_fn(gates) * ups, expert, count)

    return see
