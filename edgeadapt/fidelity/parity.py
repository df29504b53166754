"""Whether an artifact makes the same tokens of a conversation as the model it came from.

A fixed set of conversations and texts is rendered and tokenized by the Hugging Face tokenizer of
the original folder, and by each engine from the shipped files alone.

The original's answers come from transformers. Where time matters more, `tokenizers` and Jinja
answer in its place, and transformers is asked only if an engine then seems to be wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.console import log
from edgeadapt.errors import EdgeAdaptError, GateFailure, MissingExtraError
from edgeadapt.fidelity import chats
from edgeadapt.fidelity.gates import Verdict, verdict_record
from edgeadapt.fidelity.parity_compare import Mismatch, compare
from edgeadapt.files import cache_dir, read_json, sha256_file, sha256_json, write_json
from edgeadapt.leftovers import scratch
from edgeadapt.runtimes.registry import get_runtime, runtimes_for
from edgeadapt.tokenizer import TOKENIZER_FILES
from edgeadapt.worker import run_job

GATE = "parity"
_VERSION = 3
"""Of the cases; part of the key under which the original's answers are cached."""


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and what differs."""

    cases: int = 0
    mismatches: dict[str, list[Mismatch]] = field(default_factory=dict)
    """By runtime, of those that were checked; the artifact's fault."""
    engine: dict[str, list[Mismatch]] = field(default_factory=dict)
    """By runtime: odd text that the engine treats otherwise with the original's files too."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """By runtime: why it was not checked."""

    @property
    def checked(self) -> bool:
        """Whether any runtime was compared."""
        return bool(self.mismatches)

    @property
    def passed(self) -> bool:
        """Whether nothing differs that was compared."""
        return not any(self.mismatches.values())

    def of(self, runtime: str) -> ParityReport:
        """What was found of one runtime alone."""
        return ParityReport(
            self.cases,
            {name: found for name, found in self.mismatches.items() if name == runtime},
            {name: found for name, found in self.engine.items() if name == runtime},
            {name: reason for name, reason in self.unchecked.items() if name == runtime},
        )

    def verdict(self) -> Verdict:
        """The `parity` gate's."""
        found = [
            f"{runtime}: {mismatch.message}"
            for runtime, mismatches in self.mismatches.items()
            for mismatch in mismatches
        ]
        more = f" (and {len(found) - 3} more differences)" if len(found) > 3 else ""
        note = "; ".join(found[:3]) + more
        if not self.checked:
            note = "not checked: " + "; ".join(self.unchecked.values())
        return Verdict(GATE, None, True, self.passed, note)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "gate": GATE,
            "checked": self.checked,
            "passed": self.passed if self.checked else None,
            "cases": self.cases,
            "mismatches": _records(self.mismatches),
            "engine_differences": _records(self.engine),
            "unchecked": self.unchecked,
        }

    def check(self) -> None:
        """Stop where the artifact is at fault.

        Raises:
            GateFailure: tokens, templates or stop tokens differ.
        """
        if not self.passed:
            verdict = self.verdict()
            raise GateFailure(
                f"the artifact does not treat text as the original does; {verdict}; see which "
                "file of the tokenizer differs, or export all the same with --no-parity",
                verdict_record([verdict]) | {"failures": [str(verdict)], "parity": self.record()},
            )


def _records(found: dict[str, list[Mismatch]]) -> dict[str, list[dict[str, str]]]:
    return {name: [mismatch.record() for mismatch in many] for name, many in found.items()}


class ParityGate:
    """A `check` for `export`: keeps the report, and stops the export where the gate fails."""

    def __init__(self, model_folder: Path, *, quick: bool = False) -> None:
        self.model_folder = model_folder
        self.quick = quick
        self.report = ParityReport()

    def __call__(self, artifact: Artifact) -> None:
        """Check an artifact.

        Raises:
            GateFailure: it treats text otherwise than the original.
        """
        self.report = check_parity(artifact, self.model_folder, quick=self.quick)
        self.report.check()
        for name, reason in self.report.unchecked.items():
            log.warning("parity was not checked on %s: %s", name, reason)


def check_parity(
    artifact: Artifact,
    model_folder: Path,
    *,
    runtimes: Sequence[str] | None = None,
    quick: bool = False,
) -> ParityReport:
    """Compare an artifact's text with the original's, on every engine that is installed.

    Args:
        artifact: what ships.
        model_folder: the original's Hugging Face folder: tokenizer and chat template.
        runtimes: engines to ask; by default all that load the artifact's format.
        quick: let `tokenizers` answer for the original, and ask transformers only of what differs
            then: a second in place of several.

    Where the engine, transformers or the original's tokenizer is missing, the report says that it
    was not checked.
    """
    wanted = tuple(runtimes or runtimes_for(artifact.format))
    unchecked = {name: reason for name in wanted if (reason := _missing(name))}
    if len(unchecked) == len(wanted):
        return ParityReport(unchecked=unchecked or {artifact.format: "no runtime loads it"})
    original = _original(model_folder, quick=quick)
    if isinstance(original, str):
        return ParityReport(unchecked=dict.fromkeys(wanted, original))
    report = _compare_all(artifact, model_folder, wanted, unchecked, original)
    if not report.passed and original["reader"] != "transformers":
        judge = _original(model_folder)
        if isinstance(judge, str):
            log.warning("parity: the original was asked through tokenizers alone: %s", judge)
        else:
            report = _compare_all(artifact, model_folder, wanted, unchecked, judge)
    _tell(report)
    return report


def _compare_all(
    artifact: Artifact,
    model_folder: Path,
    wanted: Sequence[str],
    unchecked: Mapping[str, str],
    original: dict[str, Any],
) -> ParityReport:
    """What every engine that can be asked makes of the original's cases."""
    report = ParityReport(len(original["cases"]), unchecked=dict(unchecked))
    for name in wanted:
        if name in unchecked:
            continue
        found = _ask(artifact, name, original)
        if found is None:
            report.unchecked[name] = f"{name} does not tell what it makes of text"
            continue
        mismatches = [*compare(original, found), *_lost_templates(artifact, model_folder)]
        own = _of_engine(artifact, name, model_folder, original, found) if mismatches else set()
        report.mismatches[name] = [m for m in mismatches if m.case not in own]
        report.engine[name] = [m for m in mismatches if m.case in own]
    return report


def _tell(report: ParityReport) -> None:
    """Warn of what the engines themselves treat otherwise."""
    for name, found in report.engine.items():
        if found:
            log.warning(
                "%s treats %d of %d texts otherwise than the original, with the original's own "
                "files too: %s", name, len(found), report.cases, found[0].message,
            )  # fmt: skip


def _missing(runtime: str) -> str | None:
    try:
        get_runtime(runtime).version()
    except MissingExtraError as error:
        return str(error)
    return None


def _original(folder: Path, *, quick: bool = False) -> dict[str, Any] | str:
    """The original's answers, from the cache or asked now; or why it cannot be asked."""
    readers = ["transformers"]
    if quick and (folder / "tokenizer.json").is_file():
        readers.append("tokenizers")
    versions = {name: found for name in readers if (found := _version(name))}
    if not versions:
        return f"{readers[0]}, whose tokenizer is the one to compare with, is not installed"
    places = {name: _answers_file(folder, name, found) for name, found in versions.items()}
    known = [name for name, path in places.items() if path.is_file()]
    reader = (known or list(places))[0 if known else -1]
    if not known:
        try:
            payload = {"folder": str(folder), "reader": reader}
            write_json(places[reader], run_job("parity-original", payload))
        except EdgeAdaptError as error:
            return f"{reader} cannot read the original tokenizer: {error}"
    answers: dict[str, Any] = read_json(places[reader])
    return answers | {"reader": reader}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _answers_file(folder: Path, reader: str, version: str) -> Path:
    """Where the cache keeps the answers; its name is a hash of all that they depend on."""
    files = [*TOKENIZER_FILES, "config.json"]
    hashes = {name: sha256_file(folder / name) for name in files if (folder / name).is_file()}
    cases = sha256_file(Path(chats.__file__))
    today = date.today().isoformat() if _dated(folder) else None
    key = sha256_json([hashes, reader, version, cases, _VERSION, today])
    return cache_dir() / "parity" / f"{key[:24]}.json"


def _dated(folder: Path) -> bool:
    """Whether the chat template may print the date, as Llama 3's does."""
    places = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
    return any(path.is_file() and b"strftime_now" in path.read_bytes() for path in places)


def _ask(artifact: Artifact, runtime: str, original: dict[str, Any]) -> dict[str, Any] | None:
    payload = {
        "runtime": runtime,
        "artifact": str(artifact.path),
        "format": artifact.format,
        "quantization": artifact.quantization,
        "cases": original["cases"],
    }
    try:
        answers = run_job("parity-engine", payload)
    except EdgeAdaptError as error:
        failed = {"error": f"{runtime} cannot read the artifact's tokenizer: {error}"}
        return {"answers": [failed] * len(original["cases"])}
    return answers if answers["answers"] is not None else None


def _of_engine(
    artifact: Artifact,
    runtime: str,
    folder: Path,
    original: dict[str, Any],
    found: dict[str, Any],
) -> set[str]:
    """Odd cases that the engine answers in the same way from the original's own files.

    Where an engine reads the original's files as they are, a difference that these show as well
    is the engine's, and not that of what ships. A GGUF file has no such counterpart. Ordinary
    conversations have to be right whoever is at fault.
    """
    if artifact.format != "onnx":
        return set()
    with scratch("parity") as place:
        copy = place / "original"
        copy.mkdir()
        for path in artifact.path.iterdir():
            if path.is_file() and path.name not in TOKENIZER_FILES:
                (copy / path.name).symlink_to(path.absolute())
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, copy / name)
        asked = _ask(Artifact(copy, "onnx", artifact.quantization), runtime, original)
    if asked is None:
        return set()
    answers = zip(original["cases"], found["answers"], asked["answers"], strict=True)
    same = {case["name"] for case, shipped, theirs in answers if shipped == theirs}
    return same - chats.ORDINARY


def _lost_templates(artifact: Artifact, folder: Path) -> Iterator[Mismatch]:
    """Places where the original keeps its chat template, and what ships does not.

    An engine reads one of them, an app's own library perhaps the other.
    """
    if artifact.path.is_dir():
        for name in sorted(_template_places(folder) - _template_places(artifact.path)):
            yield Mismatch(
                "text", "template files", f"{name} has no chat template, as the original's has"
            )


def _template_places(folder: Path) -> set[str]:
    path = folder / "tokenizer_config.json"
    record = read_json(path) if path.is_file() else {}
    places = {path.name} if record.get("chat_template") else set()
    if (folder / "chat_template.jinja").is_file():
        places.add("chat_template.jinja")
    return places
