"""References are torch's own logits, computed once, at the scored tokens only."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.adapters import AdapterChoice
from edgeadapt.data.encode import Encoded
from edgeadapt.errors import InputError
from edgeadapt.fidelity import references
from edgeadapt.fidelity.metrics import log_softmax
from edgeadapt.fidelity.models import ReferenceModel, load, reference_models
from edgeadapt.fidelity.references import (
    Reference,
    find_references,
    sequence_numbers,
    targets,
    text_hash,
    write_reference,
)
from edgeadapt.worker import run_job
from tests.fidelity.conftest import World
from tests.tiny import save_llama


def torch_log_probs(world: World, *, adapted: bool) -> np.ndarray:
    """One sequence at a time, through PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    if adapted:
        model = PeftModel.from_pretrained(model, world.adapter).eval()
    rows = []
    for example in world.encoded:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].numpy()
        rows.append(logits[np.flatnonzero(example.scored) - 1])
    return log_softmax(np.concatenate(rows))


@pytest.mark.parametrize("state", ["base", "merged"])
def test_references_are_what_torch_says(world: World, state: str) -> None:
    reference = world.yardstick.references[state]
    expected = torch_log_probs(world, adapted=state == "merged")
    assert reference.log_probs.dtype == np.float16
    np.testing.assert_allclose(reference.log_probs, expected, atol=0.01)
    wanted = targets(world.encoded)
    nll = -expected[np.arange(len(wanted)), wanted]
    np.testing.assert_allclose(reference.scores.nll, nll, atol=1e-4)
    assert len(sequence_numbers(world.encoded)) == len(wanted)


def test_batches_side_by_side_do_not_mix(world: World, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    encoded = [
        Encoded(random.integers(1, 300, length).tolist(), [False, *(random.random(length - 1) < p)])
        for length, p in zip(
            random.integers(150, 400, 24), random.uniform(0.1, 0.9, 24), strict=True
        )
    ]
    model = load(ReferenceModel("base", world.base))
    found = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_reference(model, encoded, folder, lambda _: None, threads=threads)
        found.append(Reference.open(folder))
    one, four = found
    np.testing.assert_allclose(four.scores.nll, one.scores.nll, atol=1e-5)
    np.testing.assert_allclose(four.log_probs, one.log_probs, atol=0.01)


def test_a_live_model_in_nf4_keeps_its_weights_as_training_had_them(tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes packs them anew in the first forward: in two threads
    twice, and not at all where rows are no multiple of 64."""
    import bitsandbytes
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_llama(tmp_path / "base", hidden=64, intermediate=96)
    peft_model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear")
    )
    peft_model.save_pretrained(tmp_path / "adapter")
    live = reference_models(base, [tmp_path / "adapter"], trained_on="nf4")["live"]
    assert live.held_as == "nf4"
    model = load(live)
    random = np.random.default_rng(0)
    encoded = [
        Encoded(random.integers(1, 300, 40).tolist(), [False, *[True] * 39]) for _ in range(16)
    ]
    write_reference(model, encoded, tmp_path, lambda _: None, threads=2)
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert layers
    for layer in layers:
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_the_live_model_of_a_float_base_equals_the_merged_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEADAPT_CACHE", str(world.folder / "cache"))
    model = reference_models(world.base, [world.adapter])["live"]
    assert model.held_as == "float32"
    live = find_references({"live": model}, world.encoded, threads=1)["live"]
    merged = world.yardstick.reference
    np.testing.assert_allclose(live.scores.nll, merged.scores.nll, atol=1e-4)


def test_a_reference_is_computed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEADAPT_CACHE", str(world.folder / "cache"))

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(references, "_compute", refuse)
    model = ReferenceModel("base", world.base)
    found = find_references({"any": model}, world.encoded)["any"]
    assert found.folder == world.yardstick.references["base"].folder
    with pytest.raises(AssertionError, match="computed again"):
        find_references({"any": model}, world.encoded[:-1])


def test_the_cache_keeps_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 86400
    for age, name in enumerate(("newest", "middle", "oldest")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "reference.json").write_text("{}")
        (folder / "log_probs.npy").write_bytes(bytes(1000))
        os.utime(folder, (time.time() - age * day,) * 2)
    monkeypatch.setattr(references, "MOST_BYTES", 2100)
    references._prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"newest", "middle"}


def test_what_counts_is_part_of_the_hash(world: World) -> None:
    example = world.encoded[0]
    other = type(example)(example.ids, [False, *([True] * (len(example.ids) - 1))])
    assert text_hash([example]) != text_hash([other])


def test_identity_follows_the_adapter_and_its_scale(world: World) -> None:
    plain = AdapterChoice(world.adapter)
    other = AdapterChoice(world.adapter_with("other-alpha", lora_alpha=9.0))
    models = [
        ReferenceModel("merged", world.base, (plain,)),
        ReferenceModel("merged", world.base, (other,)),
        ReferenceModel("merged", world.base, (plain, other)),
        ReferenceModel("merged", world.base, (AdapterChoice(world.adapter, 0.5),)),
        ReferenceModel("base", world.base),
        ReferenceModel("live", world.base, (plain,), "nf4"),
    ]
    identities = [str(model.identity()) for model in models]
    assert len(set(identities)) == len(identities)
    assert all(ReferenceModel.from_record(model.record()) == model for model in models)


def test_nothing_is_kept_of_a_base_that_is_changed_while_it_runs(
    tiny_model: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")

    def changing(*arguments: Any, **options: Any) -> dict[str, Any]:
        with (base / "config.json").open("a") as file:
            file.write(" ")
        return run_job(*arguments, **options)

    monkeypatch.setattr(references, "run_job", changing)
    text = [Encoded([5, 6, 7, 8], [False, True, True, True])]
    with pytest.raises(InputError, match="was changed while the base model was run"):
        find_references({"base": ReferenceModel("base", base)}, text)
    assert list((own_cache / "references").iterdir()) == []
