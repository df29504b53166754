"""Options of `edgeadapt bench` that need reading, and what they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Numbers(tuple[int, ...]):
    """Numbers that remember how they were typed, for the same command on another machine."""

    typed: str

    def __str__(self) -> str:
        return self.typed


class _Read(click.ParamType[Any]):
    """A parameter that a function reads; it raises ValueError with what was expected."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            return self.fail(str(error), param, ctx)


def read_threads(text: str) -> Numbers:
    """`4`, `1,2,4`, or `sweep`.

    Raises:
        ValueError: it is none of these.
    """
    if text == "sweep":
        from edgeadapt.bench.series import thread_sweep
        from edgeadapt.jobs import available_threads

        return _typed(text, thread_sweep(available_threads()))
    return _numbers(text, 1, "numbers of threads such as 4 or 1,2,4, or sweep")


def read_depths(text: str) -> Numbers:
    """`0,512,2048`.

    Raises:
        ValueError: it is not such a list.
    """
    return _numbers(text, 0, "numbers of tokens such as 0,512,2048")


def _typed(text: str, values: Iterable[int]) -> Numbers:
    numbers = Numbers(dict.fromkeys(values))
    numbers.typed = text
    return numbers


def _numbers(text: str, least: int, expected: str) -> Numbers:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,7}", word) and int(word) >= least for word in words):
        raise ValueError(f"{text!r} is not what was expected: {expected}")
    return _typed(text, map(int, words))


def read_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m` or `1.5h`.

    Raises:
        ValueError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?)([smh]?)", text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds < 1:
        raise ValueError(f"{text!r} is not a duration of a second or more, such as 90s, 10m or 1h")
    return seconds


def read_gpu_layers(text: str) -> int:
    """A number, or -1 for `all` (or -1 itself, llama.cpp's way to say it).

    Raises:
        ValueError: it is neither.
    """
    if text in ("all", "-1"):
        return -1
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError(f"{text!r} is neither a number of layers nor all")
    return int(text)


def read_size(text: str) -> int:
    """Bytes of `500M` or `1.5GiB`.

    Raises:
        ValueError: it is no size.
    """
    from edgeadapt.allocation.budget import parse_max_size
    from edgeadapt.errors import InputError

    try:
        return parse_max_size(text)
    except InputError as error:
        raise ValueError(str(error)) from error


def method_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options on how to measure; names are those of `bench_each`'s arguments."""
    for option in reversed(_METHOD):
        function = option(function)
    return function


def elsewhere_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --on, --llama-bench and --cores."""
    for option in reversed(_ELSEWHERE):
        function = option(function)
    return function


def llama_bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --import and --llama-bench-json."""
    for option in (
        click.option(
            "--llama-bench-json", type=click.Path(path_type=Path),
            help="Also write what llama.cpp ran to this new file, as llama-bench -o json prints.",
        ),
        click.option(
            "--import", "imports", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
            help="Show figures of llama-bench -o json from another device beside these.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


_METHOD = (
    click.option(
        "--threads", type=_Read("N,...", read_threads), default=(),
        help="One number, several to compare, or sweep (1, 2, 4 and so on). Default: the physical "
        "cores available, or what the profile of --device says.",
    ),
    click.option("--device", help="Take the number of threads from this device's profile."),
    click.option(
        "--depths", type=_Read("N,...", read_depths), default=(),
        help="Also decode with so many tokens in the context: 0,512,2048.",
    ),
    click.option(
        "--sustain", type=_Read("TIME", read_duration),
        help="Then decode for so long (90s, 10m) without a rest; shows speed, temperature and "
        "clock over time, and what throttles.",
    ),
    click.option(
        "--gpu-layers", type=_Read("N|all", read_gpu_layers),
        help="Layers to give to a GPU (llama.cpp).",
    ),
    click.option(
        "--memory-limit", type=_Read("SIZE", read_size),
        help="Memory of its own that the measured process may ask for, as 500M; the mapped model "
        "does not count (Linux).",
    ),
)  # fmt: skip


def read_cores(text: str) -> tuple[int, ...]:
    """See `parse_cores`."""
    from edgeadapt.transports.cores import parse_cores

    return parse_cores(text)


_ELSEWHERE = (
    click.option(
        "--on",
        metavar="URL",
        help="Measure on another machine: ssh://user@host[:port][/path/of/edgeadapt/there], or a "
        "phone or headset: adb://[serial]. Or try whether it runs at all on an emulated CPU: "
        "qemu://cortex-a76.",
    ),
    click.option(
        "--llama-bench", type=click.Path(path_type=Path), metavar="FILE",
        help="With --on: copy this llama-bench, built for the device, and the libraries beside it, "
        "and measure with it.",
    ),
    click.option(
        "--cores", type=_Read("N-N,...", read_cores), default=(),
        help="With --on: run on these CPU cores alone (taskset), as 4-7. By default llama-bench "
        "there runs on the fast cores of --device, if it has others too.",
    ),
)  # fmt: skip
