"""Optimum's exporter, run by the Python of its own environment: `python optimum_child.py JOB`.

A script that needs nothing of edgeadapt, which is not installed there. JOB is JSON: `source`, a
Hugging Face folder; `out`, an existing folder that gets `model.onnx` and `model.onnx.data`;
`scratch`, a folder to be made; `report`, a file that receives `{"error": ...}`, or `peak_bytes`
and `cache`: `layers`, `heads` and `size` of the graph's KV cache. The process ends when its
standard input closes, so that it does not outlive a parent that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

_TASK = "text-generation-with-past"


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_weights(folder: Path, model: Any) -> None:
    """Refuse a folder that lacks tensors: transformers fills them with random numbers."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as stored:
        shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        found = shapes.get(name) or shapes.get(name.removeprefix(prefix))
        if found is None and name not in tied:
            raise ValueError(f"the model has no tensor {name}, which its config.json asks for")
        if found is not None and list(found) != list(parameter.shape):
            raise ValueError(
                f"tensor {name} has shape {list(found)}, its config.json says "
                f"{list(parameter.shape)}"
            )


def export(source: Path, out: Path, scratch: Path) -> dict[str, int]:
    """Trace the model with a KV cache, in float32, and write the graph with its weights beside.

    Returns:
        Layers, heads and size of the KV cache.
    """
    import onnx
    import torch
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    _check_weights(source, model)
    onnx_export_from_model(model, scratch, task=_TASK, do_validation=False, no_dynamic_axes=False)
    graph = onnx.load(str(scratch / "model.onnx"))
    onnx.save_model(
        graph,
        str(out / "model.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
        size_threshold=1024,
        convert_attribute=False,
    )
    return _cache(graph)


def _cache(graph: Any) -> dict[str, int]:
    shapes = {
        entry.name: [axis.dim_value for axis in entry.type.tensor_type.shape.dim]
        for entry in graph.graph.input
    }
    keys = [name for name in shapes if name.startswith("past_key_values.") and name.endswith("key")]
    if not keys:
        raise ValueError("optimum exports this architecture without a KV cache")
    _, heads, _, size = shapes[keys[0]]
    return {"layers": len(keys), "heads": heads, "size": size}


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """Run one export; the exit code is 0 when `out` holds the graph."""
    _end_with_parent()
    job = json.loads(sys.argv[1])
    report = Path(job["report"])
    try:
        cache = export(Path(job["source"]), Path(job["out"]), Path(job["scratch"]))
    except Exception as error:  # the libraries raise what they like
        traceback.print_exc()
        text = str(error).strip().splitlines()
        report.write_text(json.dumps({"error": text[0] if text else type(error).__name__}))
        return 1
    report.write_text(json.dumps({"peak_bytes": _peak_bytes(), "cache": cache}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
