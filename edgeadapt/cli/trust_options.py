"""Options of commands that check whose signature a bundle has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --public-key and the like; the function receives `trust: Trust | None`."""

    @click.option(
        "--public-key", type=click.Path(path_type=Path),
        help="PEM file; the signature must be its.",
    )  # fmt: skip
    @click.option(
        "--certificate-chain", type=click.Path(path_type=Path), multiple=True,
        help="PEM file of a root or intermediate certificate that is trusted.",
    )  # fmt: skip
    @click.option("--identity", help="Who signed, through Sigstore: an e-mail address or workflow.")
    @click.option(
        "--identity-issuer", help="The OpenID Connect issuer that vouches for --identity."
    )
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        public_key: Path | None,
        certificate_chain: tuple[Path, ...],
        identity: str | None,
        identity_issuer: str | None,
        **kwargs: Any,
    ) -> Any:
        from edgeadapt.bundle.signing import Trust

        trust = Trust(public_key, certificate_chain, identity, identity_issuer)
        return function(*args, trust=trust if trust.asked else None, **kwargs)

    return wrapper
