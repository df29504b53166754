"""Bottlenecks behind a layer's blocks, as the papers on adapters put them.

With y what the last projection of a block gives, a bottleneck adds W_up act(W_down y + b_down) +
b_up, before a norm of that block and before the sum with the residual stream.

- `houlsby` (arXiv 1902.00751): behind attention and behind the feed-forward block, GELU.
- `pfeiffer` (arXiv 2005.00247): behind the feed-forward block alone, ReLU.

Being a function of y that bends, they are part of no weight: nothing can be merged, and a runtime
needs a graph that has them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeadapt.adapters.contents import read_finite
from edgeadapt.adapters.spec import WEIGHTS, AdapterSpec
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.weights import Float32Array, TensorInfo, WeightSource

CONFIG_KEY = "edgeadapt_bottlenecks"
"""In the config of a source that has them: the name of their form."""
MODULE = "adapter"
"""Name of a bottleneck in its projection, in the file as in torch."""
_WIDTH_MULTIPLE = 32
"""Of the default width: a block of the quantized product that follows."""
_REDUCTION = 16

_KEY = re.compile(rf"^(?P<place>.+)\.{MODULE}\.(?P<part>(?:down|up)\.(?:weight|bias))$")


@dataclass(frozen=True)
class Form:
    """Where bottlenecks stand, and how they bend."""

    places: tuple[str, ...]
    """Last projections of the blocks that they stand behind."""
    activation: str
    """`gelu`, by the error function, or `relu`."""


FORMS: dict[str, Form] = {
    "HOULSBY": Form(("o_proj", "down_proj"), "gelu"),
    "PFEIFFER": Form(("down_proj",), "relu"),
}
"""By `peft_type` in adapter_config.json; PEFT itself has no such methods."""


def form_of(config: Mapping[str, Any]) -> Form | None:
    """The form of the bottlenecks that a model's config tells of, if it has any."""
    name = config.get(CONFIG_KEY)
    return FORMS.get(name) if isinstance(name, str) else None


def check_without(config: Mapping[str, Any], what: str) -> None:
    """Refuse a model with bottlenecks behind its blocks, where nothing can be made of them.

    Args:
        config: the model's.
        what: cannot have them, as the beginning of a sentence.

    Raises:
        UnsupportedError: it has some.
    """
    if (name := config.get(CONFIG_KEY)) is not None:
        raise UnsupportedError(
            f"{what} no place for the bottlenecks of {str(name).lower()}, which stand behind the "
            "blocks and are part of no weight; export it with --format onnx, or train --method "
            "adapter, whose bottlenecks become part of the feed-forward blocks"
        )


def default_width(hidden: int) -> int:
    """A sixteenth of the hidden width, as in arXiv 2005.00247, rounded up to whole blocks."""
    return -(-hidden // _REDUCTION // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE


def projections(source: WeightSource, form: Form) -> list[str]:
    """Full names of the projections that bottlenecks of a form stand behind.

    Raises:
        UnsupportedError: the model does not have one of each in every layer.
    """
    names = [name.removesuffix(".weight") for name in source.tensors() if name.endswith(".weight")]
    found = [name for name in names if name.rpartition(".")[2] in form.places]
    layers = int(source.config["num_hidden_layers"])
    if len(found) != layers * len(form.places) or any(".experts." in name for name in found):
        raise UnsupportedError(
            f"bottlenecks stand behind {' and '.join(form.places)} of each of the {layers} layers, "
            f"and this model has {len(found)} of them; train it with --method lora"
        )
    return found


class WithBottlenecks:
    """The base and bottlenecks behind its blocks, as before training: they add nothing."""

    def __init__(self, base: WeightSource, name: str, width: int | None = None) -> None:
        """Find the places; nothing is read yet.

        Args:
            base: what they stand in.
            name: of their form.
            width: of each; by default a sixteenth of the hidden width.

        Raises:
            UnsupportedError: the base has no such places, or has bottlenecks already.
        """
        check_without(base.config, "beside others there is")
        self.base = base
        self._added: dict[str, TensorInfo] = {}
        width = width or default_width(int(base.config["hidden_size"]))
        for place in projections(base, FORMS[name]):
            hidden = base.tensors()[f"{place}.weight"].shape[0]
            for part, shape in (
                ("down.weight", (width, hidden)), ("down.bias", (width,)),
                ("up.weight", (hidden, width)), ("up.bias", (hidden,)),
            ):  # fmt: skip
                full = f"{place}.{MODULE}.{part}"
                self._added[full] = TensorInfo(full, shape, "F32")
        self._config = dict(base.config) | {CONFIG_KEY: name}

    @property
    def config(self) -> dict[str, Any]:
        """The base's config, which tells of the bottlenecks."""
        return self._config

    @property
    def changed(self) -> frozenset[str]:
        """Tensors that are not the base's."""
        return frozenset(self._added)

    @property
    def replaced(self) -> frozenset[str]:
        """Tensors of which the adapter holds a copy: none."""
        return frozenset()

    def tensors(self) -> dict[str, TensorInfo]:
        """The base's, and those of the bottlenecks."""
        return self.base.tensors() | self._added

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop)."""
        if name in self._added:
            return self._part(name)[start:stop]
        return self.base.rows(name, start, stop)

    def _part(self, name: str) -> Float32Array:
        return np.zeros(self._added[name].shape, np.float32)


class SequentialSource(WithBottlenecks):
    """The base, with the bottlenecks of a trained adapter."""

    def __init__(self, base: WeightSource, spec: AdapterSpec, *, weight: float = 1.0) -> None:
        """Match the adapter's tensors to the places in the base; none is read yet.

        Args:
            base: what they stand in.
            spec: the adapter.
            weight: a factor on what the bottlenecks add.

        Raises:
            AdapterError: the adapter does not fit this base.
            CorruptFileError: its file is damaged.
            UnsupportedError: as `WithBottlenecks`.
        """
        if spec.r < 1:
            raise AdapterError(f"{spec.path} says that its bottlenecks are {spec.r} wide")
        super().__init__(base, spec.peft_type, spec.r)
        self.spec = spec
        self._weight = np.float32(weight)
        self._file = SafetensorsFile(spec.path / WEIGHTS)
        self._check_fit()
        self._whole = functools.lru_cache(maxsize=4)(functools.partial(read_finite, self._file))

    def _part(self, name: str) -> Float32Array:
        values = self._whole(name)
        return values * self._weight if ".up." in name else values

    def _check_fit(self) -> None:
        """See that each place has its bottleneck, of the right shapes, and that none is left."""
        trained_on = f"it was trained on {self.spec.base_model or 'another base'}: give that base"
        given = self._file.tensors()
        if strange := sorted(name for name in given if _KEY.match(name) is None):
            raise AdapterError(
                f"{self._file.path} holds {strange[0]!r}, which is no part of a bottleneck"
            )
        if unknown := sorted(given.keys() - self._added.keys()):
            raise AdapterError(
                f"the adapter has {unknown[0]!r}, for which the base has no place; {trained_on}"
            )
        for name, info in self._added.items():
            if name not in given:
                raise AdapterError(f"the adapter has no {name!r}; {trained_on}")
            if given[name].shape != info.shape:
                raise AdapterError(
                    f"the adapter's {name} has shape {given[name].shape}, but {info.shape} is "
                    f"expected for this base; {trained_on}"
                )
