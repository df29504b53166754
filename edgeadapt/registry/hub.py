"""A bundle in a model repository of the Hugging Face hub, through `huggingface_hub`.

The repository's root is the bundle; its model card is the bundle's. A push is one commit, made on
the one that was looked at: if someone else commits in between, the hub refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeadapt.bundle.container import Container, open_container
from edgeadapt.bundle.integrity import read_manifest
from edgeadapt.bundle.manifest import DIGEST, LARGEST, MANIFEST, UNLISTED, Manifest
from edgeadapt.bundle.verify import as_folder
from edgeadapt.errors import EdgeAdaptError, HostFailure, InputError
from edgeadapt.extras import need
from edgeadapt.leftovers import scratch
from edgeadapt.registry.reference import HubReference


def push_to_hub(container: Container, manifest: Manifest, where: HubReference) -> dict[str, Any]:
    """Commit a checked bundle; files of the bundle that was there before, and no others, go.

    Returns:
        As JSON: `pinned`, `deleted`, and None for `sent_files` and `sent_bytes`: which contents
        the hub has already, its library finds out.

    Raises:
        InputError: there is no such repository, it refuses, or a delta builds on another bundle.
        HostFailure: the hub is not to be reached, or failed.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = need("huggingface_hub", "pushing to a Hugging Face repository")
    source = HubSource(where, None)
    earlier = _earlier(source)
    if manifest.delta is not None and (earlier is None or earlier[1] != manifest.delta.since):
        found = f"one with manifest sha256 {earlier[1][:12]}..." if earlier else "none"
        raise InputError(
            f"this bundle holds only what changed since {manifest.delta.name} (manifest sha256 "
            f"{manifest.delta.since[:12]}...), and {where} holds {found}; push that one first, or "
            "a whole bundle"
        )
    stale = _stale(source.files, earlier[0] if earlier else None, manifest, container.sizes())
    with as_folder(container, manifest, None) as folder, _guarded(where):
        commit = hub.HfApi().create_commit(
            repo_id=where.repo,
            operations=operations(folder, container.sizes(), stale),
            commit_message=f"{manifest.name}, a bundle by edgeadapt",
            revision=where.revision,
            parent_commit=source.commit,
        )
    pinned = where.pinned(commit.oid)
    return {"pinned": pinned, "deleted": stale, "sent_files": None, "sent_bytes": None}


def operations(folder: Path, names: Iterable[str], stale: Iterable[str]) -> list[Any]:
    """What a commit does: adds every file of the bundle under its own name, deletes stale ones."""
    hub = need("huggingface_hub", "pushing to a Hugging Face repository")
    return [
        *(hub.CommitOperationAdd(name, folder / name) for name in sorted(names)),
        *(hub.CommitOperationDelete(name, is_folder=False) for name in sorted(stale)),
    ]


def _stale(
    there: Iterable[str], earlier: Manifest | None, new: Manifest, own: Iterable[str]
) -> list[str]:
    """Files that only the earlier bundle has; what somebody else put there stays."""
    if earlier is None:
        return []
    old = {*earlier.files, *UNLISTED}
    return sorted((old & set(there)) - {*new.files, *own})


def _earlier(source: HubSource) -> tuple[Manifest, str] | None:
    """The manifest of the bundle that is there, and its SHA-256; none where it cannot be read."""
    if any(source.files.get(name, (LARGEST + 1,))[0] > LARGEST for name in (MANIFEST, DIGEST)):
        return None
    with scratch("push") as place:
        for name in (MANIFEST, DIGEST):
            for _ in source.fetch(name, LARGEST, place / name):
                pass
        try:
            return read_manifest(open_container(place))
        except EdgeAdaptError:  # of a later version, say, or damaged
            return None


class HubSource:
    """What a repository holds at one commit."""

    others = True

    def __init__(self, where: HubReference, arriving: Path | None) -> None:
        """Ask the hub.

        Args:
            where: the repository.
            arriving: a folder for downloads under way, on the disk where they are to end; None
                puts each beside its place.

        Raises:
            InputError: there is no such repository or revision, or it refuses.
            HostFailure: the hub is not to be reached, or failed.
            MissingExtraError: huggingface_hub is not installed.
        """
        hub = need("huggingface_hub", "getting a bundle from a Hugging Face repository")
        self._where, self._arriving = where, arriving
        with _guarded(where):
            info = hub.HfApi().model_info(where.repo, revision=where.revision, files_metadata=True)
            self.commit: str | None = info.sha
            self.files: dict[str, tuple[int, str | None]] = {
                entry.rfilename: (entry.size or 0, entry.lfs.sha256 if entry.lfs else None)
                for entry in info.siblings or ()
            }
        self.pinned = where.pinned(info.sha) if info.sha else str(where)

    def fetch(self, name: str, most: int, place: Path) -> Iterator[int]:
        """See `Source`; the hub's library looks at the size while it downloads."""
        from huggingface_hub import hf_hub_download

        with _guarded(self._where):
            found = hf_hub_download(
                self._where.repo,
                name,
                revision=self.commit,
                local_dir=self._arriving or place.parent / ".arriving",
            )
        arrived = Path(found)
        size = arrived.stat().st_size
        if size > most:
            raise HostFailure(f"the hub sent {size} bytes for {name}, expected {most}")
        arrived.replace(place)
        yield size


@contextlib.contextmanager
def _guarded(where: HubReference) -> Iterator[None]:
    """Say what the hub's library raises in our words."""
    from huggingface_hub import errors

    repo = where.repo
    try:
        yield
    except EdgeAdaptError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise InputError(
            "the hub is not asked while HF_HUB_OFFLINE is set; unset it for this command"
        ) from error
    except errors.GatedRepoError as error:
        raise InputError(
            f"the hub's repository {repo} is gated: accept its terms on its page, then type: "
            "hf auth login"
        ) from error
    except (errors.RevisionNotFoundError, errors.RevisionResolutionError) as error:
        raise InputError(f"the hub's {repo} has no revision {where.revision!r:.80}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no model repository {repo}, or does not show it to you; type: hf auth "
            f"login, or make it: hf repos create {repo} --private"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except (errors.HFValidationError, ValueError) as error:
        raise InputError(f"the hub does not take this: {_told(error)}") from error
    except (OSError, errors.HTTPError) as error:
        raise HostFailure(
            f"cannot reach the hub for {repo}, or the connection broke: {_told(error)}; try again"
        ) from error


def _refusal(repo: str, error: Any) -> EdgeAdaptError:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return InputError(
            f"the hub does not let you do this to {repo} (status {status}); type: hf auth login, "
            "with a token that may write there if this is a push"
        )
    if status in (409, 412):
        return InputError(f"someone else changed {repo} meanwhile; look at it, and push again")
    return HostFailure(f"the hub failed (status {status}) for {repo}: {_told(error)}")


def _told(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
