"""The manifest of a bundle in a registry: the same each time, and believed only so far."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError
from edgeadapt.registry.artifact import (
    ARTIFACT_TYPE,
    EMPTY_CONFIG,
    EMPTY_CONFIG_SHA256,
    Layer,
    artifact_bytes,
    parse_artifact,
)

LAYERS = [Layer("models/b.gguf", 5, "b" * 64), Layer("README.md", 0, "a" * 64)]


def document(**changes: Any) -> bytes:
    return json.dumps(json.loads(artifact_bytes("tiny", LAYERS)) | changes).encode()


def layer(title: object, **changes: Any) -> dict[str, Any]:
    entry = {"mediaType": "x", "digest": "sha256:" + "a" * 64, "size": 1}
    return entry | {"annotations": {"org.opencontainers.image.title": title}} | changes


def test_it_is_the_same_in_any_order_and_read_back() -> None:
    data = artifact_bytes("tiny", LAYERS)
    assert data == artifact_bytes("tiny", LAYERS[::-1])
    assert parse_artifact(data) == {entry.name: entry for entry in LAYERS}
    assert hashlib.sha256(EMPTY_CONFIG).hexdigest() == EMPTY_CONFIG_SHA256


def test_one_larger_than_registries_take_is_not_made() -> None:
    layers = [Layer(f"{'x' * 180}/{'y' * 180}/{i}", 1, "a" * 64) for i in range(9_000)]
    with pytest.raises(InputError, match="push it to a Hugging Face repository"):
        artifact_bytes("tiny", layers)


@pytest.mark.parametrize(
    "value", [{}, [], 5, {"artifactType": "application/other"}, {"artifactType": {}}]
)
def test_what_is_no_bundle_is_told_apart(value: object) -> None:
    with pytest.raises(InputError, match="no edgeadapt bundle") as caught:
        parse_artifact(json.dumps(value).encode())
    assert not isinstance(caught.value, CorruptFileError)


@pytest.mark.parametrize(
    "layers",
    [
        [layer("../outside")], [layer("/etc/passwd")], [layer("a/../../b")], [layer("")],
        [layer("a"), layer("A")], [layer("a"), layer("a/b")], [layer("a", annotations={})],
        [layer("a", size=-1)], [layer("a", size="1")], [layer("a", size=True)], [layer(5)],
        [layer("a", digest="sha256:../../x")], [layer("a", digest="md5:00")], {}, None, [None],
        [layer(f"f{i}") for i in range(10_001)],
    ],
)  # fmt: skip
def test_hostile_layers_are_refused(layers: Any) -> None:
    with pytest.raises(CorruptFileError):
        parse_artifact(document(layers=layers))


ANY_LAYERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["digest", "size", "annotations", "x"]), inner, max_size=4
        )
    ),
)


@settings(max_examples=60)
@given(
    st.binary(max_size=200)
    | ANY_LAYERS.map(lambda x: json.dumps({"artifactType": ARTIFACT_TYPE, "layers": x}).encode())
)
def test_no_manifest_does_more_than_be_refused(data: bytes) -> None:
    try:
        found = parse_artifact(data)
    except EdgeAdaptError:
        return
    assert found == {}
