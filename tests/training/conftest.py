from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import save_llama

pytest.importorskip("trl")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base"), intermediate=128)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    write_questions(path, 10)
    return path


def write_questions(path: Path, count: int) -> None:
    with path.open("w") as file:
        for number in range(count):
            messages = [
                {"role": "user", "content": f"Number {number}?"},
                {"role": "assistant", "content": f"It is {number * 7 % 10}."},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
