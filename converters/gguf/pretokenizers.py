"""How text is split before merging, by llama.cpp's names.

llama.cpp knows a pre-tokenizer by name only; tokenizer.json spells it out. Both are reduced to
the same list of steps and compared. An unknown list is an error: a wrong name changes the tokens
of every number or contraction, silently.
"""

from __future__ import annotations

from typing import Any

from edgeadapt.errors import UnsupportedError
from edgeadapt.importers.gguf_tokenizer import PRE_TOKENIZERS

Steps = tuple[tuple[str, str], ...]

_BYTES = ("bytes", "")
_GPT2 = ("bytes", "gpt-2 split")
_DIGITS = ("digits", "individual")

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED % ("", "") + r"|\p{N}" + _CASED_TAIL
_GPT4O = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _CASED_TAIL

_NAMES: dict[Steps, str] = {
    (_GPT2,): "gpt-2",
    (_DIGITS, _GPT2): "smollm",
    (("split", _LLAMA3), _BYTES): "llama-bpe",
    (("split", _QWEN2), _BYTES): "qwen2",
    (("split", _TEKKEN), _BYTES): "tekken",
    (("split", _GPT4O), _BYTES): "gpt-4o",
}

_WHOLE_WORDS = {"llama-bpe": "dbrx", "tekken": None}
"""Names under which llama.cpp takes a word that is in the vocabulary as it is (`ignore_merges`),
and the name of the same split where it always merges."""


def name_of(record: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer.json splits text.

    Raises:
        UnsupportedError: llama.cpp has none that edgeadapt knows.
    """
    steps = tuple(_steps(record.get("pre_tokenizer")))
    name = _NAMES.get(steps) or _imported_name(steps)
    if name is None:
        raise UnsupportedError(
            f"the tokenizer splits text by {steps or 'nothing'}, which matches no pre-tokenizer "
            f"of llama.cpp that edgeadapt knows ({', '.join(_NAMES.values())})"
        )
    return _with_merges(name, bool((record.get("model") or {}).get("ignore_merges")))


def _with_merges(name: str, ignore_merges: bool) -> str:
    """The name for a tokenizer that ignores merges for whole words, or does not."""
    known = PRE_TOKENIZERS.get(name)
    ignores = name in _WHOLE_WORDS or (known is not None and known.ignore_merges)
    found = name if ignores == ignore_merges else _WHOLE_WORDS.get(name) if ignores else None
    if found is None:
        raise UnsupportedError(
            f"the tokenizer has ignore_merges {ignore_merges}, but llama.cpp's {name!r} has "
            f"{ignores}, and edgeadapt knows no other that splits text the same way"
        )
    return found


def _imported_name(steps: Steps) -> str | None:
    """The name behind a tokenizer that edgeadapt itself built from a GGUF file."""
    for name, known in PRE_TOKENIZERS.items():
        if known.pattern is not None and steps == (("split", known.pattern), _BYTES):
            return name
    return None


def _steps(node: dict[str, Any] | None) -> list[tuple[str, str]]:
    if node is None:
        return []
    kind = node.get("type")
    if kind == "Sequence":
        return [step for child in node["pretokenizers"] for step in _steps(child)]
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return [_GPT2 if node.get("use_regex", True) else _BYTES]
    if kind == "Digits":
        return [("digits", "individual" if node.get("individual_digits") else "groups")]
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node["pattern"]
        return [("split", str(pattern.get("Regex") or pattern.get("String")))]
    return [(str(kind), "as configured")]
