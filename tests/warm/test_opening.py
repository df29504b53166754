"""The tokens that are kept are those of every conversation that begins alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.chat_template import Message, clock_at
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.warm.opening import common_opening
from edgeadapt.warm.prompt import read_messages, tokens_under
from tests.tiny import CHAT_TEMPLATE, save_tokenizer

SYSTEM: Message = {"role": "system", "content": "Be brief. 日本語 too."}
SHOTS: list[Message] = [
    SYSTEM,
    {"role": "user", "content": "The quick brown fox?"},
    {"role": "assistant", "content": "jumps over the lazy dog."},
]
MISTRAL = (  # as its first templates: the system message goes to the last question
    "{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{{ (system if loop.last else '') + m.content }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHAT_TEMPLATE
TRIMMING = CHAT_TEMPLATE.replace("message['content']", "message['content'].strip()")
REJECTING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(made)
    return made


def with_template(folder: Path, template: str | None) -> ModelTokenizer:
    made = ModelTokenizer.from_folder(folder)
    if template is None:
        return made
    return ModelTokenizer(made.backend, template, made.special_tokens, made.stop_ids)


def opening_of(tokenizer: ModelTokenizer, messages: list[Message]) -> tuple[str, list[int]]:
    found = common_opening(messages, lambda m: render(tokenizer, m), tokenizer.encode)
    return found.text, list(found.ids)


def render(tokenizer: ModelTokenizer, messages: object) -> str:
    return tokenizer.render(messages, add_generation_prompt=True)  # type: ignore[arg-type]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=150)
@given(first=text, question=text, answer=text, more=text, shots=st.booleans())
def test_whatever_is_asked_begins_with_it(
    folder: Path, first: str, question: str, answer: str, more: str, shots: bool
) -> None:
    tokenizer = with_template(folder, None)
    begun = [{"role": "system", "content": first}, *(SHOTS[1:] if shots else [])]
    text, ids = opening_of(tokenizer, begun)
    turns = [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
        {"role": "user", "content": more},
    ]  # fmt: skip
    for conversation in ([*begun, *turns[:1]], [*begun, *turns]):
        said = render(tokenizer, conversation)
        assert said.startswith(text)
        assert tokenizer.encode(said)[: len(ids)] == ids


def test_it_goes_as_far_as_it_can(folder: Path) -> None:
    """All but the last token before the question, which may be joined to what follows."""
    tokenizer = with_template(folder, None)
    text, ids = opening_of(tokenizer, SHOTS)
    assert text == render(tokenizer, [*SHOTS, {"role": "user", "content": "\0"}]).partition("\0")[0]
    assert len(tokenizer.encode(text)) - len(ids) <= 1
    assert text.endswith("<|im_start|>user\n")


def test_a_template_that_trims_keeps_it(folder: Path) -> None:
    tokenizer = with_template(folder, TRIMMING)
    text, _ = opening_of(tokenizer, [{"role": "system", "content": "  Be brief.\n\n"}])
    assert "system\nBe brief.<|im_end|>" in text


def test_a_template_that_moves_it_is_refused(folder: Path) -> None:
    tokenizer = with_template(folder, MISTRAL)
    with pytest.raises(UnsupportedError, match=r"message 1 \(system\) depends on what follows"):
        opening_of(tokenizer, [SYSTEM])
    text, _ = opening_of(tokenizer, SHOTS[1:])  # as it says: without a system message
    assert text.startswith("[INST] The quick brown fox? [/INST]jumps")


def test_a_template_with_the_date_is_refused(folder: Path) -> None:
    tokenizer = with_template(folder, DATED)
    with pytest.raises(UnsupportedError, match="writes the date"):
        opening_of(tokenizer, [SYSTEM])


def test_the_clock_goes_on_afterwards(folder: Path) -> None:
    import datetime

    tokenizer = with_template(folder, DATED)
    now = render(tokenizer, [SYSTEM])
    with clock_at(datetime.datetime(1999, 12, 31)):
        assert render(tokenizer, [SYSTEM]).startswith("Today: 31 Dec 1999")
    assert render(tokenizer, [SYSTEM]) == now


def test_a_template_that_rejects_it_says_why(folder: Path) -> None:
    with pytest.raises(InputError, match="no system role"):
        opening_of(with_template(folder, REJECTING), [SYSTEM])


def test_what_is_counted_is_what_is_kept(folder: Path) -> None:
    _, ids = opening_of(with_template(folder, None), SHOTS)
    assert tokens_under(folder, SHOTS) == len(ids)


def test_a_text_is_a_system_message_and_json_a_list(tmp_path: Path) -> None:
    plain, listed = tmp_path / "system.txt", tmp_path / "shots.json"
    plain.write_text("\n Be brief. 日本語 too.\n", encoding="utf-8")
    listed.write_text(json.dumps(SHOTS))
    assert read_messages(plain) == (SYSTEM,)
    assert read_messages(listed) == tuple(SHOTS)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.json", b"[", "not valid JSON"),
        ("a.json", b"[]", "expected a list of messages"),
        ("a.json", b'{"role": "system", "content": "x"}', "expected a list of messages"),
        ("a.json", b'[{"role": "system", "content": ["x"]}]', "is a list, expected text"),
        ("a.json", b'[{"content": "x"}]', "role' is missing"),
    ],
)
def test_a_file_that_is_neither_is_refused(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_messages(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        read_messages(tmp_path / "none.txt")
