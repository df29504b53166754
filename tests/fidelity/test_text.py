"""Windows of running text are llama-perplexity's."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.errors import InputError
from edgeadapt.fidelity.text import held_out_text, windows
from edgeadapt.tokenizer import ModelTokenizer


def test_the_second_half_of_each_window_is_scored(tiny_model: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    ids = list(range(5, 55))
    found = windows(ids, tokenizer, 16)
    assert [example.ids for example in found] == [ids[0:16], ids[16:32], ids[32:48]]
    for example in found:
        # llama-perplexity takes the logits at 8..14 and the tokens at 9..15
        assert [i for i, scored in enumerate(example.scored) if scored] == list(range(9, 16))


def test_a_begin_token_takes_the_place_of_each_windows_first(tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = ModelTokenizer.from_folder(tiny_model)
    begin = tokenizer.backend.token_to_id("<|im_start|>")
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    ids = [begin, *range(5, 50)]
    found = windows(ids, tokenizer, 16)
    assert [example.ids[0] for example in found] == [begin, begin]
    assert found[0].ids == ids[:16] and found[1].ids[1:] == ids[17:32]


def test_text_files_and_datasets(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    every = held_out_text(text, tokenizer, window=32)
    assert held_out_text(text, tokenizer, window=32, limit=3) == [
        every[index * len(every) // 3] for index in range(3)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    assert len(held_out_text(data, tokenizer)) == 1
    with pytest.raises(InputError, match="shorter than one window"):
        held_out_text(text, tokenizer, window=10_000)
