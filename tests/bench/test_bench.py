"""A measurement is complete, honest about the page cache, and survives a round trip."""

from __future__ import annotations

import io
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.bench import memory, pagecache
from edgeadapt.bench.measurement import (
    Background,
    Distribution,
    Energy,
    Failure,
    Measurement,
    Sustained,
    Window,
)
from edgeadapt.bench.protocol import prompt_ids, repetition
from edgeadapt.bench.run import bench_artifact
from edgeadapt.bench.series import bench_each
from edgeadapt.bench.table import render
from edgeadapt.cli import cli
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.files import sha256_file
from edgeadapt.jobs import open_here

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SHORT = {"prompt_tokens": 20, "decode_tokens": 6, "repetitions": 3, "threads": 1}


@pytest.fixture(scope="module")
def measured(tiny_gguf: Path) -> Measurement:
    return bench_artifact(tiny_gguf, **SHORT)


def test_every_figure_of_a_run_is_there(measured: Measurement, tiny_gguf: Path) -> None:
    assert measured.artifact.sha256 == sha256_file(tiny_gguf)
    assert measured.artifact.size_bytes == tiny_gguf.stat().st_size
    assert measured.artifact.quantization == "F32"
    assert measured.runtime.version
    assert measured.runtime.build["features"]
    assert (measured.runtime.threads_requested, measured.runtime.threads_in_use) == (1, 1)
    assert measured.settings.context == 256
    for values in (measured.ttft_s, measured.prefill_tps, measured.decode_tps):
        assert values.count == len(values.samples) == 3
        assert 0 < values.p5 <= values.median <= values.p95
    assert measured.decode_step_s.count == 18
    assert measured.load_s > 0
    assert measured.first_answer_s > 0
    assert measured.machine.cpu
    assert measured.machine.available_cores >= 1
    assert 0 <= measured.machine.busy <= 1


def test_speeds_are_counts_over_times(measured: Measurement) -> None:
    for seconds, speed in zip(measured.ttft_s.samples, measured.prefill_tps.samples, strict=True):
        assert speed == pytest.approx(20 / seconds)


@linux_only
def test_memory_is_split_and_grows_with_the_phases(measured: Measurement) -> None:
    taken = measured.memory
    assert list(taken.phases) == ["before_load", "loaded", "warmed_up", "finished"]
    assert taken.peak_rss is not None
    assert taken.at_peak is not None
    assert taken.phases["before_load"].rss < taken.phases["finished"].rss <= taken.peak_rss * 1.01
    assert taken.at_peak.rss == pytest.approx(taken.peak_rss, rel=0.03)
    assert taken.peak_anonymous >= taken.phases["finished"].anonymous
    assert 0 < taken.peak_pss <= taken.peak_rss


def test_a_measurement_survives_json(measured: Measurement) -> None:
    text = measured.model_dump_json()
    assert json.loads(text)["schema_version"] == 1
    assert Measurement.model_validate_json(text) == measured


@linux_only
def test_warm_and_cold_are_measured_not_assumed(tiny_gguf: Path, measured: Measurement) -> None:
    assert measured.page_cache.state == "warm"
    assert measured.page_cache.resident_before_load == 1.0
    cold = bench_artifact(tiny_gguf, cold=True, **SHORT)
    assert cold.page_cache.state == "cold"
    fraction = cold.page_cache.resident_before_load
    assert fraction is not None
    if fraction:  # a file system that keeps pages, such as tmpfs: then the note must say so
        assert "not fully cold" in render([cold])


@linux_only
def test_pages_are_counted_dropped_and_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_001))
    pagecache.read_once([path])
    assert pagecache.resident_fraction([path]) == 1.0
    assert pagecache.drop([path])
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        if pagecache.resident_fraction([path]) == 0.0:  # not so on tmpfs
            os.pread(file.fileno(), 1, 0)
            assert 0 < pagecache.resident_fraction([path]) < 1
    pagecache.read_once([path])
    assert pagecache.resident_fraction([path]) == 1.0
    (tmp_path / "empty").touch()
    assert pagecache.resident_fraction([tmp_path / "empty"]) is None


@linux_only
def test_memory_that_this_process_takes_is_seen() -> None:
    before = memory.memory_point("self")
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    block = mmap.mmap(-1, 30_000_000, flags=own)  # fresh: malloc may have pages there already
    block.write(b"1" * len(block))
    after = memory.memory_point("self")
    assert before is not None
    assert after is not None
    assert 29_000_000 < after.anonymous - before.anonymous < 40_000_000
    assert memory.high_water("self") >= len(block)
    assert memory.memory_point(2**22 + 1) is None
    assert memory.high_water(2**22 + 1) is None


MAPPER = """
import mmap, sys

def pause():
    print(flush=True)
    sys.stdin.readline()

with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    for _ in range(3):
        for start in range(0, len(pages), mmap.PAGESIZE):
            pages[start]
        pause()
        pages.madvise(21)  # MADV_PAGEOUT: what the system does when the page cache has no room
        pause()
"""


@linux_only
def test_pages_that_are_dropped_and_mapped_again_are_counted_once(tmp_path: Path) -> None:
    """Weights are read from end to end several times and do not stay, as with too little memory."""
    size = 40_000_000
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(size))
    pagecache.drop([path])  # dirty pages would stay
    found = []
    with subprocess.Popen(
        [sys.executable, "-c", MAPPER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process, memory.Sampler() as sampler:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        sampler.start(process.pid)
        for _ in process.stdout:
            found.append(memory.memory_point(process.pid))
            mark = memory.high_water(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
    full, dropped = found[::2], found[1::2]
    assert len(full) == len(dropped) == 3
    for before, after in zip(full, dropped, strict=True):
        assert size <= before.file_backed < size + 20_000_000  # and Python's libraries
        assert after.file_backed < before.file_backed - size / 2
    peak = max(point.rss for point in (*full, *sampler.points))
    assert peak == pytest.approx(mark, rel=0.03)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_percentiles_lie_in_order_within_the_samples(values: list[float]) -> None:
    made = Distribution.of(values)
    assert min(values) <= made.p5 <= made.median <= made.p95 <= max(values)
    assert made.samples == tuple(values)


def test_a_repetition_is_plain_greedy_decoding(tiny_gguf: Path) -> None:
    session = open_here(tiny_gguf, context=64, threads=1)
    prompt = prompt_ids(session, 30)
    assert len(prompt) == 30
    done = repetition(session, prompt, 10)
    expected = list(prompt)
    for _ in range(11):
        expected.append(int(session.all_logits(expected)[-1].argmax()))
    assert done.tokens == expected[30:]
    assert len(done.steps_s) == 10
    session.close()


def test_wrong_requests_are_refused_before_anything_runs(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need a context of 26; --context is 16"):
        bench_artifact(tiny_gguf, context=16, **SHORT)
    with pytest.raises(InputError, match="does not load"):
        bench_artifact(tiny_gguf, runtime="torch")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:5000])
    records: list[Measurement | Failure] = []
    with pytest.raises(CorruptFileError, match=r"cut\.gguf"):
        list(bench_each([tiny_gguf, cut], records, **SHORT | {"threads": (1,)}))
    assert records == []


def test_the_table_fits_eighty_columns(measured: Measurement) -> None:
    long = measured.model_copy(
        update={
            "artifact": measured.artifact.model_copy(
                update={
                    "path": "/models/some-rather-long-name-of-a-model-0.5B-Instruct.Q4_K_M.gguf"
                }
            )
        }
    )
    text = render([measured, long])
    assert max(map(len, text.splitlines())) <= 80
    joined = "".join(text.split())
    assert "tiny.gguf" in joined
    assert "warm:100%" in joined
    for values in (measured.decode_tps, long.decode_tps):
        assert f"{values.median:.1f}" in text


def test_the_table_says_when_others_were_computing(measured: Measurement) -> None:
    def with_busy(share: float) -> str:
        machine = measured.machine.model_copy(update={"busy": share})
        quiet = Background(others=0.0, steal=0.0, load_average=0.0)
        return render([measured.model_copy(update={"machine": machine, "background": quiet})])

    assert "Other programs used 30% of the CPU" in with_busy(0.3)
    assert "Other programs" not in with_busy(0.02)


@linux_only
def test_the_table_says_what_went_on_during_a_run(measured: Measurement) -> None:
    assert measured.background is not None
    assert measured.background.load_average is not None
    stolen = Background(others=0.4, steal=0.2, load_average=3.0)
    text = " ".join(render([measured.model_copy(update={"background": stolen})]).split())
    assert "Other programs used 40% of the CPU during a run" in text
    assert "The hypervisor gave 20% of the CPU to other machines" in text


def test_the_table_shows_energy_and_what_throttled(measured: Measurement) -> None:
    def window(start: float, speed: float) -> Window:
        return Window(
            start_s=start, seconds=5, tokens=50, decode_tps=speed, temperature_c=84,
            frequency_mhz=1500,
        )  # fmt: skip

    changes = {
        "energy": Energy(source="rapl", scope="package-0", joules=30, seconds=10, repetitions=3),
        "sustained": Sustained(
            windows=(window(0, 10.0), window(5, 7.5)),
            kept=0.75,
            throttling=("the clock fell from 2400 to 1500 MHz",),
            watched=("temperature", "frequency"),
        ),
    }
    text = render([measured.model_copy(update=changes)])
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    assert "10.00 J a repetition, 3.00 W (rapl package-0, all else on it included)" in text
    assert "5 7.5 84 1500" in text
    assert "ran at 75% of the first's speed" in text
    assert "Throttled: the clock fell from 2400 to 1500 MHz." in text


def test_the_command_prints_json_and_writes_it(tiny_gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    options = "--prompt-tokens 8 --decode-tokens 4 --repetitions 1 --threads 1 --runtime all --json"
    arguments = ["bench", str(tiny_gguf), str(tiny_gguf), *options.split(), "--out", str(out)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    records = json.load(io.StringIO(done.stdout))
    assert len(records) == 2
    assert records == json.loads(out.read_text())
    assert Measurement.model_validate(records[0]).runtime.name == "llama-cpp"


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["bench", str(tmp_path / "nothing.gguf")])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert "nothing.gguf does not exist" in done.stderr
    assert done.stderr.count("\n") == 1
