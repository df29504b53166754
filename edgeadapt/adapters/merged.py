"""A base with an adapter merged in, as one more `WeightSource`.

The adapter file drives everything: each of its tensors must find the base tensor it changes, or
the adapter belongs to another base. Merged rows are computed when they are read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.adapters import bottleneck, sequential
from edgeadapt.adapters.adapted import AdaptedSource
from edgeadapt.adapters.contents import AdapterContents, LoraKeys, Parts, changes, lora_keys
from edgeadapt.adapters.patches import (
    AddPatch,
    DoraPatch,
    EmbeddingDoraPatch,
    LoraPatch,
    Patch,
    ReadRows,
    ReplacePatch,
    RowsPatch,
    ScalePatch,
)
from edgeadapt.adapters.spec import PROMPT_METHODS, AdapterSpec, read_spec
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.weights import (
    HEAD,
    Float32Array,
    TensorInfo,
    WeightSource,
    find_embedding,
    is_tied,
    row_chunks,
)

PatchFactory = Callable[[], Patch]


def merged_source(
    base: WeightSource, adapter: Path, *, original: WeightSource | None = None, weight: float = 1.0
) -> AdaptedSource:
    """The base with the adapter in `adapter` merged in, tensor by tensor, in float32.

    Args:
        base: what to merge into; another adapter may be merged in already.
        adapter: a PEFT adapter folder.
        original: the base before any adapter, if `base` is not that; DoRA takes its norms there.
        weight: a factor on what a LoRA adds, for weighted combinations.

    Raises:
        AdapterError: the adapter does not fit this base, or holds non-finite numbers.
        UnsupportedError: the adapter's method has no merged form.
    """
    spec = read_spec(adapter)
    check_changes_weights(spec)
    if spec.peft_type in {"LORA", "IA3"}:
        return MergedSource(base, spec, original=original, weight=weight)
    if spec.peft_type == bottleneck.PEFT_TYPE:
        return bottleneck.BottleneckSource(base, spec, weight=weight)
    if spec.peft_type in sequential.FORMS:
        return sequential.SequentialSource(base, spec, weight=weight)
    from edgeadapt.adapters.via_peft import PeftMergedSource

    return PeftMergedSource(base, spec)


def check_changes_weights(spec: AdapterSpec) -> None:
    """Refuse a method that leaves the weights alone.

    Raises:
        UnsupportedError: the adapter is a prompt or a prefix.
    """
    if spec.peft_type in PROMPT_METHODS:
        raise UnsupportedError(
            f"{spec.peft_type.lower().replace('_', ' ')} trains a prompt or a KV cache and changes "
            "no weight, so there is nothing to merge; ship it beside the base's artifact, with "
            "edgeadapt export --adapter-mode separate --out prefix.safetensors"
        )


class MergedSource:
    """LoRA, rsLoRA, DoRA and IA3, merged by the few lines in `patches`."""

    def __init__(
        self,
        base: WeightSource,
        spec: AdapterSpec,
        *,
        original: WeightSource | None = None,
        weight: float = 1.0,
    ) -> None:
        self.base = base
        self.spec = spec
        self._original = original or base
        self._weight = weight
        self._contents = AdapterContents(spec)
        self._infos = dict(base.tensors())
        self._config = dict(base.config)
        self._embedding = find_embedding(base)
        self._factories: dict[str, list[PatchFactory]] = {}
        self._origin: dict[str, str] = {}
        self._replacing: dict[str, str] = {}
        self._with_token_rows: set[str] = set()
        self._patches = functools.lru_cache(maxsize=8)(self._build_patches)
        self._tied = is_tied(base)
        if self._tied:
            self._infos.pop(HEAD, None)
        for module, parts in changes(self._contents, self._original).items():
            self._plan_module(module, parts)
        self._untie_if_changed()

    @property
    def config(self) -> dict[str, Any]:
        """The base's config, with a changed vocabulary size or an untied head."""
        return self._config

    def tensors(self) -> dict[str, TensorInfo]:
        """Names and shapes; merged tensors count as F32."""
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop), merged now if the adapter changes them."""
        patches = self._patches(name) if name in self._factories else ()
        if patches and isinstance(patches[0], ReplacePatch):
            rows, patches = patches[0].read(start, stop), patches[1:]
        else:
            rows = self.base.rows(self._origin.get(name, name), start, stop)
        for patch in patches:
            rows = patch.apply(rows, start, stop)
        return rows

    def _build_patches(self, name: str) -> tuple[Patch, ...]:
        return tuple(factory() for factory in self._factories[name])

    @property
    def changed(self) -> frozenset[str]:
        """Tensors that are not the base's."""
        return frozenset(self._factories)

    @property
    def replaced(self) -> frozenset[str]:
        """Tensors of which the adapter holds a copy, or copies of some rows."""
        return frozenset(self._replacing) | self._with_token_rows

    def _plan_module(self, module: str, parts: Parts) -> None:
        parts = dict(parts)
        # A saved copy of the whole tensor comes first: what was trained beside it applies to it.
        for part in ("base_layer.weight", "weight"):
            if part in parts:
                self._plan_replacement(f"{module}.weight", parts.pop(part))
        for part in ("base_layer.bias", "bias"):
            if part in parts:
                self._plan_replacement(f"{module}.bias", parts.pop(part))
        if "token_adapter.trainable_tokens_delta" in parts:
            self._plan_rows(module, parts.pop("token_adapter.trainable_tokens_delta"))
        if "ia3_l" in parts:
            self._plan_ia3(module, parts.pop("ia3_l"))
        if parts:
            self._plan_lora(module, parts)

    def _target(self, name: str) -> TensorInfo:
        """The base tensor called `name`; a tied head reads as the embedding."""
        if name in self._infos:
            return self._infos[name]
        if name == HEAD and self._tied:
            info = self._infos[self._embedding]
            self._infos[name] = replace(info, name=name)
            self._origin[name] = self._embedding
            return self._infos[name]
        raise AdapterError(
            f"the adapter changes {name!r}, which the base does not have; it was trained on "
            f"{self.spec.base_model or 'another base'}: give that base with --base"
        )

    def _patch(self, name: str, factory: PatchFactory) -> None:
        self._infos[name] = replace(self._infos[name], dtype="F32")
        self._factories.setdefault(name, []).append(factory)

    def _plan_replacement(self, name: str, key: str) -> None:
        info, given = self._target(name), self._contents.info(key)
        if given.shape != info.shape:
            vocabulary = name in {HEAD, self._embedding} and given.shape[1:] == info.shape[1:]
            if not vocabulary:
                raise self._contents.misfit(key, given.shape, name, info.shape)
            self._config["vocab_size"] = given.shape[0]
            self._infos[name] = replace(info, shape=given.shape)
        self._replacing[name] = key
        self._patch(name, lambda: ReplacePatch(functools.partial(self._contents.rows, key)))

    def _plan_rows(self, module: str, key: str) -> None:
        name = f"{module}.weight"
        info, given = self._target(name), self._contents.info(key)
        indices = next(
            (
                rows
                for ending, rows in self.spec.trainable_token_indices.items()
                if module == ending or module.endswith(f".{ending}")
            ),
            (),
        )
        if given.shape != (len(indices), info.shape[1]):
            raise self._contents.misfit(key, given.shape, name, (len(indices), info.shape[1]))
        if any(not 0 <= index < info.shape[0] for index in indices):
            raise AdapterError(f"trainable_token_indices names a token outside {name!r}")
        self._with_token_rows.add(name)
        self._patch(name, lambda: RowsPatch(indices, self._contents.read(key)))

    def _plan_ia3(self, module: str, key: str) -> None:
        name = f"{module}.weight"
        info, size = self._target(name), self._contents.info(key).size
        feedforward = self.spec.is_feedforward(module)
        by_row = feedforward == self.spec.fan_in_fan_out
        expected = info.shape[0] if by_row else info.shape[-1]
        if len(info.shape) != 2 or size != expected:
            raise self._contents.misfit(key, self._contents.info(key).shape, name, info.shape)
        self._patch(name, lambda: ScalePatch(self._contents.read(key).reshape(-1), by_row))
        bias = f"{module}.bias"
        if not feedforward and bias in self._infos:
            self._patch(bias, lambda: ScalePatch(self._contents.read(key).reshape(-1), by_row=True))

    def _plan_lora(self, module: str, parts: Parts) -> None:
        name = f"{module}.weight"
        keys = lora_keys(self._contents, module, parts, self._target(name))
        scale = keys.scale * self._weight

        def lora() -> LoraPatch:
            a, b = self._contents.read(keys.a), self._contents.read(keys.b)
            return LoraPatch(a, b, scale, keys.transposed)

        if keys.magnitude is None:
            self._patch(name, lora)
        else:
            self._plan_dora(name, lora, keys, keys.magnitude)
        if (bias := keys.bias) is not None:
            self._target(f"{module}.bias")
            self._patch(
                f"{module}.bias",
                lambda: AddPatch(self._contents.read(bias) * np.float32(scale)),
            )

    def _plan_dora(
        self, name: str, lora: Callable[[], LoraPatch], keys: LoraKeys, magnitude: str
    ) -> None:
        info = self._infos[name]
        size = self._contents.info(magnitude).size
        if size != info.shape[1 if keys.transposed else 0]:
            raise self._contents.misfit(magnitude, (size,), name, info.shape)
        before = self._before_adapters(name)

        def dora() -> Patch:
            vector = self._contents.read(magnitude).reshape(-1)
            if keys.transposed:
                return EmbeddingDoraPatch(lora(), vector, before, info.shape[0])
            return DoraPatch(lora(), vector, before if self._original is not self.base else None)

        self._patch(name, dora)

    def _before_adapters(self, name: str) -> ReadRows:
        """Reads the rows that DoRA's norm is taken from: no adapter's product is in them."""
        if name in self._replacing:
            return functools.partial(self._contents.rows, self._replacing[name])
        known = self._original.tensors()
        origin = name if name in known else self._origin.get(name, self._embedding)
        if known[origin].shape != self._infos[name].shape:
            raise AdapterError(
                f"an adapter before {self.spec.path.name} resized {name!r}, so the norm that "
                "DoRA needs is unknown; merge the adapters one by one with edgeadapt merge"
            )
        return functools.partial(self._original.rows, origin)

    def _untie_if_changed(self) -> None:
        """Give the head its own tensor where the adapter made it differ from the embedding."""
        if not self._tied:
            return
        changed = self._factories.get(self._embedding, [])
        head_changed = HEAD in self._factories
        if not changed and not head_changed:
            return
        if not head_changed:
            if all(self._is_token_rows(key) for key in self._keys_of_embedding()):
                return  # PEFT trains single tokens of tied matrices together: they stay tied
            self._target(HEAD)
            if self._infos[HEAD].shape != self._infos[self._embedding].shape:
                raise AdapterError(
                    "the adapter resizes the tied embedding without saving the head; save it "
                    "again with lm_head in modules_to_save"
                )
        elif changed and self._same_rows(HEAD, self._embedding):
            del self._infos[HEAD], self._factories[HEAD]
            return
        self._config["tie_word_embeddings"] = False

    def _keys_of_embedding(self) -> list[str]:
        module = self._embedding.removesuffix(".weight")
        return [key for key in self._contents.file.tensors() if f"{module}." in key]

    @staticmethod
    def _is_token_rows(key: str) -> bool:
        return "trainable_tokens_delta" in key

    def _same_rows(self, left: str, right: str) -> bool:
        """Whether two merged tensors are equal, up to float32 rounding of the two products."""
        info = self._infos[left]
        return info.shape == self._infos[right].shape and all(
            np.allclose(self.rows(left, i, j), self.rows(right, i, j), rtol=1e-6, atol=1e-7)
            for i, j in row_chunks(info)
        )
