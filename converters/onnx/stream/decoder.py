"""A decoder as an ONNX graph, with the operators and names that onnxruntime-genai's builder uses.

Inputs are `input_ids` and `attention_mask`, shape (batch, sequence) and (batch, past + sequence),
int64, and for each layer `past_key_values.N.key` and `.value`, shape (batch, key-value heads, past,
head size), float32. Outputs are `logits` and `present.N.key` and `.value`. Past and present may be
the same buffer. Positions follow from the mask, as `GroupQueryAttention` counts them:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import TensorProto

from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.converters.onnx.stream.architecture import Attention, Decoder, Layer, Linear
from edgeadapt.converters.onnx.stream.blocks import BlockScheme
from edgeadapt.converters.onnx.stream.data import DataLayout
from edgeadapt.converters.onnx.stream.graph import CONTRIB, GraphBuilder
from edgeadapt.lora_slots import input_names

_HALF = "fp16"


@dataclass(frozen=True)
class Precision:
    """What matrices are stored as."""

    name: str
    """`fp32`, `fp16`, `int8` or `int4`."""
    blocks: BlockScheme | None = None
    """For those of them that are quantized."""
    mixed: bool = False
    """Head and sensitive layers in 8 bits, the rest in 4."""
    accuracy_level: int = 4
    """4: the kernels round activations to int8 in blocks, which is what the fast ones take."""

    def scheme(self, linear: Linear, layer: int | None, layers: int) -> BlockScheme | None:
        """How one matrix is quantized; None: it is not.

        Mixed, the head has 8 bits, and so have q, k, v and the MLP's way down in the layers that
        llama.cpp's mixed types (`llama-quant.cpp`) favour as well: the first and last eighth and
        every third between.
        """
        if self.blocks is None or not self.mixed:
            return self.blocks
        wide = replace(self.blocks, bits=8)
        if layer is None:
            return wide
        eighth = layers / 8
        favoured = layer < eighth or layer >= 7 * eighth or (layer - round(eighth)) % 3 == 2
        part = linear.name.rpartition(".")[2]
        sensitive = part in ("q_proj", "k_proj", "v_proj", "qkv_proj", "down_proj")
        return wide if favoured and sensitive else self.blocks


@dataclass
class DecoderGraph:
    """The graph of one decoder and the layout of its weights."""

    decoder: Decoder
    precision: Precision
    adapted: Collection[str] = ()
    """Names of the products that adapters may change at run time."""
    data_name: str = "model.onnx.data"
    layout: DataLayout = field(default_factory=DataLayout)

    def __post_init__(self) -> None:
        self.graph = GraphBuilder(self.data_name)
        self._build()

    def _build(self) -> None:
        decoder, graph = self.decoder, self.graph
        graph.input("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        graph.input("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
        self._declare_cache()
        self._count_positions()
        self._make_tables()
        embedded = self._embed()
        skip, hidden = embedded, self._norm(embedded, decoder.layers[0].input_norm)
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
        graph.output("logits", TensorProto.FLOAT, wide)
        for number in range(len(decoder.layers)):
            for kind in ("key", "value"):
                past, present = f"past_key_values.{number}.{kind}", f"present.{number}.{kind}"
                graph.input(past, TensorProto.FLOAT, shape("past_sequence_length"))
                graph.output(present, TensorProto.FLOAT, shape("total_sequence_length"))

    def _count_positions(self) -> None:
        """From the mask, the last position of each sequence, and how long the longest is."""
        graph, base = self.graph, "/model/attention_mask"
        one = graph.constant([1], np.int64)
        (counts,) = graph.node(
            "ReduceSum", f"{base}/ReduceSum", ["attention_mask", one], keepdims=0
        )
        (last,) = graph.node("Sub", f"{base}/Sub", [counts, one])
        (self._last,) = graph.node("Cast", f"{base}/Last", [last], to=TensorProto.INT32)
        (shape,) = graph.node("Shape", f"{base}/Shape", ["attention_mask"])
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
            self.graph.stored(self.layout.add_float(TensorPlan(name, table.shape, values=table)))
            for name, table in zip(names, tables, strict=True)
        )
        return cos, sin

    def _embed(self) -> str:
        decoder, graph = self.decoder, self.graph
        scheme = self.precision.scheme(decoder.head, None, len(decoder.layers))
        name = "/model/embed_tokens"
        if scheme is None:
            half = self.precision.name == _HALF
            table = graph.stored(self.layout.add_float(decoder.embedding, half=half))
            (rows,) = graph.node("Gather", f"{name}/Gather", [table, "input_ids"])
            self._head_table = table
            if half:
                (rows,) = graph.node("Cast", f"{name}/Cast", [rows], to=TensorProto.FLOAT)
        else:
            rows = self._embed_blocks(name, scheme)
        if decoder.embedding_scale != 1:
            factor = graph.constant(decoder.embedding_scale, np.float32)
            (rows,) = graph.node("Mul", f"{name}/Mul", [rows, factor])
        return rows

    def _embed_blocks(self, name: str, scheme: BlockScheme) -> str:
        """Look rows up in the quantized table; a tied head is the same bytes in another shape."""
        decoder, graph = self.decoder, self.graph
        plan = decoder.head.weight if decoder.tied else decoder.embedding
        item = self.layout.add_blocks(plan, scheme)
        if decoder.tied:
            self._head_item = item
        flat = (item.values.shape[0], item.values.shape[1] * item.values.shape[2])
        table = graph.stored(item.values, alias="model.embed_tokens.weight_rows", shape=flat)
        inputs = [table, "input_ids", graph.stored(item.scales)]
        if item.zeros:
            inputs.append(graph.stored(item.zeros))
        (rows,) = graph.node(
            "GatherBlockQuantized", f"{name}/GatherBlockQuantized", inputs, domain=CONTRIB,
            bits=scheme.bits, block_size=scheme.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if flat[1] * 8 // scheme.bits == decoder.hidden:
            return rows
        bounds = [graph.constant([value], np.int64) for value in (0, decoder.hidden, -1)]
        return graph.node("Slice", f"{name}/Slice", [rows, *bounds])[0]

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
            attended = self._norm(attended, layer.attention_norm)
        skip, hidden = self._skip_norm(skip, attended, layer.mlp_norm)
        moved = self._mlp(number, layer, hidden)
        if layer.output_norm:
            moved = self._norm(moved, layer.output_norm)
        return self._skip_norm(skip, moved, following, last)

    def _attention(self, number: int, attention: Attention, hidden: str) -> str:
        decoder, graph = self.decoder, self.graph
        query, key, value = self._queries_keys_values(number, attention, hidden)
        cos, sin = self._tables[attention.kind]
        past = [f"past_key_values.{number}.{kind}" for kind in ("key", "value")]
        name = f"/model/layers.{number}/attn/GroupQueryAttention"
        attended, _, _ = graph.node(
            "GroupQueryAttention",
            name,
            [query, key, value, *past, self._last, self._total, cos, sin],
            domain=CONTRIB,
            outputs=[f"{name}/output_0", f"present.{number}.key", f"present.{number}.value"],
            num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads,
            scale=decoder.attention_scale,
            softcap=decoder.attention_cap,
            local_window_size=attention.window or -1,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self._linear(attention.output, number, attended)

    def _queries_keys_values(
        self, number: int, attention: Attention, hidden: str
    ) -> tuple[str, str, str]:
        """One product for all three, unless an adapter adds to each its own."""
        decoder, graph = self.decoder, self.graph
        linears = (attention.query, attention.key, attention.value)
        if any(linear.name in self.adapted for linear in linears):
            query, key, value = (self._linear(linear, number, hidden) for linear in linears)
        else:
            packed = self._linear(_stacked(linears), number, hidden)
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
        gate = self._linear(layer.gate, number, hidden)
        up = self._linear(layer.up, number, hidden)
        if self.decoder.activation == "silu":
            (sigmoid,) = graph.node("Sigmoid", f"{base}/act_fn/Sigmoid", [gate])
            (active,) = graph.node("Mul", f"{base}/act_fn/Mul", [gate, sigmoid])
        else:
            form = "tanh" if self.decoder.activation.endswith("tanh") else "none"
            (active,) = graph.node("Gelu", f"{base}/act_fn/Gelu", [gate], approximate=form)
        (product,) = graph.node("Mul", f"{base}/Mul", [active, up])
        return self._linear(layer.down, number, product)

    def _head(self, hidden: str) -> None:
        decoder, graph, cap = self.decoder, self.graph, self.decoder.logits_cap
        output = "/lm_head/output_0" if cap else "logits"
        logits = self._linear(decoder.head, None, hidden, output)
        if cap:
            limit = graph.constant(cap, np.float32)
            (small,) = graph.node("Div", "/lm_head/softcap/Div", [logits, limit])
            (bent,) = graph.node("Tanh", "/lm_head/softcap/Tanh", [small])
            graph.node("Mul", "/lm_head/softcap/Mul", [bent, limit], outputs=["logits"])

    def _linear(self, linear: Linear, layer: int | None, hidden: str, output: str = "") -> str:
        """Multiply, add a bias, add what an adapter may give."""
        graph, name = self.graph, _node_name(linear)
        slot = linear.name in self.adapted
        final = output or f"{name}/output_0"
        plain = final if not (linear.bias or slot) else f"{name}/MatMul/output_0"
        result = self._product(linear, layer, hidden, name, plain)
        if linear.bias:
            bias = graph.stored(self.layout.add_float(linear.bias))
            named = f"{name}/Add/output_0" if slot else final
            (result,) = graph.node("Add", f"{name}/Add", [result, bias], outputs=[named])
        if slot:
            result = self._add_change(linear, name, hidden, result, final)
        return result

    def _add_change(self, linear: Linear, name: str, hidden: str, result: str, output: str) -> str:
        """Add an adapter's product of two small matrices, which is zero while none is given."""
        graph, (rows, columns) = self.graph, linear.weight.shape
        rank, names = f"{linear.name}.rank", input_names(linear.name)
        a = graph.optional_input(names[0], [columns, rank])
        b = graph.optional_input(names[1], [rank, rows])
        (small,) = graph.node("MatMul", f"{name}/lora_A/MatMul", [hidden, a])
        (change,) = graph.node("MatMul", f"{name}/lora_B/MatMul", [small, b])
        return graph.node("Add", f"{name}/lora/Add", [result, change], outputs=[output])[0]

    def _product(
        self, linear: Linear, layer: int | None, hidden: str, name: str, output: str
    ) -> str:
        graph, decoder = self.graph, self.decoder
        tied = layer is None and decoder.tied
        scheme = self.precision.scheme(linear, layer, len(decoder.layers))
        if scheme is None:
            half = self.precision.name == _HALF
            # a tied head multiplies by the embedding as it lies there
            weight = (
                self._head_table
                if tied
                else graph.stored(self.layout.add_float(linear.weight, half=half, transposed=True))
            )
            if half:
                (weight,) = graph.node("Cast", f"{name}/Cast", [weight], to=TensorProto.FLOAT)
            if not tied:
                return graph.node("MatMul", f"{name}/MatMul", [hidden, weight], outputs=[output])[0]
            return graph.node(
                "FusedMatMul", f"{name}/FusedMatMul", [hidden, weight], domain=CONTRIB,
                outputs=[output], transB=1,
            )[0]  # fmt: skip
        item = self._head_item if tied else self.layout.add_blocks(linear.weight, scheme)
        inputs = [hidden, *(graph.stored(part) for part in item.parts)]
        rows, columns = linear.weight.shape
        return graph.node(
            "MatMulNBits", f"{name}/MatMulNBits", inputs, domain=CONTRIB, outputs=[output],
            K=columns, N=rows, bits=scheme.bits, block_size=scheme.block,
            accuracy_level=self.precision.accuracy_level,
        )[0]  # fmt: skip

    def _norm(self, hidden: str, plan: TensorPlan) -> str:
        weight = self.graph.stored(self.layout.add_float(plan))
        return self.graph.node(
            "SimplifiedLayerNormalization", f"/{plan.name}/LayerNorm", [hidden, weight],
            epsilon=self.decoder.epsilon, axis=-1, stash_type=1,
        )[0]  # fmt: skip

    def _skip_norm(
        self, skip: str, hidden: str, plan: TensorPlan, last: bool = False
    ) -> tuple[str, str]:
        """Add to the residual stream and norm the sum; returns both (the sum is "" at the end)."""
        weight = self.graph.stored(self.layout.add_float(plan))
        name = f"/{plan.name}/SkipLayerNorm"
        normed, stream = f"{name}/output_0", "" if last else f"{name}/output_3"
        self.graph.node(
            "SkipSimplifiedLayerNormalization", name, [skip, hidden, weight], domain=CONTRIB,
            outputs=[normed] if last else [normed, "", "", stream], epsilon=self.decoder.epsilon,
        )  # fmt: skip
        return stream, normed

    def _head_norm(self, hidden: str, plan: TensorPlan, heads: int) -> str:
        """Norm each head by itself."""
        graph, size = self.graph, self.decoder.head_size
        to_heads = graph.constant([0, -1, size], np.int64)
        (split,) = graph.node("Reshape", f"/{plan.name}/Reshape_1", [hidden, to_heads])
        together = graph.constant([0, -1, heads * size], np.int64)
        normed = self._norm(split, plan)
        return graph.node("Reshape", f"/{plan.name}/Reshape_2", [normed, together])[0]


def _node_name(linear: Linear) -> str:
    """The builder's name for it: `/model/layers.0/attn/q_proj`, `/lm_head`."""
    return "/" + re.sub(r"(?<=model)\.|\.(?=attn|mlp|\w+_proj)", "/", linear.name)


def _stacked(linears: tuple[Linear, Linear, Linear]) -> Linear:
    """Query, key and value as one product."""
    name = linears[0].name.replace("q_proj", "qkv_proj")
    biases = [linear.bias for linear in linears if linear.bias]
    bias = _stack(f"{name}.bias", biases) if biases else None
    return Linear(name, _stack(f"{name}.weight", [linear.weight for linear in linears]), bias)


def _stack(name: str, plans: list[TensorPlan]) -> TensorPlan:
    shape = (sum(plan.shape[0] for plan in plans), *plans[0].shape[1:])
    return TensorPlan(name, shape, tuple(part for plan in plans for part in plan.parts))
