"""The figures of a run, gathered stage by stage into one document: `run.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt import __version__
from edgeadapt.artifact import Artifact
from edgeadapt.devices import load_profile
from edgeadapt.export import ModelToExport
from edgeadapt.fidelity.gates import Verdict
from edgeadapt.files import write_json
from edgeadapt.pipeline.foretold import predictions
from edgeadapt.pipeline.inputs import Adapted, Inputs
from edgeadapt.pipeline.measuring import PROFILE
from edgeadapt.pipeline.stages import PARITY
from edgeadapt.pipeline.verdicts import failures, judged_record
from edgeadapt.pipeline.workspace import StageResult
from edgeadapt.planner import model_facts
from edgeadapt.recipe import Recipe
from edgeadapt.weights import WeightSource

SCHEMA_VERSION = 1
FILE = "run.json"


@dataclass(frozen=True)
class Evaluated:
    """An artifact on a runtime."""

    artifact: Artifact
    runtime: str


class Results:
    """Everything a run found out."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._stages: list[dict[str, Any]] = []
        self._gates = recipe.gates
        self._document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "edgeadapt": __version__,
            "name": recipe.name,
            "recipe": recipe.model_dump(mode="json"),
            "base": {
                "name": recipe.base,
                "path": str(inputs.base.resolve()),
                "sha256": inputs.base_sha256,
            },
            "adapter": None,
            "merge": None,
            "artifacts": [],
            "perplexity": {},
            "measurements": [],
            "predictions": [],
            "samples": [],
        }

    def add_adapter(self, model: Adapted, stage: StageResult | None) -> None:
        """The adapter (or fully trained model) and how its training went."""
        path = model.adapter or model.model
        self._document["adapter"] = {
            **model.record,
            "path": str(path.resolve()) if path else None,
            "kind": "adapter" if model.adapter else "model",
            "sha256": model.sha256,
        }
        held_out = model.record.get("held_out") or {}
        for moment in ("before", "after"):
            if held_out.get(moment):
                name = {"before": "trained_base", "after": "live"}[moment]
                self._document["perplexity"][name] = held_out[moment]
        if stage is not None:
            self._add_stage("train", stage)

    def add_merge(self, stage: StageResult) -> None:
        """What the adapter was merged onto, and the figures that decided it."""
        self._document["merge"] = stage.read("merge.json")
        self._add_stage("merge", stage)

    def add_reference(self, stage: StageResult) -> None:
        """Torch's figures and answers of the base, and of the merged model."""
        self._document["perplexity"].update(stage.read("perplexity.json"))
        for answer in stage.read("answers.json"):
            self._document["samples"].append(
                {"prompt": answer["prompt"], "answers": {"base": answer["answer"]}}
            )
        self._add_stage("reference", stage)

    def add_artifact(self, artifact: Artifact, reasons: dict[str, str], stage: StageResult) -> None:
        """An exported artifact."""
        self._document["artifacts"].append(
            {
                "path": str(artifact.path.resolve()),
                "format": artifact.format,
                "quantization": artifact.quantization,
                "sha256": artifact.sha256(),
                "bytes": artifact.size_bytes,
                "devices": reasons,
                "lineage": artifact.lineage,
                "parity": stage.read(PARITY),
                "weights": [],
                "perplexity": {},
                "fidelity": {},
            }
        )
        self._add_stage("export", stage)

    def add_weights(self, stage: StageResult) -> None:
        """What quantization changed of the weights of the last artifact."""
        self._document["artifacts"][-1]["weights"] = stage.read("weights.json")
        self._add_stage("weights", stage)

    def add_evaluation(
        self, evaluated: Evaluated, stage: StageResult, model: ModelToExport
    ) -> None:
        """An artifact's figures on one runtime, the verdict of the gates, and its answers."""
        figures = stage.read("figures.json")
        entry = self._document["artifacts"][-1]
        fidelity = figures["fidelity"]
        perplexity = fidelity["perplexity"]["value"]
        entry["perplexity"][evaluated.runtime] = {
            "perplexity": perplexity,
            "nll_sum": math.log(perplexity) * fidelity["tokens"],
            "tokens": fidelity["tokens"],
            "examples": self._document["perplexity"]["base"]["examples"],
            "gain_kept": self._gain_kept(perplexity),
        }
        judged = judged_record(
            evaluated.artifact, figures, self._gates, model.source, tuple(entry["devices"]),
            self._parity(entry["parity"]),
        )  # fmt: skip
        entry["fidelity"][evaluated.runtime] = judged
        label = f"{evaluated.artifact.quantization} on {evaluated.runtime}"
        for row, answer in zip(self._document["samples"], stage.read("answers.json"), strict=True):
            row["answers"][label] = answer["answer"]
        self._add_stage("evaluate", stage)

    def _parity(self, record: dict[str, Any]) -> list[Verdict]:
        """The gate's verdict; had it failed, there would be no artifact."""
        if not self._gates.parity:
            return []
        note = "" if record["checked"] else "not checked"
        return [Verdict(record["gate"], None, True, passed=True, note=note)]

    def add_measurement(self, stage: StageResult) -> None:
        """Latency and memory of one artifact on one runtime."""
        self._document["measurements"].append(stage.read("measurement.json"))
        self._add_stage("bench", stage)

    def add_predictions(self, source: WeightSource, stage: StageResult | None) -> None:
        """What artifacts should do on this machine, and on the devices that they are for."""
        machine = None
        if stage is not None:
            machine = load_profile(str(stage.folder / PROFILE))
            self._add_stage("machine", stage)
        self._document["predictions"] = predictions(
            self._document["artifacts"],
            self._document["measurements"],
            model_facts(source),
            machine,
        )

    def document(self) -> dict[str, Any]:
        """What `run.json` says."""
        perplexity = dict(self._document["perplexity"])
        perplexity["artifacts"] = [
            {
                "path": artifact["path"],
                "format": artifact["format"],
                "quantization": artifact["quantization"],
                "runtime": runtime,
                **figures,
            }
            for artifact in self._document["artifacts"]
            for runtime, figures in artifact["perplexity"].items()
        ]
        perplexity["reduction"] = self._reduction()
        return self._document | {
            "perplexity": perplexity,
            "failures": failures(self._document["artifacts"]),
            "stages": self._stages,
        }

    def save(self, root: Path) -> None:
        """Write `run.json`."""
        write_json(root / FILE, self.document())

    def _reduction(self) -> float | None:
        """Relative drop of held-out perplexity from the float base to the adapted model."""
        figures = self._document["perplexity"]
        adapted = figures.get("live") or figures.get("merged")
        if adapted is None:
            return None
        return 1 - float(adapted["perplexity"]) / float(figures["base"]["perplexity"])

    def _gain_kept(self, perplexity: float) -> float | None:
        """Share of the log-perplexity gain, float base to float merged model, that is left."""
        figures = self._document["perplexity"]
        if "merged" not in figures:
            return None
        base = math.log(figures["base"]["perplexity"])
        gain = base - math.log(figures["merged"]["perplexity"])
        return (base - math.log(perplexity)) / gain if gain > 0 else None

    def _add_stage(self, kind: str, stage: StageResult) -> None:
        self._stages.append(
            {
                "kind": kind,
                "folder": stage.folder.name,
                "seconds": stage.seconds,
                "reused": stage.reused,
            }
        )
