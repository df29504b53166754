"""`edgeadapt plan`."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeadapt.cli.common import model_options, standard
from edgeadapt.console import emit, emit_json

if TYPE_CHECKING:
    from rich.table import Table

    from edgeadapt.planner import Plan
    from edgeadapt.planner.candidates import Candidate
    from edgeadapt.planner.warm import FirstToken

_WIDTH = 80


@click.command()
@model_options(adapter_required=False)
@click.option("--device", required=True, help="A profile's name, or the path of its YAML file.")
@click.option("--context", type=click.IntRange(min=1), help="Tokens of KV cache.")
@click.option("--max-memory", metavar="SIZE", help="Most memory for the model: 900M, 2G, ...")
@click.option(
    "--min-decode-tps",
    type=click.FloatRange(min=0, min_open=True),
    help="Fewest decoded tokens a second.",
)
@click.option(
    "--max-ttft",
    type=click.FloatRange(min=0, min_open=True),
    help="Longest wait for the first token, seconds.",
)
@click.option(
    "--prefer",
    type=click.Choice(["profile", "quality", "speed", "memory"]),
    default="profile",
    show_default=True,
    help="What decides among those that keep the budgets; profile: its own order.",
)
@click.option(
    "--warm-prompt", type=click.Path(path_type=Path), metavar="FILE",
    help="Also the time to the first token after this prompt (as of `edgeadapt warm`), with its "
    "state and without.",
)  # fmt: skip
@standard
def command(
    base: str,
    adapter: tuple[str, ...],
    revision: str | None,
    any_base: bool,
    device: str,
    context: int | None,
    max_memory: str | None,
    min_decode_tps: float | None,
    max_ttft: float | None,
    prefer: str,
    warm_prompt: Path | None,
    as_json: bool,
) -> None:
    """Say what of a model fits a device, how fast it should be, and which to take.

    Speeds are predicted, never measured here: each is an interval that should
    hold four cases of five. Budgets come from the device's profile unless
    given. Exit code 1 if no candidate keeps them.

    \b
    edgeadapt plan --base default --device raspberry-pi-5
    edgeadapt plan --base ./Llama-3.2-3B --adapter runs/a \\
        --device jetson-orin-nano --context 8192 --min-decode-tps 10
    edgeadapt plan --base default --device pixel-8a --warm-prompt system.txt
    """
    from edgeadapt.converters.gguf.options import parse_size
    from edgeadapt.devices import load_profile
    from edgeadapt.export import open_model
    from edgeadapt.planner import default_budget, make_plan
    from edgeadapt.planner.sizes import facts_of
    from edgeadapt.planner.warm import first_token
    from edgeadapt.warm.prompt import read_messages, tokens_under

    messages = None if warm_prompt is None else read_messages(warm_prompt)
    profile = load_profile(device)
    budget = default_budget(
        profile,
        max_memory_gib=parse_size(max_memory) / 2**30 if max_memory else None,
        min_decode_tps=min_decode_tps,
        max_ttft_s=max_ttft,
    )
    model = open_model(base, adapter, revision=revision, any_base=any_base)
    plan = make_plan(
        profile,
        facts_of(model),
        context=context,
        budget=budget,
        prefer=prefer,  # type: ignore[arg-type]
    )
    warm: list[FirstToken] = []
    if messages is not None:
        tokens = tokens_under(model.folder, messages)
        warm = [
            first_token(
                profile, plan.model, found.runtime, found.quantization,
                size_bytes=found.size_bytes, tokens=tokens,
            )
            for found in plan.found
        ]  # fmt: skip
    if as_json:
        more = {"warm_prompt": [found.record() for found in warm]} if warm else {}
        emit_json({"base": model.name, **plan.record(), **more})
    else:
        emit(render(plan, model.name))
        if warm:
            emit(f"\n{render_warm(warm)}")
        if plan.chosen is not None:
            words = ["--base", base, *(w for a in adapter for w in ("--adapter", a))]
            words += ["--format", plan.chosen.format, "--quant", plan.chosen.quantization]
            words += ["--warm-prompt", str(warm_prompt)] if warm_prompt else []
            emit(f"\nmake it: edgeadapt export {shlex.join(words)} --out PATH")
    if plan.chosen is None:
        raise click.exceptions.Exit(1)


def render(plan: Plan, name: str) -> str:
    """The plan as text of at most 80 columns."""
    import textwrap

    budget = plan.budget
    asked = [f"{budget.memory_gib:.2f} GiB"]
    if budget.min_decode_tps is not None:
        asked.append(f"at least {budget.min_decode_tps:g} tokens a second")
    if budget.max_ttft_s is not None:
        asked.append(f"first token within {budget.max_ttft_s:g} s")
    lines = [
        f"{name} on {plan.profile.title}: {plan.model.parameters / 1e6:,.0f} million parameters, "
        f"context {plan.context}",
        f"budget: {', '.join(asked)}",
    ]
    text = "\n".join(line for part in lines for line in textwrap.wrap(part, _WIDTH))
    notes = [
        "* on the Pareto front of memory, speed and quality; = exact size; ~ estimate. Speeds are "
        "80% intervals, predicted: decode with the context half full. ppl: expected rise of "
        "perplexity.",
        *_estimates(plan),
        *(f"{format} does not carry this model: {why}" for format, why in plan.refused.items()),
    ]
    wrapped = "\n".join("\n".join(textwrap.wrap(note, _WIDTH)) for note in notes)
    chosen = "\n".join(textwrap.wrap(plan.reason, _WIDTH))
    return f"{text}\n\n{_table(plan)}\n{wrapped}\n\n{chosen}"


def render_warm(found: Sequence[FirstToken]) -> str:
    """What a warm prompt saves, as text of at most 80 columns."""
    import textwrap

    from rich.table import Table

    from edgeadapt.planner.warm import QUESTION_TOKENS

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("", "quantization", "runtime"):
        table.add_column(title, no_wrap=True)
    for title in ("without it\ns", "warm\ns", "state\nMiB"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found:
        can = one.warm is not None
        table.add_row(
            "", one.quantization, f"{one.runtime.name} {one.runtime.backend}", str(one.without),
            str(one.warm) if can else "-", f"~{one.state_bytes / 2**20:.1f}" if can else "-",
        )  # fmt: skip
    title = textwrap.fill(
        f"First token of a conversation that begins with this prompt of {found[0].tokens} tokens "
        f"and goes on with {QUESTION_TOKENS} (80% intervals; -: this runtime cannot start from a "
        "state):",
        _WIDTH,
    )
    return f"{title}\n{_as_text(table)}"


def _table(plan: Plan) -> str:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for title in ("", "quantization", "runtime"):
        table.add_column(title, no_wrap=True)
    for title in ("size\nMiB", "memory\nMiB", "decode\ntok/s", "1st token\ns", "ppl", ""):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for candidate in plan.found:
        table.add_row(*_row(candidate, taken=candidate is plan.chosen))
    return _as_text(table)


def _as_text(table: Table) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=_WIDTH, color_system=None, highlight=False, markup=False).print(
        table
    )
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _row(candidate: Candidate, *, taken: bool) -> tuple[str, ...]:
    on = "gpu" if candidate.runtime.backend == "gpu" else f"{candidate.threads}t"
    mark = ("=" if candidate.exact else "~") + f"{candidate.size_bytes / 2**20:.0f}"
    low, high = candidate.ttft_low_s, candidate.ttft_high_s
    digits = 0 if low >= 10 else 1 if low >= 0.1 else 2
    state = "too large" if not candidate.fits else "too slow" if candidate.missed else ""
    if not state and candidate.unsure:
        state = "unsure"
    return (
        (">" if taken else " ") + ("*" if candidate.pareto else " "),
        candidate.quantization,
        f"{candidate.runtime.name} {on}",
        mark,
        f"~{candidate.memory.total / 2**20:.0f}",
        str(candidate.decode),
        f"{low:.{digits}f}-{high:.{digits}f}",
        str(candidate.loss).removeprefix("~ ") if candidate.loss else "?",
        state,
    )


def _estimates(plan: Plan) -> list[str]:
    """Facts of the profile that speeds rest on and that have no source."""
    memory = plan.profile.memory
    shaky = [
        f"{name} {figure}"
        for name, figure in (("RAM (GiB)", memory.ram_gib), ("bandwidth (GB/s)", memory.peak_gbps))
        if figure.estimate
    ]
    return [f"Without a source in the profile: {', '.join(shaky)}."] if shaky else []
