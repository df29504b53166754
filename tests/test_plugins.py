"""Names of other packages' things come through real entry points of a real distribution."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeadapt.converters.registry import format_names, get_converter
from edgeadapt.errors import InputError
from edgeadapt.plugins import Registry


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a format of its own, and one that would like to be gguf."""
    (tmp_path / "coreml_for_edgeadapt.py").write_text("class Converter:\n    format = 'coreml'\n")
    info = tmp_path / "coreml_for_edgeadapt-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: coreml-for-edgeadapt\nVersion: 1\n"
    )
    (info / "entry_points.txt").write_text(
        "[edgeadapt.converters]\n"
        "coreml = coreml_for_edgeadapt:Converter\n"
        "gguf = coreml_for_edgeadapt:Converter\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "coreml_for_edgeadapt", raising=False)


@pytest.mark.usefixtures("installed")
def test_another_package_adds_a_format_and_replaces_none() -> None:
    assert format_names() == ("gguf", "onnx", "coreml")
    assert get_converter("coreml").format == "coreml"
    assert type(get_converter("gguf")).__name__ == "GgufConverter"


def test_an_unknown_name_lists_the_known() -> None:
    registry = Registry("fruit", "edgeadapt.fruit", {"apple": "json:loads", "pear": "json:dumps"})
    with pytest.raises(InputError, match="no fruit 'plum'; choose one of apple, pear"):
        registry.load("plum")
    assert registry.load("pear")([1]) == "[1]"
