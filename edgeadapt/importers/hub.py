"""Download a model from the Hugging Face hub: safetensors and text files, never pickles or code."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.console import log
from edgeadapt.errors import InputError
from edgeadapt.extras import need

_WANTED = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "merges.txt", "vocab.txt"]
_UNWANTED = ["*/*", "*.py", "*.bin", "*.pt", "*.pth"]


def snapshot(repo: str, revision: str | None = None) -> Path:
    """Folder with a hub model's safetensors, configs, tokenizer and chat template.

    A complete copy in the local hub cache is taken as it is, without asking the hub.

    Raises:
        InputError: the model is missing, gated or not cached while offline.
        MissingExtraError: huggingface_hub is not installed.
    """
    need("huggingface_hub", f"{repo} is no folder or file here; getting it from the hub")
    from huggingface_hub import errors, snapshot_download

    wanted = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, **wanted))
    except errors.HFValidationError as error:
        raise InputError(
            f"{repo!r:.120} is neither a folder, a GGUF file, a hub id nor 'default'"
        ) from error
    except errors.LocalEntryNotFoundError:
        log.info("downloading %s from the Hugging Face hub", repo)
    try:
        return Path(snapshot_download(repo, revision=revision, **wanted))
    except errors.GatedRepoError as error:
        raise InputError(
            f"the hub model {repo} is gated: accept its terms on its page, then type: hf auth login"
        ) from error
    except (errors.RevisionNotFoundError, errors.RevisionResolutionError) as error:
        raise InputError(f"the hub model {repo} has no revision {revision!r:.80}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no folder or file {repo}, and no such model on the hub (or it is private: "
            "type: hf auth login)"
        ) from error
    except (OSError, errors.HTTPError) as error:  # offline, a refused connection, a broken one
        raise InputError(
            f"there is no folder or file {repo}, and the hub model of that name is neither cached "
            "here nor can the hub be reached; give the path of a local model, or go online"
        ) from error
