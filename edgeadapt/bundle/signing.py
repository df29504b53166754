"""Signatures over a bundle's folder, through the `model-signing` library (OpenSSF Model Signing).

The signature lies in the bundle as `model.sig` and covers every other file, names and contents,
except its own digest, `model.sig.sha256`. The `model_signing` program verifies it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.bundle.manifest import SIGNATURE, SIGNATURE_DIGEST, digest_bytes
from edgeadapt.errors import EdgeAdaptError, GateFailure, InputError
from edgeadapt.extras import need


@dataclass(frozen=True)
class Signer:
    """What signs: a private key, with certificates or without, or a Sigstore identity."""

    key: Path | None = None
    password: str | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    sigstore: bool = False
    identity_token: str | None = None
    """For Sigstore; without one, it is asked for in a browser."""

    def check(self) -> None:
        """See that what is named is there.

        Raises:
            InputError: it is not, or does not go together.
            MissingExtraError: model-signing is not installed.
        """
        if self.sigstore == (self.key is not None):
            raise InputError("sign with a key (--sign-key) or with Sigstore, not both")
        if self.certificate and not self.key:
            raise InputError("--sign-certificate needs the private key too: --sign-key")
        _check_files(self.key, self.certificate, *self.chain)
        _library()

    def sign(self, folder: Path) -> None:
        """Sign what lies in `folder`, and put the signature there.

        Raises:
            InputError: the key cannot be used.
        """
        library = _library()
        config = library.signing.Config()
        config.set_hashing_config(_hashing(library))
        if self.sigstore:
            config.use_sigstore_signer(identity_token=self.identity_token)
        elif self.certificate is not None:
            _guarded(
                lambda: config.use_certificate_signer(
                    private_key=self.key,
                    signing_certificate=self.certificate,
                    certificate_chain=list(self.chain),
                ),
                f"{self.certificate} cannot sign",
            )
        else:
            _guarded(
                lambda: config.use_elliptic_key_signer(
                    private_key=self.key, password=self.password
                ),
                f"{self.key} cannot sign",
            )
        place = folder / SIGNATURE
        _guarded(lambda: config.sign(folder, place), f"signing with {self.key} failed")
        # so that damage to the signature shows to those who do not check it, too
        (folder / SIGNATURE_DIGEST).write_bytes(digest_bytes(place.read_bytes(), SIGNATURE))


@dataclass(frozen=True)
class Trust:
    """Whose signature is believed: a public key's, certificates', or a Sigstore identity's."""

    public_key: Path | None = None
    chain: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None

    @property
    def asked(self) -> bool:
        """Whether a signature is wanted at all."""
        return bool(self.public_key or self.chain or self.identity or self.issuer)

    def check(self) -> None:
        """See that what is named is there and goes together.

        Raises:
            InputError: it is not.
            MissingExtraError: model-signing is not installed.
        """
        ways = [bool(self.public_key), bool(self.chain), bool(self.identity or self.issuer)]
        if ways.count(True) > 1:
            raise InputError("give one of --public-key, --certificate-chain and --identity")
        if bool(self.identity) != bool(self.issuer):
            raise InputError("--identity and --identity-issuer belong together")
        _check_files(self.public_key, *self.chain)
        _library()

    def verify(self, folder: Path) -> None:
        """See that the signature in `folder` is over exactly what lies there.

        Raises:
            GateFailure: there is none, it is another's, or a file differs; names it.
        """
        if not (folder / SIGNATURE).is_file():
            raise _refused(f"there is no signature: {SIGNATURE} is missing")
        library = _library()
        config = library.verifying.Config()
        config.set_hashing_config(_hashing(library))
        _guarded(lambda: self._believe(config), "what to trust cannot be read")
        try:
            config.verify(folder, folder / SIGNATURE)
        except Exception as error:  # the library and those below it raise many kinds
            raise _refused(f"the signature does not hold: {_told(error)}") from error

    def _believe(self, config: Any) -> None:
        if self.public_key is not None:
            config.use_elliptic_key_verifier(public_key=self.public_key)
        elif self.chain:
            config.use_certificate_verifier(certificate_chain=list(self.chain))
        else:
            config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)


def _refused(text: str) -> GateFailure:
    return GateFailure(text, {"passed": False, "failed_gates": ["signature"], "gates": []})


def _library() -> Any:
    return need("model_signing", "signing a bundle")


def _hashing(library: Any) -> Any:
    """Everything but the signature, git's files not left out as they are by default."""
    return library.hashing.Config().set_ignored_paths(
        paths=[SIGNATURE, SIGNATURE_DIGEST], ignore_git_paths=False
    )


def _check_files(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.is_file():
            raise InputError(f"{path} does not exist; expected a key or certificate in PEM")


def _guarded(work: Callable[[], object], what: str) -> None:
    try:
        work()
    except EdgeAdaptError:
        raise
    except Exception as error:  # the library and those below it raise many kinds
        raise InputError(f"{what}: {_told(error)}") from error


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
