"""`edgeadapt verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.common import standard
from edgeadapt.cli.trust_options import trust_options
from edgeadapt.console import emit, emit_json

if TYPE_CHECKING:
    from edgeadapt.bundle.signing import Trust


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--run", "replay", is_flag=True, help="Also replay the golden vectors.")
@click.option("--runtime", metavar="NAME", help="With --run: only on this runtime.")
@click.option(
    "--base", type=click.Path(path_type=Path),
    help="The installed bundle that a delta (bundle --since) builds on.",
)  # fmt: skip
@click.option("--digest", metavar="SHA256", help="What manifest.json must hash to.")
@trust_options
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
    trust: Trust | None,
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
    from edgeadapt.bundle.verify import VerifySettings, verify_bundle

    record = verify_bundle(bundle, VerifySettings(base, digest, trust, replay, runtime, unpack))
    if as_json:
        emit_json(record)
    else:
        emit(verified_text(record))


def verified_text(record: dict[str, Any]) -> str:
    """What a checked bundle is, in lines."""
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
