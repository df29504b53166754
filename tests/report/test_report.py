"""Reports show the figures, at 80 columns, as Markdown and as a page that loads nothing."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeadapt.report import summary
from edgeadapt.report.charts import charts, layer_errors
from edgeadapt.report.html import render_html
from edgeadapt.report.markdown import render_markdown


def measurement(quantization: str, runtime: str, format: str = "gguf") -> dict[str, Any]:
    spread = {"median": 80.5, "p5": 75.25, "p95": 84.75, "count": 5, "samples": []}
    return {
        "artifact": {
            "format": format, "quantization": quantization, "path": "m", "sha256": quantization,
            "size_bytes": 105 * 2**20,
        },
        "runtime": {"name": runtime, "threads_in_use": 2},
        "machine": {"cpu": "AMD EPYC"},
        "settings": {"prompt_tokens": 128, "decode_tokens": 64, "repetitions": 5},
        "page_cache": {"state": "warm"},
        "load_s": 0.25,
        "ttft_s": spread | {"median": 0.31},
        "prefill_tps": spread | {"median": 412.0},
        "decode_tps": spread,
        "memory": {"peak_rss": 200 * 2**20, "peak_anonymous": 90 * 2**20, "peak_file_backed": None},
    }  # fmt: skip


def figure(value: float, error: float | None = 0.01) -> dict[str, Any]:
    return {"value": value, "standard_error": error}


FIGURES: dict[str, Any] = {
    "fidelity": {
        "perplexity_ratio": figure(1.046), "mean_kl": figure(0.0482), "p99_kl": figure(0.5),
        "top1": figure(0.868),
    },
    "retention": {
        "kl": {"float_base": figure(0.945), "quantized_base": figure(0.952)},
        "log_perplexity_gain": {"float_base": figure(0.951), "quantized_base": None},
        "effect": {"float_base": figure(0.973), "quantized_base": figure(0.994)},
        "bits_kl": figure(0.0853),
    },
    "task": {"metric": "rouge-l", "examples": 32} | figure(0.31, None),
    "gates": [
        {"gate": "max_kl", "figure": 0.0482, "limit": 0.2, "passed": True, "note": ""},
        {"gate": "min_top1", "figure": 0.868, "limit": 0.9, "passed": False, "note": "<too> low"},
        {"gate": "parity", "figure": None, "limit": True, "passed": True, "note": "not checked"},
    ],
    "failed_gates": ["min_top1"],
}  # fmt: skip

DOCUMENT: dict[str, Any] = {
    "name": "a-run",
    "edgeadapt": "0.1.0",
    "recipe": {"train": {"method": "qlora"}},
    "base": {"name": "default"},
    "adapter": {"method": "qlora", "kind": "adapter", "losses": [3.0, 2.5, 2.0]},
    "artifacts": [
        {
            "path": "/x/a-run-Q4_K_M.gguf",
            "format": "gguf",
            "quantization": "Q4_K_M",
            "bytes": 105 * 2**20,
            "devices": {"laptop-x86": "Q4_K_M because <it> fits"},
            "sha256": "Q4_K_M",
            "parity": {
                "cases": 837,
                "mismatches": {"llama-cpp": []},
                "engine_differences": {"llama-cpp": [{"message": "odd digits"}]},
            },
            "weights": [
                {"name": f"blk.{i}.w", "layer": i, "type": "Q4_K", "error": 0.01, "energy": 1 + i}
                for i in range(3)
            ],
            "fidelity": {"llama-cpp": FIGURES},
        },
        {
            "path": "/x/a-run-Q8_0.gguf",
            "format": "gguf",
            "quantization": "Q8_0",
            "bytes": 140 * 2**20,
            "devices": {},
            "sha256": "Q8_0",
            "weights": [],
            "fidelity": {"llama-cpp": FIGURES | {"failed_gates": []}},
        },
    ],
    "failures": ["a-run-Q4_K_M.gguf on llama-cpp failed min_top1"],
    "predictions": [
        {
            "device": device,
            "title": device,
            "runtime": "llama-cpp" if measured else "onnxruntime",
            "quantization": "Q4_K_M",
            "threads": 2,
            "decode_tps": {"low": 40.0, "median": 60.0, "high": 90.0},
            "prefill_tps": {"low": 200.0, "median": 300.0, "high": 500.0},
            "memory_bytes": 180 * 2**20,
            "measured": measured,
        }
        for device, measured in (("this-machine", True), ("raspberry-pi-5", False))
    ],
    "perplexity": {
        "base": {"perplexity": 41.84, "tokens": 900, "examples": 16},
        "live": {"perplexity": 15.92},
        "merged": {"perplexity": 15.13},
        "reduction": 0.6195,
        "artifacts": [
            {
                "quantization": "Q4_K_M",
                "runtime": "llama-cpp",
                "perplexity": 16.51,
                "gain_kept": 0.914,
            }
        ],
    },
    "measurements": [
        measurement("Q4_K_M", "llama-cpp"),
        measurement("Q8_0", "llama-cpp"),
        measurement("None", "torch", "hf"),
    ],
    "samples": [
        {
            "prompt": "What does `a|b` do?",
            "answers": {"base": "<script>alert(1)</script>", "Q4_K_M on llama-cpp": "It is or."},
        }
    ],
    "stages": [{"folder": "train-0123", "seconds": 100.0, "reused": False}],
}

FIGURES = ("41.84", "15.92", "16.51", "91.4%", "105.0", "412", "80.5", "75-85", "310", "200")


def test_the_summary_fits_80_columns() -> None:
    text = summary(DOCUMENT)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text  # nothing is cut
    for figure in FIGURES:
        assert figure in text
    assert "62% lower" in text


def test_markdown_holds_every_figure_and_keeps_its_tables() -> None:
    text = render_markdown(DOCUMENT)
    for figure in FIGURES:
        assert figure in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


class Page(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(value) for name, value in attrs if name in {"src", "href", "action"}]


def test_html_loads_nothing_and_runs_nothing_given() -> None:
    text = render_html(DOCUMENT)
    page = Page()
    page.feed(text)
    assert page.loads == [] and page.tags.count("script") == 1  # the one that sorts tables
    assert set(re.findall(r"url\((.)", text)) == {"#"} and "@import" not in text
    assert "&lt;script&gt;" in text
    for figure in FIGURES:
        assert figure in text
    assert "because &lt;it&gt; fits" in text


@pytest.mark.parametrize("missing", ["adapter", "live", "samples", "measurements"])
def test_runs_without_some_part_are_reported(missing: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    if missing == "adapter":
        document["adapter"] = None
        document["perplexity"] = {
            "base": document["perplexity"]["base"],
            "reduction": None,
            "artifacts": [document["perplexity"]["artifacts"][0] | {"gain_kept": None}],
        }
    elif missing == "live":
        del document["perplexity"]["live"]
    else:
        document[missing] = []
    for render in (summary, render_markdown, render_html):
        assert "41.84" in render(document)


def test_every_chart_takes_the_colours_of_the_page() -> None:
    made = charts(DOCUMENT)
    assert [chart.title for chart in made] == [
        "Quality against size", "Quality against speed", "Quality against memory",
        "Prediction and measurement", "Training", "Quantization error by layer",
    ]  # fmt: skip
    for chart in made:
        root = ElementTree.fromstring(chart.svg)  # well-formed
        assert root.get("viewBox") and root.get("aria-label") and root.get("width") is None
        assert "currentColor" in chart.svg and "var(--c0)" in chart.svg
        assert not re.findall(r"#(?!000000|ffffff)[0-9a-f]{6}\b", chart.svg)
        assert not set(re.findall(r'#([^")]+)', chart.svg)) - set(
            re.findall(r' id="([^"]+)"', chart.svg)
        )
    ids = [name for chart in made for name in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(set(ids)) == len(ids)
    assert charts(DOCUMENT) == made


def test_the_error_of_a_layer_is_that_of_its_matrices_together() -> None:
    weights = [
        {"layer": 0, "error": 1.0, "energy": 30.0}, {"layer": 0, "error": 3.0, "energy": 70.0},
        {"layer": 1, "error": 0.0, "energy": 5.0}, {"layer": None, "error": 9.0, "energy": 9.0},
    ]  # fmt: skip
    assert layer_errors(weights) == {0: pytest.approx(0.2), 1: 0.0}


def test_what_was_measured_outside_its_prediction_is_said() -> None:
    document = copy.deepcopy(DOCUMENT)
    assert "80.5*" not in render_markdown(document)
    document["predictions"][0]["decode_tps"]["high"] = 80.0
    assert "80.5*" in render_markdown(document)


def test_fidelity_is_in_every_report_with_its_errors() -> None:
    failure = "a-run-Q4_K_M.gguf on llama-cpp failed min_top1: 0.868, expected at least 0.9"
    document = DOCUMENT | {"failures": [failure]}
    for text in (render_markdown(document), render_html(document), summary(document)):
        plain = " ".join(text.split())
        assert "1.046 ±0.010" in plain and "0.0482 ±0.0100" in plain
        assert "86.8%" in plain and "min_top1" in plain
        assert "99%" in plain and "0.085" in plain
        assert "rouge-l" in plain and "0.310" in plain
        assert f"Not good enough: {failure}" in plain


def test_a_run_before_there_were_gates_is_still_reported() -> None:
    document = copy.deepcopy(DOCUMENT)
    for artifact in document["artifacts"]:
        del artifact["fidelity"]
    assert "Fidelity" not in render_markdown(document)
