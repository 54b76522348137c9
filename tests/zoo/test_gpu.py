"""The registry-wide suite on a GPU: `pytest -m gpu tests/zoo`. The CPU is the reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridzoo import build_model, list_models

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODELS = list_models("*_test")


def main(model: Any) -> torch.Tensor:
    """The main output for the example inputs."""
    return model(**model.example_inputs(4))[model.main_output_name]


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same model on the CPU and on the GPU, in eval mode; TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = build_model(request.param).eval()
    return model, copy.deepcopy(model).cuda()


def test_output_and_gradients_equal_the_cpu(pair: tuple[Any, Any]) -> None:
    results = []
    for model in pair:
        logits = main(model).detach().cpu()
        for module in model.modules():  # cuDNN has no gradient of an LSTM in eval mode, so: train mode without dropout
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, torch.nn.RNNBase):
                module.dropout = 0.0
        model.train()(**model.example_inputs(4, labels=True)).loss.backward()
        results.append((logits, {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    assert results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(
            gradient, results[1][1][name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair: tuple[Any, Any], dtype: torch.dtype) -> None:
    model = pair[1]
    reference = main(model)
    with torch.autocast("cuda", dtype=dtype):
        got = model(**model.example_inputs(4, labels=True))[model.main_output_name]
    assert got.isfinite().all()
    if "bf16_autocast" not in model.suite_exceptions:
        torch.testing.assert_close(got.float(), reference, rtol=0.1, atol=0.1)
    weights = copy.deepcopy(model).to(dtype)
    assert main(weights).isfinite().all()


def test_compiled(pair: tuple[Any, Any]) -> None:
    model = pair[1]
    inputs = model.example_inputs(4)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True)(**inputs)[model.main_output_name]
        torch.testing.assert_close(got, main(model), rtol=1e-3, atol=1e-3)


def test_loading_onto_the_gpu(pair: tuple[Any, Any], tmp_path: Path) -> None:
    pair[1].save_pretrained(tmp_path)
    for options in ({"device": "cuda"}, {"device": torch.device("cuda", 0)}, {"device_map": "cuda"}):
        again = build_model(tmp_path, **options)
        assert again.device.type == "cuda"
        assert all(torch.equal(v.cpu(), again.state_dict()[k].cpu()) for k, v in pair[0].state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_random_weights_on_the_gpu(name: str) -> None:
    model = build_model(name, device="cuda", dtype="bf16")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert model.dtype == torch.bfloat16
