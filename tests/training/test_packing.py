from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.training import run as run_module
from edgeadapt.training.packing import check_packing, pack
from edgeadapt.training.settings import TrainSettings, train_settings
from edgeadapt.training.train import train
from tests.tiny import FAMILIES, save_model


@given(st.lists(st.integers(1, 50), max_size=60))
def test_every_example_is_in_one_row_that_has_room(lengths):
    rows = pack(lengths, 50)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[number] for number in row) for row in rows)
    assert all(filled <= 50 for filled in sums)
    assert len(sums) < 2 or sums[0] + sums[1] > 50  # or they were one
    assert pack(lengths, 50) == rows


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_keeps_examples_apart(family, tmp_path: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "m", family))
    check_packing(model.train())
    assert model.training


def test_a_leak_is_seen(base, monkeypatch):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    forward = model.forward

    def everything_seen(position_ids=None, **inputs):
        mask = torch.ones_like(inputs["input_ids"])
        return forward(position_ids=position_ids, attention_mask=mask, **inputs)

    monkeypatch.setattr(model, "forward", everything_seen)
    with pytest.raises(UnsupportedError, match="see another; leave the setting `packing` out"):
        check_packing(model)


def test_a_recurrent_model_is_refused():
    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1
    )
    with pytest.raises(UnsupportedError, match="type mamba"):
        check_packing(transformers.MambaForCausalLM(config))


def test_packed_rows_train_as_the_same_examples_do_unpacked(base, data, tmp_path: Path):
    """All in one batch, so that the first steps are over the same examples in both."""
    records = {}
    for packing in (False, True):
        settings = TrainSettings(
            method="lora", max_steps=3, batch_size=10, packing=packing, max_tokens=128
        )
        out = tmp_path / str(packing)
        records[packing] = train(base, data, None, settings, out, base_spec="t").record
    assert records[True]["losses"] == pytest.approx(records[False]["losses"], rel=1e-5)
    assert records[True]["rows"] < records[True]["examples"] == records[False]["rows"] == 10


def test_each_step_notes_the_examples_in_its_rows(base, data, tmp_path: Path):
    settings = TrainSettings(method="lora", batch_size=1, packing=True, max_tokens=128)
    work = tmp_path / "work"
    record = train(base, data, None, settings, tmp_path / "o", base_spec="t", work=work).record
    order = [json.loads(line) for line in (work / "order.jsonl").read_text().splitlines()]
    assert record["steps"] == record["rows"] == len(order) > 1
    assert sorted(n for step in order for n in step["examples"]) == list(range(10))


def test_a_prefix_is_not_packed():
    with pytest.raises(InputError, match="packing cannot be used with prefix"):
        train_settings({"method": "prefix", "packing": True})


def test_a_model_that_cannot_be_packed_is_refused_before_it_is_scored(
    base, data, tmp_path, monkeypatch
):
    def refuse(model):
        raise UnsupportedError("no")

    monkeypatch.setattr("edgeadapt.training.packing.check_packing", refuse)
    monkeypatch.setattr(run_module, "score_model", None)
    with pytest.raises(UnsupportedError):
        train(base, data, data, TrainSettings(packing=True), tmp_path / "o", base_spec="t")
