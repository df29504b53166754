from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import transformers
from safetensors.numpy import load_file

from edgeadapt.training import optimizer as optimizer_module
from edgeadapt.training.optimizer import Need, OffloadedAdamW, choose, need_of
from edgeadapt.training.settings import OptimizerName, TrainSettings
from edgeadapt.training.train import train
from tests.tiny import save_llama

MIB = 2**20
NAMES = [name for name in get_args(OptimizerName) if name != "auto"]


@pytest.mark.parametrize(
    ("free", "name", "said"),
    [
        (1600, "adamw", "1,600 MiB free"),
        (1599, "adamw-8bit", "1,200 MiB do not fit, with a state of 203 MiB they do"),
        (805, "adamw-8bit", "805 MiB free"),
        (804, "adamw-offloaded", "8 bits would not help"),
    ],
)
def test_what_fits_the_free_memory_is_chosen(free, name, said):
    need = Need(weights=400 * MIB, gradients=400 * MIB, parameters=100 * MIB)
    chosen, why = choose(need, free * MIB)
    assert chosen == name
    assert said in why and "weights 400 MiB, gradients 400 MiB, state in float32 800 MiB" in why


def tensor_bytes(saved) -> int:
    if isinstance(saved, dict):  # bitsandbytes puts what is quantized one level deeper
        return sum(map(tensor_bytes, saved.values()))
    return saved.nbytes if torch.is_tensor(saved) else 0


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_the_state_takes_what_was_foretold(data, tmp_path: Path, name):
    base = save_llama(tmp_path / "base", hidden=256, intermediate=512)
    need = need_of(transformers.AutoModelForCausalLM.from_pretrained(base))
    settings = TrainSettings(method="full", max_steps=1, optimizer=name)
    work = tmp_path / "work"
    train(base, data, None, settings, tmp_path / "out", base_spec="t", work=work)
    saved = torch.load(work / "checkpoint-1" / "optimizer.pt", weights_only=False)["state"]
    held = tensor_bytes(saved)
    assert held == pytest.approx(
        {"adamw": need.state, "adamw-8bit": need.state_8bit}[name], rel=0.1
    )
    assert need.state_8bit < 0.4 * need.state


def steps(optimizer, parameter, count):
    for _ in range(count):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()


def test_an_offloaded_state_changes_nothing_and_can_be_saved(tmp_path: Path):
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    plain, ours, later = (torch.nn.Parameter(start.clone()) for _ in range(3))
    expected = torch.optim.AdamW([plain], lr=0.1)
    offloaded = OffloadedAdamW([ours], folder=tmp_path, lr=0.1)
    steps(expected, plain, 3)
    steps(offloaded, ours, 3)
    assert torch.equal(ours, plain)

    torch.save(offloaded.state_dict(), tmp_path / "saved.pt")
    again = OffloadedAdamW([later], folder=tmp_path, lr=0.1)
    mapped = again.state[later]["exp_avg"].data_ptr()
    again.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
    assert again.state[later]["exp_avg"].data_ptr() == mapped  # in the file, not beside it
    later.data.copy_(ours)
    steps(expected, plain, 2)
    steps(again, later, 2)
    assert torch.equal(later, plain)
    assert [path.name for path in tmp_path.iterdir()] == ["saved.pt"]


class _Killed(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_learns_and_goes_on_where_it_was(base, data, tmp_path: Path, name):
    settings = TrainSettings(
        method="full", max_steps=5, batch_size=2, optimizer=name, save_every_s=0
    )
    done = []

    def stop():
        done.append(1)
        if len(done) == 3:
            raise _Killed

    for on_step in (stop, None):
        try:
            resumed = train(
                base, data, data, settings, tmp_path / "resumed", base_spec="t", on_step=on_step
            )
        except _Killed:
            assert list(tmp_path.glob(".resumed.work/checkpoint-*"))
    whole = train(base, data, data, settings, tmp_path / "whole", base_spec="t")
    assert resumed.record["optimizer"] == name
    assert resumed.record["losses"] == pytest.approx(whole.record["losses"], rel=1e-5)
    held_out = whole.record["held_out"]
    assert held_out["after"]["nll"] < held_out["before"]["nll"]
    ours, expected = (load_file(r.path / "model.safetensors") for r in (resumed, whole))
    assert all(abs(ours[key] - expected[key]).max() <= 1e-6 for key in expected)


def test_what_was_chosen_is_kept_when_memory_changes(base, data, tmp_path: Path, monkeypatch):
    settings = TrainSettings(method="full", max_steps=2, save_every_s=0)

    def stop():
        raise _Killed

    monkeypatch.setattr(optimizer_module, "free_memory", lambda device: 1)
    with pytest.raises(_Killed):
        train(base, data, None, settings, tmp_path / "o", base_spec="t", on_step=stop)
    monkeypatch.setattr(optimizer_module, "free_memory", lambda device: 1 << 40)
    record = train(base, data, None, settings, tmp_path / "o", base_spec="t").record
    assert record["optimizer"] == "adamw-offloaded"
    other = train(base, data, None, settings, tmp_path / "p", base_spec="t").record
    assert other["optimizer"] == "adamw"
