"""Push to and pull from a real registry server."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("oras")

from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.make import BundleSettings, make_bundle
from edgeadapt.bundle.manifest import DIGEST, MANIFEST, digest_bytes
from edgeadapt.bundle.signing import Signer, Trust
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.cli import cli
from edgeadapt.errors import CorruptFileError, GateFailure, HostFailure, InputError
from edgeadapt.registry.artifact import Layer, artifact_bytes
from edgeadapt.registry.oci import OciRegistry
from edgeadapt.registry.pull import PullSettings, pull_bundle
from edgeadapt.registry.push import push_bundle
from edgeadapt.registry.reference import OciReference, parse_reference
from tests.registry.oci_server import OciServer

MODEL = "models/tiny-F32.gguf"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def pushed(made: Path, running_server: OciServer) -> str:
    """The bundle in the registry, by its digest."""
    return str(push_bundle(made, f"oci://{running_server.host}/tests/pushed:v1")["pinned"])


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_what_was_pushed_comes_back(made: Path, reference: str, tmp_path: Path) -> None:
    pushed = push_bundle(made, reference)
    pulled = pull_bundle(reference, tmp_path / "got", PullSettings())
    assert contents(tmp_path / "got") == contents(made)
    assert pulled["passed"] and pulled["pinned"] == pushed["pinned"]
    assert pushed["sent_files"] == pushed["files"] == len(contents(made))


def test_the_digest_is_the_bundles_alone_and_names_it(
    made: Path, reference: str, tmp_path: Path
) -> None:
    write_archive(made, tmp_path / "a.zip")
    first = push_bundle(made, reference)
    second = push_bundle(tmp_path / "a.zip", reference.replace(":v1", "/other:v2"))
    assert first["pinned"].partition("@")[2] == second["pinned"].partition("@")[2]
    pull_bundle(first["pinned"], tmp_path / "got.zip", PullSettings())
    assert (tmp_path / "got.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()


def test_what_is_there_already_is_not_sent_again(
    made: Path, newer_run: Path, reference: str, server: OciServer, tmp_path: Path
) -> None:
    make_bundle(newer_run, tmp_path / "new", BundleSettings(golden=False))
    make_bundle(newer_run, tmp_path / "delta", BundleSettings(golden=False, since=made))
    push_bundle(made, reference)
    old, new = contents(made), contents(tmp_path / "new")
    changed = [name for name in new if old.get(name) != new[name]]
    assert 0 < len(changed) < 5 and MODEL not in changed

    before = server.uploads()
    assert push_bundle(made, reference)["sent_files"] == 0
    assert server.uploads() == before
    record = push_bundle(tmp_path / "new", reference.replace(":v1", ":v2"))
    assert record["sent_files"] == len(changed) == server.uploads() - before
    assert record["sent_bytes"] == sum(len(new[name]) for name in changed)

    before = server.uploads()
    push_bundle(tmp_path / "delta", reference.replace(":v1", ":delta"))
    assert server.uploads() - before == 2  # its own manifest and digest


def test_a_delta_is_made_whole_with_its_base(
    made: Path, newer_run: Path, reference: str, tmp_path: Path
) -> None:
    make_bundle(newer_run, tmp_path / "delta", BundleSettings(golden=False, since=made))
    push_bundle(tmp_path / "delta", reference)
    with pytest.raises(InputError, match="holds only what changed since tiny"):
        pull_bundle(reference, tmp_path / "got", PullSettings())
    checks = VerifySettings(base=made)
    pull_bundle(reference, tmp_path / "got", PullSettings(checks=checks))
    assert (tmp_path / "got" / MODEL).read_bytes() == (made / MODEL).read_bytes()
    assert verify_bundle(tmp_path / "got", VerifySettings())["passed"]


def test_other_programs_can_pull_it(made: Path, reference: str, tmp_path: Path) -> None:
    import oras.client

    push_bundle(made, reference)
    client = oras.client.OrasClient(insecure=True)
    client.pull(target=reference.removeprefix("oci://"), outdir=str(tmp_path / "got"))
    assert contents(tmp_path / "got") == contents(made)


def test_an_interrupted_push_shows_nothing_and_goes_on_from_there(
    made: Path, reference: str, server: OciServer, tmp_path: Path
) -> None:
    server.link.cuts.append((made / MODEL).stat().st_size // 2)
    with pytest.raises(HostFailure, match="the connection broke"):
        push_bundle(made, reference)
    with pytest.raises(InputError, match=r"has no tests/.*:v1; see that"):
        pull_bundle(reference, tmp_path / "got", PullSettings())
    again = push_bundle(made, reference)
    assert 0 < again["sent_files"] < again["files"]
    pull_bundle(reference, tmp_path / "got", PullSettings())


def test_an_interrupted_pull_leaves_nothing(
    made: Path, pushed: str, server: OciServer, tmp_path: Path
) -> None:
    server.link.cuts_down.append((made / MODEL).stat().st_size // 2)
    with pytest.raises(HostFailure, match="the connection broke"):
        pull_bundle(pushed, tmp_path / "got", PullSettings())
    assert nothing_but(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (MODEL, "flip"), (MODEL, "cut"), (MODEL, "append"), ("manifest.json", "flip"),
        ("manifest.sha256", "flip"), ("README.md", "flip"), ("manifest.json", "append"),
    ],
)  # fmt: skip
def test_what_the_registry_changed_is_refused(
    made: Path, pushed: str, server: OciServer, tmp_path: Path, name: str, damage: str
) -> None:
    blob = server.blob(hashlib.sha256((made / name).read_bytes()).hexdigest())
    data = blob.read_bytes()
    changed = {
        "flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "append": data + b"x" * 4096
    }  # fmt: skip
    try:
        blob.write_bytes(changed[damage])
        with pytest.raises((GateFailure, HostFailure)):
            pull_bundle(pushed, tmp_path / "got", PullSettings())
    finally:
        blob.write_bytes(data)
    assert nothing_but(tmp_path)


def test_another_manifest_that_fits_is_refused_by_the_digest(
    made: Path, pushed: str, server: OciServer, tmp_path: Path
) -> None:
    other = (made / MANIFEST).read_bytes().replace(b'"name": "tiny"', b'"name": "tony"')
    blobs = {MANIFEST: other, DIGEST: digest_bytes(other)}
    assert other != (made / MANIFEST).read_bytes()
    try:
        for name, data in blobs.items():
            server.blob(hashlib.sha256((made / name).read_bytes()).hexdigest()).write_bytes(data)
        with pytest.raises(GateFailure, match=r"manifest\.json was changed"):
            pull_bundle(pushed, tmp_path / "got", PullSettings())
    finally:
        for name in blobs:
            data = (made / name).read_bytes()
            server.blob(hashlib.sha256(data).hexdigest()).write_bytes(data)


def put(reference: str, layers: list[Layer], contents: list[bytes]) -> None:
    """Store an artifact that `edgeadapt push` would not make."""
    where = parse_reference(reference)
    assert isinstance(where, OciReference)
    registry = OciRegistry(where)
    registry.connect()
    for data in (b"{}", *contents):
        registry.upload(hashlib.sha256(data).hexdigest(), len(data), lambda data=data: iter([data]))
    registry.put_manifest(artifact_bytes("tiny", layers))


@pytest.mark.parametrize("title", ["../outside", "/tmp/outside", "models/../../outside"])
def test_a_title_that_leads_outside_is_refused(
    made: Path, reference: str, tmp_path: Path, title: str
) -> None:
    files = {**contents(made), title: b"harm"}
    layers = [Layer(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()]
    put(reference, layers, list(files.values()))
    with pytest.raises(CorruptFileError, match="names a file"):
        pull_bundle(reference, tmp_path / "out/got", PullSettings())
    assert nothing_but(tmp_path, "out") and nothing_but(tmp_path / "out")


def test_layers_that_the_manifest_does_not_list_are_named_and_not_fetched(
    made: Path, reference: str, server: OciServer, tmp_path: Path
) -> None:
    files = contents(made)
    card, huge = files.pop("README.md"), b"x" * 3_000_000
    files |= {"huge": huge, "tokenizer/config.json": card}
    layers = [Layer(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()]
    put(reference, layers, list(files.values()))
    with pytest.raises(GateFailure) as caught:
        pull_bundle(reference, tmp_path / "got", PullSettings())
    assert "README.md is missing" in str(caught.value)
    assert "huge was added" in str(caught.value)
    assert nothing_but(tmp_path)


def test_an_artifact_without_a_manifest_is_no_bundle(reference: str, tmp_path: Path) -> None:
    put(reference, [Layer("a", 1, hashlib.sha256(b"a").hexdigest())], [b"a"])
    with pytest.raises(InputError, match=r"has no manifest\.json: it is no edgeadapt bundle"):
        pull_bundle(reference, tmp_path / "got", PullSettings())


def test_an_image_is_no_bundle(reference: str, tmp_path: Path) -> None:
    import oras.client

    (tmp_path / "image").write_text("x")
    client = oras.client.OrasClient(insecure=True)
    client.push(
        reference.removeprefix("oci://"), files=[str(tmp_path / "image")],
        disable_path_validation=True,
    )  # fmt: skip
    with pytest.raises(InputError, match="it is no edgeadapt bundle: it has no artifactType"):
        pull_bundle(reference, tmp_path / "got", PullSettings())


def test_a_changed_bundle_is_not_pushed(bundle: Path, reference: str, server: OciServer) -> None:
    (bundle / "README.md").write_text("other")
    before = server.uploads()
    with pytest.raises(GateFailure, match=r"README\.md was changed"):
        push_bundle(bundle, reference)
    assert server.uploads() == before


def test_signatures_are_checked_before_anything_has_a_name(
    run_folder: Path, made: Path, reference: str, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    from tests.bundle.test_signing import new_keys

    ours, theirs = new_keys(tmp_path, "ours"), new_keys(tmp_path, "theirs")
    signer = Signer(ours[0])
    make_bundle(run_folder, tmp_path / "signed", BundleSettings(golden=False, signer=signer))
    push_bundle(tmp_path / "signed", reference)
    push_bundle(made, reference.replace(":v1", ":unsigned"))

    def pull(reference: str, key: Path) -> None:
        checks = VerifySettings(trust=Trust(key))
        record = pull_bundle(reference, tmp_path / "out/got", PullSettings(checks=checks))
        assert record["signature"] == "valid"

    with pytest.raises(GateFailure, match="there is no signature"):
        pull(reference.replace(":v1", ":unsigned"), ours[1])
    with pytest.raises(GateFailure, match="the signature does not hold"):
        pull(reference, theirs[1])
    assert nothing_but(tmp_path / "out")
    pull(reference, ours[1])
    assert contents(tmp_path / "out/got") == contents(tmp_path / "signed")


def test_another_digest_is_refused(pushed: str, tmp_path: Path) -> None:
    checks = VerifySettings(digest="0" * 64)
    with pytest.raises(GateFailure, match="this is another bundle"):
        pull_bundle(pushed, tmp_path / "got", PullSettings(checks=checks))
    assert nothing_but(tmp_path)


@pytest.mark.parametrize(
    ("module", "reference"),
    [("oras", "oci://localhost:1/demo:v1"), ("huggingface_hub", "hf://team/demo")],
)
def test_a_missing_library_is_named_with_its_extra(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, reference: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for command in (
        ["push", str(made), reference],
        ["pull", reference, "--out", str(tmp_path / "x")],
    ):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 2
        assert "pip install 'edgeadapt[registry]'" in done.stderr


def test_the_commands(made: Path, reference: str, tmp_path: Path) -> None:
    pushed = CliRunner().invoke(cli, ["push", str(made), reference])
    assert pushed.exit_code == 0, pushed.output
    pinned = pushed.stdout.splitlines()[-1]
    assert pinned.startswith(f"{reference.removesuffix(':v1')}@sha256:")
    out = str(tmp_path / "got")
    pulled = CliRunner().invoke(cli, ["pull", pinned, "--out", out, "--json"])
    assert pulled.exit_code == 0, pulled.output
    assert json.loads(pulled.stdout)["pinned"] == pinned
    again = CliRunner().invoke(cli, ["pull", pinned, "--out", out])
    assert again.exit_code == 2 and "exists already" in again.stderr
    refused = CliRunner().invoke(cli, ["push", str(made), pinned])
    assert refused.exit_code == 2 and "give only a tag" in refused.stderr
    shutil.rmtree(out)
