"""CUDA graphs of a detector: what can be said without a GPU, and the same numbers on one."""

from __future__ import annotations

import pytest
import torch

from hybridzoo import build_model
from hybridzoo.bench.detection import DetectionSettings, summary
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.inference.detection import Detector
from hybridzoo.inference.graph import GraphedCalls, _HostConstants


def test_a_graph_needs_a_gpu() -> None:
    model = build_model("co_detr_test").eval()
    with pytest.raises(ConfigError, match="this one is on cpu"):
        GraphedCalls(model, ("logits",))
    with pytest.raises(ConfigError, match="on a GPU"):
        Detector(model, device="cpu", graph=True)
    with pytest.raises(InputError, match="pixel_values"):
        GraphedCalls(lambda **_: {}, ("logits",))(pixel_values=torch.zeros(1))
    with pytest.raises(ConfigError, match="eager inference on a CUDA device"):
        DetectionSettings(mode="train", graph=True)


def test_constants_of_the_host_are_kept_in_their_order() -> None:
    def call() -> list[torch.Tensor]:
        return [torch.tensor([1.0, 2.0]), torch.as_tensor([(3, 4)], dtype=torch.long), torch.as_tensor(torch.ones(1))]

    constants = _HostConstants()
    with constants:
        made = call()
    constants.at = 0
    with constants:
        again = call()
    assert again[0] is made[0]
    assert again[1] is made[1]
    assert len(constants.made) == 2
    with constants, pytest.raises(RuntimeError, match="other constants"):
        torch.tensor([9.0])


def test_a_row_names_the_graph() -> None:
    row = {"model": "m", "mode": "infer", "dtype": "fp32", "backend": "auto", "compile": None, "graph": True}
    assert "graph B1" in summary({**row, "batch_size": 1, "error": "-"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_graph_gives_what_eager_calls_give(dtype: str) -> None:
    model = build_model("co_detr_test")
    eager, graph = (Detector(model, device="cuda", dtype=dtype, graph=on) for on in (False, True))
    for size in ((96, 128), (64, 64), (96, 128)):
        image = torch.randint(0, 255, (*size, 3), dtype=torch.uint8).numpy()
        (one,), (other,) = eager.detect([image]), graph.detect([image])
        torch.testing.assert_close(torch.from_numpy(one["scores"]), torch.from_numpy(other["scores"]))
