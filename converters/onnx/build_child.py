"""The child process in which the builder runs: `python -m edgeadapt.converters.onnx.build_child`.

It takes one JSON argument: `source` and `out` folders, `cache` folder, `precision` and `options`
of the builder, and `report`, a file that receives `{"error": ...}` or `{"peak_bytes": ...}`.
It ends when its standard input closes, so that it does not outlive a parent that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _check_weights(folder: Path) -> None:
    """Refuse a folder that lacks tensors: transformers would fill them with random numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeadapt.safetensors_io import SafetensorsFile

    stored = SafetensorsFile(folder / "model.safetensors").tensors()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        if name not in stored:
            raise ValueError(f"the model has no tensor {name}, which its config.json asks for")
        found, expected = stored[name].shape, tuple(parameter.shape)
        if found != expected:
            raise ValueError(f"tensor {name} has shape {found}, its config.json says {expected}")


def _build(job: dict[str, Any]) -> None:
    _check_weights(Path(job["source"]))
    from onnxruntime_genai.models import builder

    where = ("", job["source"], job["out"], job["precision"], "cpu", job["cache"])
    pairs = [f"{key}={value}" for key, value in job["options"].items()]
    options = builder.parse_extra_options(*where, pairs)
    _spell_out(options["hf_details"]["hf_config"])
    builder.create_model(*where, **options)


def _spell_out(config: Any) -> None:
    """Say in the builder's words what transformers' config leaves to the model's code.

    The builder (0.18) takes layers without `layer_types` for full attention, and reads Gemma 3's
    two rotary bases from where transformers 4 kept them.
    """
    window = getattr(config, "sliding_window", None)
    if config.model_type in ("mistral", "phi3") and window:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    if config.model_type == "gemma3_text":
        rope = config.rope_parameters
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """Run one build; the exit code is 0 when `out` holds the graph."""
    _end_with_parent()
    job = json.loads(sys.argv[1])
    report = Path(job["report"])
    try:
        _build(job)
    except Exception as error:  # the builder raises whatever its libraries raise
        traceback.print_exc()
        text = str(error).strip().splitlines()
        report.write_text(json.dumps({"error": text[0] if text else type(error).__name__}))
        return 1
    report.write_text(json.dumps({"peak_bytes": _peak_bytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
