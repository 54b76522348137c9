"""Co-DETR: inference without a trace of training, odd images, bad input, export."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybridzoo import build_model
from hybridzoo.errors import ConfigError, InputError


def tiny(**values: Any) -> Any:
    torch.manual_seed(0)
    return build_model("co_detr_test", **values)


# Checkpoints ---------------------------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """How many operators run."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_auxiliary_heads_leave_no_trace_at_inference() -> None:
    model = tiny().eval()
    inputs = model.example_inputs(2)
    bare = model.without_auxiliary_heads()
    with torch.no_grad(), Count() as with_heads:
        expected = model(**inputs)
    with torch.no_grad(), Count() as without:
        found = bare(**inputs)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)
    assert with_heads.calls == without.calls  # the same work, so the same speed
    for part in (model.collaborative, model.denoising):  # nothing of it is read
        for parameter in part.parameters():
            parameter.data.fill_(math.nan)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected.logits)
    plain = build_model(
        "co_detr_test", use_roi_head=False, use_atss_head=False, use_aux_queries=False, use_denoising=False
    )
    assert {k: v.shape for k, v in bare.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


def test_alone_as_in_a_padded_batch() -> None:
    model = tiny().eval()
    generator = torch.Generator().manual_seed(2)
    # widths and heights that every stride divides: the maps of the image are then the same with and without padding
    one, two = (torch.randn(1, 3, *size, generator=generator) for size in ((64, 128), (128, 64)))
    batch, mask = torch.zeros(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.long)
    for i, image in enumerate((one, two)):
        height, width = image.shape[-2:]
        batch[i, :, :height, :width], mask[i, :height, :width] = image[0], 1
    with torch.no_grad():
        together = model(batch, mask)
        for i, image in enumerate((one, two)):
            height, width = image.shape[-2:]
            padded = torch.zeros(1, 3, 128, 128)
            padded[:, :, :height, :width] = image
            alone = model(padded, mask[i : i + 1])
            torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together.pred_boxes[i], alone.pred_boxes[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 5)])
def test_tiny_and_odd_images(size: tuple[int, int]) -> None:
    model = tiny().eval()
    with torch.no_grad():
        found = model(torch.randn(1, 3, *size))
    assert found.logits.isfinite().all()
    assert found.logits.shape == model.output_shape({"pixel_values": torch.empty(1, 3, *size)})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, y: m(x[0]), r"must be a tensor \(B, 3, H, W\)"),
        (lambda m, x, y: m(x.byte()), "image processor"),
        (lambda m, x, y: m(x[..., :0]), "no pixels"),
        (lambda m, x, y: m(x, torch.ones(1, 2, 2)), "pixel_mask must be a tensor"),
        (lambda m, x, y: m(x, torch.zeros(1, 96, 128)), "one rectangle of ones"),
        (lambda m, x, y: m(x, labels=y[0]), "a list of 1 dictionaries"),
        (lambda m, x, y: m(x, labels=[{"boxes": y[0]["boxes"]}]), "'class_labels' and 'boxes'"),
        (lambda m, x, y: m(x, labels=[y[0] | {"class_labels": torch.tensor([0, 5])}]), "classes 0 to 4"),
        (lambda m, x, y: m(x, labels=[y[0] | {"boxes": y[0]["boxes"] * 100}]), "Divide pixel boxes"),
        (lambda m, x, y: m(x, labels=[y[0] | {"boxes": y[0]["boxes"] * math.nan}]), "relative to the image"),
        (lambda m, x, y: m(x, labels=[y[0] | {"boxes": y[0]["boxes"] * 0}]), "a width and a height above 0"),
        (lambda m, x, y: m(x, labels=[y[0] | {"class_labels": torch.tensor([0.0, 1.0])}]), "integers"),
    ],
)
def test_bad_input(call: Callable[..., Any], words: str) -> None:
    model = tiny().eval()
    inputs = model.example_inputs(1, labels=True)
    with pytest.raises(InputError, match=words):
        call(model, inputs["pixel_values"], inputs["labels"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"variant": "detr"}, "variant"),
        ({"d_model": 30}, "multiple of num_heads"),
        ({"num_feature_levels": 9}, "num_feature_levels"),
        ({"variant": "deformable_detr", "use_denoising": True}, "no denoising"),
        ({"use_roi_head": False, "use_atss_head": False}, "use_aux_queries=True needs"),
        ({"backbone_config": {"chanels": (1,)}}, "did you mean 'channels'"),
        ({"backbone": "timm", "backbone_config": {"name": "resnt18"}}, "did you mean"),
    ],
)
def test_bad_configurations(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**values)


# Backbones and export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exported_files_give_the_same_logits_and_boxes(suffix: str, tmp_path: Path) -> None:
    from hybridzoo.export.exporter import export_model

    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model = tiny().eval()
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[0, :64, :64] = mask[1, :32, :96] = 1
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * mask[:, None]
    report = export_model(model, tmp_path / f"detector.{suffix}", inputs={"pixel_values": pixels, "pixel_mask": mask})
    assert report.outputs == ["logits", "pred_boxes"]
    assert report.inputs["pixel_mask"] == ["batch", 64, 96]
    assert report.max_abs_error < 1e-4
    assert [c.shapes["pixel_values"][0] for c in report.checks] == [1, 3]
    if suffix == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
        found = session.run(["pred_boxes"], {"pixel_values": pixels.numpy(), "pixel_mask": mask.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(found, model(pixels, mask).pred_boxes.numpy(), atol=1e-4)


def test_constants_of_a_size_are_kept_only_if_they_are_real() -> None:
    """Shapes on the meta device and fake tensors leave nothing behind; neither does inference mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = tiny()
    images = torch.zeros(1, 3, 80, 112)  # a size of this test alone
    with torch.no_grad():
        shape = tiny().eval().to("meta")(images.to("meta")).logits.shape
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model.eval()(torch.zeros(1, 3, 80, 112)).logits.shape == shape
    with torch.inference_mode():
        assert model(images).logits.shape == shape
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])}]
    loss = model.train()(images, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
