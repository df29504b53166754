"""Quantize the matrix products of an existing graph with onnxruntime's quantizers."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeadapt.converters.onnx.options import sensitive_layers

GRAPH, DATA = "model.onnx", "model.onnx.data"

_PRESETS: dict[str, dict[str, Any]] = {
    # Of optimum's AutoQuantizationConfig: what multiplies fastest on each instruction set.
    "arm64": {"weight_type": "QInt8"},
    "avx2": {"weight_type": "QUInt8"},
    "avx512_vnni": {"weight_type": "QInt8"},
}


def quantize_blocks(
    folder: Path,
    *,
    algorithm: str,
    bits: int,
    block_size: int,
    symmetric: bool,
    accuracy_level: int,
    mixed_layers: int = 0,
) -> None:
    """Turn MatMul with constant weights into MatMulNBits, in place.

    Args:
        folder: holds the float32 graph.
        algorithm: `rtn`, `k_quant` or `hqq`.
        bits: 4 or 8.
        block_size: weights of a column that share a scale.
        symmetric: no zero points; rtn only.
        accuracy_level: of MatMulNBits.
        mixed_layers: number of layers, where the head and the sensitive ones get 8 bits; else 0.
    """
    model = load(folder)
    _fold_transposes(model)
    names = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    eight = _sensitive(names, mixed_layers)
    # What keeps 8 bits is rounded to nearest: there is little to gain by searching.
    for method, width, chosen in (
        ("rtn" if algorithm == "hqq" else algorithm, 8, eight),
        (algorithm, bits, set(names) - eight),
    ):
        if chosen:
            left = sorted(set(names) - chosen)
            model = _quantize(model, method, width, block_size, symmetric, accuracy_level, left)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and not any(
            attribute.name == "accuracy_level" for attribute in node.attribute
        ):  # the HQQ quantizer leaves it out
            node.attribute.append(helper.make_attribute("accuracy_level", accuracy_level))
    save(model, folder)


def _quantize(
    model: Any,
    algorithm: str,
    bits: int,
    block_size: int,
    symmetric: bool,
    accuracy_level: int,
    left: list[str],
) -> Any:
    """All MatMul nodes but those `left`."""
    from onnxruntime.quantization import matmul_nbits_quantizer as q

    logging.getLogger(q.__name__).setLevel(logging.WARNING)
    widths = {node.name: {"bits": bits} for node in model.graph.node if node.op_type == "MatMul"}
    if algorithm == "hqq":
        how: Any = q.HQQWeightOnlyQuantConfig(block_size=block_size, bits=bits)
    elif algorithm == "k_quant":
        how = q.KQuantWeightOnlyQuantConfig(customized_weight_config=widths)
    else:
        how = q.RTNWeightOnlyQuantConfig(customized_weight_config=widths)
    quantizer = q.MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block_size,
        is_symmetric=symmetric,
        accuracy_level=accuracy_level,
        algo_config=how,
        op_types_to_quantize=("MatMul",),
        nodes_to_exclude=left,
    )
    quantizer.process()
    return quantizer.model.model


def _sensitive(names: list[str], layers: int) -> set[str]:
    """The head, and values and down projections of the sensitive layers."""
    if not layers:
        return set()
    chosen = {name for name in names if "lm_head" in name}
    for layer in sensitive_layers(layers):
        part = re.compile(rf"[./](?:layers|h)\.{layer}/.*(?:qkv_proj|v_proj|down_proj)/MatMul$")
        chosen.update(name for name in names if part.search(name))
    return chosen


def _fold_transposes(model: Any) -> None:
    """Give a MatMul that reads a transposed matrix a matrix of its own: quantizers want that."""
    graph = model.graph
    values = {initializer.name: initializer for initializer in graph.initializer}
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in values
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in turned:
            matrix = numpy_helper.to_array(values[turned[node.input[1]]])
            name = f"{node.name}/weight"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix.T), name))
            node.input[1] = name


def quantize_dynamically(folder: Path, preset: str) -> None:
    """Turn MatMul with constant weights into MatMulInteger, in place.

    Weights get one symmetric scale for each column; activations are measured as they come. An
    embedding that reads the head's weights reads the quantized ones afterwards.

    Args:
        folder: holds the float32 graph.
        preset: a key of `_PRESETS`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = _PRESETS[preset]
    shared = _shared_embedding(load(folder, weights=False))
    partial = folder / "quantized.onnx"
    quantize_dynamic(
        folder / GRAPH,
        partial,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=False,
        weight_type=getattr(QuantType, options["weight_type"]),
        use_external_data_format=True,
        extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
    )
    for name in (GRAPH, DATA):
        (folder / name).unlink()  # quantized.onnx names its own data
    model = onnx.load(str(partial))
    for path in folder.glob("quantized.onnx*"):
        path.unlink()
    if shared:
        _gather_from_integers(model, *shared)
    save(model, folder)


def load(folder: Path, *, weights: bool = True) -> Any:
    """The graph of a folder."""
    return onnx.load(str(folder / GRAPH), load_external_data=weights)


def save(model: Any, folder: Path) -> None:
    """Write graph and weights over what is there."""
    (folder / DATA).unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(folder / GRAPH),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
        size_threshold=1024,
        convert_attribute=False,
    )


def _shared_embedding(model: Any) -> tuple[str, str] | None:
    """Names of the Gather that looks tokens up in a transposed matrix, and of the matrix."""
    transposes = {n.output[0]: n for n in model.graph.node if n.op_type == "Transpose"}
    constants = {initializer.name for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in transposes:
            matrix = transposes[node.input[0]].input[0]
            if matrix in constants:
                return node.name, matrix
    return None


def _gather_from_integers(model: Any, gather: str, matrix: str) -> None:
    """Let an embedding look up columns of the head's int8 weights instead of float32 rows.

    The head is stored (width, tokens), with one scale for each token: columns are gathered, turned
    into rows, freed of their zero point and scaled.
    """
    graph = model.graph
    old = next(node for node in graph.node if node.name == gather)
    transpose = next(node for node in graph.node if old.input[0] in node.output)
    values = {initializer.name: initializer for initializer in graph.initializer}
    scale, zero = (f"{matrix}_{kind}" for kind in ("scale", "zero_point"))
    point = int(numpy_helper.to_array(values[zero]).reshape(-1)[0])
    ids, prefix = old.input[1], "/model/embed_tokens/quantized"
    graph.initializer.append(
        numpy_helper.from_array(np.array(point, np.float32), f"{prefix}/zero_point")
    )
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{prefix}/last"))
    steps: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("Gather", [f"{matrix}_quantized", ids], {"axis": 1}),  # (width, batch, tokens)
        ("Transpose", [0], {"perm": [1, 2, 0]}),
        ("Cast", [1], {"to": onnx.TensorProto.FLOAT}),
        ("Sub", [2, f"{prefix}/zero_point"], {}),
        ("Gather", [scale, ids], {"axis": 0}),
        ("Unsqueeze", [4, f"{prefix}/last"], {}),
        ("Mul", [3, 5], {}),
    ]
    outputs = [f"{prefix}/{number}" for number in range(len(steps) - 1)] + [old.output[0]]
    nodes = [
        helper.make_node(
            kind,
            [outputs[x] if isinstance(x, int) else x for x in inputs],
            [output],
            name=f"{prefix}/{number}/{kind}",
            **attributes,
        )
        for number, ((kind, inputs, attributes), output) in enumerate(
            zip(steps, outputs, strict=True)
        )
    ]
    place = list(graph.node).index(old)
    kept = [node for node in graph.node if node.name not in (gather, transpose.name)]
    before = sum(1 for node in list(graph.node)[:place] if node.name != transpose.name)
    kept[before:before] = nodes
    del graph.node[:]
    graph.node.extend(kept)
    unused = [x for x in graph.initializer if x.name == matrix]
    for initializer in unused:
        graph.initializer.remove(initializer)
