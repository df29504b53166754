"""Files of others, damaged at random: our errors and nothing else, every kept seed included."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.errors import EdgeAdaptError
from tests.fuzz.targets import TARGETS, Target, all_seeds, case_folder, mutate, run_case, watched

CASES = 60


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_read_and_damaged_ones_refused(name: str) -> None:
    target = TARGETS[name]
    seeds = all_seeds(target)
    with case_folder(target) as folder:
        for data in target.seeds(folder):
            (folder / target.file).parent.mkdir(exist_ok=True)
            (folder / target.file).write_bytes(data)
            try:
                target.read(folder)
            except EdgeAdaptError as error:
                assert name == "manifest" and "differ" in str(error), error
        for data in seeds:
            run_case(target, data, folder)
            run_case(target, data[: len(data) // 2], folder)

        @settings(max_examples=CASES, deadline=None)
        @given(st.sampled_from(seeds), st.integers(0, 1 << 32))
        def damaged(data: bytes, number: int) -> None:
            run_case(target, mutate(data, random.Random(number)), folder)

        damaged()


def test_what_no_reader_may_do_is_seen() -> None:
    import pickle

    def fault(read: object) -> Target:
        return Target("fault", read, "x", lambda _: [b""])  # type: ignore[arg-type]

    with case_folder(TARGETS["gguf"]) as folder:
        for read in (
            lambda f: (f / "y").write_text("z"),
            lambda f: pickle.loads(b"cos\nsystem\n."),
            lambda f: {}["missing"],
        ):
            with pytest.raises((AssertionError, KeyError)):
                run_case(fault(read), b"", folder)
        (folder / "y").write_text("z")  # not watched any more
        with watched(), (folder / "y").open() as file:
            assert file.read() == "z"
