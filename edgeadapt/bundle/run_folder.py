"""What a bundle takes from the folder of a finished run: `run.json`, checked before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.measurement import Measurement
from edgeadapt.bundle.manifest import Gate
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError
from edgeadapt.files import read_json
from edgeadapt.yaml_model import first_problem

RUN_FILE = "run.json"
_STAGE_FILE = "stage.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Judged(_Part):
    """The verdict of the gates on one runtime."""

    gates: tuple[Gate, ...]
    failures: tuple[str, ...] = ()
    passed: bool


class RunArtifact(_Part):
    """One artifact that the run made."""

    path: Path
    format: Literal["gguf", "onnx"]
    quantization: str
    sha256: str
    devices: dict[str, str]
    fidelity: dict[str, Judged]

    def __str__(self) -> str:
        return f"{self.format} {self.quantization}"

    def open(self) -> Artifact:
        """The artifact itself.

        Raises:
            InputError: it is gone, or is not what the run made.
        """
        artifact = open_artifact(self.path)
        if artifact.sha256() != self.sha256:
            raise InputError(
                f"{self.path} is not what the run made: it was changed since; run it again"
            )
        return artifact

    def objections(self) -> list[str]:
        """Why it should not be shipped: gates that it failed, or that it never saw."""
        if not any(judged.gates for judged in self.fidelity.values()):
            return [f"{self.path.name} has no gate results"]
        return [
            f"{self.path.name} on {runtime} failed {failure}"
            for runtime, judged in self.fidelity.items()
            for failure in judged.failures or _failed(judged)
        ]


def _failed(judged: Judged) -> list[str]:
    return [f"{gate.gate}: {gate.figure}" for gate in judged.gates if not gate.passed]


class RunBase(_Part):
    """The base of the run."""

    name: str
    path: Path
    sha256: str


class RunAdapter(_Part):
    """What the run trained, or was given."""

    path: Path | None = None
    kind: Literal["adapter", "model"] = "adapter"


class RunStage(_Part):
    """One stage's folder."""

    kind: str
    folder: str


class Sample(_Part):
    """A question that every artifact was asked."""

    prompt: str
    answers: dict[str, str] = {}


class Run(_Part):
    """A finished run."""

    name: str
    recipe: dict[str, Any]
    base: RunBase
    adapter: RunAdapter | None
    merge: dict[str, Any] | None = None
    artifacts: tuple[RunArtifact, ...]
    measurements: tuple[Measurement, ...] = ()
    perplexity: dict[str, Any] = {}
    samples: tuple[Sample, ...] = ()
    stages: tuple[RunStage, ...] = ()

    @property
    def peft_adapter(self) -> Path | None:
        """The adapter's folder; none where a whole model was trained."""
        found = self.adapter
        return found.path if found and found.kind == "adapter" else None

    @property
    def trained(self) -> Path | None:
        """The folder of a model that was trained as a whole."""
        found = self.adapter
        return found.path if found and found.kind == "model" else None


def read_run(folder: Path) -> Run:
    """Read and check `run.json`.

    Raises:
        InputError: the folder holds no finished run, or one of another edgeadapt.
        CorruptFileError: the file is not JSON.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} has no {RUN_FILE}; give the folder of a finished run, such as runs/demo"
        )
    document = read_json(path)
    if not isinstance(document, dict):
        raise CorruptFileError(f"{path} holds {type(document).__name__}, expected an object")
    try:
        run = Run.model_validate(document)
    except ValidationError as error:
        raise InputError(
            f"{path} is not of this edgeadapt: {first_problem(error)}; run it again"
        ) from error
    if not run.artifacts:
        raise InputError(f"{path} lists no artifacts, so there is nothing to bundle")
    return run


def tool_versions(run: Run, root: Path) -> dict[str, str]:
    """Versions of the packages that trained, merged and exported, as the stages recorded them."""
    found: dict[str, str] = {}
    for stage in run.stages:
        if (
            stage.kind not in ("train", "merge", "export")
            or Path(stage.folder).name != stage.folder
        ):
            continue
        try:
            versions = read_json(root / stage.folder / _STAGE_FILE)["inputs"]["versions"]
            found |= {str(name): str(version) for name, version in versions.items()}
        except (EdgeAdaptError, KeyError, TypeError, AttributeError):
            continue  # the run was moved without its stages: what is known elsewhere stays
    return dict(sorted(found.items()))
