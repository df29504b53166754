"""`edgeadapt push`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import end_when_asked, standard
from edgeadapt.console import emit, emit_json


@click.command("push")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("reference")
@click.option("--insecure", is_flag=True, help="Plain http, also to other machines than this one.")
@standard
def command(bundle: Path, reference: str, insecure: bool, as_json: bool) -> None:
    """Send BUNDLE, a folder or .zip file, to where REFERENCE says, after checking it.

    REFERENCE is oci://HOST[:PORT]/NAME:TAG, a registry for containers or artifacts,
    or hf://OWNER/NAME[@BRANCH], a model repository of the Hugging Face hub. What
    is there already is not sent again, and nothing shows under the tag or branch
    before all of it is there. The last line is the reference that always means these
    very bytes. In a hub repository, files of an earlier bundle that are not in this
    one are deleted, and no others.

    Logins are those of `docker login` or `oras login`, and of `hf auth login`.

    \b
    edgeadapt push demo.zip oci://registry.example/team/demo:v1
    edgeadapt push demo.zip hf://team/demo
    """
    from edgeadapt.registry.push import push_bundle

    end_when_asked()
    record = push_bundle(bundle, reference, insecure=insecure)
    if as_json:
        emit_json(record)
        return
    emit(f"{bundle}: {record['files']} files, {record['bytes'] / 2**20:.1f} MiB")
    if record["sent_files"] is not None:
        sent = record["sent_bytes"] / 2**20
        emit(f"sent: {record['sent_files']} files, {sent:.1f} MiB; the rest was there")
    for name in record["deleted"]:
        emit(f"deleted: {name}")
    emit(f"manifest sha256: {record['manifest_sha256']}")
    emit(str(record["pinned"]))
