"""The parts of a graph that read weights: lookups, products, norms."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.converters.onnx.names import IDS
from edgeadapt.converters.onnx.stream.architecture import Bottleneck, Decoder, Linear
from edgeadapt.converters.onnx.stream.blocks import BlockScheme
from edgeadapt.converters.onnx.stream.data import DataLayout
from edgeadapt.converters.onnx.stream.graph import CONTRIB, GraphBuilder
from edgeadapt.converters.onnx.stream.precision import Precision
from edgeadapt.lora_slots import input_names

_HALF = "fp16"


class Products:
    """Adds nodes to a graph, and what they read to the layout of its data file."""

    def __init__(
        self, graph: GraphBuilder, decoder: Decoder, precision: Precision, adapted: Collection[str]
    ) -> None:
        """Begin with an empty layout.

        Args:
            graph: receives the nodes.
            decoder: whose weights they read.
            precision: how matrices are stored.
            adapted: names of the products that take an adapter.
        """
        self.graph, self.decoder, self.precision = graph, decoder, precision
        self.adapted = adapted
        self.layout = DataLayout()

    def embed(self) -> str:
        """Look the tokens' rows up; called before the head, which may share them."""
        decoder, graph = self.decoder, self.graph
        head = self.precision.scheme(decoder.head, None, len(decoder.layers))
        scheme = self.precision.table(head, decoder.tied)
        name = "/model/embed_tokens"
        if scheme is None:
            half = self.precision.name == _HALF
            table = graph.stored(self.layout.add_float(decoder.embedding, half=half))
            (rows,) = graph.node("Gather", f"{name}/Gather", [table, IDS])
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
        inputs = [table, IDS, graph.stored(item.scales)]
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

    def linear(self, linear: Linear, layer: int | None, hidden: str, output: str = "") -> str:
        """Multiply, add a bias, add what an adapter may give."""
        if linear.behind is not None:
            plain = self.linear(replace(linear, behind=None), layer, hidden)
            return self._past_bottleneck(linear.behind, layer, plain, output)
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

    def _past_bottleneck(
        self, bottleneck: Bottleneck, layer: int | None, hidden: str, output: str
    ) -> str:
        """Add what a trained bottleneck makes of a product's result."""
        graph, name = self.graph, _node_name(bottleneck.up)
        small = self.linear(bottleneck.down, layer, hidden)
        if bottleneck.activation == "relu":
            (bent,) = graph.node("Relu", f"{name}/act_fn/Relu", [small])
        else:
            (bent,) = graph.node("Gelu", f"{name}/act_fn/Gelu", [small], approximate="none")
        added = self.linear(bottleneck.up, layer, bent)
        final = output or f"{name}/Sum/output_0"
        return graph.node("Add", f"{name}/Sum", [hidden, added], outputs=[final])[0]

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

    def norm(self, hidden: str, plan: TensorPlan) -> str:
        """Divide by the root mean square, times the factors."""
        weight = self.graph.stored(self.layout.add_float(plan))
        return self.graph.node(
            "SimplifiedLayerNormalization", f"/{plan.name}/LayerNorm", [hidden, weight],
            epsilon=self.decoder.epsilon, axis=-1, stash_type=1,
        )[0]  # fmt: skip

    def skip_norm(
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


def _node_name(linear: Linear) -> str:
    """The builder's name for it: `/model/layers.0/attn/q_proj`, `/lm_head`."""
    return "/" + re.sub(r"(?<=model)\.|\.(?=attn|mlp|\w+_proj)", "/", linear.name)
