"""The benchmark of detectors: rows, rivals, failures as rows, and the page made from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hybridzoo.bench import detection
from hybridzoo.bench.detection import DetectionSettings, benchmark, benchmark_all, build, inputs_for, render
from hybridzoo.bench.precision import tf32_of
from hybridzoo.errors import ConfigError

PEER = """
import importlib.util
spec = importlib.util.spec_from_file_location("tiny_detector", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
make = module.ColourDetector
def fails():
    raise RuntimeError("does not build")
"""
SMALL = {"height": 32, "width": 48, "seconds": 0.05, "device": "cpu"}


@pytest.fixture
def peer(tmp_path: Path) -> str:
    path = tmp_path / "peer.py"
    path.write_text(PEER.format(path=str(Path(__file__).parent / "tiny_detector.py")))
    return f"python:{path}"


def test_rows_of_inference_and_training(peer: str) -> None:
    row = benchmark(f"{peer}:make", DetectionSettings(batch_size=2, **SMALL))
    assert row["images_per_sec"] == pytest.approx(2000 / row["step_time_ms"], rel=0.01)
    assert row["step_time_low_ms"] <= row["step_time_ms"] <= row["step_time_high_ms"]
    assert row["peak_memory_mb"] is None
    trained = benchmark(f"{peer}:make", DetectionSettings(mode="train", objects=3, **SMALL))
    assert trained["mode"] == "train"
    assert trained["repeats"] >= 3


def test_a_failure_is_a_row_and_the_page_shows_ratios(peer: str) -> None:
    shown: list[str] = []
    settings = [DetectionSettings(**SMALL), DetectionSettings(mode="train", **SMALL)]
    rows = benchmark_all([f"{peer}:make", f"{peer}:fails"], settings, log=shown.append)
    assert [("error" in r) for r in rows] == [False, True, False, True]
    assert "does not build" in shown[1]
    text = "\n".join(render({"rows": rows}))
    assert "**Inference**, fp32, batch 1, 32 x 48" in text
    assert "Training step (7 objects an image)" in text
    assert "| 1.00 |" in text
    assert text.count("not measured") == 2


def test_the_rival_of_transformers_takes_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "PEER_QUERIES", 20)  # a small image has fewer than 900 places to look at
    model = build("transformers:deformable_detr_r50_two_stage").train()
    settings = DetectionSettings(mode="train", height=64, width=96, device="cpu")
    output = model(**inputs_for(settings))
    assert output.loss.isfinite()
    assert output.logits.shape == (1, 20, 80)


def test_precision_and_choice_of_convolutions_hold_inside_only(peer: str) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    allowed = {"fp32": (False, False), "default": (False, True), "tf32": (True, True), "amp": (True, True)}
    for dtype, inside in allowed.items():
        with tf32_of(dtype, cudnn_benchmark=True):
            assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (*inside, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == before
    settings = [DetectionSettings(cudnn_benchmark=chosen, **SMALL) for chosen in (False, True)]
    text = "\n".join(render({"rows": benchmark_all([f"{peer}:make"], settings, log=lambda _: None)}))
    assert "fp32, batch 1, 32 x 48, `cudnn.benchmark`" in text
    assert text.count("| 1.00 |") == 2


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="train with dtype='amp'"):
        DetectionSettings(mode="train", dtype="bf16")
    with pytest.raises(ConfigError, match="'infer'"):
        DetectionSettings(mode="infr")
    with pytest.raises(ConfigError, match="height=0"):
        DetectionSettings(height=0)
    with pytest.raises(ConfigError, match="two_stage"):
        build("transformers:deformable_detr_r50_twostage")
