"""What a registry may ask, refuse or try: logins, tokens, redirections, floods."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("oras")

from edgeadapt.errors import HostFailure, InputError
from edgeadapt.registry.oci import OciRegistry
from edgeadapt.registry.pull import PullSettings, pull_bundle
from edgeadapt.registry.push import push_bundle
from edgeadapt.registry.reference import OciReference, parse_reference
from tests.registry.oci_server import PASSWORD, USER, OciServer, oci_server


def registry_of(text: str) -> OciRegistry:
    reference = parse_reference(text)
    assert isinstance(reference, OciReference)
    return OciRegistry(reference)


def log_in(folder: Path, host: str, password: str) -> None:
    secret = base64.b64encode(f"{USER}:{password}".encode()).decode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": secret}}}))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciServer]:
    """A registry that asks everybody who they are."""
    with oci_server(tmp_path_factory.mktemp("closed"), login=True) as server:
        yield server


def test_a_login_is_that_of_docker(
    made: Path, closed: OciServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"oci://{closed.host}/tests/a:v1"
    with pytest.raises(InputError, match=f"log in with `docker login {closed.host}`"):
        push_bundle(made, reference)
    log_in(tmp_path / "home/.docker", closed.host, "wrong")
    with pytest.raises(InputError, match=r"status 401.*docker login"):
        push_bundle(made, reference)
    log_in(tmp_path / "own", closed.host, PASSWORD)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "own"))
    (tmp_path / "home/.docker/config.json").unlink()
    sent = closed.link.upstream
    push_bundle(made, reference)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    assert closed.link.upstream - sent < 1.5 * size, "a content was sent before the login"
    assert pull_bundle(reference, tmp_path / "got", PullSettings())["passed"]


def test_nobody_there(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(HostFailure, match=f"cannot reach {host}.*see that the registry runs"):
        push_bundle(made, f"oci://{host}/tests/a:v1")


def test_an_unknown_name_or_tag(server: OciServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no tests/none:v1; see that name and tag are right"):
        pull_bundle(f"oci://{server.host}/tests/none:v1", tmp_path / "got", PullSettings())


def test_plain_http_is_for_this_machine() -> None:
    assert registry_of("oci://registry.example/demo:v1")._scheme == "https"
    assert registry_of("oci://localhost:5000/demo:v1")._scheme == "http"


def test_memory_does_not_grow_with_the_file(reference: str) -> None:
    size, chunk = 48 << 20, b"x" * (1 << 20)
    digest = hashlib.sha256(b"x" * size).hexdigest()
    registry = registry_of(reference)
    registry.connect()
    tracemalloc.start()
    try:
        registry.upload(digest, size, lambda: iter([chunk] * 48))
        found = sum(len(part) for part in registry.blob(digest, size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == size
    assert peak < 12 << 20


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server that is no real registry; its host."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            answer(self)

        do_GET = do_HEAD = do_POST = do_PUT = do

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(to: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    to.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(body)


def test_a_token_for_reading_is_exchanged_for_one_for_writing() -> None:
    asked: list[str] = []

    def answer(to: BaseHTTPRequestHandler) -> None:
        url = urlsplit(to.path)
        if url.path == "/token":
            scope = parse_qs(url.query).get("scope", [""])[0]
            asked.append(scope)
            reply(to, 200, json.dumps({"token": scope.rpartition(":")[2] or "none"}).encode())
            return
        action = "pull" if to.command in ("GET", "HEAD") else "push"
        if url.path == "/v2/" or to.headers.get("Authorization") != f"Bearer {action}":
            realm = f'Bearer realm="http://{to.headers["Host"]}/token",service="x"'
            reply(to, 401, WWW_Authenticate=f'{realm},scope="repository:demo:{action}"')
        elif to.command == "POST":
            reply(to, 202, Location="/v2/demo/blobs/uploads/1?a=b")
        elif to.command == "PUT":
            to.rfile.read(int(to.headers["Content-Length"]))
            reply(to, 201)
        else:
            reply(to, 404)

    with answering(answer) as host:
        registry = registry_of(f"oci://{host}/demo:v1")
        registry.connect()
        assert not registry.has_blob("0" * 64)
        registry.upload("0" * 64, 3, lambda: iter([b"abc"]))
    assert asked[-2:] == ["repository:demo:pull", "repository:demo:push"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"token": null}', b'"x"', b"\xff"])
def test_a_token_that_is_none_is_no_crash(body: bytes) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.path.startswith("/token"):
            reply(to, 200, body)
        else:
            reply(to, 401, WWW_Authenticate=f'Bearer realm="http://{to.headers["Host"]}/token"')

    with answering(answer) as host:
        registry = registry_of(f"oci://{host}/demo:v1")
        registry.connect()
        with pytest.raises((HostFailure, InputError)):
            registry.manifest()


def test_nothing_goes_elsewhere_without_encryption() -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.path == "/v2/":
            reply(to, 200)
        else:
            reply(to, 307, Location="http://192.0.2.1/somewhere")

    with answering(answer) as host:
        registry = registry_of(f"oci://{host}/demo:v1")
        registry.connect()
        with pytest.raises(HostFailure, match=r"sends us to 192\.0\.2\.1 without encryption"):
            registry.manifest()


def test_a_web_server_is_no_registry() -> None:
    with (
        answering(lambda to: reply(to, 404, b"nothing here")) as host,
        pytest.raises(HostFailure, match=r"is no OCI registry: .* answers 404"),
    ):
        registry_of(f"oci://{host}/demo:v1").connect()


def test_a_manifest_without_end_is_not_read() -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.path == "/v2/":
            reply(to, 200)
            return
        to.send_response(200)
        to.send_header("Connection", "close")
        to.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(64):
                to.wfile.write(bytes(1 << 20))
        to.close_connection = True

    with answering(answer) as host:
        registry = registry_of(f"oci://{host}/demo:v1")
        registry.connect()
        with pytest.raises(HostFailure, match="sends more than 4194304 bytes for the manifest"):
            registry.manifest()
