"""The whole of `edgeadapt run`, read from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeadapt.adapters.sequential import check_without, form_of
from edgeadapt.console import log
from edgeadapt.converters.onnx.options import OnnxOptions, for_device
from edgeadapt.devices import load_profile
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.export import ModelToExport, open_model
from edgeadapt.files import sweep_cache
from edgeadapt.pipeline import measuring, stages
from edgeadapt.pipeline.inputs import (
    Adapted,
    Inputs,
    adapted,
    find_inputs,
    find_task,
    held_out_sequences,
)
from edgeadapt.pipeline.results import Evaluated, Results
from edgeadapt.pipeline.workspace import Workspace, locked
from edgeadapt.planner import choose
from edgeadapt.planner.sizes import facts_of
from edgeadapt.recipe import Recipe
from edgeadapt.report import write_reports
from edgeadapt.runtimes.registry import installed_runtimes
from edgeadapt.training.methods import with_inserted


@dataclass(frozen=True)
class Target:
    """One artifact to make, and the devices it is for with the planner's reasons."""

    format: str
    quantization: str
    reasons: dict[str, str] = field(default_factory=dict)
    max_size: str | None = None
    """In place of a named quantization; `quantization` then says the same."""

    def onnx_options(self) -> OnnxOptions | None:
        """What the device's profile says of ONNX; nothing where several devices share the file."""
        if self.format != "onnx" or len(self.reasons) != 1:
            return None
        (device,) = self.reasons
        return for_device(OnnxOptions(), load_profile(device), self.quantization)


def run_recipe(recipe: Recipe, root: Path, *, resume: bool = False) -> Results:
    """Train, export, evaluate and measure as the recipe says, and write the reports.

    Args:
        recipe: what to do.
        root: folder of the run; stages that were done before are reused.
        resume: continue training and other stages where an interruption left them.

    Raises:
        InputError: the recipe names something that does not exist or does not fit.
        EdgeAdaptError: a stage failed; the stages before it are kept.
    """
    inputs = find_inputs(recipe)
    untrained = model_to_be(recipe, inputs.adapter)
    targets = plan_targets(recipe, untrained)
    _check_sizes(targets, untrained, inputs)
    held_out = held_out_sequences(recipe, inputs)
    find_task(recipe, inputs)
    with locked(root):
        sweep_cache()
        space = Workspace(root, resume=resume, check_inputs=inputs.watched.check)
        results = Results(recipe, inputs)
        model = _adapt(space, recipe, inputs, results)
        if model.adapter is not None:
            model, merge = stages.merge_stage(space, recipe, inputs, model, held_out)
            results.add_merge(merge)
        source = model.open(recipe)
        yardstick = stages.prepare_yardstick(inputs, model, held_out, recipe.trained_on)
        reference = stages.reference_stage(space, recipe, inputs, model, held_out, yardstick)
        results.add_reference(reference)
        for target in targets:
            artifact, done = stages.export_stage(
                space, recipe, inputs, model, source, target.format, target.quantization,
                max_size=target.max_size, onnx=target.onnx_options(),
            )  # fmt: skip
            results.add_artifact(artifact, target.reasons, done)
            if artifact.format == "gguf":
                results.add_weights(measuring.weights_stage(space, inputs, model, source, artifact))
            for runtime in installed_runtimes(artifact.format):
                evaluated = measuring.evaluate_stage(
                    space, recipe, inputs, model, artifact, runtime, yardstick, held_out
                )
                results.add_evaluation(Evaluated(artifact, runtime), evaluated, source)
                bench = measuring.bench_stage(
                    space, recipe, artifact.path, artifact.sha256(), runtime, artifact.quantization
                )
                results.add_measurement(bench)
        if recipe.bench.reference:
            bench = measuring.bench_stage(
                space, recipe, inputs.base, inputs.base_sha256, "torch", "base"
            )
            results.add_measurement(bench)
        results.add_predictions(source.source, measuring.machine_stage(space))
        log.info("== report")
        results.save(root)
        write_reports(results.document(), root)
    return results


def model_to_be(recipe: Recipe, adapter: Path | None) -> ModelToExport:
    """The model before training, in the shape that it will be exported in.

    Raises:
        UnsupportedError: the method cannot be applied to the base.
    """
    model, training = open_model(recipe.base, adapter, revision=recipe.revision), recipe.train
    if training is None:
        return model
    return replace(model, source=with_inserted(model.source, training))


def plan_targets(recipe: Recipe, source: ModelToExport) -> list[Target]:
    """What to export: each format and quantization once, whoever asked for it.

    Raises:
        InputError: a device or format is unknown, or the model does not fit a device.
    """
    targets: dict[tuple[str, str], Target] = {}
    for wish in recipe.export:
        reasons = {}
        if wish.device is not None:
            choice = choose(load_profile(wish.device), facts_of(source))
            format, quantization = choice.format, choice.quantization
            reasons[wish.device] = choice.reason
            log.info("%s", choice.reason)
        else:
            format, quantization = str(wish.format), str(wish.quantization)
        if format == "gguf":
            check_without(source.source.config, "llama.cpp's graphs have")
        elif quantization == "int8-dynamic" and form_of(source.source.config) is not None:
            raise UnsupportedError(
                "int8-dynamic is made by exporters whose graphs have no place for bottlenecks "
                "behind the blocks; export int8 or int4"
            )
        if wish.max_size is not None:
            quantization = "mixed-" + "".join(wish.max_size.split())
            installed_runtimes(format)
        else:
            check_target(format, quantization)
        target = targets.setdefault(
            (format, quantization), Target(format, quantization, max_size=wish.max_size)
        )
        target.reasons.update(reasons)
    return list(targets.values())


def check_target(format: str, quantization: str) -> None:
    """See that something can be exported so, and run.

    Raises:
        InputError: there is no such format or quantization.
        MissingExtraError: no runtime for it is installed.
    """
    from edgeadapt.converters.registry import get_converter

    known = get_converter(format).quantizations
    if quantization not in known:
        raise InputError(
            f"{format} has no quantization {quantization!r}; choose one of {', '.join(known)}"
        )
    installed_runtimes(format)


def _check_sizes(targets: list[Target], source: ModelToExport, inputs: Inputs) -> None:
    for target in targets:
        if target.max_size is not None and inputs.train_data is not None:
            from edgeadapt.allocation.allocate import check_max_size

            check_max_size(source, inputs.train_data, target.max_size)


def _adapt(space: Workspace, recipe: Recipe, inputs: Inputs, results: Results) -> Adapted:
    if recipe.train is not None:
        model, done = stages.train_stage(space, recipe, inputs)
        results.add_adapter(model, done)
        return model
    if inputs.adapter is not None:
        model = adapted(inputs.adapter)
        results.add_adapter(model, None)
        return model
    return Adapted(None, None, None, {})
