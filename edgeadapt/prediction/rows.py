"""Tables of published measurements, one a row, in CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.errors import InputError
from edgeadapt.prediction.hardware import Backend, Hardware, backend_of, hardware_of
from edgeadapt.prediction.workload import Workload, named_workload

COLUMNS = (
    "device", "soc", "mem_bw_gbps", "runtime", "model", "params_b", "quant", "file_gib", "threads",
    "pp_tps", "pp_tokens", "tg_tps", "tg_tokens", "peak_mem_gib", "source",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published measurement, understood."""

    line: int
    label: str
    """Device, runtime, model and quantization, for a table."""
    hardware: Hardware
    workload: Workload
    runtime: str
    threads: int | None
    decode_tps: float | None
    prefill_tps: float | None
    prompt_tokens: int
    source: str
    """The page, issue or file that published it."""
    publisher: str
    """The site or repository that the source lies in."""
    suspect: bool
    """Its own source says that it should not be believed."""


@dataclass(frozen=True)
class Refused:
    """A row that nothing can be predicted for, and why."""

    line: int
    label: str
    reason: str
    backend: Backend


def read_rows(path: Path) -> Iterator[Row | Refused]:
    """Read a table; a row that cannot be understood is refused, with its reason.

    Raises:
        InputError: there is no such file, or it is not such a table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    lines = csv.DictReader(text.replace("\0", "").splitlines())
    missing = {"device", "runtime", "model", "tg_tps"} - set(lines.fieldnames or ())
    if missing:
        raise InputError(
            f"{path} has no column {sorted(missing)[0]!r}; expected CSV with {', '.join(COLUMNS)}"
        )
    try:
        records = list(lines)
    except csv.Error as error:
        raise InputError(f"{path} is not CSV: {error}") from error
    for number, record in enumerate(records, 2):
        yield read_row(number, record)


def read_row(line: int, record: Mapping[str | None, object]) -> Row | Refused:
    """Understand one row."""
    cells = {key: value.strip() for key, value in record.items() if key and isinstance(value, str)}

    def cell(name: str) -> str:
        return cells.get(name, "")

    label = ", ".join(filter(None, map(cell, ("device", "runtime", "model", "quant"))))
    backend = backend_of(cell("runtime"), f"{cell('device')} | {cell('soc')}")
    bandwidth, file_gib = number(cell("mem_bw_gbps")), number(cell("file_gib"))
    try:
        hardware = hardware_of(cell("device"), cell("soc"), cell("runtime"), mem_bw_gbps=bandwidth)
        workload = named_workload(
            cell("model"),
            cell("quant"),
            billions=number(cell("params_b")),
            file_gib=file_gib,
            depth=depth_of(cell("runtime")),
        )
    except InputError as error:
        return Refused(line, label, str(error), backend)
    decode, prefill = number(cell("tg_tps")), number(cell("pp_tps"))
    if decode is None and prefill is None:
        return Refused(line, label, "no speed was measured", backend)
    threads, prompt = number(cell("threads")), number(cell("pp_tokens"))
    return Row(
        line=line,
        label=label,
        hardware=hardware,
        workload=workload,
        runtime=cell("runtime"),
        threads=max(1, round(threads)) if threads else None,
        decode_tps=decode,
        prefill_tps=prefill,
        prompt_tokens=max(1, round(prompt)) if prompt else 512,
        source=source_key(cell("source")),
        publisher=publisher_key(cell("source")),
        suspect="exclude from fits" in cell("source"),
    )


def number(text: str) -> float | None:
    """A positive number, also with a unit, `~` or a spread behind it; None if there is none."""
    found = re.match(r"[~≈<>]?\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)", text.replace(",", ""))
    value = float(found.group(1)) if found else 0.0
    return value if 0 < value < 1e12 else None


def depth_of(runtime: str) -> int:
    """Tokens of context that a runtime's name tells it was measured at, as in `@128k ctx`."""
    found = re.search(r"@\s*(\d+(?:\.\d+)?)\s*(k?)\b", runtime.lower())
    return int(float(found.group(1)) * (1024 if found.group(2) else 1)) if found else 0


def source_key(text: str) -> str:
    """The page that a source names, without remarks in brackets."""
    return re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]|https?://(www\.)?", "", text)).strip().lower()


def publisher_key(text: str) -> str:
    """The site, or the repository on a site of many, that a source lies in."""
    plain = source_key(text)
    if found := re.match(r"(?:github\.com/)?([\w.-]+/[\w.-]+?)(?:[#/\s]|$)", plain):
        return found.group(1)
    return plain[:60]
