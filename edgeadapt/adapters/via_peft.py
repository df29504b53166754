"""Methods beyond LoRA and IA3, merged by PEFT's own layer, one layer at a time.

A holder module gets a single linear layer at the target's full name, filled with the base's
weight before PEFT looks at it (some methods initialise from it), then the adapter's tensors, and
merges. Nothing larger than one layer is ever in memory, and no transformers model is built.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from dataclasses import replace
from typing import Any

from edgeadapt.adapters.spec import WEIGHTS, AdapterSpec
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.extras import need
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.weights import Float32Array, TensorInfo, WeightSource, read_tensor

MERGEABLE = frozenset({"LOHA", "LOKR", "OFT", "BOFT", "HRA", "MISS"})
"""Methods whose layers need nothing but their own tensors; each is proven by a test."""


class PeftMergedSource:
    """The base, with PEFT's merge of each layer that the adapter targets."""

    def __init__(self, base: WeightSource, spec: AdapterSpec) -> None:
        if spec.peft_type not in MERGEABLE:
            raise UnsupportedError(
                f"edgeadapt cannot merge {spec.method!r} adapters; it merges lora, rslora, dora, "
                f"ia3, {', '.join(sorted(name.lower() for name in MERGEABLE))}"
            )
        need("peft", f"merging a {spec.method} adapter")
        self.base = base
        self.spec = spec
        self._file = SafetensorsFile(spec.path / WEIGHTS)
        self._infos = dict(base.tensors())
        self._keys = self._keys_by_target()
        for name in self._keys:
            self._infos[name] = replace(self._infos[name], dtype="F32")
        self._merged = functools.lru_cache(maxsize=2)(self._merge)

    @property
    def config(self) -> dict[str, Any]:
        """The base's config: these methods change no shape."""
        return self.base.config

    @property
    def changed(self) -> frozenset[str]:
        """Tensors that are not the base's."""
        return frozenset(self._keys)

    @property
    def replaced(self) -> frozenset[str]:
        """Tensors of which the adapter holds a copy: none, with these methods."""
        return frozenset()

    def tensors(self) -> dict[str, TensorInfo]:
        """Names and shapes; merged tensors count as F32."""
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop); a targeted layer is merged whole and kept for its next rows."""
        if name not in self._keys:
            return self.base.rows(name, start, stop)
        return self._merged(name)[start:stop].copy()

    def _keys_by_target(self) -> dict[str, list[str]]:
        """Adapter tensors by the base tensor that they change."""
        keys: dict[str, list[str]] = defaultdict(list)
        for key in self._file.tensors():
            path = key.removeprefix("base_model.model.").split(".")
            for length in range(len(path), 0, -1):
                name = ".".join([*path[:length], "weight"])
                if name in self._infos and len(self._infos[name].shape) == 2:
                    keys[name].append(key)
                    break
            else:
                raise AdapterError(
                    f"the adapter's {key!r} matches nothing in the base; it was trained on "
                    f"{self.spec.base_model or 'another base'}: give that base with --base"
                )
        return dict(keys)

    def _merge(self, name: str) -> Float32Array:
        import torch
        from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

        module = name.removesuffix(".weight")
        rows, columns = self._infos[name].shape
        holder = _holder(module, columns, rows)
        layer = holder.get_submodule(module)
        layer.weight.data = torch.from_numpy(read_tensor(self.base, name))
        config = PeftConfig.from_pretrained(str(self.spec.path))
        config.target_modules = [module]
        config.modules_to_save = None
        state = {
            key.removeprefix("base_model.model."): torch.from_numpy(read_tensor(self._file, key))
            for key in self._keys[name]
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns that the holder is no transformers model
            inject_adapter_in_model(config, holder)
            try:
                outcome = set_peft_model_state_dict(holder, state)
            except RuntimeError as error:
                raise AdapterError(f"the adapter does not fit {name!r}: {error}") from error
        if outcome.unexpected_keys:
            raise AdapterError(f"PEFT did not use {sorted(outcome.unexpected_keys)[0]!r}")
        tuned = holder.get_submodule(module)
        tuned.merge(safe_merge=True)
        merged: Float32Array = tuned.get_base_layer().weight.detach().numpy()
        return merged


def _holder(module: str, inputs: int, outputs: int) -> Any:
    """A bare module tree with one linear layer at the dotted path `module`."""
    import torch

    root = torch.nn.Module()
    *parents, leaf = module.split(".")
    node = root
    for part in parents:
        child = torch.nn.Module()
        node.add_module(part, child)
        node = child
    node.add_module(leaf, torch.nn.Linear(inputs, outputs, bias=False))
    return root
