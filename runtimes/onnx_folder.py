"""What both ONNX engines share: the exported folder and the CPU that runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.artifact import MANIFEST, Artifact
from edgeadapt.cpu import this_cpu
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.files import read_json
from edgeadapt.tokenizer import ModelTokenizer

_KERNEL_FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Names in /proc/cpuinfo that onnxruntime's CPU kernels are chosen by, when they start."""


@dataclass(frozen=True)
class OnnxFolder:
    """An exported folder whose parts are all there."""

    path: Path
    genai: dict[str, Any]
    tokenizer: ModelTokenizer

    @classmethod
    def open(cls, artifact: Artifact) -> OnnxFolder:
        """Read what lies beside the graph.

        Raises:
            InputError: not an ONNX artifact, or a file is missing.
            CorruptFileError: genai_config.json lacks what a session needs.
        """
        path = artifact.path
        if artifact.format != "onnx":
            raise InputError(f"{path} is {artifact.format}, not onnx; give an ONNX folder")
        if not path.is_dir():
            raise InputError(f"{path} is not a folder; expected what `edgeadapt export` made")
        genai = read_json(path / "genai_config.json")
        try:
            folder = cls(path, genai, ModelTokenizer.from_folder(path))
            _ = (
                folder.context_length,
                folder.vocab_size,
                folder.stop_ids,
                folder.decoder["inputs"],
            )
            graph = folder.graph
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{path / 'genai_config.json'} is not a decoder's config: {error!r}; export again"
            ) from error
        if not graph.is_file():
            raise InputError(f"{graph} is missing; export again")
        return folder

    @property
    def model(self) -> dict[str, Any]:
        """The `model` section of genai_config.json."""
        section: dict[str, Any] = self.genai["model"]
        return section

    @property
    def decoder(self) -> dict[str, Any]:
        """The `model.decoder` section."""
        section: dict[str, Any] = self.model["decoder"]
        return section

    @property
    def graph(self) -> Path:
        """The graph file."""
        return self.path / str(self.decoder["filename"])

    @property
    def context_length(self) -> int:
        """Most tokens that the model takes."""
        return int(self.model["context_length"])

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.model["vocab_size"])

    @property
    def session_entries(self) -> dict[str, str]:
        """Entries for onnxruntime's session config, such as `session.intra_op.allow_spinning`."""
        options = self.decoder.get("session_options") or {}
        return {key: str(value) for key, value in options.items() if "." in key}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        value = self.model["eos_token_id"]
        return frozenset(int(token) for token in (value if isinstance(value, list) else [value]))


@contextlib.contextmanager
def loading(folder: OnnxFolder, *raised: type[Exception]) -> Iterator[None]:
    """Turn what an engine raises while it reads a graph into a `CorruptFileError`."""
    try:
        yield
    except raised as error:
        text = _damage(folder.path) or said(error)[:300]
        raise CorruptFileError(
            f"ONNX Runtime cannot load {folder.graph}: {text}; export again"
        ) from error


def said(error: Exception) -> str:
    """An engine's own words, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _damage(folder: Path) -> str | None:
    """Which file of graph and weights is not as the manifest says; None if none, or no manifest.

    Engines tell what they met inside of themselves, not which file is short.
    """
    path = folder / MANIFEST
    record = read_json(path) if path.is_file() else {}
    for name, entry in (record.get("files") or {}).items():
        if ".onnx" not in Path(name).suffixes:
            continue
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (size := (folder / name).stat().st_size) != entry["bytes"]:
            return f"{name} has {size:,} bytes, it was written with {entry['bytes']:,}"
    return None


def kernel_features() -> str:
    """CPU features that onnxruntime's kernels choose between, as far as the system tells."""
    cpu = this_cpu()
    return " ".join(name for name in _KERNEL_FEATURES if name in cpu.features) or cpu.machine
