"""Prompting and retrieval as contenders: the questions as they put them, and what they ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.comparison.ground import Ground
from edgeadapt.comparison.measure import GENERAL, HELD_OUT, PROMPTED, SHIPS, TASK
from edgeadapt.comparison.recipe import Trial
from edgeadapt.data.load import data_hash, load_examples
from edgeadapt.files import write_json
from edgeadapt.pipeline.workspace import StageResult, Workspace
from edgeadapt.prompting.base import Prompting, apply
from edgeadapt.prompting.retrieval import RetrievalSettings, build_retrieval
from edgeadapt.prompting.search import SearchSettings, scorer_of, search_few_shot


def prompting_stage(
    space: Workspace, ground: Ground, trial: Trial, data: Path, plain: Artifact
) -> StageResult:
    """Choose the examples, or index the documents, and ask all questions so.

    The folder holds the questions (see `measure`), `ships.json`, which a device needs beside the
    base, and `prompting.json`, how it came about.

    Args:
        space: of the comparison.
        ground: the questions.
        trial: method, seed and share of the data.
        data: that share.
        plain: the base in the first quantization, which examples are chosen by.
    """
    wish = trial.wish
    questions = {HELD_OUT: ground.held_out, GENERAL: ground.general}
    if ground.task is not None:
        questions[TASK] = ground.task.data
    documents = ground.documents if wish.method == "rag" and ground.documents else data
    key: dict[str, Any] = {
        "method": [wish.method, wish.examples, wish.passages, wish.prompt_tokens],
        "questions": {name: data_hash(path) for name, path in questions.items()},
    }
    if wish.method == "few-shot":
        key |= {"seed": trial.seed, "model": plain.sha256(), "data": data_hash(data)}
    else:
        key |= {"documents": data_hash(documents), "base": ground.inputs.base_sha256}

    def work(folder: Path) -> None:
        for path in folder.iterdir():  # of an interrupted attempt
            path.unlink()
        prompting, ships, record = (
            _few_shot(ground, trial, data, plain)
            if wish.method == "few-shot"
            else _retrieval(ground, trial, documents)
        )
        for name, path in questions.items():
            apply(prompting, path, folder / name)
        write_json(folder / SHIPS, ships)
        write_json(folder / PROMPTED, record)

    return space.stage(f"prompting-{trial.slug}", key, work)


def _few_shot(
    ground: Ground, trial: Trial, data: Path, plain: Artifact
) -> tuple[Prompting, Any, dict[str, Any]]:
    settings = SearchSettings(
        shots=trial.wish.examples, max_tokens=trial.wish.prompt_tokens, seed=trial.seed
    )
    found = search_few_shot(
        load_examples(data), ground.tokenizer(), scorer_of(plain.path), settings
    )
    return found.prompting, found.prompting.prompt(), found.record()


def _retrieval(
    ground: Ground, trial: Trial, documents: Path
) -> tuple[Prompting, Any, dict[str, Any]]:
    settings = RetrievalSettings(top_k=trial.wish.passages, max_tokens=trial.wish.prompt_tokens)
    found = build_retrieval(documents, ground.tokenizer(), settings)
    passages = [passage.text for passage in found.passages]
    return found, passages, found.record(load_examples(ground.held_out))
