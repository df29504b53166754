"""Special tokens: ids, what is put around text by itself, merges and the chat template."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gguf

from edgeadapt.errors import CorruptFileError


def add_special(
    writer: gguf.GGUFWriter,
    folder: Path,
    record: dict[str, Any],
    config: dict[str, Any],
    size: int,
    *,
    merges: bool,
) -> None:
    """Write them as llama.cpp's converter does, by way of `gguf.SpecialVocab`.

    Args:
        writer: of the GGUF file.
        folder: the model's Hugging Face folder.
        record: its tokenizer.json, {} if there is none.
        config: its tokenizer_config.json, {} if there is none.
        size: number of token ids.
        merges: whether the vocabulary is BPE with merges.

    Raises:
        CorruptFileError: the files are malformed.
    """
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        pairs = _merges(record) if merges else []
        special = gguf.SpecialVocab(folder, load_merges=merges and not pairs, n_vocab=size)
        special.merges = pairs or special.merges
        # gguf 0.19 lets tokenizer_config.json decide; transformers, and with it llama.cpp's
        # converter since, goes by the post-processor.
        special.add_special_token.update(_around(record, config))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptFileError(f"the tokenizer files in {folder} are malformed: {error}") from error
    special.add_to_gguf(writer, quiet=True)


def _merges(record: dict[str, Any]) -> list[str]:
    """Merges that are stored as pairs, as transformers does since 4.45; [] if they are not.

    `gguf.SpecialVocab` joins them too, but character by character, a quarter of a second.
    """
    merges = (record.get("model") or {}).get("merges") or []
    if isinstance(merges[0] if merges else "", str):
        return []
    return [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]


def _around(record: dict[str, Any], config: dict[str, Any]) -> dict[str, bool]:
    """Whether BOS and EOS are put around text, as far as the post-processor says."""
    node = record.get("post_processor") or {}
    found: dict[str, bool] = {}
    for step in node.get("processors", [node]):
        if step.get("type") == "ByteLevel":
            found.setdefault("bos", False)
            found.setdefault("eos", False)
        elif step.get("type") == "RobertaProcessing":
            found.update(bos=True, eos=True, sep=True)
        elif step.get("type") == "TemplateProcessing":
            found.update(_template(step.get("single") or [], config))
    return found


def _template(single: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, bool]:
    if len(single) < 2:
        return {}
    first = (single[0].get("SpecialToken") or {}).get("id")
    last = (single[-1].get("SpecialToken") or {}).get("id")
    found = {}
    if first:
        begins = {_text(config.get("bos_token")), _text(config.get("cls_token"))} - {None}
        found["bos"] = first in begins if config else True
    if last:  # whatever ends text is the EOS token, and what was named so before is the EOT token
        found["eos"] = True
    return found


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token
