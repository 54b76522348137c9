"""Co-DETR against numbers made by the authors' code and its port in mmdetection 3, fp32, random weights.

Tolerances of the specification: 2e-5 absolute for outputs, 1e-5 relative for losses. The detectors are small (d_model
64, 20 queries, two layers), everything else is as published; the samplers are too large to leave anything to chance,
and the random numbers that remain (denoising, background of the customised queries) are those that the original drew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridzoo import load_original
from hybridzoo.layers.boxes import select_detections, soft_nms
from hybridzoo.models.co_detr.attention import DeformableAttention, offset_bias
from hybridzoo.models.co_detr.convert import to_original
from hybridzoo.models.co_detr.denoising import Noise
from hybridzoo.models.co_detr.geometry import make_canvas

FIXTURES = Path(__file__).parent.parent / "fixtures" / "co_detr"
OPS = Path(__file__).parent.parent / "fixtures" / "ops"
OUTPUT = {"atol": 2e-5, "rtol": 0}
LOSS = {"atol": 1e-7, "rtol": 1e-5}
IMAGES, ORIGINALS = [(112, 128), (128, 160)], [(224, 256), (256, 320)]  # height, width: in the batch, on disk
NAMES = ("codino", "codeform")
_TENSORS: dict[str, dict[str, Tensor]] = {}


def golden(name: str) -> dict[str, Tensor]:
    if name not in _TENSORS:
        _TENSORS[name] = load_file(FIXTURES / f"{name}.safetensors")
    return _TENSORS[name]


def numbers(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def model_of(name: str, **change: Any) -> Any:
    """The small detector, by the configuration that lies beside its weights."""
    config = numbers(name)["config"]
    if name == "codeform":  # its note refers to the other detector's samplers
        whole = numbers("codino")["config"]
        config = config | {key: whole[key] for key in ("train_cfg", "loss_lambda", "max_pos_coords")}
        config["test"] = {"max_per_img": 15}
    return load_original("co_detr", FIXTURES / f"{name}_weights.safetensors", config | change).eval()


def batch(name: str) -> dict[str, Tensor]:
    mask = torch.zeros(2, 128, 160, dtype=torch.long)
    for i, (height, width) in enumerate(IMAGES):
        mask[i, :height, :width] = 1
    return {"pixel_values": golden(f"{name}_eval")["input"], "pixel_mask": mask}


def labels() -> list[dict[str, Tensor]]:
    config, result = numbers("codino")["config"], []
    for boxes, classes, (height, width) in zip(config["gt_boxes"], config["gt_labels"], IMAGES):
        corners = torch.tensor(boxes)
        centres = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
        result.append(
            {
                "boxes": centres / torch.tensor([width, height, width, height]),
                "class_labels": torch.tensor(classes),
            }
        )
    return result


def assert_loss(name: str, found: Tensor, want: float) -> None:
    torch.testing.assert_close(found, torch.tensor(want), msg=lambda text: f"{name}: {text}", **LOSS)


def replay(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What the original drew, in its order."""
    train = golden(f"{name}_train")
    queue = [train[f"randperm.{i}"] for i in range(3)]

    def randperm(n: int, **_: Any) -> Tensor:
        assert n == len(queue[0])
        return queue.pop(0)

    monkeypatch.setattr(torch, "randperm", randperm)
    if name == "codino":
        chance, new, sign, part = (train[f"dn.rand.{key}"] for key in ("label_p", "new_labels", "sign01", "part01"))
        noise = Noise(chance, new, sign * 2 - 1, part)
        monkeypatch.setattr("hybridzoo.models.co_detr.denoising.draw_noise", lambda *_: noise)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_boxes_of_every_layer(name: str) -> None:
    want, model = golden(f"{name}_eval"), model_of(name)
    with torch.no_grad():
        found = model(**batch(name), output_hidden_states=True)
    torch.testing.assert_close(found.auxiliary_logits, want["out.logits"], **OUTPUT)
    torch.testing.assert_close(found.auxiliary_boxes, want["out.boxes"], **OUTPUT)
    torch.testing.assert_close(found.logits, want["out.logits"][-1], **OUTPUT)
    states = torch.stack(found.hidden_states)
    torch.testing.assert_close(states, want["dec.hs_normed" if name == "codino" else "dec.hs"], **OUTPUT)
    if name == "codino":
        torch.testing.assert_close(found.enc_outputs_class, want["two_stage.topk_score"], **OUTPUT)
        torch.testing.assert_close(found.enc_outputs_coord, want["two_stage.topk_anchor"], **OUTPUT)
    else:
        torch.testing.assert_close(found.encoder_last_hidden_state, want["enc.memory"], **OUTPUT)
        torch.testing.assert_close(found.enc_outputs_class, want["enc.cls"], **OUTPUT)
        torch.testing.assert_close(found.enc_outputs_coord, want["enc.boxes"], **OUTPUT)


def test_the_whole_json_beside_the_weights_is_a_configuration() -> None:
    model = load_original("co_detr", FIXTURES / "codino_weights.safetensors", numbers("codino"))
    assert (model.config.num_queries, model.config.rpn_nms_pre, model.config.soft_nms_iou) == (20, 200, 0.8)
    alone = load_original("co_detr", FIXTURES / "codeform_weights.safetensors", numbers("codeform")["config"])
    assert (alone.config.variant, alone.config.num_heads, alone.config.num_labels) == ("deformable_detr", 8, 7)
    nothing = load_original("co_detr", FIXTURES / "codino_weights.safetensors")
    assert (nothing.config.num_points, nothing.config.encoder_layers) == (4, 2)


def test_large_scale_jitter_masks_nothing() -> None:
    want, model = golden("codino_sensex"), model_of("codino", with_attn_mask=False)
    with torch.no_grad():
        found = model(golden("codino_eval")["input"], output_hidden_states=True)
    torch.testing.assert_close(found.auxiliary_logits, want["lsj.logits"], **OUTPUT)
    torch.testing.assert_close(found.auxiliary_boxes, want["lsj.boxes"], **OUTPUT)
    assert not model_of("codino", use_lsj=True).config.use_padding_mask
    with torch.no_grad():  # a mask changes nothing inside; boxes become relative to the image instead of the canvas
        masked = model(**batch("codino"))
    torch.testing.assert_close(masked.logits, want["lsj.logits"][-1], **OUTPUT)
    scale = torch.tensor([[160 / 128, 128 / 112], [1, 1]]).repeat(1, 2)[:, None]
    torch.testing.assert_close(masked.pred_boxes, want["lsj.boxes"][-1] * scale, **OUTPUT)


@pytest.mark.parametrize("name", NAMES)
def test_every_training_loss_and_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, model = numbers(name), model_of(name).train()
    replay(monkeypatch, name)
    output = model(**batch(name), labels=labels())
    terms = {k: v for k, v in want.items() if isinstance(v, list) and ("loss" in k or "acc" in k)}
    assert set(output.loss_dict) == set(terms)
    for key, values in terms.items():
        assert_loss(key, output.loss_dict[key], sum(values))
    assert_loss("total", output.loss, want["TOTAL"])

    output.loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    gradients = to_original(gradients, model.config)
    for key, norm in want["GRAD_NORMS"].items():
        key = key.replace("dn_generator.label_embedding", "label_embedding")
        if key in gradients:
            assert gradients[key].norm().item() == pytest.approx(norm, rel=2e-5, abs=1e-5), key
        else:  # scales are parameters of one tensor here
            assert norm == 0, key
    for key, gradient in golden(f"{name}_train").items():
        if key.startswith("grad."):
            key = key.removeprefix("grad.").replace("dn_generator.label_embedding", "label_embedding")
            torch.testing.assert_close(gradients[key], gradient, atol=2e-5, rtol=2e-5)
    for key in want["NO_GRAD"]:
        assert key not in gradients or not gradients[key].any(), key


@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_losses_of_every_level_and_what_the_heads_sample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, train, model = numbers(name), golden(f"{name}_train"), model_of(name).train()
    replay(monkeypatch, name)
    kept: dict[str, Any] = {}
    for part in ("rpn", "roi", "atss", "queries", ""):
        module = getattr(model.collaborative, part) if part else model.collaborative
        module.register_forward_hook(lambda _m, _i, out, part=part: kept.setdefault(part, []).append(out))
    model(**batch(name), labels=labels())
    for key, value in kept[""][0][0].items():
        values = value if isinstance(value, list) else [value]
        assert len(values) == len(want[key]), key
        for level, (one, other) in enumerate(zip(values, want[key])):
            assert_loss(f"{key}, level {level}", one, other)
    (_, sampled), (_, anchors) = kept["roi"][0], kept["atss"][0]
    if name == "codino":
        for i, proposals in enumerate(kept["rpn"][0][1]):
            torch.testing.assert_close(proposals, train[f"rpn.{i}.proposals"], atol=1e-3, rtol=0)  # pixels
            least = sampled.boxes.shape[1]
            torch.testing.assert_close(sampled.boxes[i], train[f"rcnn.{i}.sampled_boxes"][:least], atol=1e-3, rtol=0)
    else:
        torch.testing.assert_close(sampled.boxes, train["rcnn.coords"], atol=1e-3, rtol=0)
        assert torch.equal(sampled.labels, train["rcnn.labels"])
        torch.testing.assert_close(sampled.features, train["rcnn.feats"], **OUTPUT)
        torch.testing.assert_close(sampled.targets, train["rcnn.bbox_targets"], atol=1e-3, rtol=0)
    for i in range(2):
        torch.testing.assert_close(anchors.boxes[i], train[f"atss.{i}.anchors"], atol=1e-4, rtol=0)
        assert torch.equal(anchors.labels[i], train[f"atss.{i}.labels"])
        positive = anchors.labels[i] < 7
        assert positive.any()
        targets = train[f"atss.{i}.bbox_targets"]
        torch.testing.assert_close(anchors.targets[i][positive], targets[positive], atol=1e-4, rtol=0)
    for (content, position), head in zip(kept["queries"], ("aux0_rcnn", "aux1_atss")):
        torch.testing.assert_close(content, train[f"{head}.decoder_query"], **OUTPUT)
        if name == "codeform":
            torch.testing.assert_close(position, train[f"{head}.decoder_query_pos"], **OUTPUT)


def test_denoising_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    train, model = golden("codino_train"), model_of("codino").train()
    replay(monkeypatch, "codino")
    truth = labels()
    made = model.denoising([one["class_labels"] for one in truth], [one["boxes"] for one in truth], 20)
    torch.testing.assert_close(made.content, train["dn.label_query"], **OUTPUT)
    torch.testing.assert_close(made.references, train["dn.bbox_query"].sigmoid(), **OUTPUT)
    assert torch.equal(made.allowed, ~train["dn.attn_mask"])
    assert made.groups == int(train["dn.num_groups"])
    assert made.content.shape[1] == int(train["dn.num_denoising_queries"])


def test_noise_is_drawn_in_the_originals_order() -> None:
    from hybridzoo.models.co_detr.denoising import draw_noise

    boxes = torch.rand(30, 4)
    torch.manual_seed(5)
    noise = draw_noise(boxes, 7, 0.5)
    torch.manual_seed(5)
    chance = torch.rand(30)
    chosen = (chance < 0.25).nonzero().flatten()
    new = torch.randint_like(chosen, 0, 7)
    sign = torch.randint_like(boxes, low=0, high=2, dtype=torch.float32) * 2.0 - 1.0
    part = torch.rand_like(boxes)
    for one, other in zip((noise.label_chance, noise.new_labels, noise.sign, noise.part), (chance, new, sign, part)):
        assert torch.equal(one, other)


# Detections ----------------------------------------------------------------------------------------------------------


def assert_detections(found: list[dict[str, Tensor]], want: dict[str, Tensor], prefix: str) -> None:
    for i, one in enumerate(found):
        at = f"{prefix}.{i}."
        if f"{at}scores" in want:
            boxes, scores = want[f"{at}bboxes"], want[f"{at}scores"]
        else:
            boxes, scores = want[f"{at}bboxes_scores"].split((4, 1), 1)
        torch.testing.assert_close(one["scores"], scores.flatten(), **OUTPUT)
        torch.testing.assert_close(one["boxes"], boxes, atol=5e-3, rtol=0)  # pixels of 320
        assert torch.equal(one["labels"], want[f"{at}labels"])


@pytest.mark.parametrize(
    ("order", "iou", "fixture", "prefix"),
    [
        ("sensex", 0.8, "codino_sensex", "det"),
        ("sensex", 0.3, "codino_sensex", "det_iou03"),
        ("sensex", None, "codino_sensex", "det_nonms"),
        ("mmdet", 0.8, "codino_eval", "det_v3"),
        ("mmdet", 0.3, "codino_eval", "det_v3_iou03"),
        ("mmdet", None, "codino_eval", "det_nonms"),
    ],
)
def test_detections_in_both_orders(order: str, iou: float | None, fixture: str, prefix: str) -> None:
    want = golden("codino_eval")
    logits, boxes = want["out.logits"][-1], want["out.boxes"][-1]
    found = select_detections(logits, boxes, ORIGINALS, max_detections=15, soft_nms_iou=iou, order=order)
    assert_detections(found, golden(fixture), prefix)


@pytest.mark.parametrize("name", NAMES)
def test_the_image_processor_reads_the_rule_from_the_configuration(name: str) -> None:
    from hybridzoo.data.detection.processing import processor_for

    model = model_of(name)
    with torch.no_grad():
        output = model(**batch(name))
    found = processor_for(model.config).post_process_object_detection(output, threshold=0.0, target_sizes=ORIGINALS)
    assert_detections(found, golden("codino_sensex" if name == "codino" else "codeform_eval"), "det")


@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("soft_naive", {"method": "naive"}),
        ("soft_linear", {"method": "linear"}),
        ("soft_gaussian", {"method": "gaussian"}),
    ],
)
def test_soft_nms(prefix: str, options: dict[str, Any]) -> None:
    want = golden("softnms")
    kept, scores = soft_nms(want["boxes"], want["scores"], iou_threshold=0.4, **options)
    assert torch.equal(kept, want[f"{prefix}.inds"])
    torch.testing.assert_close(scores, want[f"{prefix}.dets"][:, 4], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("batched_soft", {"iou_threshold": 0.4}),
        ("batched_soft08", {"iou_threshold": 0.8}),
        ("batched_hard", {"iou_threshold": 0.4, "method": "hard"}),
    ],
)
def test_class_wise_nms(prefix: str, options: dict[str, Any]) -> None:
    want = golden("softnms")
    kept, scores = soft_nms(want["boxes"], want["scores"], want["labels"], **options)
    assert torch.equal(kept, want[f"{prefix}.keep"])
    torch.testing.assert_close(scores, want[f"{prefix}.dets"][:, 4], atol=1e-6, rtol=0)


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ref2", "ref4"])
def test_deformable_attention(kind: str) -> None:
    want = load_file(OPS / "codetr_msda.safetensors")
    layer = DeformableAttention(32, 4, 3, 4)
    layer.load_state_dict({k.removeprefix("module.w."): v for k, v in want.items() if k.startswith("module.w.")})
    shapes = [(int(h), int(w)) for h, w in want["spatial_shapes"]]
    sizes = want["spatial_shapes"].flip(1).float()
    query, pos, value, mask = (want[f"module.{k}"] for k in ("query", "query_pos", "value", "mask"))
    with torch.no_grad():
        found = layer(query, pos, value, want[f"module.{kind}"], shapes, sizes, mask)
    torch.testing.assert_close(found, want[f"module.out_{kind}"], atol=1e-5, rtol=0)
    assert torch.equal(offset_bias(8, 5, 4), want["init.sampling_offsets.bias"])


def test_masks_ratios_and_proposals() -> None:
    from hybridzoo.models.co_detr.geometry import token_proposals

    want = golden("codino_eval")
    maps = [torch.zeros(2, 1, int(h), int(w)) for h, w in want["enc.spatial_shapes"]]
    canvas = make_canvas(batch("codino")["pixel_mask"].bool(), maps, (128, 160))
    assert canvas.padding is not None
    assert torch.equal(canvas.padding, want["enc.padding_mask"])
    torch.testing.assert_close(canvas.valid_ratios, want["enc.valid_ratios"], atol=0, rtol=0)
    proposals, counts = token_proposals(canvas)
    torch.testing.assert_close(proposals, want["two_stage.output_proposals"], **OUTPUT)
    assert not counts.all()


@pytest.mark.parametrize("size", ["div", "odd"])
def test_swin(size: str) -> None:
    from hybridzoo.models.co_detr.backbones import Backbone
    from hybridzoo.models.co_detr.configuration import CoDetrConfig
    from hybridzoo.models.co_detr.convert import backbone_from_original

    want = golden("swin_small")
    sizes = {"embed_dim": 16, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 4, 4), "window_size": 4}
    backbone = Backbone(CoDetrConfig(backbone="swin", backbone_config=sizes)).eval()
    state = {f"backbone.{k.removeprefix('w.')}": v for k, v in want.items() if k.startswith("w.")}
    converted = backbone_from_original(state, "swin")
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in converted.items()})
    with torch.no_grad():
        maps = backbone(want[f"{size}.input"])
    for i, found in enumerate(maps):
        torch.testing.assert_close(found, want[f"{size}.out{i}"], **OUTPUT)


@pytest.mark.parametrize("grid", [None, 6])
def test_vit_and_its_pyramid(grid: int | None) -> None:
    from hybridzoo.models.co_detr.backbones import Backbone
    from hybridzoo.models.co_detr.configuration import CoDetrConfig
    from hybridzoo.models.co_detr.convert import from_original
    from hybridzoo.models.co_detr.necks import SimpleFeaturePyramid
    from hybridzoo.models.co_detr.original_backbone import backbone_config_from_shapes

    want = golden("vit_sfp_small")
    state = {k.removeprefix("w."): v for k, v in want.items() if k.startswith("w.")}
    kind, sizes = backbone_config_from_shapes(state)
    assert (sizes["rope_grid"], sizes["window_size"], sizes["global_blocks"]) == (6, 3, [1])
    config = CoDetrConfig(backbone=kind, backbone_config=sizes | {"rope_grid": grid}, d_model=16, num_heads=2)
    converted = from_original(state, config)
    backbone, neck = Backbone(config).eval(), SimpleFeaturePyramid(128, 16).eval()
    backbone.load_state_dict({k[9:]: v for k, v in converted.items() if k.startswith("backbone.")})
    neck.load_state_dict({k[5:]: v for k, v in converted.items() if k.startswith("neck.")})
    cases = ["multiscale.0", "multiscale.1"] if grid is None else ["lsj.0"]
    for case in cases:
        with torch.no_grad():
            maps = backbone(want[f"{case}.input"])
            levels = neck(maps)
        torch.testing.assert_close(maps[0], want[f"{case}.vit"], **OUTPUT)
        for i, level in enumerate(levels):
            torch.testing.assert_close(level, want[f"{case}.p{i + 2}"], **OUTPUT)
    if grid is not None:
        with pytest.raises(Exception, match="fixed to images of 96 x 96"):
            backbone(want["multiscale.1.input"])
