"""The sections of a manifest, from what a run recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.bench.measurement import Measurement
from edgeadapt.bundle.choose import Chosen
from edgeadapt.bundle.manifest import AdapterEntry, MeasuredOn, TensorType, Variant
from edgeadapt.bundle.run_folder import Run

MODELS = "models"


@dataclass(frozen=True)
class Made:
    """A variant, and the artifact that it is a copy of."""

    variant: Variant
    artifact: Artifact


def made_variant(run: Run, chosen: Chosen) -> Made:
    """Describe one artifact.

    Raises:
        InputError: it is gone or was changed since the run.
        CorruptFileError: it is damaged.
    """
    record, artifact = chosen.artifact, chosen.artifact.open()
    types, context = _inside(artifact)
    variant = Variant(
        name=f"{record.format}-{record.quantization}",
        format=record.format,
        quantization=record.quantization,
        path=f"{MODELS}/{artifact.path.name}",
        bytes=artifact.size_bytes,
        sha256=record.sha256,
        devices=chosen.devices,
        tensor_types=types,
        lineage=artifact.lineage,
        gates={name: judged.gates for name, judged in record.fidelity.items()},
        passed=not record.objections(),
        measurements=tuple(
            _measured(m) for m in run.measurements if m.artifact.sha256 == record.sha256
        ),
        context=context,
        system=artifact.system,
    )
    return Made(variant, artifact)


def _inside(artifact: Artifact) -> tuple[dict[str, TensorType], int | None]:
    """Bytes by type of tensor where the format tells, and the context it was made for."""
    if artifact.format == "gguf":
        from edgeadapt.inspect.gguf import describe_gguf

        told = describe_gguf(artifact.path)
        types = {
            name: TensorType(tensors=entry["tensors"], bytes=entry["bytes"])
            for name, entry in told["types"].items()
        }
    else:
        from edgeadapt.inspect.onnx import describe_onnx

        told, types = describe_onnx(artifact.path), {}
    context = told["context_length"]
    return types, context if isinstance(context, int) else None


def _measured(measurement: Measurement) -> MeasuredOn:
    return MeasuredOn(
        runtime=measurement.runtime.name,
        runtime_version=measurement.runtime.version,
        machine=measurement.machine.cpu,
        threads=measurement.runtime.threads_in_use,
        load_s=measurement.load_s,
        ttft_s=measurement.ttft_s.median,
        prompt_tokens=measurement.settings.prompt_tokens,
        prefill_tps=measurement.prefill_tps.median,
        decode_tps=measurement.decode_tps.median,
        peak_anonymous=measurement.memory.peak_anonymous,
        peak_rss=measurement.memory.peak_rss,
    )


def adapters_of(lineage: Mapping[str, Any], folder: str | None) -> tuple[AdapterEntry, ...]:
    """The adapters that an artifact's lineage tells of; `folder` holds the one that ships."""
    single = lineage.get("adapter")
    found = lineage.get("adapters") or ([single] if single else [])
    entries = []
    for told in found:
        training = told.get("training") or {}
        entries.append(
            AdapterEntry(
                name=told.get("name"),
                method=training.get("method")
                or told.get("method"),  # qlora, of which PEFT says lora
                rank=_number(told.get("r")),
                alpha=_number(told.get("alpha")),
                sha256=told.get("sha256"),
                path=folder if len(found) == 1 else None,
                data_sha256=training.get("data_hash"),
                steps=training.get("steps"),
            )
        )
    return tuple(entries)


def _number(value: Any) -> Any:
    """A number; none where layers have values of their own (PEFT's patterns)."""
    return value if isinstance(value, int | float) else None


def calibration_of(lineage: Mapping[str, Any]) -> str | None:
    """Hash of the matrix or text that decided how weights were rounded."""
    found = lineage.get("imatrix") or (lineage.get("allocation") or {}).get("data") or {}
    return found.get("sha256")


def without_folders(value: Any) -> Any:
    """A JSON value in which absolute paths are cut to their ends: a bundle tells nobody's."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and len(value) > 1 and Path(value).is_absolute():
        return Path(value).name
    return value


def portable_config(config: Path) -> bytes:
    """An adapter_config.json that names the base without the folder it lay in."""
    value = json.loads(config.read_text(encoding="utf-8"))
    return (json.dumps(without_folders(value), indent=2, ensure_ascii=False) + "\n").encode()
