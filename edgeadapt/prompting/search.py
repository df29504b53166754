"""Which examples of the training data to show: candidates are drawn, and the model is asked.

Sets of examples are compared by successive halving (Jamieson and Talwalkar 2016, "Non-stochastic
Best Arm Identification and Hyperparameter Optimization"): all are scored on a part of a validation
slice of the training data, the better half on more of it, until the best are scored on all of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeadapt.console import log, progress
from edgeadapt.data.encode import encode_example
from edgeadapt.data.examples import Example
from edgeadapt.errors import InputError
from edgeadapt.jobs import Score, Scored, score
from edgeadapt.prompting.base import Plain, Prompting, check_template
from edgeadapt.prompting.few_shot import FewShot, few_shot_of
from edgeadapt.prompting.lengths import prompt_tokens
from edgeadapt.tokenizer import ModelTokenizer

Scorer = Callable[[Sequence[Scored]], Score]
"""The model that will be prompted, on the runtime that will run it."""

_POOL = 2000
"""Most training examples that are looked at; more are thinned out evenly, by the seed."""
_DRAWS = 4
"""Examples drawn for each place in a set, of which the one least like the others is taken."""
_SHORT = 4
"""The first round scores one in so many of the validation examples, the second two, then all."""


@dataclass(frozen=True)
class SearchSettings:
    """How to search."""

    shots: int = 4
    """Examples in a prompt."""
    max_tokens: int = 512
    """Most tokens that they may add to a prompt."""
    candidates: int = 8
    """Sets that are tried."""
    validation: int = 32
    """Training examples that they are tried on."""
    seed: int = 0


@dataclass(frozen=True)
class Tried:
    """One set of examples, or none, and how well the model answered after it."""

    shots: tuple[int, ...]
    """Numbers of the training examples, from 0, in the prompt's order; none for the question
    alone."""
    added_tokens: int
    validation: int
    """On how many validation examples it was scored: the first so many."""
    nll: float
    """Negative log-likelihood of the answers, mean over their tokens, in nats."""
    chosen: bool = False


@dataclass(frozen=True)
class SearchResult:
    """The best set, and what it was chosen from."""

    prompting: FewShot
    settings: SearchSettings
    tried: tuple[Tried, ...]
    """Best first among those scored on as many examples; those that were dropped early last."""
    plain: Tried
    """The question alone, on all validation examples."""
    validation: tuple[int, ...]
    """Numbers of the training examples that were tried on, from 0."""

    @property
    def best(self) -> Tried:
        """The set that was chosen."""
        return next(one for one in self.tried if one.chosen)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "settings": asdict(self.settings),
            "plain": asdict(self.plain),
            "tried": [asdict(one) for one in self.tried],
            "validation": list(self.validation),
            "messages": self.prompting.prompt(),
        }


def scorer_of(artifact: Path, **options: Any) -> Scorer:
    """Ask an artifact, with a progress bar.

    Sequences of one set follow each other, so that its examples are run through the model once.

    Args:
        artifact: the model.
        options: of `edgeadapt.jobs.score`.
    """

    def ask(sequences: Sequence[Scored]) -> Score:
        with progress("few-shot search", len(sequences), "answers") as advance:
            return score(artifact, sequences, keep_beginnings=True, on_progress=advance, **options)

    return ask


def search_few_shot(
    examples: Sequence[Example],
    tokenizer: ModelTokenizer,
    scorer: Scorer,
    settings: SearchSettings = SearchSettings(),
) -> SearchResult:
    """Choose the examples after which the model answers other training examples best.

    Args:
        examples: the training data; never the held-out data, which would then measure nothing.
        tokenizer: of the model.
        scorer: the model.
        settings: how many to show, and how to search.

    Raises:
        InputError: there are too few examples, or they are too long for `max_tokens`, or the model
            has no chat template.
        RuntimeFailure: the engine failed.
    """
    check_template(tokenizer)
    rng = random.Random(settings.seed)
    usable = [i for i, example in enumerate(examples) if example.text is None and example.answer()]
    rng.shuffle(usable)
    validation = tuple(usable[: settings.validation])
    costs = _costs(examples, usable[settings.validation :][:_POOL], tokenizer, settings)
    if len(validation) < settings.validation or len(costs) < settings.shots:
        raise InputError(
            f"{len(usable)} of {len(examples)} training examples have a question and an answer, "
            f"and {len(costs)} beside the {settings.validation} to try on are short enough for "
            f"{settings.shots} shots in {settings.max_tokens} tokens; give more data, more "
            "--max-tokens, or fewer --shots or --validation"
        )
    sets = {_draw(examples, costs, settings.shots, rng) for _ in range(settings.candidates)}
    race = _Race(examples, validation, tokenizer, scorer)
    plain = race.run([()], len(validation))[0]
    tried = _halve(race, sorted(sets), len(validation))
    log.info(
        "few-shot: %.3f nats a token with the best of %d sets, %.3f without (%d training examples)",
        tried[0].nll, len(sets), plain.nll, len(validation),
    )  # fmt: skip
    best = few_shot_of(examples[index] for index in tried[0].shots)
    return SearchResult(best, settings, tuple(tried), plain, validation)


def _halve(race: _Race, sets: Sequence[tuple[int, ...]], total: int) -> list[Tried]:
    """Score all sets on few examples and the better halves on more; best first."""
    dropped: list[Tried] = []
    left = list(sets)
    for divisor in (_SHORT, _SHORT // 2, 1):
        ranked = sorted(race.run(left, max(1, total // divisor)), key=lambda one: one.nll)
        keep = len(ranked) if divisor == 1 else (len(ranked) + 1) // 2
        dropped = ranked[keep:] + dropped
        left = [one.shots for one in ranked[:keep]]
    best, *others = ranked
    return [Tried(**asdict(best) | {"chosen": True}), *others, *dropped]


class _Race:
    """Scores of sets on the first so many validation examples; none is computed twice."""

    def __init__(
        self,
        examples: Sequence[Example],
        validation: Sequence[int],
        tokenizer: ModelTokenizer,
        scorer: Scorer,
    ) -> None:
        self._examples = examples
        self._validation = [examples[index] for index in validation]
        self._tokenizer = tokenizer
        self._scorer = scorer
        self._known: dict[tuple[int, ...], tuple[list[float], list[int]]] = {}

    def run(self, sets: Sequence[tuple[int, ...]], count: int) -> list[Tried]:
        """Score each set on `count` examples; only what is not known yet is asked of the model."""
        wanted, sequences = [], []
        for shots in sets:
            prompting = self._prompting(shots)
            done = len(self._known.setdefault(shots, ([], []))[0])
            for example in self._validation[done:count]:
                wanted.append(shots)
                sequences.append(self._sequence(prompting, example))
        if sequences:
            scored = self._scorer(sequences)
            for shots, nll, tokens in zip(wanted, scored.nll, scored.tokens, strict=True):
                self._known[shots][0].append(nll)
                self._known[shots][1].append(tokens)
        return [self._tried(shots, count) for shots in sets]

    def _prompting(self, shots: tuple[int, ...]) -> Prompting:
        return few_shot_of(self._examples[index] for index in shots) if shots else Plain()

    def _sequence(self, prompting: Prompting, example: Example) -> Scored:
        answer = {"role": "assistant", "content": example.answer()}
        asked = Example(messages=(*prompting.messages(example), answer), score="last")
        encoded = encode_example(asked, self._tokenizer, 1 << 30)
        return Scored(encoded.ids, encoded.scored)

    def _tried(self, shots: tuple[int, ...], count: int) -> Tried:
        nll, tokens = (part[:count] for part in self._known[shots])
        first = self._validation[0]
        ids = prompt_tokens(self._prompting(shots).messages(first), self._tokenizer)
        added = len(ids) - len(prompt_tokens(first.question(), self._tokenizer))
        return Tried(shots, added, len(nll), sum(nll) / max(1, sum(tokens)))


def _costs(
    examples: Sequence[Example],
    pool: Sequence[int],
    tokenizer: ModelTokenizer,
    settings: SearchSettings,
) -> dict[int, int]:
    """Tokens that each example of the pool adds as a shot, of those that keep to their share."""
    probe = Example(prompt="?", completion="!")
    before = len(prompt_tokens(probe.question(), tokenizer))
    share = settings.max_tokens // settings.shots
    costs = {}
    for index in pool:
        prompt = FewShot(few_shot_of([examples[index]]).shots).messages(probe)
        cost = len(prompt_tokens(prompt, tokenizer)) - before
        if cost <= share:
            costs[index] = cost
    return costs


def _draw(
    examples: Sequence[Example], costs: dict[int, int], shots: int, rng: random.Random
) -> tuple[int, ...]:
    """A set of examples of every length, whose questions are unlike each other."""
    by_length = sorted(costs, key=lambda index: (costs[index], index))
    taken: list[int] = []
    for place in range(shots):
        stratum = by_length[place * len(costs) // shots : (place + 1) * len(costs) // shots]
        drawn = rng.sample(stratum, min(_DRAWS, len(stratum)))
        taken.append(min(drawn, key=lambda index: _likeness(examples, index, taken)))
    rng.shuffle(taken)
    return tuple(taken)


def _likeness(examples: Sequence[Example], index: int, taken: Sequence[int]) -> float:
    """Most words that a question shares with one that is taken, over those of both (Jaccard)."""
    words = _question_words(examples[index])
    shares = [0.0]
    for other in taken:
        others = _question_words(examples[other])
        shares.append(len(words & others) / max(1, len(words | others)))
    return max(shares)


def _question_words(example: Example) -> set[str]:
    return set(re.findall(r"\w+", str(example.question()[-1]["content"]).lower()))
