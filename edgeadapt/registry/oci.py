"""The registry's side of an OCI reference, through the `oras` library.

From `oras` come the addresses, the credentials (the Docker configuration and its helpers) and the
dance of tokens. Its uploads read a whole file into memory and its downloads check no digest, so
content is streamed here: memory does not grow with the files. Its five silent retries, two minutes
when nobody answers, are left out too.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import oras.oci
import oras.provider
import oras.utils
import requests
import urllib3.exceptions

from edgeadapt.errors import EdgeAdaptError, GateFailure, HostFailure, InputError
from edgeadapt.registry.artifact import LARGEST, MANIFEST_TYPE
from edgeadapt.registry.reference import OciReference, is_loopback

_CHUNK = 1 << 20
_TIMEOUT = (15.0, 120.0)
"""Seconds to connect, and of silence."""
_OTHER_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""Asked for as well, to say of an image that it is no bundle."""


class OciRegistry:
    """One repository of a registry."""

    def __init__(self, reference: OciReference, *, insecure: bool = False) -> None:
        """Nothing is sent yet.

        Args:
            reference: what to push or pull.
            insecure: plain http, to any host; to this machine it is used anyway.
        """
        self.reference = reference
        local = is_loopback(reference.host)
        self._scheme = "http" if insecure or local else "https"
        self._insecure = insecure
        self._container = oras.container.Container("placeholder")
        self._container.registry = reference.host
        namespace, _, self._container.repository = reference.name.rpartition("/")
        self._container.namespace = namespace or None
        self._container.tag = reference.tag
        self._container.digest = f"sha256:{reference.digest}" if reference.digest else None
        self._basic = False
        self._oras = self._library("token")

    def _library(self, backend: str) -> Any:
        found = oras.provider.Registry(
            hostname=self.reference.host, insecure=self._scheme == "http", auth_backend=backend
        )
        for scheme in ("http://", "https://"):
            found.session.mount(scheme, _Adapter(plain_anywhere=self._insecure))
        retrying = oras.provider.Registry.do_request
        once = getattr(retrying, "__wrapped__", retrying)
        self._once: Callable[..., Any] = functools.partial(once, found)
        found.do_request = self._request  # for what of the library calls it
        return found

    def connect(self) -> None:
        """See that a registry answers, and read the credentials for it.

        Raises:
            HostFailure: nobody answers, or it is no registry.
            InputError: it wants a login that the Docker configuration does not have.
        """
        url = f"{self._scheme}://{self.reference.host}/v2/"
        response = self._guarded(self._oras.session.get, url)
        asked = str(response.headers.get("Www-Authenticate", ""))
        if response.status_code not in (200, 401, 403):
            raise HostFailure(
                f"{self.reference.host} is no OCI registry: {url} answers {response.status_code}"
            )
        self._basic = response.status_code == 401 and asked.lower().startswith("basic")
        if self._basic:
            self._oras = self._library("basic")
        place = os.environ.get("DOCKER_CONFIG")
        configs = [str(Path(place) / "config.json")] if place else []
        self._guarded(self._oras.auth.load_configs, self._container, configs)
        if self._basic and not getattr(self._oras.auth, "_basic_auth", None):
            raise self._denied(401)

    def _request(self, url: str, method: str = "GET", **options: Any) -> Any:
        headers = dict(options.pop("headers", None) or {})
        if self._basic and urlsplit(url).netloc == self.reference.host:
            headers |= self._oras.auth.get_auth_header()  # not only once it was refused
        response = self._guarded(self._once, url, method, headers=headers, **options)
        if response.status_code == 401 and getattr(self._oras.auth, "token", None):
            # The token was for reading, say; `oras` asks for another only on a 403.
            self._oras.auth.token = None
            response = self._guarded(self._once, url, method, headers=headers, **options)
        if response.status_code in (401, 403):
            raise self._denied(response.status_code)
        return response

    def _guarded(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do what may fail in the library or on the way, and say it in our words."""
        host = self.reference.host
        try:
            return work(*arguments, **options)
        except EdgeAdaptError:
            raise
        except requests.exceptions.SSLError as error:
            raise HostFailure(
                f"cannot speak TLS with {host}: {_told(error)}; if it speaks plain http and the "
                "network can be trusted, add --insecure"
            ) from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise HostFailure(
                f"cannot reach {host}, or the connection broke: {_told(error)}; see that the "
                "registry runs and the name is right, then try again"
            ) from error
        except ValueError as error:
            if "authentication" in str(error):  # what `oras` raises when it has no credentials
                raise self._denied(401) from error
            raise HostFailure(f"{host} answers what no registry does: {_told(error)}") from error
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            # `oras` takes an answer's form for granted
            raise HostFailure(f"{host} answers what no registry does: {_told(error)}") from error

    def _denied(self, status: int) -> InputError:
        host = self.reference.host
        return InputError(
            f"{host} does not let you do this to {self.reference.name} (status {status}); log in "
            f"with `docker login {host}` or `oras login {host}`: credentials are read from the "
            "Docker configuration (~/.docker/config.json, or in $DOCKER_CONFIG)"
        )

    def _unexpected(self, response: Any, doing: str) -> HostFailure:
        told = _told(response.text[:2000]) if not response.raw.closed else ""
        return HostFailure(
            f"{self.reference.host} answers {response.status_code} to {doing}"
            + (f": {told}" if told else "")
        )

    def has_blob(self, sha256: str) -> bool:
        """Whether the repository holds this content already."""
        return bool(self._oras.blob_exists({"digest": f"sha256:{sha256}"}, self._container))

    def upload(self, sha256: str, size: int, chunks: Callable[[], Iterator[bytes]]) -> None:
        """Send a content; the registry compares it with its hash.

        Args:
            sha256: of the content.
            size: in bytes.
            chunks: gives the content from its beginning, each time it is called.

        Raises:
            HostFailure: the connection broke, or the registry does not take it.
            InputError: it is not allowed.
        """
        start = f"{self._scheme}://{self._container.upload_blob_url()}"
        response = self._request(start, "POST", headers={"Content-Length": "0"})
        location = response.headers.get("Location")
        if response.status_code != 202 or not location:
            raise self._unexpected(response, "a new upload")
        url = oras.utils.append_url_params(urljoin(start, location), {"digest": f"sha256:{sha256}"})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        response = self._request(url, "PUT", data=_Body(size, chunks), headers=headers)
        if response.status_code != 201:
            raise self._unexpected(response, f"sha256:{sha256[:12]}... of {size} bytes")

    def put_manifest(self, data: bytes) -> str:
        """Store a manifest under the reference's tag; returns its SHA-256.

        Raises:
            HostFailure: the registry does not take it, or stored something else.
        """
        url = f"{self._scheme}://{self._container.manifest_url()}"
        response = self._request(url, "PUT", data=data, headers={"Content-Type": MANIFEST_TYPE})
        if response.status_code not in (200, 201):
            raise self._unexpected(response, "the manifest")
        digest = hashlib.sha256(data).hexdigest()
        stored = response.headers.get("Docker-Content-Digest", f"sha256:{digest}")
        if stored != f"sha256:{digest}":
            raise HostFailure(f"{self.reference.host} stored {stored}, expected sha256:{digest}")
        return digest

    def manifest(self) -> tuple[bytes, str]:
        """The manifest that the reference means, and its SHA-256.

        Raises:
            InputError: there is none.
            GateFailure: it is not the one that the reference's digest is of.
            HostFailure: the registry sends something else or too much.
        """
        url = f"{self._scheme}://{self._container.manifest_url()}"
        accepted = ", ".join((MANIFEST_TYPE, *_OTHER_TYPES))
        response = self._request(url, headers=_plain(Accept=accepted), stream=True)
        if response.status_code == 404:
            raise InputError(
                f"{self.reference.host} has no {str(self.reference).split('/', 3)[3]}; see that "
                "name and tag are right"
            )
        if response.status_code != 200:
            raise self._unexpected(response, "a request for the manifest")
        data = b"".join(self._received(response, LARGEST, "the manifest"))
        digest = hashlib.sha256(data).hexdigest()
        if self.reference.digest not in (None, digest):
            raise GateFailure(
                f"{self.reference.host} sent a manifest with sha256 {digest}, expected "
                f"{self.reference.digest}: it is not what was asked for",
                {"passed": False, "failed_gates": ["digest"], "gates": []},
            )
        return data, digest

    def blob(self, sha256: str, size: int) -> Iterator[bytes]:
        """A content as it is sent, unchecked, and never more than `size` bytes of it.

        Raises:
            HostFailure: the connection broke, or the registry sends more or nothing.
        """
        digest = f"sha256:{sha256}"
        url = f"{self._scheme}://{self._container.get_blob_url(digest)}"
        response = self._request(url, headers=_plain(), stream=True)
        if response.status_code != 200:
            raise self._unexpected(response, f"a request for {digest}")
        yield from self._received(response, size, digest)

    def _received(self, response: Any, most: int, what: str) -> Iterator[bytes]:
        left = most
        with response:
            while chunk := self._guarded(response.raw.read, _CHUNK, decode_content=False):
                left -= len(chunk)
                if left < 0:
                    raise HostFailure(
                        f"{self.reference.host} sends more than {most} bytes for {what}"
                    )
                yield chunk


class _Body:
    """A content that `requests` streams, and can begin anew when it has to send it once more."""

    def __init__(self, size: int, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._size, self._chunks = size, chunks

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks()


class _Adapter(requests.adapters.HTTPAdapter):  # type: ignore[misc]  # it comes without types
    """Never waits for ever; plain http leaves this machine only where that was asked for.

    Redirections and the places of tokens and uploads are what the registry says: they go through
    here as well.
    """

    def __init__(self, *, plain_anywhere: bool) -> None:
        super().__init__()
        self._plain_anywhere = plain_anywhere

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """As the base class, with its errors, and HostFailure for plain http to elsewhere."""
        parts = urlsplit(request.url)
        allowed = parts.scheme == "https" or self._plain_anywhere
        if not allowed and not is_loopback(parts.netloc.rpartition("@")[2]):
            raise HostFailure(
                f"the registry sends us to {parts.netloc} without encryption; if the network can "
                "be trusted, add --insecure"
            )
        options["timeout"] = options.get("timeout") or _TIMEOUT
        return super().send(request, *arguments, **options)


def _plain(**headers: str) -> dict[str, str]:
    """Headers that ask for the bytes themselves, not compressed: hashes and sizes are of those."""
    return {"Accept-Encoding": "identity", **headers}


def _told(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
