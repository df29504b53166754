"""A decoder as an ONNX graph, with the operators and names that onnxruntime-genai's builder uses.

Inputs are `input_ids` and `attention_mask`, shape (batch, sequence) and (batch, past + sequence),
int64, and for each layer `past_key_values.N.key` and `.value`, shape (batch, key-value heads, past,
head size), float32. Outputs are `logits` and `present.N.key` and `.value`. Past and present may be
the same buffer. Positions follow from the mask, as `GroupQueryAttention` counts them:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.converters.onnx.names import IDS, KINDS, LOGITS, MASK, past, present
from edgeadapt.converters.onnx.stream.architecture import Attention, Decoder, Layer, Linear
from edgeadapt.converters.onnx.stream.data import DataLayout
from edgeadapt.converters.onnx.stream.graph import CONTRIB, GraphBuilder
from edgeadapt.converters.onnx.stream.precision import Precision
from edgeadapt.converters.onnx.stream.products import Products


@dataclass
class DecoderGraph:
    """The graph of one decoder and the layout of its weights."""

    decoder: Decoder
    precision: Precision
    adapted: Collection[str] = ()
    """Names of the products that adapters may change at run time."""
    data_name: str = "model.onnx.data"

    def __post_init__(self) -> None:
        self.graph = GraphBuilder(self.data_name)
        self.products = Products(self.graph, self.decoder, self.precision, self.adapted)
        self._build()

    @property
    def layout(self) -> DataLayout:
        """What is to be in the data file."""
        return self.products.layout

    def _build(self) -> None:
        decoder, graph = self.decoder, self.graph
        graph.input(IDS, TensorProto.INT64, ["batch_size", "sequence_length"])
        graph.input(MASK, TensorProto.INT64, ["batch_size", "total_sequence_length"])
        self._declare_cache()
        self._count_positions()
        self._make_tables()
        embedded = self.products.embed()
        skip, hidden = embedded, self.products.norm(embedded, decoder.layers[0].input_norm)
        for number, layer in enumerate(decoder.layers):
            last = number == len(decoder.layers) - 1
            following = decoder.norm if last else decoder.layers[number + 1].input_norm
            skip, hidden = self._layer(number, layer, skip, hidden, following, last)
        self._head(hidden)

    def _declare_cache(self) -> None:
        decoder, graph = self.decoder, self.graph

        def shape(length: str) -> list[int | str]:
            return ["batch_size", decoder.kv_heads, length, decoder.head_size]

        wide: list[int | str] = ["batch_size", "sequence_length", decoder.vocab_size]
        graph.output(LOGITS, TensorProto.FLOAT, wide)
        for number in range(len(decoder.layers)):
            for kind in KINDS:
                graph.input(past(number, kind), TensorProto.FLOAT, shape("past_sequence_length"))
                graph.output(
                    present(number, kind), TensorProto.FLOAT, shape("total_sequence_length")
                )

    def _count_positions(self) -> None:
        """From the mask, the last position of each sequence, and how long the longest is."""
        graph, base = self.graph, "/model/attention_mask"
        one = graph.constant([1], np.int64)
        (counts,) = graph.node("ReduceSum", f"{base}/ReduceSum", [MASK, one], keepdims=0)
        (last,) = graph.node("Sub", f"{base}/Sub", [counts, one])
        (self._last,) = graph.node("Cast", f"{base}/Last", [last], to=TensorProto.INT32)
        (shape,) = graph.node("Shape", f"{base}/Shape", [MASK])
        (length,) = graph.node(
            "Gather", f"{base}/Gather", [shape, graph.constant(1, np.int64)], axis=0
        )
        self._length = length
        (self._total,) = graph.node("Cast", f"{base}/Total", [length], to=TensorProto.INT32)

    def _make_tables(self) -> None:
        """Rotary tables of each kind of layer; longrope picks one of two by the length so far."""
        self._tables: dict[str, tuple[str, str]] = {}
        known: dict[str, tuple[str, str]] = {}
        for kind, rope in self.decoder.ropes.items():
            if str(rope) in known:
                self._tables[kind] = known[str(rope)]
                continue
            suffix = "" if len(self.decoder.ropes) == 1 else f"_{kind.partition('_')[0]}"
            names = (f"cos_cache{suffix}", f"sin_cache{suffix}")
            limit = rope.switches_at
            if limit is None or limit >= rope.context:
                tables = self._store_tables(rope.tables(), names)
            else:
                long = self._store_tables(rope.tables(long=True), tuple(f"{n}_long" for n in names))
                short = self._store_tables(rope.tables(), tuple(f"{n}_short" for n in names))
                base = f"/model/rope{suffix}"
                (beyond,) = self.graph.node(
                    "Greater",
                    f"{base}/Greater",
                    [self._length, self.graph.constant(limit, np.int64)],
                )
                pairs = list(zip(long, short, strict=True))
                cos, sin = self.graph.choose(f"{base}/If", beyond, pairs, names)
                tables = (cos, sin)
            self._tables[kind] = known[str(rope)] = tables

    def _store_tables(
        self, tables: tuple[np.ndarray, np.ndarray], names: tuple[str, ...]
    ) -> tuple[str, str]:
        cos, sin = (
            self.graph.stored(
                self.products.layout.add_float(TensorPlan(name, table.shape, values=table))
            )
            for name, table in zip(names, tables, strict=True)
        )
        return cos, sin

    def _layer(
        self, number: int, layer: Layer, skip: str, hidden: str, following: TensorPlan, last: bool
    ) -> tuple[str, str]:
        """One layer, and the norm after it.

        Args:
            number: of the layer.
            layer: the layer.
            skip: the residual stream before it.
            hidden: the same, normed.
            following: the norm that comes next.
            last: whether nothing is added to the stream afterwards.

        Returns:
            The residual stream after the layer, and the same, normed.
        """
        attended = self._attention(number, layer.attention, hidden)
        if layer.attention_norm:
            attended = self.products.norm(attended, layer.attention_norm)
        skip, hidden = self.products.skip_norm(skip, attended, layer.mlp_norm)
        moved = self._mlp(number, layer, hidden)
        if layer.output_norm:
            moved = self.products.norm(moved, layer.output_norm)
        return self.products.skip_norm(skip, moved, following, last)

    def _attention(self, number: int, attention: Attention, hidden: str) -> str:
        decoder, graph = self.decoder, self.graph
        query, key, value = self._queries_keys_values(number, attention, hidden)
        cos, sin = self._tables[attention.kind]
        cache = [past(number, kind) for kind in KINDS]
        name = f"/model/layers.{number}/attn/GroupQueryAttention"
        attended, _, _ = graph.node(
            "GroupQueryAttention",
            name,
            [query, key, value, *cache, self._last, self._total, cos, sin],
            domain=CONTRIB,
            outputs=[f"{name}/output_0", *(present(number, kind) for kind in KINDS)],
            num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads,
            scale=decoder.attention_scale,
            softcap=decoder.attention_cap,
            local_window_size=attention.window or -1,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self.products.linear(attention.output, number, attended)

    def _queries_keys_values(
        self, number: int, attention: Attention, hidden: str
    ) -> tuple[str, str, str]:
        """One product for all three, unless an adapter adds to each its own."""
        decoder, graph = self.decoder, self.graph
        linears = (attention.query, attention.key, attention.value)
        if any(linear.name in self.adapted for linear in linears):
            query, key, value = (self.products.linear(linear, number, hidden) for linear in linears)
        else:
            packed = self.products.linear(_stacked(linears), number, hidden)
            if not (attention.query_norm or attention.key_norm):
                return packed, "", ""
            sizes = graph.constant([linear.weight.shape[0] for linear in linears], np.int64)
            query, key, value = graph.node(
                "Split", f"/model/layers.{number}/attn/qkv_proj/Split", [packed, sizes],
                outputs=3, axis=-1,
            )  # fmt: skip
        if attention.query_norm:
            query = self._head_norm(query, attention.query_norm, decoder.heads)
        if attention.key_norm:
            key = self._head_norm(key, attention.key_norm, decoder.kv_heads)
        return query, key, value

    def _mlp(self, number: int, layer: Layer, hidden: str) -> str:
        graph, base = self.graph, f"/model/layers.{number}/mlp"
        gate = self.products.linear(layer.gate, number, hidden)
        up = self.products.linear(layer.up, number, hidden)
        if self.decoder.activation == "silu":
            (sigmoid,) = graph.node("Sigmoid", f"{base}/act_fn/Sigmoid", [gate])
            (active,) = graph.node("Mul", f"{base}/act_fn/Mul", [gate, sigmoid])
        else:
            form = "tanh" if self.decoder.activation.endswith("tanh") else "none"
            (active,) = graph.node("Gelu", f"{base}/act_fn/Gelu", [gate], approximate=form)
        (product,) = graph.node("Mul", f"{base}/Mul", [active, up])
        return self.products.linear(layer.down, number, product)

    def _head(self, hidden: str) -> None:
        decoder, graph, cap = self.decoder, self.graph, self.decoder.logits_cap
        output = "/lm_head/output_0" if cap else LOGITS
        logits = self.products.linear(decoder.head, None, hidden, output)
        if cap:
            limit = graph.constant(cap, np.float32)
            (small,) = graph.node("Div", "/lm_head/softcap/Div", [logits, limit])
            (bent,) = graph.node("Tanh", "/lm_head/softcap/Tanh", [small])
            graph.node("Mul", "/lm_head/softcap/Mul", [bent, limit], outputs=[LOGITS])

    def _head_norm(self, hidden: str, plan: TensorPlan, heads: int) -> str:
        """Norm each head by itself."""
        graph, size = self.graph, self.decoder.head_size
        to_heads = graph.constant([0, -1, size], np.int64)
        (split,) = graph.node("Reshape", f"/{plan.name}/Reshape_1", [hidden, to_heads])
        together = graph.constant([0, -1, heads * size], np.int64)
        normed = self.products.norm(split, plan)
        return graph.node("Reshape", f"/{plan.name}/Reshape_2", [normed, together])[0]


def _stacked(linears: tuple[Linear, Linear, Linear]) -> Linear:
    """Query, key and value as one product."""
    name = linears[0].name.replace("q_proj", "qkv_proj")
    biases = [linear.bias for linear in linears if linear.bias]
    bias = _stack(f"{name}.bias", biases) if biases else None
    return Linear(name, _stack(f"{name}.weight", [linear.weight for linear in linears]), bias)


def _stack(name: str, plans: list[TensorPlan]) -> TensorPlan:
    shape = (sum(plan.shape[0] for plan in plans), *plans[0].shape[1:])
    return TensorPlan(name, shape, tuple(part for plan in plans for part in plan.parts))
