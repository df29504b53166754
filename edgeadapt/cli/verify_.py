"""`edgeadapt verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--run", "replay", is_flag=True, help="Also replay the golden vectors.")
@click.option("--runtime", metavar="NAME", help="With --run: only on this runtime.")
@click.option(
    "--base", type=click.Path(path_type=Path),
    help="The installed bundle that a delta (bundle --since) builds on.",
)  # fmt: skip
@click.option("--digest", metavar="SHA256", help="What manifest.json must hash to.")
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="PEM file; the signature must be its."
)
@click.option(
    "--certificate-chain", type=click.Path(path_type=Path), multiple=True,
    help="PEM file of a root or intermediate certificate that is trusted.",
)  # fmt: skip
@click.option("--identity", help="Who signed, through Sigstore: an e-mail address or workflow.")
@click.option("--identity-issuer", help="The OpenID Connect issuer that vouches for --identity.")
@click.option(
    "--unpack", type=click.Path(path_type=Path), metavar="DIR",
    help="After all checks lay the whole bundle out here, with what a delta takes from --base.",
)  # fmt: skip
@standard
def command(
    bundle: Path,
    replay: bool,
    runtime: str | None,
    base: Path | None,
    digest: str | None,
    public_key: Path | None,
    certificate_chain: tuple[Path, ...],
    identity: str | None,
    identity_issuer: str | None,
    unpack: Path | None,
    as_json: bool,
) -> None:
    """Check that BUNDLE, a folder or .zip file, is whole, unchanged and behaves as it did.

    Every file's size and hash, and every byte of a .zip file in between. Without
    a signature that only shows damage: whoever can change a file can write a new
    manifest too. Compare --digest with what `edgeadapt bundle` printed, or ask for
    a signature. What differs is named, and ends with exit code 1.

    \b
    edgeadapt verify bundle.zip --public-key signer.pub
    edgeadapt verify bundle.zip --run
    edgeadapt verify update.zip --base installed.zip --unpack new
    """
    from edgeadapt.bundle.signing import Trust
    from edgeadapt.bundle.verify import VerifySettings, verify_bundle

    trust = Trust(public_key, certificate_chain, identity, identity_issuer)
    record = verify_bundle(
        bundle,
        VerifySettings(base, digest, trust if trust.asked else None, replay, runtime, unpack),
    )
    if as_json:
        emit_json(record)
    else:
        emit(_text(record))


def _text(record: dict[str, Any]) -> str:
    lines = [
        f"{record['name']}: {record['files']} files, {record['bytes'] / 2**20:.1f} MiB, all as "
        "they were made",
        f"manifest sha256: {record['manifest_sha256']}",
        f"signature: {record['signature']}",
    ]
    for variant in record["variants"]:
        lines.append(f"{variant['path']}: {', '.join(variant['devices']) or 'any device'}")
    lines += [f"shipped with --force: {line}" for line in record["forced"]]
    for row in record["replayed"] or ():
        lines.append(
            f"{row['variant']} on {row['runtime']}: says what it said, {row['prompts']} prompts, "
            f"off by at most {row['first']:.4f} (first token) and {row['later']:.4f} (later) nats"
        )
    if "unpacked" in record:
        lines.append(f"unpacked: {record['unpacked']}")
    return "\n".join(lines)
