"""Tables of measurements as the world writes them: understood, or refused with a reason."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.errors import InputError
from edgeadapt.prediction.rows import (
    COLUMNS,
    Refused,
    Row,
    depth_of,
    number,
    publisher_key,
    read_row,
    read_rows,
    source_key,
)

ROOT = Path(__file__).parents[2]
GOOD = {
    "device": "Raspberry Pi 5 8GB", "soc": "BCM2712", "mem_bw_gbps": "17.1",
    "runtime": "llama.cpp CPU", "model": "Llama 3.2 1B", "quant": "Q4_K_M", "threads": "4",
    "tg_tps": "11.2", "source": "github.com/a/b#3 [A: primary]",
}  # fmt: skip


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue())
    return path


def test_a_good_row() -> None:
    row = read_row(2, GOOD)
    assert isinstance(row, Row)
    assert (row.threads, row.decode_tps, row.source) == (4, 11.2, "github.com/a/b#3")
    assert row.hardware.basis == "profile raspberry-pi-5"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tg_tps": ""}, "no speed was measured"),
        ({"tg_tps": "fast"}, "no speed was measured"),
        ({"model": "", "quant": ""}, "size of the model is not known"),
        ({"quant": "not stated"}, "neither is the file's size"),
        ({"device": "", "soc": ""}, "neither device nor SoC is named"),
        ({"device": "Toaster", "soc": "", "mem_bw_gbps": ""}, "no known class"),
    ],
)
def test_a_row_that_says_too_little_is_refused(change: dict[str, str], reason: str) -> None:
    row = read_row(2, GOOD | change)
    assert isinstance(row, Refused)
    assert reason in row.reason
    assert "\n" not in row.reason


@pytest.mark.parametrize(
    "change",
    [
        {"threads": "default"}, {"threads": "0"}, {"mem_bw_gbps": "-1"}, {"file_gib": "~0.8"},
        {"params_b": "1,240"}, {"soc": ""}, {"source": ""}, {"tg_tps": "11.2 ± 0.3"},
        {"runtime": "llama.cpp CPU @16k ctx"}, {"model": "Qwen3-30B-A3B", "params_b": "3"},
    ],
)  # fmt: skip
def test_odd_cells_do_no_harm(change: dict[str, str]) -> None:
    assert isinstance(read_row(2, GOOD | change), Row)


@given(st.fixed_dictionaries({name: st.text(max_size=12) for name in COLUMNS}))
@settings(max_examples=150, deadline=None)
def test_any_cells_are_a_row_or_a_refusal(cells: dict[str, str]) -> None:
    assert isinstance(read_row(2, cells), Row | Refused)


def test_numbers_depths_and_sources() -> None:
    assert number("4,096") == 4096 and number("~2.5") == 2.5 and number("n/a") is None
    assert depth_of("LM Studio CPU @128k ctx") == 131072 and depth_of("llama.cpp") == 0
    text = "github.com/potato-os/core docs/benchmarks/x.md [A: llama-bench, 1 repetition]"
    assert source_key(text) == "github.com/potato-os/core docs/benchmarks/x.md"
    assert publisher_key(text) == "potato-os/core"


def test_files_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        list(read_rows(tmp_path / "none.csv"))
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no column 'device'"):
        list(read_rows(tmp_path / "x.csv"))


def score(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/device_prediction.py", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


def test_the_score_of_a_file(tmp_path: Path) -> None:
    unseen = GOOD | {"device": "Some laptop", "soc": "Ryzen 5 5600U", "mem_bw_gbps": "51.2"}
    path = table(tmp_path / "rows.csv", [GOOD, unseen, GOOD | {"quant": "?"}])
    done = score(str(path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    keys = {
        "rows", "refused", "median_error", "p90_error", "coverage_80", "median_interval_width",
    }  # fmt: skip
    for part in (result, result["cpu"]):
        assert keys <= set(part)
        assert (part["rows"], part["refused"]) == (2, 1)
    assert result["from_class_facts"]["rows"] == result["with_profile"]["rows"] == 1
    text = score(str(path), "--rows").stdout
    assert "no profile: class zen" in text
    assert "refused, line 4" in text


def test_a_missing_file_ends_in_one_sentence() -> None:
    done = score("nowhere.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: cannot read nowhere.csv") and done.stderr.count("\n") == 1
