"""What the benchmarks share: order, failures, what is left out, the step of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hybridzoo.bench.rows import image_row, measure_all, millions, peak_memory, train_step
from hybridzoo.bench.timing import Timing
from hybridzoo.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    batch_size: int = 4
    seconds: float = 1.0
    device: str = "cpu"


def benchmark(name: str, settings: Settings) -> dict[str, Any]:
    if name == "broken":
        raise RuntimeError("\n\n  no kernel\nmore")
    if name == "wrong":
        raise ConfigError("no such backend")
    return {"model": name, "batch_size": settings.batch_size}


def test_a_failure_is_a_row_and_wrong_settings_are_an_error() -> None:
    lines: list[str] = []
    settings = [Settings(1), Settings(2)]
    rows = measure_all(
        ["a", "broken"],
        settings,
        benchmark,
        lambda row: row["model"],
        lines.append,
        left_out=lambda name, s: (name, s.batch_size) == ("broken", 1),
    )
    assert [(row["model"], row["batch_size"]) for row in rows] == [("a", 1), ("a", 2), ("broken", 2)]
    assert rows[2]["error"] == "RuntimeError:   no kernel"
    assert lines == ["a", "a", "broken"]
    with pytest.raises(ConfigError, match="no such backend"):
        measure_all(["wrong"], settings, benchmark, str, lines.append)
    (row,) = measure_all(["broken"], settings[:1], benchmark, str, lines.append, stated=lambda s: {"mode": "infer"})
    assert set(row) == {"model", "mode", "error"}


def test_a_row_states_speed_and_spread() -> None:
    row = image_row("a", Settings(), {"param_count": 1.5}, Timing(0.5, 0.25, 1.0, 7))
    assert row == {
        "model": "a",
        "batch_size": 4,
        "param_count": 1.5,
        "images_per_sec": 8.0,
        "step_time_ms": 500.0,
        "step_time_low_ms": 250.0,
        "step_time_high_ms": 1000.0,
        "repeats": 7,
        "peak_memory_mb": None,
    }
    assert peak_memory(torch.device("cpu")) is None


def test_a_step_trains_what_is_trained() -> None:
    model = torch.nn.Linear(1000, 1000)
    assert millions(model) == 1.0
    model.bias.requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    model.eval()
    step = train_step(model, lambda: model(torch.ones(1, 1000)).square().sum(), clip_norm=1.0)
    assert model.training
    assert step().item() > step().item()
    assert not torch.equal(model.weight, before[0])
    assert torch.equal(model.bias, before[1])
    assert model.weight.grad is None
