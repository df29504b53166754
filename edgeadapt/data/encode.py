"""Examples as token ids, with the tokens that count in the loss.

Training, held-out scores and every engine's evaluation start from these same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from edgeadapt.chat_template import Message
from edgeadapt.console import log
from edgeadapt.data.examples import Example
from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError
from edgeadapt.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids, and which of them are predicted and scored.

    `scored[i]` is about token `i` as the target, given `ids[:i]`; `scored[0]` is therefore false.
    """

    ids: list[int]
    scored: list[bool]

    @property
    def n_scored(self) -> int:
        """Number of tokens that count."""
        return sum(self.scored)


def encode_example(example: Example, tokenizer: ModelTokenizer, max_tokens: int) -> Encoded:
    """Tokenize an example and mark what the model should learn to say.

    - A conversation is rendered by the chat template; assistant turns count, with the token that
      ends each. If the template renders a turn differently once others follow (some drop earlier
      reasoning), or the example says so (`Example.score`), only the last turn counts.
    - A prompt and its completion are one such turn if the model has a chat template, since that
      is how it will be prompted; otherwise they are joined as they are, and the completion and
      the end token count.
    - In plain text everything counts, with an end token.

    What exceeds `max_tokens` is cut off at the end, which may leave nothing that counts.

    Raises:
        InputError: the chat template rejects the messages or cannot mark the answer.
    """
    messages = example.messages
    if messages is None and example.text is None and tokenizer.chat_template is not None:
        messages = (
            {"role": "user", "content": example.prompt},
            {"role": "assistant", "content": example.completion},
        )
    if messages is not None:
        ids, scored = _encode_chat(messages, tokenizer, last_only=example.score == "last")
    else:
        ids, scored = _encode_plain(example, tokenizer)
    if scored:
        scored[0] = False  # nothing precedes it, so nothing predicts it
    return Encoded(ids[:max_tokens], scored[:max_tokens])


def with_system(example: Example, system: str, tokenizer: ModelTokenizer) -> Example:
    """An example under a system prompt, unless it brings its own or is plain text.

    Raises:
        InputError: the model has no chat template, or one without a system role.
    """
    if example.text is not None:
        return example
    messages = example.messages
    if messages is None:
        messages = (
            {"role": "user", "content": example.prompt},
            {"role": "assistant", "content": example.completion},
        )
    if messages[0]["role"] in ("system", "developer"):
        return example
    if tokenizer.chat_template is None:
        raise InputError("a system prompt needs a chat template, and this model has none")
    message: Message = {"role": "system", "content": system}
    no_role = "this model's chat template has no system role; leave the setting `system` out"
    try:
        text = tokenizer.render([message, *messages], add_generation_prompt=False)
    except InputError as error:
        raise InputError(f"{no_role} ({error})") from error
    if system.strip() not in text:  # templates trim, and some pass over what they do not know
        raise InputError(no_role)
    return replace(example, messages=(message, *messages), prompt=None, completion=None)


def encode_dataset(
    path: Path,
    tokenizer: ModelTokenizer,
    max_tokens: int,
    *,
    limit: int | None = None,
    system: str | None = None,
) -> list[Encoded]:
    """Load and encode a dataset, without the examples that have nothing to score.

    Args:
        path: see `load_examples`.
        tokenizer: the model's.
        max_tokens: length at which examples are cut.
        limit: take this many examples, evenly spaced over the dataset; all by default.
        system: put before the conversations that have no system prompt.

    Raises:
        InputError: the dataset cannot be read, nothing in it counts, or the model's chat template
            has no system role.
    """
    examples = load_examples(path)
    count = len(examples)
    if limit is not None and limit < count:
        examples = [examples[index * count // limit] for index in range(limit)]
    if system is not None:
        examples = [with_system(example, system, tokenizer) for example in examples]
    encoded = [encode_example(example, tokenizer, max_tokens) for example in examples]
    kept = [example for example in encoded if example.n_scored]
    if not kept:
        raise InputError(
            f"no example of {path} has an answer within its first {max_tokens} tokens; "
            "raise the number of tokens"
        )
    if len(kept) < len(encoded):
        log.warning(
            "%d of %d examples of %s are left out: no answer within %d tokens",
            len(encoded) - len(kept), len(encoded), path, max_tokens,
        )  # fmt: skip
    return kept


def _encode_plain(example: Example, tokenizer: ModelTokenizer) -> tuple[list[int], list[bool]]:
    """Plain text, or prompt and completion without a template, and the end token."""
    if example.text is not None:
        ids = tokenizer.encode(example.text, add_special_tokens=True)
        scored = [True] * len(ids)
    else:
        prompt, completion = example.prompt or "", example.completion or ""
        start = tokenizer.encode(prompt, add_special_tokens=True)
        ids = tokenizer.encode(prompt + completion, add_special_tokens=True)
        if ids[: len(start)] != start:  # a token spans the boundary
            ids = start + tokenizer.encode(completion)
        scored = [position >= len(start) for position in range(len(ids))]
    end = tokenizer.special_tokens.get("eos_token")
    end_id = tokenizer.backend.token_to_id(end) if end else None
    if end_id is not None and (not ids or ids[-1] != end_id):
        ids, scored = [*ids, end_id], [*scored, True]
    return ids, scored


def _encode_chat(
    messages: Sequence[Message], tokenizer: ModelTokenizer, *, last_only: bool
) -> tuple[list[int], list[bool]]:
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    messages = messages[: last + 1]  # what follows the last answer teaches nothing
    text = tokenizer.render(messages, add_generation_prompt=False)
    find = _last_span if last_only else _answer_spans
    spans = find(messages, text, tokenizer)
    cuts = [0, *(cut for span in spans for cut in span), len(text)]
    pieces = _tokenize_pieces(text, cuts, tokenizer)
    ids: list[int] = []
    scored: list[bool] = []
    for number, piece in enumerate(pieces):
        counted = 0
        if number % 2:  # pieces alternate: context, answer, context, answer, ...
            ends = [i for i, token in enumerate(piece) if token in tokenizer.stop_ids]
            # Templates put a line break after the end token; no engine generates that far.
            counted = ends[-1] + 1 if ends else len(piece)
        ids += piece
        scored += [position < counted for position in range(len(piece))]
    return ids, scored


def _answer_spans(
    messages: Sequence[Message], text: str, tokenizer: ModelTokenizer
) -> list[tuple[int, int]]:
    """Character ranges of the assistant turns in the rendered `text`."""
    turns = [i for i, message in enumerate(messages) if i and message["role"] == "assistant"]
    spans = []
    for turn in turns:
        before = tokenizer.render(messages[:turn], add_generation_prompt=True)
        after = tokenizer.render(messages[: turn + 1], add_generation_prompt=False)
        if not (after.startswith(before) and text.startswith(after)):
            break
        spans.append((len(before), len(after)))
    else:
        return spans
    return _last_span(messages, text, tokenizer)


def _last_span(
    messages: Sequence[Message], text: str, tokenizer: ModelTokenizer
) -> list[tuple[int, int]]:
    """Character range of the last message, an answer, in the rendered `text`."""
    before = tokenizer.render(messages[:-1], add_generation_prompt=True)
    if not text.startswith(before):
        raise InputError(
            "this model's chat template renders a question differently once it is answered, so "
            "the answer cannot be told from it; give prompt/completion pairs to a model without "
            "a template, or another template"
        )
    return [(len(before), len(text))]


def _tokenize_pieces(text: str, cuts: list[int], tokenizer: ModelTokenizer) -> list[list[int]]:
    """Tokens of `text` between each two cuts.

    An engine is given the tokens of the text up to an answer and continues from there. Where
    tokenizing the whole text agrees with that at each cut, the whole is cut; otherwise every
    piece is tokenized alone.
    """
    whole = tokenizer.encode(text)
    starts = []
    for cut in cuts[:-1]:
        head = tokenizer.encode(text[:cut])
        if whole[: len(head)] != head:
            return [tokenizer.encode(text[start:stop]) for start, stop in pairwise(cuts)]
        starts.append(len(head))
    return [whole[start:stop] for start, stop in pairwise([*starts, len(whole)])]
