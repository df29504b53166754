"""What a decoder is made of: numbers from its config, and which tensors go into which product."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeadapt.adapters.sequential import MODULE, form_of
from edgeadapt.converters.gguf.plan import RowRange, TensorPlan
from edgeadapt.converters.onnx.stream.families import (
    FAMILIES,
    SLIDING,
    activation_of,
    head_size,
    layer_kinds,
    unsupported,
)
from edgeadapt.converters.onnx.stream.rope import Rope, ropes
from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.weights import (
    HEAD,
    Float32Array,
    TensorInfo,
    WeightSource,
    find_embedding,
    is_tied,
)

_COMPUTED = ".rotary_emb.inv_freq"
"""Buffers that old checkpoints saved and every runtime computes for itself."""


@dataclass(frozen=True)
class Linear:
    """One product with a matrix, perhaps with a bias."""

    name: str
    """In the graph, such as `model.layers.0.attn.q_proj`."""
    weight: TensorPlan
    bias: TensorPlan | None = None
    behind: Bottleneck | None = None

    @property
    def sources(self) -> frozenset[str]:
        """Tensors of the checkpoint that its rows come from."""
        return frozenset(part.name for part in self.weight.parts)


@dataclass(frozen=True)
class Bottleneck:
    """What an adapter adds to a product's result y: up(activation(down(y)))."""

    down: Linear
    up: Linear
    activation: str


@dataclass(frozen=True)
class Attention:
    """One layer's attention."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: TensorPlan | None
    key_norm: TensorPlan | None
    kind: str
    """Which rotary tables it uses."""
    window: int | None
    """Positions that a token sees, itself included; None: all."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer; Gemma 2 and 3 also have norms after attention and after the MLP."""

    attention: Attention
    gate: Linear
    up: Linear
    down: Linear
    input_norm: TensorPlan
    attention_norm: TensorPlan | None
    mlp_norm: TensorPlan
    output_norm: TensorPlan | None

    @property
    def linears(self) -> Iterator[Linear]:
        """Every product, in the order of the graph."""
        yield from (self.attention.query, self.attention.key, self.attention.value)
        yield from (self.attention.output, self.gate, self.up, self.down)


@dataclass(frozen=True)
class Decoder:
    """A whole model."""

    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context: int
    epsilon: float
    activation: str
    attention_scale: float
    attention_cap: float
    """Soft cap of attention scores; 0 for none."""
    logits_cap: float
    embedding_scale: float
    ropes: Mapping[str, Rope]
    embedding: TensorPlan
    layers: tuple[Layer, ...]
    norm: TensorPlan
    head: Linear
    tied: bool
    """The head is the embedding."""

    @property
    def linears(self) -> Iterator[Linear]:
        """Every product, in the order of the graph."""
        for layer in self.layers:
            yield from layer.linears
        yield self.head


def describe(source: WeightSource) -> Decoder:
    """Find every tensor of a model, and its place.

    Raises:
        UnsupportedError: the architecture is not known, or it has tensors with no place in it.
        CorruptFileError: a tensor is missing or of another shape than the config says.
    """
    if reason := unsupported(source.config):
        raise UnsupportedError(reason)
    family = source.config["architectures"][0]
    config = FAMILIES[family] | {k: v for k, v in source.config.items() if v is not None}
    try:
        return _Reader(family, config, source).decoder()
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CorruptFileError(f"config.json is not a {family}'s: {error!r}") from error


class _Reader:
    """Takes tensors by name, and knows in the end which were not asked for."""

    def __init__(self, family: str, config: dict[str, Any], source: WeightSource) -> None:
        self._family, self._config, self._infos = family, config, source.tensors()
        self._left = {name for name in self._infos if not name.endswith(_COMPUTED)}
        self._tied = is_tied(source)
        self._embedding = find_embedding(source)
        self._prefix = self._embedding.removesuffix("embed_tokens.weight")
        self._gemma = family.startswith("Gemma")
        self._form = form_of(config)
        self.hidden = int(config["hidden_size"])
        self.heads = int(config["num_attention_heads"])
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        self.head_size = head_size(config)
        self.wide = int(config["intermediate_size"])

    def decoder(self) -> Decoder:
        config, hidden, vocab = self._config, self.hidden, int(self._config["vocab_size"])
        kinds = layer_kinds(config, self._family)
        layers = tuple(self._layer(number, kind) for number, kind in enumerate(kinds))
        embedding = self._matrix("model.embed_tokens.weight", self._embedding, vocab, hidden)
        if self._tied:
            self._left.discard(HEAD)
            head = Linear("lm_head", replace(embedding, name="lm_head.weight"))
        else:
            head = self._linear("lm_head", "lm_head", vocab, hidden)
        decoder = Decoder(
            family=self._family,
            hidden=hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            vocab_size=vocab,
            context=int(config["max_position_embeddings"]),
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            activation=activation_of(config),
            attention_scale=float(config.get("query_pre_attn_scalar") or self.head_size) ** -0.5,
            attention_cap=float(config.get("attn_logit_softcapping") or 0),
            logits_cap=float(config.get("final_logit_softcapping") or 0),
            embedding_scale=math.sqrt(hidden) if self._gemma else 1.0,
            ropes=ropes(config, self.head_size, sorted(set(kinds))),
            embedding=embedding,
            layers=layers,
            norm=self._norm("model.norm", f"{self._prefix}norm", hidden),
            head=head,
            tied=self._tied,
        )
        if self._left:
            raise UnsupportedError(
                f"the ONNX writer has no place for the tensor {min(self._left)!r} in a "
                f"{self._family}; is this the plain text model?"
            )
        return decoder

    def _layer(self, number: int, kind: str) -> Layer:
        source, graph = f"{self._prefix}layers.{number}.", f"model.layers.{number}."

        def norm(name: str) -> TensorPlan:
            return self._norm(f"{graph}{name}", f"{source}{name}", self.hidden)

        gate, up = self._gate_and_up(source, graph)
        sandwich = f"{source}pre_feedforward_layernorm.weight" in self._infos
        after = norm("post_attention_layernorm")
        return Layer(
            attention=self._attention(source, graph, kind),
            gate=gate,
            up=up,
            down=self._linear(f"{graph}mlp.down_proj", f"{source}mlp.down_proj", self.hidden,
                              self.wide),
            input_norm=norm("input_layernorm"),
            attention_norm=after if sandwich else None,
            mlp_norm=norm("pre_feedforward_layernorm") if sandwich else after,
            output_norm=norm("post_feedforward_layernorm") if sandwich else None,
        )  # fmt: skip

    def _attention(self, source: str, graph: str, kind: str) -> Attention:
        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        heights = {letter: count * self.head_size for letter, count in sizes.items()}
        packed = f"{source}self_attn.qkv_proj"
        linears, start = {}, 0
        for letter, height in heights.items():
            name = f"{graph}attn.{letter}_proj"
            if f"{packed}.weight" in self._infos:
                whole = sum(heights.values())
                linears[letter] = self._linear(name, packed, height, self.hidden, start, whole)
                start += height
            else:
                own = f"{source}self_attn.{letter}_proj"
                linears[letter] = self._linear(name, own, height, self.hidden)
        norms = [
            self._norm(f"{graph}attn.{name}", f"{source}self_attn.{name}", self.head_size)
            if f"{source}self_attn.{name}.weight" in self._infos
            else None
            for name in ("q_norm", "k_norm")
        ]
        out = f"{source}self_attn.o_proj"
        return Attention(
            query=linears["q"],
            key=linears["k"],
            value=linears["v"],
            output=self._linear(f"{graph}attn.o_proj", out, self.hidden, heights["q"]),
            query_norm=norms[0],
            key_norm=norms[1],
            kind=kind,
            window=int(self._config["sliding_window"]) if kind == SLIDING else None,
        )

    def _gate_and_up(self, source: str, graph: str) -> tuple[Linear, Linear]:
        gate, up, packed = (
            f"{source}mlp.{name}" for name in ("gate_proj", "up_proj", "gate_up_proj")
        )
        names = f"{graph}mlp.gate_proj", f"{graph}mlp.up_proj"
        if f"{packed}.weight" not in self._infos:
            return (
                self._linear(names[0], gate, self.wide, self.hidden),
                self._linear(names[1], up, self.wide, self.hidden),
            )
        return (
            self._linear(names[0], packed, self.wide, self.hidden, 0, 2 * self.wide),
            self._linear(names[1], packed, self.wide, self.hidden, self.wide, 2 * self.wide),
        )

    def _linear(
        self, name: str, source: str, height: int, width: int, start: int = 0,
        whole: int | None = None,
    ) -> Linear:  # fmt: skip
        """Rows [start, start + height) of a matrix that has `whole` rows."""
        whole = whole or height
        rows = RowRange(f"{source}.weight", start, start + height)
        self._take(rows.name, (whole, width))
        bias = None
        if f"{source}.bias" in self._infos:
            self._take(f"{source}.bias", (whole,))
            part = RowRange(f"{source}.bias", start, start + height)
            bias = TensorPlan(f"{name}.bias", (height,), (part,))
        weight = TensorPlan(f"{name}.weight", (height, width), (rows,))
        return Linear(name, weight, bias, self._behind(name, source, height))

    def _behind(self, name: str, source: str, hidden: int) -> Bottleneck | None:
        """The bottleneck that an adapter puts behind a product."""
        down = self._infos.get(f"{source}.{MODULE}.down.weight")
        if self._form is None or down is None:
            return None
        width = down.shape[0]
        return Bottleneck(
            self._linear(f"{name}.{MODULE}.down", f"{source}.{MODULE}.down", width, hidden),
            self._linear(f"{name}.{MODULE}.up", f"{source}.{MODULE}.up", hidden, width),
            self._form.activation,
        )

    def _matrix(self, name: str, source: str, height: int, width: int) -> TensorPlan:
        self._take(source, (height, width))
        return TensorPlan(name, (height, width), (RowRange(source, 0, height),))

    def _norm(self, name: str, source: str, size: int) -> TensorPlan:
        """A norm's factors; Gemma stores how much they differ from one."""
        self._take(f"{source}.weight", (size,))
        part = RowRange(f"{source}.weight", 0, size)
        return TensorPlan(f"{name}.weight", (size,), (part,), _plus_one if self._gemma else None)

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._infos.get(name)
        if info is None:
            raise CorruptFileError(
                f"the model has no tensor {name}, which its config.json asks for"
            )
        if info.shape != shape:
            raise CorruptFileError(
                f"tensor {name} has shape {info.shape}, its config.json says {shape}"
            )
        self._left.discard(name)
        return info


def _plus_one(rows: Float32Array) -> Float32Array:
    return rows + np.float32(1)
