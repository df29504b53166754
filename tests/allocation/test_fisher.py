"""The Fisher information foretells the divergence that a small change really causes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from edgeadapt.allocation.divergence import Reference
from edgeadapt.allocation.fisher import Fisher, measure_fisher
from edgeadapt.allocation.matrices import Matrix, find_matrices
from edgeadapt.allocation.sensitivity import original_of
from edgeadapt.allocation.torch_weights import Place, find_places
from edgeadapt.calibration.activations import load_model
from edgeadapt.converters.gguf.architectures import family_of
from edgeadapt.export import open_model
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import WeightSource, read_tensor
from tests.adapters.test_merged import save_adapter
from tests.tiny import save_model


class Case:
    """A tiny model with an adapter, and its statistics over random text."""

    def __init__(self, source: WeightSource, count: int = 64) -> None:
        self.source = source
        self.base, self.changed = original_of(source)
        random = np.random.default_rng(0)
        self.chunks = [random.integers(3, 320, 24).tolist() for _ in range(count)]
        self.model: Any = load_model(source)
        self.matrices: list[Matrix] = find_matrices(family_of(source.config).plan(source))
        self.places: dict[str, Place] = find_places(self.model, self.matrices)
        self.fisher: Fisher = measure_fisher(
            self.model, self.places, self.chunks, self.base, self.changed, lambda _: None
        )

    def view(self, name: str) -> torch.Tensor:
        place = self.places[name]
        view = place.of(self.model.get_parameter(place.parameter).data)
        assert isinstance(view, torch.Tensor)
        return view

    def divergence(self, changes: dict[str, torch.Tensor]) -> float:
        """Measured mean KL when tensors change by so much."""
        reference = Reference(self.model, self.chunks)
        for name, change in changes.items():
            self.view(name).add_(change)
        measured = float(reference.divergence().mean())
        for name, change in changes.items():
            self.view(name).sub_(change)
        return measured


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    from tests.tiny import save_llama

    folder = tmp_path_factory.mktemp("fisher")
    base = save_llama(folder / "base")
    config = LoraConfig(r=4, lora_alpha=1, target_modules=["q_proj", "down_proj"])
    adapter = save_adapter(base, folder / "adapter", config)
    yield Case(open_model(str(base), adapter).source)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight",
    ],
)  # fmt: skip
def test_independent_errors(case: Case, name: str) -> None:
    place = case.places[name]
    rows, columns = case.fisher.diagonals[place.parameter].of(0, 0, place.rows)
    diagonal = np.outer(rows, columns)
    generator = torch.Generator().manual_seed(1)
    sigma = 2e-3 / np.sqrt(diagonal.mean())  # changes that stay small
    measured = [
        case.divergence(
            {name: torch.randn(case.view(name).shape, generator=generator) * float(sigma)}
        )
        for _ in range(6)
    ]
    predicted = sigma**2 * diagonal.sum() / 2
    assert np.mean(measured) == pytest.approx(predicted, rel=0.35)


def test_what_is_lost_of_an_adapter(case: Case) -> None:
    lost = {
        name: 0.2 * (torch.from_numpy(read_tensor(case.base, name)) - case.view(name))
        for name in case.fisher.pulls
    }
    assert len(lost) == 4  # two layers, two modules each
    predicted = np.square(sum(0.2 * pull for pull in case.fisher.pulls.values())).sum() / 2
    assert case.divergence(lost) == pytest.approx(float(predicted), rel=0.4)


def test_the_model_is_left_as_it_was(case: Case) -> None:
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert all(parameter.requires_grad for parameter in case.model.parameters())
    for name in case.places:
        np.testing.assert_allclose(  # what was added and taken away leaves a rounding
            case.view(name).numpy(), read_tensor(case.source, name), atol=1e-6
        )


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe", "phi3"])
def test_every_matrix_is_found_in_the_model(family: str, tmp_path: Path) -> None:
    case = Case(SafetensorsSource(save_model(tmp_path / "m", family)), count=4)
    for matrix in case.matrices:
        for part in matrix.plan.parts:
            np.testing.assert_array_equal(
                case.view(part.name).numpy(), read_tensor(case.source, part.name)
            )
    for place in case.places.values():
        diagonal = case.fisher.diagonals[place.parameter]
        assert diagonal.rows.sum() == pytest.approx(diagonal.columns.sum(), rel=1e-4)
        assert (diagonal.rows >= 0).all()
        assert diagonal.rows.any()
