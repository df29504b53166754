"""The `general.*` keys: what a model is called, how large it is, and how it was meant to sample.

llama.cpp's converter takes them from the model card, the name and the generation config, by way of
`gguf.Metadata`; so does this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import yaml

from edgeadapt.console import log
from edgeadapt.converters.gguf.limits import EXACT_CONTEXT, exact_context, limits_of
from edgeadapt.errors import CorruptFileError, UnsupportedError

_SAMPLING: dict[str, tuple[tuple[str, ...], type]] = {
    "sequence": (("sequence",), str),
    "top_k": (("top_k",), int),
    "top_p": (("top_p",), float),
    "min_p": (("min_p",), float),
    "xtc_probability": (("xtc_probability",), float),
    "xtc_threshold": (("xtc_threshold",), float),
    "temp": (("temperature",), float),
    "penalty_last_n": (("penalty_last_n",), int),
    "penalty_repeat": (("penalty_repeat", "repetition_penalty"), float),
    "mirostat": (("mirostat",), int),
    "mirostat_tau": (("mirostat_tau",), float),
    "mirostat_eta": (("mirostat_eta",), float),
}
"""`general.sampling.*`: keys of generation_config.json, the first that is there, and the type."""


def add_general(
    writer: gguf.GGUFWriter, folder: Path, name: str, quantization: gguf.LlamaFileType
) -> None:
    """Write everything under `general.`; the writer knows all tensors already.

    Args:
        writer: of the GGUF file.
        folder: the model's Hugging Face folder: model card and generation config.
        name: what the model is called; base name, size and version are read off it.
        quantization: its number in `general.file_type`.

    Raises:
        CorruptFileError: the model card's front matter or a JSON file is malformed.
    """
    total, shared, expert, experts = writer.get_total_parameter_count()
    metadata = _metadata(folder, name, total)
    if metadata.name is None:
        metadata.name = name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, experts)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)
    writer.add_file_type(int(quantization))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_limits(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Write and log up to which context length the file equals the model, if there is a limit.

    Raises:
        UnsupportedError: it would not equal the model anywhere.
    """
    for limit in limits_of(config):
        if limit.exact_context == 0:
            raise UnsupportedError(f"llama.cpp cannot run this model as it is: {limit.what}")
        log.warning(
            "%s; up to %d tokens of context the file equals the model",
            limit.what,
            limit.exact_context,
        )
    exact = exact_context(config)
    if exact is not None:
        writer.add_uint32(EXACT_CONTEXT, exact)


def _metadata(folder: Path, name: str, total: int) -> gguf.Metadata:
    try:
        card = gguf.Metadata.load_model_card(folder)
        config = gguf.Metadata.load_hf_parameters(folder)
        sampling = gguf.Metadata.load_generation_config(folder)
        # Given the name in place of the folder: a cached folder is called by a hash.
        metadata = gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(), card, config, Path(name), total
        )
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"the model card or a config file in {folder} is malformed: {error}"
        ) from error
    for field, (keys, kind) in _SAMPLING.items():
        value = next((sampling[key] for key in keys if sampling.get(key) is not None), None)
        if value is not None:
            setattr(metadata, f"sampling_{field}", _as(kind, value, keys[0]))
    return metadata


def _as(kind: type, value: Any, key: str) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise CorruptFileError(f"generation_config.json has {key} = {value!r}") from error
