"""`edgeadapt prompt`: few-shot prompts and retrieval, made ready to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.common import standard
from edgeadapt.cli.prompt_report import check_price, draw_table, tell
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.tokenizer import ModelTokenizer

_BASE = click.option("--base", required=True, help="Model folder, GGUF file, hub id, or `default`.")


@click.group("prompt")
def command() -> None:
    """Choose a few-shot prompt, or retrieve from documents, and see the price.

    What a prompt alone can do, beside what training does: held-out data is
    written anew as the model would be asked, and `edgeadapt evaluate --data`
    measures it as any other.

    \b
    edgeadapt prompt few-shot --base default --model m.gguf \\
        --data python-docs --out shots.json
    edgeadapt prompt apply shots.json --base default --data python-docs \\
        --out held-out-few-shot.jsonl
    edgeadapt prompt retrieve --base default --documents docs/ \\
        --data python-docs --out held-out-rag.jsonl
    """


def _applying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of what writes a dataset."""
    for option in (
        click.option(
            "--device", "devices", multiple=True,
            help="Predict there what the added tokens cost; needs --model. Repeatable.",
        ),
        click.option("--model", type=Path, help="The artifact that will be prompted."),
        click.option("--out", required=True, type=Path, help="The .jsonl file to write."),
        click.option(
            "--data", required=True, metavar="D",
            help="Questions and answers, such as held-out data. Of python-docs: its held-out part.",
        ),
        _BASE,
    ):  # fmt: skip
        function = option(function)
    return function


@command.command("few-shot")
@_BASE
@click.option(
    "--model", type=Path, help="The artifact to ask. Default: the base itself, in torch (slower)."
)
@click.option("--beside", metavar="FILE", type=Path, help="An adapter's file that runs beside it.")
@click.option("--data", required=True, metavar="D", help="Training data to choose from.")
@click.option("--out", required=True, type=Path, help="JSON file to write: a list of messages.")
@click.option("--shots", type=click.IntRange(1), default=4, show_default=True, help="Examples.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, show_default=True,
    help="Most tokens that they may add.",
)  # fmt: skip
@click.option(
    "--candidates", type=click.IntRange(1), default=8, show_default=True,
    help="Sets of examples to try.",
)  # fmt: skip
@click.option(
    "--validation", type=click.IntRange(1), default=32, show_default=True,
    help="Training examples to try them on.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--runtime", metavar="NAME", help="Default: the preferred one that is installed.")
@click.option("--threads", type=click.IntRange(1), help="Default: the physical cores available.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=3600.0, show_default=True,
    help="Seconds for one round of the search.",
)  # fmt: skip
@standard
def few_shot(
    base: str,
    model: Path | None,
    beside: Path | None,
    data: str,
    out: Path,
    shots: int,
    max_tokens: int,
    candidates: int,
    validation: int,
    seed: int,
    runtime: str | None,
    threads: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Choose examples of the training data to put before each question.

    Sets of examples are drawn, long ones and short ones, with questions unlike
    each other; those after which the model finds the answers of other training
    examples likeliest are written to --out. Held-out data is not looked at.
    """
    from edgeadapt.base_model import resolve_base
    from edgeadapt.data.load import load_examples
    from edgeadapt.data.source import resolve_data
    from edgeadapt.prompting.few_shot import check_prompt_name
    from edgeadapt.prompting.search import SearchSettings, scorer_of, search_few_shot

    check_prompt_name(out)
    folder = resolve_base(base)
    artifact = model or folder
    scorer = scorer_of(
        artifact, adapter=beside, runtime=runtime, threads=threads, timeout_s=timeout
    )
    result = search_few_shot(
        load_examples(resolve_data(data)[0]),
        _tokenizer(folder),
        scorer,
        SearchSettings(shots, max_tokens, candidates, validation, seed),
    )
    result.prompting.write(out)
    document = {"path": str(out), "model": str(artifact), **result.record()}
    if as_json:
        emit_json(document)
        return
    rows = [("EXAMPLES", "TOKENS", "TRIED ON", "NATS A TOKEN")]
    for one in (result.plain, *result.tried):
        numbers = ", ".join(str(index + 1) for index in one.shots) or "none"
        mark = "  chosen" if one.chosen else ""
        rows.append((numbers, f"+{one.added_tokens}", str(one.validation), f"{one.nll:.3f}{mark}"))
    emit(draw_table(rows))
    better = result.best.nll < result.plain.nll
    emit(
        f"\n{out}: {shots} examples, chosen on {validation} others of the training data"
        + ("" if better else "; the question alone did better there")
    )


@command.command("apply")
@click.argument("messages", type=Path)
@_applying
@standard
def apply_(
    messages: Path,
    base: str,
    data: str,
    out: Path,
    model: Path | None,
    devices: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put MESSAGES, a few-shot prompt, before each question of a dataset.

    MESSAGES is what `prompt few-shot` wrote, or any JSON list of messages that
    ends with an answer.
    """
    from edgeadapt.base_model import resolve_base
    from edgeadapt.data.source import held_out_part
    from edgeadapt.prompting.base import apply
    from edgeadapt.prompting.few_shot import read_few_shot

    check_price(model, devices)
    prompting = read_few_shot(messages)
    applied = apply(prompting, held_out_part(data), out, _tokenizer(resolve_base(base)))
    tell(applied, base, model, devices, {}, as_json=as_json)


@command.command("retrieve")
@click.option(
    "--documents", metavar="DOCS",
    help="A .txt, .md, .rst or .jsonl file, a folder of them, or training data. Default, with "
    "--data python-docs: its training part.",
)  # fmt: skip
@_applying
@click.option(
    "--retriever", type=click.Choice(["bm25", "embeddings"]), default="bm25", show_default=True,
    help="By words, or by sentence embeddings (edgeadapt[embeddings]).",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(1), default=3, show_default=True, help="Most passages a prompt."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=384, show_default=True,
    help="Most tokens of them together.",
)  # fmt: skip
@click.option(
    "--passage-tokens", type=click.IntRange(1), default=128, show_default=True,
    help="Most tokens of one passage; documents are split at paragraph ends.",
)  # fmt: skip
@click.option("--template", help="Of the user's turn, with {passages} and {question} in it.")
@standard
def retrieve(
    documents: str | None,
    base: str,
    data: str,
    out: Path,
    model: Path | None,
    devices: tuple[str, ...],
    retriever: str,
    top_k: int,
    max_tokens: int,
    passage_tokens: int,
    template: str | None,
    as_json: bool,
) -> None:
    """Put passages of documents beside each question of a dataset.

    A passage that holds a question together with its answer is left out for
    that question: to copy it is no skill. How many answers stand in what was
    retrieved is told.
    """
    from edgeadapt.base_model import resolve_base
    from edgeadapt.data.source import held_out_part
    from edgeadapt.prompting.base import apply
    from edgeadapt.prompting.retrieval import RetrievalSettings, build_retrieval

    check_price(model, devices)
    settings = RetrievalSettings(retriever, top_k, max_tokens, passage_tokens)
    if template is not None:
        settings = replace(settings, template=template.replace("\\n", "\n"))
    tokenizer = _tokenizer(resolve_base(base))
    retrieval = build_retrieval(_documents(documents, data), tokenizer, settings)
    applied = apply(retrieval, held_out_part(data), out, tokenizer)
    found = {"retrieval": retrieval.record(applied.plain)}
    tell(applied, base, model, devices, found, as_json=as_json)


def _documents(documents: str | None, data: str) -> Path:
    from edgeadapt.data.source import BUILT_IN, resolve_data

    if documents is None and data not in BUILT_IN:
        raise InputError("give --documents: what to retrieve from, such as the training data")
    spec = documents or data
    if spec in BUILT_IN:
        return resolve_data(spec)[0]
    return Path(spec).expanduser()


def _tokenizer(folder: Path) -> ModelTokenizer:
    from edgeadapt.tokenizer import ModelTokenizer

    return ModelTokenizer.from_folder(folder)
