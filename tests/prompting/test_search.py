"""Which examples are shown: chosen by the model's own answers, on training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edgeadapt.data.encode import encode_example
from edgeadapt.data.examples import Example
from edgeadapt.errors import InputError
from edgeadapt.jobs import Score, Scored, score
from edgeadapt.prompting.few_shot import few_shot_of
from edgeadapt.prompting.lengths import prompt_tokens
from edgeadapt.prompting.search import SearchSettings, search_few_shot
from edgeadapt.tokenizer import ModelTokenizer
from tests.tiny import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return ModelTokenizer.from_folder(folder)


def examples(count: int = 40) -> list[Example]:
    return [
        Example(prompt=f"What is {i}?", completion="fox " * (1 + i % 7) + str(i))
        for i in range(count)
    ]


class Model:
    """Likes prompts in which a word stands, and counts what it is asked."""

    def __init__(self, tokenizer: ModelTokenizer, word: str) -> None:
        self.tokenizer, self.word, self.asked = tokenizer, word, 0

    def __call__(self, sequences: Sequence[Scored]) -> Score:
        self.asked += len(sequences)
        nll, tokens = [], []
        for sequence in sequences:
            start = list(sequence.counts).index(True)
            liked = self.tokenizer.decode(sequence.ids[:start]).count(self.word)
            tokens.append(sum(sequence.counts))
            nll.append(tokens[-1] * math.exp(-liked))
        return Score(tuple(nll), tuple(tokens))


SETTINGS = SearchSettings(shots=3, max_tokens=200, candidates=6, validation=8, seed=1)


def test_the_set_after_which_answers_are_likeliest_is_chosen(tokenizer: ModelTokenizer) -> None:
    data, model = examples(), Model(tokenizer, "fox")
    result = search_few_shot(data, tokenizer, model, SETTINGS)
    assert len(result.tried) == 6 and sum(one.chosen for one in result.tried) == 1
    foxes = {
        one.shots: sum(data[index].answer().count("fox") for index in one.shots)
        for one in result.tried
    }
    assert foxes[result.best.shots] == max(foxes.values())
    assert result.prompting == few_shot_of(data[index] for index in result.best.shots)
    assert result.best.nll == pytest.approx(math.exp(-foxes[result.best.shots]))
    assert result.plain.nll == 1 and result.plain.added_tokens == 0
    # six sets on two examples, three on two more, two on the other four, and none on all
    assert model.asked == 6 * 2 + 3 * 2 + 2 * 4 + 8
    assert sorted(one.validation for one in result.tried) == [2, 2, 2, 4, 8, 8]


def test_what_it_is_tried_on_is_never_shown(tokenizer: ModelTokenizer) -> None:
    result = search_few_shot(examples(), tokenizer, Model(tokenizer, "fox"), SETTINGS)
    shown = {index for one in result.tried for index in one.shots}
    assert len(result.validation) == 8 and not shown & set(result.validation)


def test_a_set_has_short_and_long_examples_within_the_limit(tokenizer: ModelTokenizer) -> None:
    data = examples()
    result = search_few_shot(data, tokenizer, Model(tokenizer, "fox"), SETTINGS)
    for one in result.tried:
        lengths = sorted(len(data[index].answer()) for index in one.shots)
        assert lengths[0] < lengths[-1]
        question = data[result.validation[0]]
        prompted = few_shot_of(data[index] for index in one.shots).messages(question)
        added = len(prompt_tokens(prompted, tokenizer)) - len(
            prompt_tokens(question.question(), tokenizer)
        )
        assert one.added_tokens == added <= SETTINGS.max_tokens


def test_the_seed_decides(tokenizer: ModelTokenizer) -> None:
    def chosen(seed: int) -> tuple[int, ...]:
        settings = SearchSettings(3, 200, 6, 8, seed)
        model = Model(tokenizer, "fox")
        return search_few_shot(examples(), tokenizer, model, settings).best.shots

    assert chosen(1) == chosen(1) != chosen(2)


@pytest.mark.parametrize(
    "settings",
    [SearchSettings(validation=39), SearchSettings(shots=9, max_tokens=60, validation=8)],
)
def test_too_little_data_is_refused(tokenizer: ModelTokenizer, settings: SearchSettings) -> None:
    with pytest.raises(InputError, match=r"40 of 41 training examples .* give more data"):
        search_few_shot(
            [*examples(), Example(text="x")], tokenizer, Model(tokenizer, "fox"), settings
        )


def test_a_model_without_a_chat_template_is_refused(tokenizer: ModelTokenizer) -> None:
    plain = replace(tokenizer, chat_template=None)
    with pytest.raises(InputError, match="no chat template"):
        search_few_shot(examples(), plain, Model(tokenizer, "fox"), SETTINGS)


def test_the_runtime_itself_is_asked(tiny_gguf: Path, tiny_model: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    data = examples()
    settings = SearchSettings(shots=2, max_tokens=90, candidates=2, validation=4)
    result = search_few_shot(data, tokenizer, partial(score, tiny_gguf, threads=1), settings)
    sequences = []
    for index in result.validation:
        answer = {"role": "assistant", "content": data[index].answer()}
        asked = (*result.prompting.messages(data[index]), answer)
        encoded = encode_example(Example(messages=asked, score="last"), tokenizer, 1024)
        sequences.append(Scored(encoded.ids, encoded.scored))
    alone = score(tiny_gguf, sequences, threads=1)
    assert result.best.nll == pytest.approx(sum(alone.nll) / sum(alone.tokens))
