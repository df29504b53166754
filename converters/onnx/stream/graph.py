"""An ONNX graph under construction: nodes in order, and tensors that lie in a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeadapt import __version__
from edgeadapt.converters.onnx.stream.data import Placed

CONTRIB = "com.microsoft"
"""onnxruntime's own operators."""

_OPSETS = {"": 21, CONTRIB: 1}
_IR_VERSION = 10

Dimension = int | str


class GraphBuilder:
    """Collects what `onnx.ModelProto` is made of; values go by their names."""

    def __init__(self, data_name: str) -> None:
        """Begin an empty graph.

        Args:
            data_name: file name of the external data.
        """
        self._data_name = data_name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """Declare an input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def optional_input(self, name: str, shape: Sequence[Dimension]) -> str:
        """A float32 input that is empty unless it is given: its named dimensions are 0."""
        empty = [0 if isinstance(size, str) else size for size in shape]
        self._initializers[name] = helper.make_tensor(name, TensorProto.FLOAT, empty, b"", raw=True)
        return self.input(name, TensorProto.FLOAT, shape)

    def output(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        """Declare an output; some node must have it as its own."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """A small tensor inside the graph; equal ones are kept once."""
        array = np.asarray(value, dtype=dtype)
        name = f"constant.{array.dtype.name}.{array.tolist()}".replace(" ", "")
        self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def stored(self, placed: Placed, *, alias: str = "", shape: Sequence[int] = ()) -> str:
        """A tensor of the data file.

        Args:
            placed: where it lies.
            alias: a second name for the same bytes.
            shape: the shape that they have under it.
        """
        tensor = TensorProto(name=alias or placed.name, dims=shape or placed.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(placed.dtype)
        tensor.data_location = TensorProto.EXTERNAL
        entries = (
            ("location", self._data_name),
            ("offset", placed.offset),
            ("length", placed.nbytes),
        )
        for key, value in entries:
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[tensor.name] = tensor
        return str(tensor.name)

    def node(
        self, kind: str, name: str, inputs: Sequence[str], *, domain: str = "",
        outputs: Sequence[str] | int = 1, **attributes: Any,
    ) -> list[str]:  # fmt: skip
        """Add a node.

        Args:
            kind: the operator.
            name: of the node, from which its outputs get theirs.
            inputs: values; an empty name is an input left out.
            domain: of the operator.
            outputs: their names, or how many.
            attributes: of the operator.

        Returns:
            The outputs' names.
        """
        if isinstance(outputs, int):
            outputs = [f"{name}/output_{number}" for number in range(outputs)]
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        node = helper.make_node(kind, given, list(outputs), name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return list(outputs)

    def choose(
        self, name: str, condition: str, pairs: Sequence[tuple[str, str]], outputs: Sequence[str]
    ) -> list[str]:
        """An `If` that gives the first of each pair of values where the condition holds."""
        branches = []
        for index, branch in enumerate(("then", "else")):
            nodes, results = [], []
            for pair, output in zip(pairs, outputs, strict=True):
                result = f"{output}_{branch}"
                nodes.append(helper.make_node("Identity", [pair[index]], [result]))
                results.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, None))
            branches.append(helper.make_graph(nodes, f"{name}/{branch}", [], results))
        return self.node(
            "If", name, [condition], outputs=outputs,
            then_branch=branches[0], else_branch=branches[1],
        )  # fmt: skip

    def serialized(self) -> bytes:
        """The graph as a file holds it."""
        tensors = list(self._initializers.values())
        graph = helper.make_graph(self._nodes, "main_graph", self._inputs, self._outputs, tensors)
        opsets = [helper.make_opsetid(domain, number) for domain, number in _OPSETS.items()]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="edgeadapt",
            producer_version=__version__,
        )  # fmt: skip
        return bytes(model.SerializeToString())
