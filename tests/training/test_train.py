from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.numpy import load_file

from edgeadapt.adapters.spec import read_spec
from edgeadapt.base_model import base_hash
from edgeadapt.cli import cli
from edgeadapt.data.encode import encode_dataset
from edgeadapt.data.load import data_hash
from edgeadapt.errors import DivergedError, InputError, UnsupportedError
from edgeadapt.export import open_model
from edgeadapt.files import sha256_tree
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.training import bottleneck, sequential
from edgeadapt.training import run as run_module
from edgeadapt.training.methods import METHODS
from edgeadapt.training.score import score_model
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.train import train
from tests.tiny import save_llama, save_model
from tests.training import killed
from tests.training.conftest import write_questions


def load_trained(base: Path, out: Path, method: str):
    if method == "full":
        return transformers.AutoModelForCausalLM.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if method == "adapter":
        return bottleneck.load(model, base, out)
    if method in ("houlsby", "pfeiffer"):
        return sequential.load(model, base, out)
    return peft.PeftModel.from_pretrained(model, out)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_leaves_a_loadable_folder(base, data, tmp_path, method):
    before = sha256_tree(base)
    out = tmp_path / "out"
    settings = TrainSettings(method=method, max_steps=3, virtual_tokens=4)
    result = train(base, data, data, settings, out, base_spec="tiny")

    record = json.loads((out / "edgeadapt.json").read_text())
    assert record == {"kind": "training", "schema_version": 1} | result.record
    assert (record["base_hash"], record["data_hash"]) == (base_hash(base), data_hash(data))
    assert (record["method"], record["steps"], len(record["losses"])) == (method, 3, 3)
    assert record["quantization"] == ("nf4" if method == "qlora" else "float32")
    if method != "prefix":  # whose random start is worse than no prefix
        assert record["held_out"]["after"]["nll"] < record["held_out"]["before"]["nll"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len({p.stat().st_mode for p in out.iterdir()}) == 1
    assert sha256_tree(base) == before
    if not torch.cuda.is_available():  # nothing is trained in 16 bits on a CPU
        trained = (
            t for f in out.glob("*.safetensors") for t in SafetensorsFile(f).tensors().values()
        )
        assert {tensor.dtype for tensor in trained} == {"F32"}

    if method != "qlora":  # which was scored on the NF4 base
        encoded = encode_dataset(data, ModelTokenizer.from_folder(base), 512)
        score = score_model(load_trained(base, out, method), encoded)
        assert score.nll == pytest.approx(record["held_out"]["after"]["nll"], rel=1e-5)
    if method in ("qlora", "lora", "dora", "rslora", "adapter", "ia3"):
        spec = read_spec(out)
        assert spec.method == {"qlora": "lora"}.get(method, method)
        assert spec.base_model == "tiny"
        assert spec.record["base_hash"] == base_hash(base)
        if method != "adapter":
            names = spec.config["target_modules"]  # in an order that no other process changes
            assert len(names) > 1 and names == sorted(names)


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.e2e) for m in ("adapter", "houlsby"))]
)
def test_a_killed_run_ends_as_if_it_had_not_been(base, data, tmp_path, method):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = map(str, (base, data, tmp_path, method))
    script = [sys.executable, "-m", "tests.training.killed", *arguments]
    done = subprocess.run(
        script, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    for step in (2, 4, 5, 6, 7, 8):
        assert f"going on from step {step} of 8" in done.stderr

    records = [
        json.loads((tmp_path / name / "edgeadapt.json").read_text())
        for name in ("killed", "undisturbed")
    ]
    assert records[0]["steps"] == records[1]["steps"] == 8
    assert records[0]["losses"] == pytest.approx(records[1]["losses"], rel=1e-5)
    assert len(records[0]["losses"]) == 8

    orders = []
    for name in ("killed-work", "undisturbed-work"):
        with (tmp_path / name / "order.jsonl").open() as file:
            orders.append([json.loads(line) for line in file])
    assert orders[0] == orders[1]
    assert [entry["step"] for entry in orders[0]] == list(range(1, 9))
    seen = [example for entry in orders[0] for example in entry["examples"]]
    assert sorted(seen[:10]) == list(range(10))
    assert len(set(seen[10:])) == 6
    assert seen[10:] != seen[:6]

    ours, expected = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("killed", "undisturbed")
    )
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert abs(ours[name] - tensor).max() <= 1e-6, name
    assert killed.SETTINGS.dropout > 0  # or the random state would not be tested


def test_a_bottleneck_trains_the_same_with_less_memory(base, data, tmp_path):
    losses = []
    for name, saving in (("a", False), ("b", True)):
        settings = TrainSettings(
            method="adapter", max_steps=3, width=8, gradient_checkpointing=saving
        )
        losses.append(train(base, data, None, settings, tmp_path / name, base_spec="t").record)
    assert losses[0]["losses"] == pytest.approx(losses[1]["losses"], rel=1e-5)
    assert losses[0]["losses"][-1] < losses[0]["losses"][0]
    assert losses[0]["trained_parameters"] == 3 * 64 * 8 * 2


def test_a_teacher_is_learned_in_place_of_the_answers(base, data, tmp_path):
    other = save_llama(tmp_path / "other", intermediate=128, seed=5)
    teacher = open_model(str(other))
    settings = TrainSettings(method="lora", max_steps=12, learning_rate=2e-2)
    record = train(
        base, data, data, settings, tmp_path / "out", base_spec="tiny", teacher=teacher
    ).record
    assert record["teacher"]["base"]["sha256"] == base_hash(other)
    encoded = encode_dataset(data, ModelTokenizer.from_folder(base), 512)
    first = divergence(transformers.AutoModelForCausalLM.from_pretrained(base), other, encoded)
    after = divergence(load_trained(base, tmp_path / "out", "lora"), other, encoded)
    assert record["losses"][0] == pytest.approx(first, rel=0.2)  # of one batch
    assert after < 0.7 * first


def divergence(model, teacher, encoded):
    """D(teacher || model) over the scored tokens, one example at a time, in float64."""
    taught, total, count = transformers.AutoModelForCausalLM.from_pretrained(teacher), 0.0, 0
    for example in encoded:
        ids = torch.tensor([example.ids])
        at = [i - 1 for i, scored in enumerate(example.scored) if scored]
        with torch.no_grad():
            p, q = (
                m(input_ids=ids).logits[0][at].double().log_softmax(-1) for m in (taught, model)
            )
        total += float((p.exp() * (p - q)).sum())
        count += len(at)
    return total / count


def test_a_teacher_of_another_vocabulary_is_refused(base, data, tmp_path):
    other = save_llama(tmp_path / "other", vocab_size=400)
    with pytest.raises(InputError, match="another vocabulary"):
        train(
            base, data, None, TrainSettings(), tmp_path / "out", base_spec="tiny",
            teacher=open_model(str(other)),
        )  # fmt: skip


def test_a_base_without_gated_blocks_is_refused_before_any_work(data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("scored before it was refused")

    monkeypatch.setattr(run_module, "score_model", refuse)
    experts = save_model(tmp_path / "experts", "mixtral")
    settings = TrainSettings(method="adapter", max_steps=1)
    with pytest.raises(UnsupportedError, match="several experts"):
        train(experts, data, data, settings, tmp_path / "out", base_spec="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["experts"]


def test_other_inputs_start_afresh(base, data, tmp_path):
    work = tmp_path / "work"
    settings = TrainSettings(method="ia3", max_steps=2)
    train(base, data, None, settings, tmp_path / "a", base_spec="tiny", work=work)
    other = settings.model_copy(update={"seed": 1})
    train(base, data, None, other, tmp_path / "b", base_spec="tiny", work=work)
    fresh = train(base, data, None, other, tmp_path / "c", base_spec="tiny")
    again = json.loads((tmp_path / "b" / "edgeadapt.json").read_text())
    assert again["losses"] == pytest.approx(fresh.record["losses"], rel=1e-6)


def test_torch_is_imported_where_its_threads_sleep_while_they_wait(base, data, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.torch_waiting", base, data, tmp_path / "out"],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "PASSIVE\n"


def test_epochs_count_partial_batches(base, data, tmp_path):
    settings = TrainSettings(method="ia3", epochs=2, batch_size=4, gradient_accumulation=2)
    work = tmp_path / "work"
    result = train(base, data, None, settings, tmp_path / "out", base_spec="tiny", work=work)
    assert result.record["steps"] == 4  # 10 examples: 3 batches, so 2 steps an epoch
    assert result.record["held_out"] is None
    lines = (work / "order.jsonl").read_text().splitlines()
    seen = [example for line in lines for example in json.loads(line)["examples"]]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_a_folder_of_somebody_else_is_left_alone(base, data, tmp_path):
    work = tmp_path / "thesis"
    work.mkdir()
    (work / "chapter1.txt").write_text("important")
    with pytest.raises(InputError, match="not a work folder"):
        train(base, data, None, TrainSettings(), tmp_path / "out", base_spec="b", work=work)
    assert [p.name for p in work.iterdir()] == ["chapter1.txt"]
    assert not (tmp_path / "out").exists()


def test_targets_that_do_not_exist(base, data, tmp_path):
    settings = TrainSettings(method="lora", target_modules=("query_key_value",))
    with pytest.raises(UnsupportedError, match="query_key_value"):
        train(base, data, None, settings, tmp_path / "out", base_spec="tiny")
    assert not (tmp_path / "out").exists()


def test_divergence_is_an_error(base, data, tmp_path):
    settings = TrainSettings(method="full", learning_rate=1e30, max_steps=3)
    with pytest.raises(DivergedError, match="training diverged"):
        train(base, data, None, settings, tmp_path / "out", base_spec="tiny")
    assert not (tmp_path / "out").exists()


def test_the_command(base, data, tmp_path):
    out = tmp_path / "adapter"
    arguments = ["train", "--base", str(base), "--data", str(data), "--held-out", str(data)]
    arguments += ["--max-steps", "2", "--r", "4", "--set", "warmup=0.5", "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--json", "-q"])
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["settings"]["warmup"] == 0.5
    assert torch.isfinite(torch.tensor(record["losses"])).all()
    assert read_spec(out).r == 4
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--data", "nothing.jsonl"], "does not exist"),
        (["--base", "/nowhere/model"], "does not exist"),
        (["--r", "0"], "'r'"),
        (["--set", "speed=9"], "'speed'"),
    ],
)
def test_bad_input_is_one_sentence(base, data, tmp_path, change, said):
    out = tmp_path / "adapter"
    arguments = ["train", "--base", str(base), "--data", str(data), "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, *change])
    assert done.exit_code == 2
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_long_dataset_is_scored_in_part(base, tmp_path):
    write_questions(tmp_path / "many.jsonl", 50)
    settings = TrainSettings(method="ia3", max_steps=1, held_out_examples=7)
    path = tmp_path / "many.jsonl"
    result = train(base, path, path, settings, tmp_path / "out", base_spec="tiny")
    assert result.record["held_out"]["before"]["examples"] == 7


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from edgeadapt.files import full_disk_told
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # no file grows beyond it
try:
    with full_disk_told(Path("here")):
        torch.save({"weight": torch.ones(4096, 64)}, sys.argv[1])
except OSError as error:
    print(error.filename, error.strerror)
"""


def test_a_checkpoint_that_torch_cannot_write_is_told_as_a_full_disk(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "c.pt"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "here No space left on device", done.stderr


def test_the_work_folder_may_be_on_another_disk(base, data, tmp_path):
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("one disk only")
        work = Path(other) / "work"
        settings = TrainSettings(method="lora", max_steps=1)
        train(base, data, None, settings, tmp_path / "new/out", base_spec="base", work=work)
    assert (tmp_path / "new/out/adapter_config.json").is_file()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_a_model_that_cannot_be_adapted_leaves_nothing(base, data, tmp_path):
    settings = TrainSettings(method="lora", max_steps=1, target_modules=("no_such_layer",))
    with pytest.raises(UnsupportedError, match="lora"):
        train(base, data, None, settings, tmp_path / "out", base_spec="base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [None, 100])
def test_the_loss_is_that_of_transformers(base, data, tmp_path, count):
    from edgeadapt.training import loop
    from edgeadapt.training.checkpoints import WorkFolder

    encoded = encode_dataset(data, ModelTokenizer.from_folder(base), 512)[:4]
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    trainer = loop.make_trainer(
        model, None, tokenizer, encoded, TrainSettings(method="full"),
        max_steps=1, learning_rate=1e-3, work=WorkFolder(tmp_path / "work", {}),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    known = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = model(**known, num_items_in_batch=count).loss
    loss = trainer.compute_loss(model, known, num_items_in_batch=count)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_system_prompt_is_trained_on_scored_and_recorded(base, data, tmp_path):
    records = [
        train(
            base, data, data, TrainSettings(method="lora", max_steps=1, system=system),
            tmp_path / str(system), base_spec="t",
        ).record
        for system in (None, "Be brief.")
    ]  # fmt: skip
    assert [record["settings"]["system"] for record in records] == [None, "Be brief."]
    encoded = encode_dataset(data, ModelTokenizer.from_folder(base), 512, system="Be brief.")
    expected = score_model(transformers.AutoModelForCausalLM.from_pretrained(base), encoded)
    before = [record["held_out"]["before"]["nll"] for record in records]
    assert before[1] == pytest.approx(expected.nll, rel=1e-6)
    assert before[0] != pytest.approx(before[1], rel=1e-4)
    assert records[0]["losses"] != records[1]["losses"]
