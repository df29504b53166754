"""References are read as people write them, and nothing else is one."""

from __future__ import annotations

import pytest

from edgeadapt.errors import InputError
from edgeadapt.registry.reference import (
    HubReference,
    OciReference,
    is_loopback,
    parse_reference,
)

DIGEST = "0a" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci://localhost:5000/demo:v1", OciReference("localhost:5000", "demo", "v1", None)),
        ("oci://[::1]:5000/a/b:v1", OciReference("[::1]:5000", "a/b", "v1", None)),
        (
            f"oci://ghcr.io/my.team/a_b/c--d@sha256:{DIGEST}",
            OciReference("ghcr.io", "my.team/a_b/c--d", None, DIGEST),
        ),
        ("oci://localhost/demo:V_1.0-x", OciReference("localhost", "demo", "V_1.0-x", None)),
        ("hf://Owner/Name-1.5", HubReference("Owner/Name-1.5", None)),
        ("hf://owner/name@refs/pr/1", HubReference("owner/name", "refs/pr/1")),
    ],
)
def test_they_are_read_and_written(text: str, expected: OciReference | HubReference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "demo", "demo:v1", "ghcr.io/demo:v1", "https://ghcr.io/demo:v1", "oci://ghcr.io:v1",
        "oci://ghcr.io/Demo:v1", "oci://ghcr.io/../demo:v1", "oci://ghcr.io/demo:v 1",
        "oci://user:secret@ghcr.io/demo:v1", "oci://ghcr.io/demo@sha256:0a", "oci:///demo:v1",
        "oci://ghcr.io/demo:v1?x", "oci://ghcr.io/demo:v1\n", "oci://ghcr.io:123456/demo:v1",
        "hf://name", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@x y",
        "oci://g/" + "a/" * 400,
    ],
)  # fmt: skip
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no reference; expected oci://"):
        parse_reference(text)


def test_a_tag_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"add a tag, for example oci://ghcr.io/demo:v1"):
        parse_reference("oci://ghcr.io/demo")


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1:1", "[::1]:5000"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["ghcr.io", "10.0.0.1:5000", "localhost.evil.example", "[2001::1]"]
)
def test_other_machines_are_not_this_one(host: str) -> None:
    assert not is_loopback(host)
