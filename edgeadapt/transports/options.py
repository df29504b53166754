"""The options of the command that is running, as words for the same command elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.bench.llama_bench import Imported
    from edgeadapt.bench.measurement import Failure, Measurement
    from edgeadapt.transports.bench import Means

_STAYS_HERE = frozenset(
    {"on", "out", "adapter", "imports", "llama_bench_json", "llama_bench", "cores"}
    | {"as_json", "quiet", "verbose", "debug"}
)


def elsewhere(
    url: str, imported: list[Imported], means: Means
) -> Callable[..., Iterator[Measurement | Failure]]:
    """`bench_each` on another machine, with the options that were typed for `edgeadapt bench`.

    Args:
        url: where.
        imported: what llama-bench measures there is appended here.
        means: what to measure with there.

    Raises:
        InputError: an option cannot be handed on.
    """
    from edgeadapt.bench.llama_bench import Imported
    from edgeadapt.transports.bench import bench_on

    typed = options_as_typed(click.get_current_context(), without=_STAYS_HERE)

    def bench(
        artifacts: Sequence[Path], records: list[Measurement | Failure], **options: Any
    ) -> Iterator[Measurement | Failure]:
        for found in bench_on(url, artifacts, typed, options, means):
            if isinstance(found, Imported):
                imported.append(found)
            else:
                records.append(found)
                yield found

    return bench


def options_as_typed(context: click.Context, *, without: frozenset[str]) -> list[str]:
    """`--name value` for each option that was given; defaults are left to the other side.

    Args:
        context: of the command.
        without: names of parameters that stay here.

    Raises:
        InputError: one names a file here, which the other side does not have.
    """
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if not isinstance(parameter, click.Option) or name in without:
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params.get(name)
        flag = max(parameter.opts, key=len)
        if parameter.is_flag:
            words.append(flag if value else max(parameter.secondary_opts, key=len, default=flag))
            continue
        several = parameter.multiple or parameter.nargs != 1
        for single in (value or ()) if several else (value,):
            if isinstance(single, Path):
                raise InputError(f"{flag} names a file here, which --on does not take along")
            words += [flag, str(single)]
    return words
