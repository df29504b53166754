"""`edgeadapt evaluate`: artifacts of any origin against what a run, or a user, says they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeadapt.adapters import AdapterChoice
from edgeadapt.adapters.spec import trained_system
from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.base_model import resolve_base
from edgeadapt.console import log
from edgeadapt.data.source import held_out_part, resolve_data
from edgeadapt.devices import load_profile
from edgeadapt.errors import InputError
from edgeadapt.export import MergeBase, open_model
from edgeadapt.fidelity.evaluate import Yardstick, evaluate, prepare
from edgeadapt.fidelity.gates import Gates
from edgeadapt.fidelity.models import ReferenceModel, State, reference_models, texts_folder
from edgeadapt.fidelity.parity import check_parity
from edgeadapt.fidelity.task import Task, check_task
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.files import read_json
from edgeadapt.pipeline.results import FILE
from edgeadapt.pipeline.verdicts import failures, judged_record
from edgeadapt.prefix import runtimes_beside
from edgeadapt.runtimes.registry import installed_runtimes, runtimes_for
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.yaml_model import first_problem


@dataclass(frozen=True)
class Subject:
    """What artifacts mean to be: a base, perhaps adapted, and the text to see it on."""

    base: Path
    adapters: tuple[AdapterChoice, ...] = ()
    trained: Path | None = None
    """A model that was trained whole from the base."""
    onto: MergeBase = "original"
    """What the adapters were merged onto."""
    trained_on: str | None = None
    """How training held the base, where the adapter's record does not say."""
    data: Path | None = None
    examples: int | None = 128
    max_tokens: int = 512
    system: str | None = None
    """Prompt that training put before the conversations that have none."""
    gates: Gates = field(default_factory=Gates)
    devices: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    """Artifacts of the run, and the device profiles that each is for."""

    def models(self) -> dict[State, ReferenceModel]:
        """The models that artifacts are compared with.

        Raises:
            InputError: an adapter's folder is no adapter.
        """
        return reference_models(
            self.base,
            self.adapters,
            trained=self.trained,
            onto=self.onto,
            trained_on=self.trained_on,
        )


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    runtime: str | None = None
    """`all`, a name, or by default the preferred one for each artifact's format."""
    threads: int | None = None
    timeout_s: float | None = None
    window: int = 512
    """Tokens in a window of a .txt file."""
    quantized_base: bool = True
    devices: tuple[str, ...] = ()
    beside: Path | None = None
    """An adapter in the runtime's own format, to run beside each artifact."""


def subject_of_run(run: Path) -> Subject:
    """What a run trained or was given.

    Raises:
        InputError: the folder holds no finished run, or what it was made from is gone.
    """
    if not (run / FILE).is_file():
        raise InputError(
            f"{run} has no {FILE}; give the folder of a finished run, such as runs/demo, or say "
            "--base, --adapter and --data"
        )
    document = read_json(run / FILE)
    try:
        recipe, adapter = document["recipe"], document["adapter"] or {}
        found = Path(adapter["path"]) if adapter.get("path") else None
        whole = adapter.get("kind") == "model"
        return Subject(
            base=resolve_base(document["base"]["path"]),
            adapters=() if whole or found is None else (AdapterChoice(found),),
            trained=found if whole else None,
            onto=(document.get("merge") or {}).get("onto", "original"),
            trained_on=recipe.get("trained_on"),
            data=_data_of(recipe["data"]),
            examples=recipe["evaluate"]["held_out_examples"],
            max_tokens=recipe["evaluate"]["max_tokens"],
            system=None if found is None else trained_system(found),
            gates=Gates(**recipe.get("gates") or {}),
            devices={
                Path(artifact["path"]): tuple(artifact["devices"])
                for artifact in document["artifacts"]
            },
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise InputError(
            f"{run / FILE} is not of this edgeadapt ({error!r}); run it again"
        ) from error


def subject_of(base: Path, adapters: Sequence[AdapterChoice]) -> Subject:
    """A base with adapters, on conversations under the system prompt that these, or without any the
    base, were trained with.

    Raises:
        CorruptFileError: the record beside an adapter is damaged.
    """
    systems = {trained_system(choice.path) for choice in adapters} or {open_artifact(base).system}
    if len(systems) > 1:
        log.warning(
            "the adapters were trained with different system prompts; conversations that have "
            "none are measured without one"
        )
    system = systems.pop() if len(systems) == 1 else None
    if system is not None:
        log.info("system prompt of conversations that have none, as in training: %s", system)
    return Subject(base, tuple(adapters), system=system)


def _data_of(section: dict[str, Any]) -> Path | None:
    if section["held_out"]:
        return held_out_part(section["held_out"])
    return resolve_data(section["train"])[1] if section["train"] else None


def change_gates(gates: Gates, changes: Mapping[str, Any]) -> Gates:
    """Gates with some of them set anew.

    Raises:
        InputError: there is no such gate, or a value is out of range.
    """
    try:
        return Gates(**gates.model_dump() | dict(changes))
    except ValidationError as error:
        raise InputError(f"--gate: {first_problem(error)}") from error


def yardstick_of(subject: Subject, settings: Settings) -> Yardstick:
    """The references of a subject, from the cache or computed now.

    Raises:
        InputError: there is no held-out text.
    """
    if subject.data is None:
        raise InputError("there is no held-out text to measure on; give --data")
    models = subject.models()
    encoded = held_out_text(
        subject.data,
        ModelTokenizer.from_folder(texts_folder(models)),
        limit=subject.examples,
        max_tokens=subject.max_tokens,
        window=settings.window,
        system=subject.system,
    )
    return prepare(models, encoded, threads=settings.threads)


def _open(path: Path, beside: Path | None) -> Artifact:
    artifact = open_artifact(path)
    if beside is None and artifact.lineage.get("mode") == "separate":
        raise InputError(
            f"{path} was exported with --adapter-mode separate; give the base's artifact, and the "
            "adapter's file with --beside"
        )
    if beside is not None and not beside.is_file():
        raise InputError(f"{beside} does not exist; expected an adapter's file for --beside")
    return artifact


def evaluate_artifacts(
    paths: Sequence[Path], subject: Subject, settings: Settings, task: Task | None = None
) -> dict[str, Any]:
    """Measure and judge artifacts, each on its runtimes.

    Args:
        paths: the artifacts.
        subject: what they mean to be.
        settings: how to measure.
        task: the user's own measure.

    Returns:
        As JSON: `reference`, `artifacts` (each with its figures and gates by runtime in
        `fidelity`), `failures`, `failed_gates` and `passed`.

    Raises:
        InputError: something is missing or does not fit; found before any work.
    """
    for name in settings.devices:
        load_profile(name)
    if subject.gates.min_task_metric is not None and task is None:
        raise InputError("the gate min_task_metric needs a task to measure; give --task")
    if task is not None:
        check_task(task)
    artifacts = [_open(path, settings.beside) for path in paths]
    plans = [(artifact, _runtimes(artifact, settings)) for artifact in artifacts]
    source = open_model(str(subject.trained or subject.base)).source
    yardstick = yardstick_of(subject, settings)
    entries = []
    for artifact, runtimes in plans:
        entry = _entry(artifact, subject, settings)
        parity = None
        if subject.gates.parity:
            parity = check_parity(artifact, yardstick.texts, runtimes=runtimes, quick=True)
        entry["parity"] = parity and parity.record()
        for runtime in runtimes:
            figures = evaluate(
                artifact, runtime, yardstick, threads=settings.threads,
                timeout_s=settings.timeout_s, task=task,
                with_quantized_base=settings.quantized_base, others=runtimes,
                adapter=settings.beside,
            )  # fmt: skip
            entry["fidelity"][runtime] = judged_record(
                artifact, figures, subject.gates, source, entry["devices"],
                [parity.of(runtime).verdict()] if parity else [],
            )  # fmt: skip
        entries.append(entry)
    found = failures(entries)
    judged = [figures for entry in entries for figures in entry["fidelity"].values()]
    failed = {gate for figures in judged for gate in figures["failed_gates"]}
    return {
        "reference": yardstick.record(),
        "artifacts": entries,
        "failures": found,
        "failed_gates": sorted(failed),
        "passed": not found,
    }


def _runtimes(artifact: Artifact, settings: Settings) -> tuple[str, ...]:
    wished = settings.runtime
    if wished in (None, "all"):
        found = runtimes_beside(installed_runtimes(artifact.format), settings.beside)
        return found if wished else found[:1]
    if wished not in runtimes_for(artifact.format):
        raise InputError(
            f"{wished} does not load {artifact.path}, which is {artifact.format}; choose one of "
            f"{', '.join(runtimes_for(artifact.format))}"
        )
    return runtimes_beside((wished,), settings.beside)


def _entry(artifact: Artifact, subject: Subject, settings: Settings) -> dict[str, Any]:
    known = subject.devices.get(artifact.path.resolve(), ())
    return {
        "path": str(artifact.path),
        "format": artifact.format,
        "quantization": artifact.quantization,
        "bytes": artifact.size_bytes,
        "devices": list(dict.fromkeys((*known, *settings.devices))),
        "fidelity": {},
    }
