"""The model of a training run: loaded as its method holds it, and written when it is trained."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from edgeadapt.adapters.bottleneck import PEFT_TYPE
from edgeadapt.console import log
from edgeadapt.errors import UnsupportedError
from edgeadapt.extras import need
from edgeadapt.tokenizer import TOKENIZER_FILES
from edgeadapt.training.methods import Method, settle_configs
from edgeadapt.training.quantization import (
    bitsandbytes_config,
    detect_nf4_settings,
    guard_linear4bit,
)
from edgeadapt.training.settings import TrainSettings


def load_model(base: Path, method: Method, gpu: int) -> tuple[Any, dict[str, Any]]:
    """The model, and how its base is held: what a merge has to know later.

    Args:
        base: Hugging Face folder.
        method: how it is trained.
        gpu: number of the GPU that takes it, where there are any.

    Raises:
        UnsupportedError: transformers cannot load it.
        MissingExtraError: a library for training is not installed.
    """
    torch = need("torch", "training")
    transformers = need("transformers", "training")
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if cuda and method.frozen_base else torch.float32,
        "device_map": {"": gpu if cuda else "cpu"},
        "local_files_only": True,
    }
    dtype = str(options["dtype"]).removeprefix("torch.")
    held: dict[str, Any] = {"quantization": dtype}
    if method.nf4_base:
        nf4 = detect_nf4_settings()
        log.info(
            "base in NF4, computing in %s, %s double quantization (%s)",
            nf4.compute_dtype, "with" if nf4.double_quantization else "without", nf4.reason,
        )  # fmt: skip
        options["quantization_config"] = bitsandbytes_config(nf4)
        held["quantization"] = "nf4-double" if nf4.double_quantization else "nf4"
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, **options)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise UnsupportedError(f"transformers cannot load {base}: {error}") from error
    if method.nf4_base:
        held["held"] = {"dtype": dtype, "layers": guard_linear4bit(model)}
    return model, held


def load_packed_model(base: Path, gguf: Path) -> tuple[Any, dict[str, Any]]:
    """The same of a GGUF base whose weights stay packed; see `packed`."""
    # these need the gguf package, which training on other bases does without
    from edgeadapt.gguf_split import open_gguf
    from edgeadapt.importers.gguf_file import source_in
    from edgeadapt.training.packed import load_packed

    return load_packed(base, source_in(open_gguf(gguf))), {"quantization": "float32"}


def insert(model: Any, base: Path, kind: str, settings: TrainSettings) -> None:
    """Freeze a model, and put modules of ours into it to be trained.

    Args:
        model: the module.
        base: its folder.
        kind: the `peft_type` of their adapters.
        settings: of the training.
    """
    from edgeadapt.training import bottleneck, sequential

    if kind == PEFT_TYPE:
        bottleneck.attach(model, base, settings.width, settings.seed)
    else:
        sequential.attach(model, base, kind, settings.width, settings.seed)


def write_trained(
    model: Any, folder: Path, *, method: Method, base: Path, base_spec: str, config: Any, state: Any
) -> None:
    """Write the adapter, or of the method `full` the model, with the modes of a new file.

    Args:
        model: what was trained.
        folder: to make; one that is there is replaced.
        method: how it was trained.
        base: Hugging Face folder of the base.
        base_spec: what the user calls it.
        config: the model's, from before the training.
        state: the trained tensors by name where the model is sharded, or else None.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if method.inserted is not None:
        from edgeadapt.training import inserted

        inserted.save(model, folder, base=base_spec, tensors=state)
    elif method.peft_config is None:
        model.config = config
        model.save_pretrained(folder, state_dict=state)
        for name in TOKENIZER_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
    else:
        settle_configs(model, base_spec)
        # Embeddings are never changed here; left to itself PEFT asks a hub whether they were.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
        (folder / "README.md").unlink(missing_ok=True)  # an empty form for a hub
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)  # safetensors makes files that nobody else may read
