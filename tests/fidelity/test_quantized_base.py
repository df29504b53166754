"""The plain base is quantized just as the artifact was, whatever that was called."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeadapt.artifact import Artifact
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.converters.onnx.options import ALGORITHMS, QUANTIZATIONS, OnnxOptions, settle
from edgeadapt.errors import ChangedError, DiskFullError, InputError
from edgeadapt.export import open_model
from edgeadapt.fidelity import quantized_base
from edgeadapt.fidelity.quantized_base import (
    _as_referenced,
    _beginning,
    _export,
    _onnx_options,
    stored_as,
)
from tests.fidelity.conftest import World


def cases() -> list[tuple[str, OnnxOptions]]:
    found = []
    for quantization in QUANTIZATIONS:
        for options in [
            OnnxOptions(),
            *(OnnxOptions(algorithm=name) for name in ALGORITHMS),
            OnnxOptions(block_size=128, symmetric=True, accuracy_level=1),
            OnnxOptions(preset="arm64"),
        ]:
            try:
                settle(quantization, options, tied=True, widths={256})
            except InputError:  # the option does not go with the quantization
                continue
            found.append((quantization, options))
    return found


@pytest.mark.parametrize(("quantization", "options"), cases())
def test_onnx_settings_are_taken_from_the_lineage(quantization: str, options: OnnxOptions) -> None:
    settings = settle(quantization, options, tied=True, widths={256})
    lineage = {"exporter": "stream", "settings": settings.record()}
    again = _onnx_options(Artifact(Path("m"), "onnx", quantization, lineage))
    assert again is not None and again.exporter == "stream"
    assert settle(quantization, again, tied=True, widths={256}) == settings


def test_a_sized_file_is_known_by_its_own_type(world: World) -> None:
    made = world.artifact("sized", "Q8_0", world.adapter)
    sized = Artifact(made.path, "gguf", "mixed-80MiB", made.lineage | {"allocation": {}})
    assert stored_as(sized) == "Q8_0" and stored_as(made) == "Q8_0"


def test_a_full_disk_is_not_taken_for_a_type_that_cannot_be_made(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.artifact("plain", "Q8_0", world.adapter)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match="make room"):
        _export(open_model(str(world.base)), made, GgufOptions(), tmp_path)


def test_figures_are_only_of_the_base_that_the_reference_is_of(
    world: World, tmp_path: Path
) -> None:
    reference = world.yardstick.reference
    other = shutil.copytree(world.base, tmp_path / "base")
    assert _as_referenced(other, reference).folder == other  # it goes by content
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    with pytest.raises(ChangedError, match="was changed since its reference was computed"):
        _as_referenced(other, reference)


def test_the_beginning_is_of_whole_sequences(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [len(example.ids) for example in world.encoded]
    assert _beginning(world.encoded) == world.encoded
    monkeypatch.setattr(quantized_base, "MOST_TOKENS", sum(lengths[:3]) + 1)
    assert _beginning(world.encoded) == world.encoded[:3]
    monkeypatch.setattr(quantized_base, "MOST_TOKENS", 1)
    assert _beginning(world.encoded) == world.encoded[:1]
