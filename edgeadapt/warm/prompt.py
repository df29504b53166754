"""The file that says what a warm prompt is and for which artifact: small, and good on any device.

`NAME.warm.json`. The KV cache after it lies in `NAME.warm.state` (see `state`), and is computed
from this where it is missing or does not fit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeadapt.artifact import Artifact
from edgeadapt.chat_template import Message
from edgeadapt.data.examples import parse_messages
from edgeadapt.errors import InputError
from edgeadapt.files import read_json, sha256_file, sha256_json, sha256_tree
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.warm.opening import Opening, common_opening
from edgeadapt.yaml_model import validated

SUFFIX = ".warm.json"
STATE_SUFFIX = ".warm.state"
_KIND = "edgeadapt-warm-prompt"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MadeFor(_Model):
    """The artifact, and what it says of where it came from."""

    name: str
    format: str
    quantization: str
    sha256: str
    base: str | None
    """SHA-256 of the base that it was made from."""
    adapters: tuple[str, ...]
    """SHA-256 of the adapters merged into it."""


class Beside(_Model):
    """An adapter that is active beside the artifact."""

    name: str
    sha256: str


class WarmPrompt(_Model):
    """The first messages of every conversation, and what an artifact makes of them."""

    kind: Literal["edgeadapt-warm-prompt"] = "edgeadapt-warm-prompt"
    schema_version: Literal[1] = 1
    edgeadapt: str
    """Version that wrote it."""
    artifact: MadeFor
    adapter: Beside | None
    messages: tuple[Message, ...] = Field(min_length=1)
    text: str = Field(min_length=1)
    """What each conversation's text begins with, under the artifact's chat template."""
    ids: tuple[int, ...] = Field(min_length=1)
    """Its tokens."""

    @property
    def opening(self) -> Opening:
        """Text and tokens."""
        return Opening(self.text, self.ids)

    @property
    def ids_sha256(self) -> str:
        """Hash of the tokens."""
        return sha256_json(list(self.ids))


def made_for(artifact: Artifact) -> MadeFor:
    """What tells an artifact from others; reads all of it."""
    lineage = artifact.lineage
    merged = [lineage.get("adapter"), *(lineage.get("adapters") or ())]
    if lineage.get("mode") == "separate":  # its graph takes adapters, and has none in it
        merged = []
    return MadeFor(
        name=artifact.path.name,
        format=artifact.format,
        quantization=artifact.quantization,
        sha256=artifact.sha256(),
        base=_hash(lineage.get("base")),
        adapters=tuple(found for entry in merged if (found := _hash(entry)) is not None),
    )


def _hash(entry: Any) -> str | None:
    found = entry.get("sha256") if isinstance(entry, Mapping) else None
    return found if isinstance(found, str) else None


def beside(adapter: Path | None) -> Beside | None:
    """What tells an adapter's file or folder from others.

    Raises:
        InputError: it does not exist.
    """
    if adapter is None:
        return None
    if not adapter.exists():
        raise InputError(f"the adapter {adapter} does not exist")
    digest = sha256_tree(adapter) if adapter.is_dir() else sha256_file(adapter)
    return Beside(name=adapter.resolve().name, sha256=digest)


def warm_files(out: Path) -> tuple[Path, Path]:
    """Where the warm prompt of an artifact lies, and its state: beside it, with its name."""
    name = out.stem if out.suffix == ".gguf" else out.name
    return out.with_name(name + SUFFIX), out.with_name(name + STATE_SUFFIX)


def state_file(path: Path) -> Path:
    """Where the state of a warm prompt lies."""
    return path.with_name(path.name.removesuffix(SUFFIX) + STATE_SUFFIX)


def read_warm(path: Path) -> WarmPrompt:
    """Read a file.

    Raises:
        InputError: it is missing, no warm prompt, or of a later version.
        CorruptFileError: it is damaged.
    """
    if not path.is_file():
        raise InputError(
            f"the warm prompt {path} does not exist; make one with: edgeadapt warm ARTIFACT "
            "--prompt FILE"
        )
    if not path.name.endswith(SUFFIX):
        raise InputError(f"a warm prompt is a file called NAME{SUFFIX}, found {path.name}")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("kind") != _KIND:
        raise InputError(f"{path} is no warm prompt; make one with edgeadapt warm")
    if value.get("schema_version") != 1:
        raise InputError(
            f"{path} has schema version {value.get('schema_version')!r:.20}, this edgeadapt reads "
            "1; make it again with edgeadapt warm"
        )
    prompt = validated(value, str(path), WarmPrompt)
    parse_messages(list(prompt.messages), "messages", str(path))
    return prompt


def read_messages(path: Path) -> tuple[Message, ...]:
    """The messages in a user's file: a list of them in a .json file, else one system message.

    Space around the text of a system message is left out.

    Raises:
        InputError: the file is missing, empty, not UTF-8, or no list of messages.
        CorruptFileError: a .json file is not JSON.
    """
    if path.suffix == ".json":
        return parse_messages(read_json(path), "(the list)", str(path))
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save it as that") from error
    if not text:
        raise InputError(f"{path} is empty; write the system prompt into it")
    return ({"role": "system", "content": text},)


def tokens_under(folder: Path, messages: Sequence[Message]) -> int:
    """How many tokens a model's own tokenizer and template make of a warm prompt.

    Args:
        folder: the model's.
        messages: of the prompt.

    Raises:
        InputError: the model has no tokenizer or template, or this rejects the messages.
        UnsupportedError: the template does not keep them at the beginning.
    """
    tokenizer = ModelTokenizer.from_folder(folder)
    render = functools.partial(tokenizer.render, add_generation_prompt=True)
    return len(common_opening(messages, render, tokenizer.encode).ids)


def warm_text(prompt: WarmPrompt) -> str:
    """The file's content."""
    return json.dumps(prompt.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
