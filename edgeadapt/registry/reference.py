"""Where a bundle is in a registry, as a person writes it.

    oci://HOST[:PORT]/NAME:TAG   or   oci://HOST[:PORT]/NAME@sha256:DIGEST
    hf://OWNER/NAME[@REVISION]

Names, tags and digests of OCI are those of the distribution specification 1.1, "Pulling manifests".
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from edgeadapt.errors import InputError

_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_OCI = re.compile(
    r"oci://(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?)"
    rf"/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@sha256:(?P<digest>[0-9a-f]{64}))?",
    re.ASCII,
)
_HUB = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?",
    re.ASCII,
)
_LONGEST = 512


@dataclass(frozen=True)
class OciReference:
    """An artifact of an OCI registry: by its tag, or by its digest."""

    host: str
    """With the port, if one was given."""
    name: str
    tag: str | None
    digest: str | None
    """SHA-256 of the artifact's manifest, 64 hex digits."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"oci://{self.host}/{self.name}{tag}" + (
            f"@sha256:{self.digest}" if self.digest else ""
        )

    def pinned(self, digest: str) -> str:
        """The reference that always means the same bytes."""
        return str(OciReference(self.host, self.name, None, digest))


@dataclass(frozen=True)
class HubReference:
    """A model repository of the Hugging Face hub, at a branch, tag or commit."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def pinned(self, commit: str) -> str:
        """The reference that always means the same bytes."""
        return str(HubReference(self.repo, commit))


def parse_reference(text: str) -> OciReference | HubReference:
    """Read a reference.

    Raises:
        InputError: it is none, or an OCI reference has neither tag nor digest.
    """
    if len(text) <= _LONGEST and (hub := _HUB.fullmatch(text)):
        return HubReference(hub["repo"], hub["revision"])
    found = _OCI.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        raise InputError(
            f"{text[:200]!r} is no reference; expected oci://HOST[:PORT]/NAME:TAG (names in small "
            "letters) or hf://OWNER/NAME[@REVISION]"
        )
    if not found["tag"] and not found["digest"]:
        raise InputError(f"{text} names no version; add a tag, for example {text}:v1")
    return OciReference(found["host"], found["name"], found["tag"], found["digest"])


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine."""
    name = host.rpartition("]")[0].removeprefix("[") or host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
