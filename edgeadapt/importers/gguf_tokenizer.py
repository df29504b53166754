"""The tokenizer, chat template and generation config of a GGUF file, as Hugging Face files.

Built from the file's own vocabulary and merges. How text is split into words before merging is
known to llama.cpp by name only (`tokenizer.ggml.pre`); the table below holds the same splits, each
proved against llama.cpp token for token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.extras import need
from edgeadapt.files import write_json
from edgeadapt.gguf_io import GgufFile

if TYPE_CHECKING:
    import tokenizers

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The split that Llama 3 and Qwen 2 share, but for how many digits stay together."""


@dataclass(frozen=True)
class PreTokenizer:
    """How one family of models splits text, and what llama.cpp assumes beside it."""

    pattern: str | None = None
    """Regular expression of a word; None is GPT-2's, which byte-level pre-tokenizers know."""
    single_digits: bool = False
    """Cut out every digit first."""
    ignore_merges: bool = False
    """A whole word that is in the vocabulary is taken as it is."""
    add_bos: bool = False
    """Text begins with the BOS token unless `tokenizer.ggml.add_bos_token` says otherwise."""


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(single_digits=True)
_LLAMA3 = PreTokenizer(_WORDS % r"\p{N}{1,3}", ignore_merges=True, add_bos=True)
_LLAMA3_MERGES = PreTokenizer(_WORDS % r"\p{N}{1,3}")
_QWEN2 = PreTokenizer(_WORDS % r"\p{N}")

PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "dbrx": _LLAMA3_MERGES,
    "smaug-bpe": _LLAMA3_MERGES,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
}
"""What is known, by the name in `tokenizer.ggml.pre`."""

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Values of `tokenizer.ggml.token_type` that are cut out of text before it is split."""

_END_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
    "<|end_of_text|>",
)  # fmt: skip
"""Control tokens that end a generation even where no key says so."""


def write_tokenizer(file: GgufFile, folder: Path, vocab_size: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises:
        UnsupportedError: the kind of tokenizer, or its way of splitting text, is not known here.
        CorruptFileError: vocabulary, merges, types or ids contradict each other.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise UnsupportedError(
            f"{file.path} has a tokenizer of the kind {kind!r:.40}; only byte-level BPE ('gpt2') "
            "is imported from GGUF: use the model's Hugging Face folder instead"
        )
    name = file.get("tokenizer.ggml.pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{file.path} splits text by the rules {name!r:.40}, which are not known here; use the "
            f"model's Hugging Face folder instead (known: {', '.join(PRE_TOKENIZERS)})"
        )
    tokens, types = _vocabulary(file, vocab_size)
    pre = PRE_TOKENIZERS[name]
    special = _special_tokens(file, len(tokens))
    adds = {
        "bos": file.get("tokenizer.ggml.add_bos_token", bool, pre.add_bos),
        "eos": file.get("tokenizer.ggml.add_eos_token", bool, False),
    }
    backend = _backend(file, pre, tokens, types)
    _add_outer_tokens(backend, special, adds)
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": file.get("llama.context_length", int),
            "clean_up_tokenization_spaces": False,
            "add_bos_token": adds["bos"] and "bos" in special,
            "add_eos_token": adds["eos"] and "eos" in special,
            **{f"{short}_token": tokens[index] for short, index in special.items()},
            **_chat_template(file),
        },
    )
    write_json(folder / "generation_config.json", _generation(file, tokens, types, special))


def _vocabulary(file: GgufFile, vocab_size: int) -> tuple[list[str], list[Any]]:
    """Every token's text and type."""
    tokens = file.strings("tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise CorruptFileError(f"{file.path}: tokens occur twice, or lack a token_type")
    if len(tokens) > vocab_size:
        raise CorruptFileError(f"{file.path}: {len(tokens)} tokens, {vocab_size} embeddings")
    return tokens, types


def _backend(
    file: GgufFile, pre: PreTokenizer, tokens: list[str], types: list[Any]
) -> tokenizers.Tokenizer:
    need("tokenizers", "building the tokenizer of a GGUF file")
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for merge in file.strings("tokenizer.ggml.merges"):
        space = merge.find(" ", 1)  # a merge is two tokens with a space between
        if space < 0:
            raise CorruptFileError(f"{file.path}: the merge {merge!r:.40} is not a pair")
        merges.append((merge[:space], merge[space + 1 :]))
    try:
        model = models.BPE(vocabulary, merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # tokenizers raises bare Exception for merges outside the vocabulary
        raise CorruptFileError(f"{file.path}: the tokenizer's merges are wrong: {error}") from error
    backend = Tokenizer(model)
    steps: list[Any] = []
    if pre.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pre.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated"))
    gpt2_words = pre.pattern is None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2_words))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_UNKNOWN, _CONTROL):
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    return backend


def _add_outer_tokens(
    backend: tokenizers.Tokenizer, special: dict[str, int], adds: dict[str, bool]
) -> None:
    """Have BOS and EOS put around text by the post-processor, where the file wants them."""
    from tokenizers import processors

    around = {
        short: special[short] for short, wanted in adds.items() if wanted and short in special
    }
    if not around:
        return
    texts = {short: backend.id_to_token(index) for short, index in around.items()}
    single = " ".join(filter(None, (texts.get("bos"), "$A", texts.get("eos"))))
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=single + " " + single.replace("$A", "$B"),
        special_tokens=[(texts[short], index) for short, index in around.items()],
    )


def _token_id(file: GgufFile, role: str, count: int) -> int | None:
    """The id that the file gives a role, None if it gives none."""
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in file.metadata:
        return None
    index = file.get(key, int)
    if not 0 <= index < count:
        raise CorruptFileError(f"{file.path}: {key} {index} is not a token")
    return index


def _special_tokens(file: GgufFile, count: int) -> dict[str, int]:
    """Ids of the tokens with a role, by the role's name in Hugging Face's files."""
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {short: _token_id(file, role, count) for short, role in roles.items()}
    return {short: index for short, index in found.items() if index is not None}


def _chat_template(file: GgufFile) -> dict[str, Any]:
    """The template verbatim; with named ones beside it, the list that transformers reads."""
    if "tokenizer.chat_template" not in file.metadata:
        return {}
    default = file.get("tokenizer.chat_template", str)
    prefix = "tokenizer.chat_template."
    named = [
        {"name": key.removeprefix(prefix), "template": file.get(key, str)}
        for key in file.metadata
        if key.startswith(prefix)
    ]
    if not named:
        return {"chat_template": default}
    return {"chat_template": [{"name": "default", "template": default}, *named]}


def _generation(
    file: GgufFile, tokens: list[str], types: list[Any], special: dict[str, int]
) -> dict[str, Any]:
    """Role ids, with every token that ends a turn among the EOS ids, the declared one first."""
    ends = [special["eos"]] if "eos" in special else []
    declared = (_token_id(file, role, len(tokens)) for role in ("eot", "eom"))
    ends += [index for index in declared if index is not None]
    controls = {tokens[i]: i for i, kind in enumerate(types) if kind == _CONTROL}
    ends += [controls[text] for text in _END_OF_TURN if text in controls]
    roles = {f"{short}_token_id": special[short] for short in ("bos", "pad") if short in special}
    return roles | ({"eos_token_id": list(dict.fromkeys(ends))} if ends else {})
