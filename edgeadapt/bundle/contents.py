"""Everything that goes into a bundle: the manifest, and every other file with where it is from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path

from edgeadapt import __version__
from edgeadapt.base_model import DEFAULT
from edgeadapt.bundle import golden
from edgeadapt.bundle.card import CARD, model_card
from edgeadapt.bundle.container import file_chunks, sums
from edgeadapt.bundle.facts import (
    Made,
    adapters_of,
    calibration_of,
    without_folders,
)
from edgeadapt.bundle.loading_code import loading_files
from edgeadapt.bundle.manifest import (
    DIGEST,
    MANIFEST,
    SCHEMA,
    FileEntry,
    Golden,
    Manifest,
    Origin,
    schema_text,
)
from edgeadapt.bundle.names import check_names
from edgeadapt.bundle.run_folder import Run, tool_versions
from edgeadapt.bundle.texts import (
    Content,
    Licence,
    adapter_files,
    licence_of,
    stop_texts,
    texts_folder,
    tokenizer_files,
)
from edgeadapt.console import log
from edgeadapt.errors import InputError
from edgeadapt.runtimes.registry import installed_runtimes

SELFTEST = "selftest.py"
_MOST_SAMPLES = 3
_BUILT_IN = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Whose weights the built-in base has, by way of a Q4_1 file: its hash is not the hub's."""


def assemble(
    run: Run,
    root: Path,
    made: Sequence[Made],
    forced: tuple[str, ...],
    *,
    with_golden: bool,
) -> tuple[Manifest, dict[str, Content]]:
    """The manifest of a whole bundle, and every other file.

    Args:
        run: the finished run.
        root: its folder.
        made: the variants.
        forced: what spoke against shipping them.
        with_golden: record golden vectors on the runtimes that are installed.

    Raises:
        InputError: something that the run was made from is gone.
        RuntimeFailure: a runtime failed while golden vectors were recorded.
    """
    texts, licence = texts_folder(run), licence_of(run)
    if not licence.files:
        log.warning("the base %s comes without a licence file", run.base.name)
    adapter_folder, contents = adapter_files(run)
    contents |= _models(made) | tokenizer_files(texts) | licence.files
    prompts = [sample.prompt for sample in run.samples][: golden.MOST_PROMPTS]
    prompts = prompts or list(golden.DEFAULT_PROMPTS)
    stops = stop_texts(texts)
    for variant in (entry.variant for entry in made):
        for name, text in loading_files(variant, prompts[0], stops):
            contents[name] = text.encode()
    contents[SCHEMA] = schema_text().encode()
    if with_golden:
        contents[golden.FILE] = _golden_bytes(made, prompts)
        contents[SELFTEST] = (package_files("edgeadapt.bundle") / SELFTEST).read_bytes()
    manifest = _manifest(run, root, made, forced, licence, adapter_folder, with_golden)
    contents[CARD] = model_card(manifest, _samples(run, made)).encode()
    check_names([*contents, MANIFEST, DIGEST])
    listed = {name: _entry(content) for name, content in sorted(contents.items())}
    return manifest.model_copy(update={"files": listed}), contents


def _manifest(
    run: Run,
    root: Path,
    made: Sequence[Made],
    forced: tuple[str, ...],
    licence: Licence,
    adapter_folder: str | None,
    with_golden: bool,
) -> Manifest:
    """All of the manifest but its files."""
    lineage = made[0].variant.lineage
    origin = lineage.get("base") or {}
    calibrations = [calibration_of(entry.variant.lineage) for entry in made]
    return Manifest(
        name=run.name,
        base=Origin(
            name=_BUILT_IN if run.base.name == DEFAULT else without_folders(run.base.name),
            revision=origin.get("revision") if isinstance(origin, dict) else None,
            sha256=run.base.sha256,
            license=licence.id,
            license_files=tuple(licence.files),
        ),
        adapters=adapters_of(lineage, adapter_folder),
        merge=without_folders(run.merge),
        calibration_sha256=next((found for found in calibrations if found), None),
        variants=tuple(entry.variant for entry in made),
        tools={"edgeadapt": __version__} | tool_versions(run, root),
        forced=forced,
        golden=Golden(
            path=golden.FILE,
            first_token_tolerance=golden.FIRST_TOKEN_TOLERANCE,
            later_tolerance=golden.LATER_TOLERANCE,
        )
        if with_golden
        else None,
        files={},
    )


def _models(made: Sequence[Made]) -> dict[str, Content]:
    """The files of every variant."""
    found: dict[str, Content] = {}
    for entry in made:
        source, place = entry.artifact.path, Path(entry.variant.path)
        if source.is_file():
            pairs = [(place.with_name(path.name), path) for path in entry.artifact.files]
        else:
            inside = sorted(path for path in source.rglob("*") if path.is_file())
            pairs = [(place / path.relative_to(source), path) for path in inside]
        for name, path in pairs:
            if found.setdefault(name.as_posix(), path) != path:
                raise InputError(f"two artifacts of the run are called {name.name}; rename one")
    return found


def _golden_bytes(made: Sequence[Made], prompts: Sequence[str]) -> bytes:
    variants = {}
    for entry in made:
        variant, artifact = entry.variant, entry.artifact
        log.info("recording golden vectors of %s", variant.name)
        variants[variant.name] = {
            "path": variant.path,
            "format": variant.format,
            "runtimes": {
                runtime: golden.record(artifact.path, variant.sha256, runtime, prompts)
                for runtime in installed_runtimes(variant.format)
            },
        }
    return golden.document_bytes(variants)


def _samples(run: Run, made: Sequence[Made]) -> list[tuple[str, str]]:
    """Questions, and the first variant's answers."""
    start = f"{made[0].variant.quantization} on "
    found = []
    for sample in run.samples[:_MOST_SAMPLES]:
        answers = [text for label, text in sample.answers.items() if label.startswith(start)]
        found += [(sample.prompt, answers[0])] if answers else []
    return found


def _entry(content: Content) -> FileEntry:
    if isinstance(content, bytes):
        found = sums(iter([content]))
    else:
        with content.open("rb") as file:
            found = sums(file_chunks(file))
    return FileEntry(size=found.size, sha256=found.sha256)
