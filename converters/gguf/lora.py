"""GGUF LoRA: an adapter that llama.cpp loads at run time, beside the base's own file.

llama.cpp (`llama-adapter.cpp`) multiplies B @ A by alpha / rank, with one alpha for the file and
the rank that each pair of tensors has. Other scalings (rsLoRA, alpha patterns) are folded into B
here, so that every tensor gets the scale that it was trained with. Embeddings are looked up, not
multiplied: their A is stored with a row for each token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgeadapt.artifact import Artifact
from edgeadapt.console import progress
from edgeadapt.converters.adapter_files import AdapterRequest
from edgeadapt.converters.gguf.architectures import family_of
from edgeadapt.converters.gguf.ggml import quantize_rows, row_bytes
from edgeadapt.converters.gguf.metadata import lineage_keys
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.files import atomic_file
from edgeadapt.weights import Float32Array, LowRankUpdate, WeightSource

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
"""What an adapter can be stored as: it is small, and errors in A and B multiply."""

RowOrder = npt.NDArray[np.intp]
_REMEDY = "merge the adapter: --adapter-mode merged"


@dataclass(frozen=True)
class _Pair:
    """What is added to one of llama.cpp's tensors."""

    name: str
    update: LowRankUpdate
    order: RowOrder
    """Rows of the source tensor, in the order of the file's."""
    inputs: int

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of A and B, slowest axis first; both have the rank as llama.cpp reads.

        A lookup table's A has a row for each token.
        """
        rank, rows = self.update.rank, len(self.order)
        if self.update.embedding:
            return {f"{self.name}.lora_a": (rows, rank), f"{self.name}.lora_b": (self.inputs, rank)}
        return {f"{self.name}.lora_a": (rank, self.inputs), f"{self.name}.lora_b": (rows, rank)}

    def read(self, alpha: float) -> tuple[Float32Array, Float32Array]:
        """A, and B with all of the scale that alpha / rank does not say."""
        a, b = self.update.read()
        factor = np.float32(self.update.scale * self.update.rank / alpha)
        if self.update.embedding:
            return np.ascontiguousarray(a.T[self.order]), b * factor
        return a, b[self.order] * factor


def write_lora(request: AdapterRequest, out: Path) -> Artifact:
    """Write a GGUF LoRA, a pair of tensors at a time; see `AdapterWriter`.

    Raises:
        InputError: `out` exists, or the adapter cannot be stored as asked.
        UnsupportedError: llama.cpp's tensors are not those that the adapter changes.
        CorruptFileError: the adapter holds NaN or infinite values.
    """
    if request.quantization not in FILE_TYPES:
        raise InputError(
            f"a GGUF LoRA cannot be stored as {request.quantization!r}; "
            f"choose one of {', '.join(FILE_TYPES)}"
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder, but a GGUF adapter is a file: add a file name")
    family = family_of(request.base.config)
    pairs = _pairs(family.plan(request.base), request.updates)
    alpha = _common_alpha(request.updates)
    wanted = GGMLQuantizationType[request.quantization]
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family.arch])
    _add_metadata(writer, request, alpha)
    _declare(writer, pairs, wanted)
    with (
        atomic_file(out) as partial,
        progress(f"writing {out.name}", len(pairs), "tensors") as advance,
    ):
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for pair in pairs:
            for values in pair.read(alpha):
                data = _encode(pair.name, values, wanted)
                file.write(data)
                writer.write_padding(file, data.size)
            advance()
        writer.close()
    return Artifact(out, "gguf", request.quantization, request.lineage)


def check_lora(base: WeightSource, updates: Sequence[LowRankUpdate]) -> None:
    """See that llama.cpp can add these updates to the base's tensors.

    Raises:
        UnsupportedError: it cannot.
    """
    _pairs(family_of(base.config).plan(base), updates)


def _pairs(plans: Sequence[TensorPlan], updates: Sequence[LowRankUpdate]) -> list[_Pair]:
    """Which of llama.cpp's tensors are changed by what."""
    targets: dict[str, list[TensorPlan]] = {}
    for plan in plans:
        for source in {part.name for part in plan.parts}:
            targets.setdefault(source, []).append(plan)
    pairs = []
    for update in updates:
        found = targets.get(update.name)
        if not found:
            raise UnsupportedError(f"llama.cpp keeps no tensor for {update.name!r}; {_REMEDY}")
        pairs += [_Pair(plan.name, update, _row_order(plan), plan.columns) for plan in found]
    return pairs


def _row_order(plan: TensorPlan) -> RowOrder:
    """Which row of the source tensor stands in each row of the file's tensor."""
    if len(plan.parts) != 1 or len(plan.shape) != 2:
        raise UnsupportedError(
            f"{plan.name} is stacked from several tensors, which a GGUF LoRA cannot change one by "
            f"one; {_REMEDY}"
        )
    part = plan.parts[0]
    # row numbers go through the transform as if they were weights; float32 holds 16 million
    numbers = np.arange(part.start, part.stop, dtype=np.float32)[:, None]
    moved = numbers if plan.transform is None else plan.transform(numbers)
    if not np.array_equal(np.sort(moved, axis=None), numbers[:, 0]):
        raise UnsupportedError(
            f"{plan.name} is computed from the base's weights, not just reordered; {_REMEDY}"
        )
    order: RowOrder = moved.reshape(-1).astype(np.intp)
    return order


def _common_alpha(updates: Sequence[LowRankUpdate]) -> float:
    """The file's alpha: what most tensors need, so that their B stays as it was trained.

    Never 0, which llama.cpp takes to mean that there is no alpha, and scales by 1.
    """
    counted = Counter(update.scale * update.rank for update in updates)
    return next((alpha for alpha, _ in counted.most_common() if alpha), 1.0)


def _stored(wanted: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
    """The type that is stored; as in llama.cpp's files, F16 where blocks do not fill a row."""
    fits = columns % GGML_QUANT_SIZES[wanted][0] == 0
    return wanted if fits else GGMLQuantizationType.F16


def _declare(writer: gguf.GGUFWriter, pairs: Sequence[_Pair], wanted: GGMLQuantizationType) -> None:
    for pair in pairs:
        for name, (rows, columns) in pair.shapes().items():
            kind = _stored(wanted, columns)
            writer.add_tensor_info(
                name,
                (rows, columns),
                np.dtype(np.float32),
                rows * row_bytes(kind, columns),
                raw_dtype=kind,
            )


def _encode(name: str, values: Float32Array, wanted: GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    rows = np.ascontiguousarray(values, dtype=np.float32)
    try:
        return quantize_rows(rows, _stored(wanted, rows.shape[1]))
    except CorruptFileError as error:
        raise CorruptFileError(f"{name}: {error}") from error


def _add_metadata(writer: gguf.GGUFWriter, request: AdapterRequest, alpha: float) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(request.name)
    writer.add_file_type(int(FILE_TYPES[request.quantization]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in lineage_keys(request.lineage).items():
        writer.add_string(key, value)
