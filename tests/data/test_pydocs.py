from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeadapt.data import source
from edgeadapt.data.encode import encode_dataset
from edgeadapt.data.load import load_examples
from edgeadapt.data.pydocs import build_pydocs, is_held_out
from edgeadapt.errors import InputError
from edgeadapt.tokenizer import ModelTokenizer
from tests.tiny import save_tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_pydocs(tmp_path_factory.mktemp("pydocs") / "data")


def pairs(path: Path) -> list[tuple[str, str]]:
    return [
        (e.messages[0]["content"], e.messages[1]["content"])  # type: ignore[index]
        for e in load_examples(path)
    ]


def modules(path: Path) -> set[str]:
    names = [question.split("`")[1].split(".") for question, _ in pairs(path)]
    return {parts[0] for parts in names if len(parts) > 1}


def test_enough_of_both_kinds(built):
    train, held_out = built
    assert len(pairs(train)) > 1_000
    assert 100 < len(pairs(held_out)) < len(pairs(train)) / 4


def test_modules_are_in_one_split_only(built):
    train, held_out = built
    assert not modules(train) & modules(held_out)
    assert all(is_held_out(module) for module in modules(held_out))


def test_no_answer_occurs_twice(built):
    answers = [answer for path in built for _, answer in pairs(path)]
    assert len(set(answers)) == len(answers)
    assert all(len(answer) <= 320 for answer in answers)


def test_what_everybody_knows_is_there(built):
    known = dict(pair for path in built for pair in pairs(path))
    assert known["What does `textwrap.wrap` do in Python?"].startswith("Wrap a single paragraph")
    assert known["What does `math.exp` do in Python?"] == "Return e raised to the power of x."
    assert "What does `len` do in Python?" in known


def test_another_process_writes_the_same(built, tmp_path):
    code = "import sys, pathlib; from edgeadapt.data.pydocs import build_pydocs as b;"
    subprocess.run(
        [sys.executable, "-c", f"{code} b(pathlib.Path(sys.argv[1]))", str(tmp_path / "again")],
        check=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    )
    for path in built:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_name_stands_for_both_files():
    train, held_out = source.resolve_data("python-docs")
    assert source.resolve_data("pydocs") == (train, held_out)
    assert held_out is not None
    assert json.loads(train.read_text().splitlines()[0])["messages"][0]["role"] == "user"
    assert {p.name for p in train.parent.parent.iterdir()} == {train.parent.name}


def test_a_path_stands_for_itself(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    assert source.resolve_data(str(tmp_path / "d.jsonl")) == (tmp_path / "d.jsonl", None)
    with pytest.raises(InputError, match="does not exist; expected"):
        source.resolve_data(str(tmp_path / "nothing"))


def test_a_limit_takes_examples_evenly(tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = ModelTokenizer.from_folder(tmp_path)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(10)))
    encoded = encode_dataset(data, tokenizer, 64, limit=5)
    texts = [tokenizer.decode(e.ids, skip_special_tokens=True) for e in encoded]
    assert texts == ["text 0", "text 2", "text 4", "text 6", "text 8"]
    with pytest.raises(InputError, match=r"no example of .* has an answer within its first 1"):
        encode_dataset(data, tokenizer, 1)
