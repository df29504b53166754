"""Signatures: a key's owner made this bundle, and nothing in it changed since."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("model_signing")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.make import BundleSettings, make_bundle
from edgeadapt.bundle.manifest import digest_bytes
from edgeadapt.bundle.signing import Signer, Trust
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.errors import GateFailure, InputError


def new_keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return new_keys(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def signed(
    run_folder: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("signed") / "tiny"
    make_bundle(run_folder, out, BundleSettings(golden=False, signer=Signer(keys[0])))
    return out


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "renamed"))


def trusting(public: Path) -> VerifySettings:
    return VerifySettings(trust=Trust(public_key=public))


def test_the_key_that_signed_is_recognised(copy: Path, keys: tuple[Path, Path]) -> None:
    assert verify_bundle(copy, trusting(keys[1]))["signature"] == "valid"
    assert verify_bundle(copy, VerifySettings())["signature"] == "not checked"


def test_an_archive_carries_its_signature(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    write_archive(signed, tmp_path / "a.zip")
    assert verify_bundle(tmp_path / "a.zip", trusting(keys[1]))["signature"] == "valid"


def test_another_key_is_refused(copy: Path, tmp_path: Path) -> None:
    _, other = new_keys(tmp_path, "other")
    with pytest.raises(GateFailure, match="signature does not hold"):
        verify_bundle(copy, trusting(other))


def test_a_new_manifest_does_not_help(copy: Path, keys: tuple[Path, Path]) -> None:
    """Whoever changes a file can write hashes anew, but not the signature."""
    (copy / "README.md").write_text("# Something else\n")
    from edgeadapt.bundle.contents import _entry

    value = json.loads((copy / "manifest.json").read_text())
    value["files"]["README.md"] = _entry(copy / "README.md").model_dump()
    data = json.dumps(value).encode()
    (copy / "manifest.json").write_bytes(data)
    (copy / "manifest.sha256").write_bytes(digest_bytes(data))
    assert verify_bundle(copy, VerifySettings())["passed"]
    with pytest.raises(GateFailure, match=r"README\.md"):
        verify_bundle(copy, trusting(keys[1]))


@pytest.mark.parametrize("change", ["changed", "added", "removed", "renamed"])
def test_each_kind_of_change_is_named(copy: Path, keys: tuple[Path, Path], change: str) -> None:
    path = copy / "licenses/LICENSE"
    if change == "changed":
        path.write_text("Anything goes.\n")
    elif change == "added":
        (copy / "licenses/LICENSE.more").write_text("x")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(copy / "licenses/LICENCE")
    with pytest.raises(GateFailure, match="licenses/LICEN"):
        verify_bundle(copy, trusting(keys[1]))


@pytest.mark.parametrize("name", ["model.sig", "model.sig.sha256"])
def test_one_byte_of_the_signature_counts_even_to_who_does_not_check_it(
    copy: Path, name: str
) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(GateFailure, match=r"model\.sig or model\.sig\.sha256 was changed"):
        verify_bundle(copy, VerifySettings())
    (copy / name).unlink()
    with pytest.raises(GateFailure, match=f"{name} is missing"):
        verify_bundle(copy, VerifySettings())


def test_a_signature_over_something_else_is_refused(copy: Path, keys: tuple[Path, Path]) -> None:
    data = bytearray((copy / "model.sig").read_bytes())
    place = data.index(b'"sig"') + 30
    data[place] = ord("A") if data[place] != ord("A") else ord("B")
    (copy / "model.sig").write_bytes(data)
    (copy / "model.sig.sha256").write_bytes(digest_bytes(bytes(data), "model.sig"))
    assert verify_bundle(copy, VerifySettings())["signature"] == "not checked"
    with pytest.raises(GateFailure, match="signature does not hold"):
        verify_bundle(copy, trusting(keys[1]))


def test_an_unsigned_bundle_is_refused_where_a_signature_is_asked_for(
    made: Path, keys: tuple[Path, Path]
) -> None:
    with pytest.raises(GateFailure, match="no signature"):
        verify_bundle(made, trusting(keys[1]))


def test_a_key_that_is_none_is_refused(
    run_folder: Path, made: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    (tmp_path / "junk.pem").write_text("not a key")
    for key in (tmp_path / "junk.pem", tmp_path / "absent.pem", keys[1]):
        with pytest.raises(InputError):
            make_bundle(
                run_folder, tmp_path / "out", BundleSettings(golden=False, signer=Signer(key))
            )
    assert not (tmp_path / "out").exists()
    with pytest.raises((InputError, GateFailure)):
        verify_bundle(made, trusting(tmp_path / "junk.pem"))


def authority(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A root certificate, and a key with the certificate that the root gave it."""
    root_key, _ = new_keys(folder, f"{name}-root")
    key, _ = new_keys(folder, f"{name}-leaf")
    root = certificate(name, root_key, name, root_key, is_root=True)
    leaf = certificate(f"{name} signer", key, name, root_key, is_root=False)
    for path, content in ((folder / f"{name}-root.crt", root), (folder / f"{name}.crt", leaf)):
        path.write_bytes(content)
    return folder / f"{name}-root.crt", key, folder / f"{name}.crt"


def certificate(subject: str, key: Path, issuer: str, issuer_key: Path, *, is_root: bool) -> bytes:
    def load(path: Path) -> ec.EllipticCurvePrivateKey:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(found, ec.EllipticCurvePrivateKey)
        return found

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(load(key).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, **usage),
            critical=True,
        )
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(load(key).public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(load(issuer_key).public_key()),
            critical=False,
        )
    )
    if not is_root:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
        )
    signed = builder.sign(load(issuer_key), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_certificates_sign_and_another_root_is_not_believed(
    run_folder: Path, tmp_path: Path
) -> None:
    root, key, leaf = authority(tmp_path, "ours")
    signer = Signer(key, certificate=leaf, chain=(root,))
    make_bundle(run_folder, tmp_path / "out", BundleSettings(golden=False, signer=signer))
    believed = VerifySettings(trust=Trust(chain=(root,)))
    assert verify_bundle(tmp_path / "out", believed)["signature"] == "valid"
    other, _, _ = authority(tmp_path, "other")
    with pytest.raises(GateFailure, match="signature does not hold"):
        verify_bundle(tmp_path / "out", VerifySettings(trust=Trust(chain=(other,))))
