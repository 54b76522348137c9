"""Recorded training steps: what is padded, what is refused, and on a GPU the same weights as unrecorded steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hybridzoo import build_model
from hybridzoo.errors import ConfigError
from hybridzoo.training import load_recipe, train
from hybridzoo.training.graphs import MULTIPLE, CompiledLayers, StepGraphs, check_graphs, padded
from hybridzoo.training.schema import TrainingSection


def _tokens(length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 20, (2, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}


def test_lengths_are_rounded_up_with_padding() -> None:
    found = padded(_tokens(5), pad_token_id=7, most=None)
    assert found["input_ids"].shape == (2, MULTIPLE)
    assert found["attention_mask"].sum(1).tolist() == [5, 5]
    assert set(found["input_ids"][:, 5:].flatten().tolist()) == {7}
    assert padded(_tokens(MULTIPLE), 0, None)["input_ids"].shape == (2, MULTIPLE)
    assert padded(_tokens(5), 0, 9)["input_ids"].shape == (2, 9)
    pixels = {"pixel_values": torch.zeros(2, 1, 3, 3)}
    assert padded(pixels, 0, None) is pixels


def test_padding_changes_no_loss() -> None:
    model = build_model("chela_test").eval()
    batch = _tokens(21)
    torch.testing.assert_close(model(**padded(batch, 0, 64)).loss, model(**batch).loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gradient_accumulation": 2}, "gradient_accumulation"),
        ({"mixup": 0.2}, "mixup"),
        ({"precision": "fp16"}, "fp16"),
    ],
)
def test_what_cannot_be_recorded_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_graphs(TrainingSection(cuda_graphs=True, **values), 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="several processes"):
        check_graphs(TrainingSection(cuda_graphs=True), 2)


def test_layers_are_compiled_only_in_use() -> None:
    model = build_model("chela_test")
    layers = CompiledLayers(model)
    assert len(layers.calls) == model.config.num_hidden_layers
    with layers.in_use():
        assert all(layer._compiled_call_impl is not None for layer, _ in layers.calls)
    assert all(layer._compiled_call_impl is None for layer, _ in layers.calls)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
def test_recorded_gradients_are_the_unrecorded_ones() -> None:
    model = build_model("chela_test", dropout=0.0).cuda()
    graphs = StepGraphs(model, lambda batch: model(**batch).loss)
    for length in (64, 32, 64, 32):
        batch = {name: x.cuda() for name, x in _tokens(length).items()}
        loss = model(**batch).loss
        wanted = torch.autograd.grad(loss, graphs.parameters)
        torch.testing.assert_close(graphs.step(batch), loss.detach())
        for parameter, gradient in zip(graphs.parameters, wanted):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
            parameter.grad = None


def test_a_training_with_weighted_classes(tmp_path: Path) -> None:  # on a GPU recorded: nothing comes from the CPU then
    data = ["data.name=fashion_mnist_mini", "data.options={limit: 60}", "evaluation.tasks=[]", "training.num_workers=0"]
    model = {"image_size": 28, "num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}
    steps = ["training.max_steps=4", "training.batch_size=20"]
    recipe = load_recipe("iformer/emoji", [*data, *steps, *(f"model.config.{k}={v}" for k, v in model.items())])
    assert recipe.training.cuda_graphs
    assert recipe.training.class_weights == "balanced"
    assert train(recipe, tmp_path).step == 4
