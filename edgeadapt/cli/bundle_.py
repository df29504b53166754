"""`edgeadapt bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import end_when_asked, standard
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError


@click.command("bundle")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--device", "devices", multiple=True, metavar="NAME",
    help="Device profile to ship for, or a .yaml file; may be given more than once. Default: "
    "everything that the run exported.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), required=True,
    help="Folder to make, or archive if it ends in .zip.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Ship what failed a gate; the manifest tells of it.")
@click.option(
    "--since", type=click.Path(path_type=Path), metavar="BUNDLE",
    help="Hold only what changed since this bundle, which the receiver has.",
)  # fmt: skip
@click.option("--golden/--no-golden", default=True, help="Record golden vectors and a self-test.")
@click.option(
    "--sign-key", type=click.Path(path_type=Path), metavar="PEM",
    help="Sign with this elliptic-curve private key; $EDGEADAPT_SIGN_PASSWORD opens it.",
)  # fmt: skip
@click.option(
    "--sign-certificate", type=click.Path(path_type=Path), metavar="PEM",
    help="The certificate of --sign-key, for `verify --certificate-chain`.",
)  # fmt: skip
@click.option(
    "--certificate-chain", type=click.Path(path_type=Path), multiple=True, metavar="PEM",
    help="Certificates between it and the root.",
)  # fmt: skip
@click.option("--sign-sigstore", is_flag=True, help="Sign with a Sigstore identity (network).")
@click.option("--identity-token", help="OpenID Connect token for --sign-sigstore.")
@standard
def command(
    run: Path,
    devices: tuple[str, ...],
    out: Path,
    force: bool,
    since: Path | None,
    golden: bool,
    sign_key: Path | None,
    sign_certificate: Path | None,
    certificate_chain: tuple[Path, ...],
    sign_sigstore: bool,
    identity_token: str | None,
    as_json: bool,
) -> None:
    """Put what RUN made into one folder or .zip file that an app team can check and use.

    RUN is the folder of a finished `edgeadapt run`. The bundle holds a model for
    each device, the adapter, tokenizer, licence, model card, code to load it all,
    a manifest of every file with its lineage and measurements, and what the models
    said, to be replayed. The same run gives the same bytes, signatures aside.

    \b
    edgeadapt bundle runs/demo --device raspberry-pi-5 --out demo.zip
    edgeadapt bundle runs/demo --out demo.zip --sign-key signer.pem
    edgeadapt bundle runs/demo --since old.zip --out update.zip
    """
    import os

    from edgeadapt.bundle.make import BundleSettings, make_bundle
    from edgeadapt.bundle.signing import Signer

    end_when_asked()
    signer = None
    if sign_key or sign_sigstore:
        password = os.environ.get("EDGEADAPT_SIGN_PASSWORD")
        signer = Signer(
            sign_key, password, sign_certificate, certificate_chain, sign_sigstore, identity_token
        )
    elif sign_certificate or certificate_chain or identity_token:
        raise InputError("signing needs --sign-key or --sign-sigstore")
    record = make_bundle(run, out, BundleSettings(devices, force, since, signer, golden))
    if as_json:
        emit_json(record)
        return
    emit(f"{record['path']}: {record['files']} files, {record['bytes'] / 2**20:.1f} MiB")
    for variant in record["variants"]:
        emit(f"  {variant['path']}: {', '.join(variant['devices']) or 'any device'}")
    if record["needs"]:
        emit(f"  needs {record['needs']} files of {since}")
    emit(f"manifest sha256: {record['manifest_sha256']}")
