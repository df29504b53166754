"""From a stream of tensors to GGUF files, in one pass and with no file in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import gguf

from edgeadapt.artifact import Artifact
from edgeadapt.console import log, progress
from edgeadapt.converters.base import ConversionRequest, Converter, ExportPlan
from edgeadapt.converters.gguf import layout
from edgeadapt.converters.gguf.architectures import family_of
from edgeadapt.converters.gguf.general import add_general, add_limits
from edgeadapt.converters.gguf.imatrix import Imatrix
from edgeadapt.converters.gguf.layout import Part, Placed
from edgeadapt.converters.gguf.metadata import lineage_keys
from edgeadapt.converters.gguf.mixes import MIXES, choose_types, is_matrix, needs_importance
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.converters.gguf.stream import in_flight, write_parts
from edgeadapt.converters.gguf.writer import Writer
from edgeadapt.errors import InputError
from edgeadapt.files import atomic_files, check_disk

_PROCESS = 100 << 20
"""Anonymous memory of the interpreter, NumPy, the tokenizer and what they leave behind."""

_CHUNK_COPIES = 4
"""A chunk is there as stored, as float32, as its merged sum, and quantized."""


@dataclass(frozen=True)
class Layout:
    """The files of one export, to the byte."""

    paths: tuple[Path, ...]
    parts: tuple[Part, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for part in self.parts for tensor in part.tensors)


class GgufConverter(Converter):
    """llama.cpp's file format."""

    format: ClassVar[str] = "gguf"
    quantizations: ClassVar[tuple[str, ...]] = tuple(MIXES)

    def plan(self, request: ConversionRequest, out: Path) -> ExportPlan:
        """The exact size of every file; see `Converter.plan`."""
        return _plan(request, lay_out(request, out))

    def convert(self, request: ConversionRequest, out: Path) -> Artifact:
        """Write one GGUF file to `out`, or its parts beside it; see `Converter.convert`.

        The artifact's path is the file that llama.cpp is given: the first part of several.
        """
        files = lay_out(request, out)
        check_disk(out, _plan(request, files).disk)
        with (
            atomic_files(files.paths) as partials,
            progress(f"writing {out.name}", files.data_bytes) as advance,
        ):
            write_parts(files.parts, partials, request.source, request.threads, advance)
        quantization = request.gguf.label or request.quantization
        return Artifact(files.paths[0], self.format, quantization, request.lineage)


def lay_out(request: ConversionRequest, out: Path) -> Layout:
    """Decide everything about an export except the weights' values.

    Raises:
        InputError: `out` is a folder, or the request names something that GGUF lacks.
        UnsupportedError: the architecture or the tokenizer has no place in llama.cpp.
    """
    if request.quantization not in MIXES:
        raise InputError(
            f"GGUF has no quantization {request.quantization!r}; choose one of {', '.join(MIXES)}"
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder, but a GGUF artifact is a file: add a file name")
    family = family_of(request.source.config)
    plans = family.plan(request.source)
    imatrix = request.gguf.importance
    types = choose_types(
        {plan.name: plan.shape for plan in plans},
        request.quantization,
        replace(family.shape, importance=imatrix is not None),
        request.gguf.tensor_types,
    )
    placed = [Placed(plan, types[plan.name]) for plan in plans]
    if imatrix is not None:
        placed = _with_importance(placed, imatrix, request.quantization)
    groups = layout.group(placed, request.gguf.split_max_bytes)
    writer = Writer(None, gguf.MODEL_ARCH_NAMES[family.arch])
    layout.declare(writer, groups)
    add_general(writer, request.model_folder, request.name, MIXES[request.quantization][0])
    add_limits(writer, request.source.config)
    for key, value in lineage_keys(request.lineage).items():
        writer.add_string(key, value)
    family.add_parameters(writer)
    family.add_vocabulary(writer, request.model_folder)
    if imatrix is not None:
        _add_importance(writer, imatrix)
    parts = layout.parts(writer, groups)
    return Layout(tuple(layout.names(out, len(parts))), tuple(parts))


def _with_importance(placed: list[Placed], imatrix: Imatrix, mix: str) -> list[Placed]:
    """Give each matrix its importance.

    Raises:
        InputError: the importance matrix belongs to another model, or lacks what is needed.
    """
    if imatrix.pending:
        return placed
    found = [
        replace(tensor, importance=imatrix.importance(tensor.plan.name, tensor.plan.shape))
        if is_matrix(tensor.plan.name, tensor.plan.shape)
        else tensor
        for tensor in placed
    ]
    if not any(tensor.importance is not None for tensor in found):
        raise InputError(
            f"the importance matrix {imatrix.name} names no tensor of this model; make one with "
            "edgeadapt imatrix"
        )
    lacking = [t for t in found if t.importance is None and is_matrix(t.plan.name, t.plan.shape)]
    for tensor in lacking:
        if needs_importance(tensor.plan.name, tensor.kind, mix):
            raise InputError(
                f"the importance matrix {imatrix.name} lacks {tensor.plan.name}, which {mix} "
                f"stores as {tensor.kind.name}; make one of this very model with edgeadapt imatrix"
            )
    names = [t.plan.name for t in lacking if _is_layer(t.plan)]
    if names:
        log.warning("the importance matrix lacks %d tensors, %s among them", len(names), names[0])
    return found


def _is_layer(plan: TensorPlan) -> bool:
    """Whether llama.cpp's own importance matrices cover it: not the embedding and the head."""
    return plan.name.startswith("blk.")


def _add_importance(writer: gguf.GGUFWriter, imatrix: Imatrix) -> None:
    for key, value in imatrix.metadata().items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)


def _plan(request: ConversionRequest, files: Layout) -> ExportPlan:
    tensors = [tensor for part in files.parts for tensor in part.tensors]
    headers = sum(len(part.header) for part in files.parts)
    sizes = {path.name: part.size for path, part in zip(files.paths, files.parts, strict=True)}
    return ExportPlan(
        format=GgufConverter.format,
        quantization=request.quantization,
        files=sizes,
        memory=_PROCESS + _CHUNK_COPIES * in_flight(tensors, request.threads) + 12 * headers,
        disk=sum(sizes.values()),
        exact=True,
    )
