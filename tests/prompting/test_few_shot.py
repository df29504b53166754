"""A few-shot prompt as a list of messages, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.data.examples import Example
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.prompting.few_shot import few_shot_of, read_few_shot

SYSTEM = {"role": "system", "content": "Be brief."}


def chat(*contents: str, system: dict[str, str] | None = None) -> Example:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return Example(messages=(*([system] if system else []), *turns))


@given(
    st.lists(st.lists(st.text(max_size=9), min_size=2, max_size=4).map(lambda c: chat(*c[:2]))),
    st.booleans(),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, examples: list[Example], system: bool
) -> None:
    examples = [*examples, chat("last", "one")]
    if system:
        examples = [Example(messages=(SYSTEM, *(e.messages or ()))) for e in examples]
    prompting = few_shot_of(examples)
    path = tmp_path_factory.mktemp("shots") / "shots.json"
    prompting.write(path)
    assert read_few_shot(path) == prompting
    assert json.loads(path.read_text()) == prompting.prompt()


def test_the_prompt_begins_what_every_question_is_asked_with() -> None:
    shots = [chat("a", "b", system=SYSTEM), chat("c", "d", system=SYSTEM)]
    prompting = few_shot_of(shots)
    asked = prompting.messages(Example(prompt="e", completion="f"))
    assert list(asked) == [*prompting.prompt(), {"role": "user", "content": "e"}]
    # a question with a system message of its own keeps it
    other = {"role": "system", "content": "Rhyme."}
    own = prompting.messages(chat("e", "f", system=other))
    assert own == (other, *asked[1:])


def test_a_system_message_that_not_all_share_is_not_put_before_questions() -> None:
    assert few_shot_of([chat("a", "b", system=SYSTEM), chat("c", "d")]).system is None


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("{", CorruptFileError, "not valid JSON"),
        ("{}", InputError, "an object, expected a list of messages"),
        ('[{"role": "user", "content": "a"}]', InputError, "no assistant message"),
        (
            json.dumps([*(chat("a", "b").messages or ()), {"role": "user", "content": "c"}]),
            InputError,
            "ends with a question",
        ),
        (json.dumps([SYSTEM, SYSTEM, *(chat("a", "b").messages or ())]), InputError, "2 system"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, text: str, error: type[Exception], match: str
) -> None:
    (tmp_path / "shots.json").write_text(text)
    with pytest.raises(error, match=match):
        read_few_shot(tmp_path / "shots.json")


def test_a_prompt_is_written_where_it_will_be_read_as_one(tmp_path: Path) -> None:
    prompting = few_shot_of([chat("a", "b")])
    with pytest.raises(InputError, match=r"does not end in \.json"):
        prompting.write(tmp_path / "shots.txt")
    prompting.write(tmp_path / "shots.json")
    with pytest.raises(InputError, match="exists already"):
        prompting.write(tmp_path / "shots.json")
