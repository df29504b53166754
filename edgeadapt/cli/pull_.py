"""`edgeadapt pull`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeadapt.cli.common import end_when_asked, standard
from edgeadapt.cli.trust_options import trust_options
from edgeadapt.console import emit, emit_json

if TYPE_CHECKING:
    from edgeadapt.bundle.signing import Trust


@click.command("pull")
@click.argument("reference")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True,
    help="Folder to make, or archive if it ends in .zip.",
)  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path), metavar="BUNDLE",
    help="The older bundle that a delta (bundle --since) builds on; the result is whole.",
)  # fmt: skip
@click.option("--digest", metavar="SHA256", help="What manifest.json must hash to.")
@trust_options
@click.option("--insecure", is_flag=True, help="Plain http, also to other machines than this one.")
@standard
def command(
    reference: str,
    out: Path,
    base: Path | None,
    digest: str | None,
    trust: Trust | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """Fetch the bundle that REFERENCE names, and check it as `verify` does.

    REFERENCE is oci://HOST[:PORT]/NAME:TAG, oci://HOST[:PORT]/NAME@sha256:DIGEST or
    hf://OWNER/NAME[@REVISION]. --out is made only after every check: size and hash
    of every file, --digest, and the signature if you say whose it must be. Whoever
    may write to a registry may replace a bundle; a digest or a key tells.

    \b
    edgeadapt pull oci://registry.example/team/demo:v1 --out demo
    edgeadapt pull hf://team/demo --out demo --public-key signer.pub
    """
    from edgeadapt.bundle.verify import VerifySettings
    from edgeadapt.cli.verify_ import verified_text
    from edgeadapt.registry.pull import PullSettings, pull_bundle

    end_when_asked()
    checks = VerifySettings(base=base, digest=digest, trust=trust)
    record = pull_bundle(reference, out, PullSettings(insecure, checks))
    if as_json:
        emit_json(record)
        return
    emit(verified_text(record))
    emit(f"{out}: {record['pinned']}")
