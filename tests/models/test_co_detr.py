"""Co-DETR: checkpoints of all layouts, initialisation, training and inference without a trace of training, export."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError, InputError
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.convert import backbone_from_original, config_from_original, from_original, to_original
from hybridzoo.models.co_detr.modeling import CoDetrForObjectDetection

FIXTURES = Path(__file__).parent.parent / "fixtures" / "co_detr"
KEYS: dict[str, Any] = json.loads(gzip.decompress((FIXTURES / "keys.json.gz").read_bytes()))
LISTS = [name for name in KEYS if name != "source"]
R50, SWIN_L = "co_dino/co_dino_5scale_r50_1x_coco", "co_dino/co_dino_5scale_swin_large_1x_coco"
# The list whose names `to_original` writes, where that is another one.
WRITTEN = {"co_dino_5scale_r50 (mmdet3)": R50, "co_dino_5scale_swin_l (mmdet3)": SWIN_L}
WRITTEN["co_dino_vit/co_dino_5scale_vit_large_coco_instance"] = "co_dino_vit/co_dino_5scale_vit_large_coco"
WRITTEN["co_deformable_detr/co_deformable_detr_mask_r50_1x_coco"] = "co_deformable_detr/co_deformable_detr_r50_1x_coco"
# Named models and the list of their checkpoint.
PUBLISHED = {
    "co_dino_r50": R50,
    "co_dino_r50_9enc_lsj": "co_dino/co_dino_5scale_9encoder_lsj_r50_1x_coco",
    "co_dino_swin_l": SWIN_L,
    "co_dino_swin_l_lvis": "co_dino/co_dino_5scale_lsj_swin_large_3x_lvis",
    "co_deformable_detr_r50": "co_deformable_detr/co_deformable_detr_r50_1x_coco",
    "co_deformable_detr_swin_t": "co_deformable_detr/co_deformable_detr_swin_tiny_1x_coco",
    "co_deformable_detr_swin_l_900q": "co_deformable_detr/co_deformable_detr_swin_large_900q_3x_coco",
    "co_dino_vit_l": "co_dino_vit/co_dino_5scale_vit_large_coco",
    "co_dino_vit_l_lvis": "co_dino_vit/co_dino_5scale_lsj_vit_large_lvis",
}
SIZES = (
    *("variant", "backbone", "num_feature_levels", "d_model", "num_heads", "num_points", "ffn_dim", "num_queries"),
    *("encoder_layers", "decoder_layers", "num_labels", "roi_convs", "roi_fcs", "roi_fc_dim", "roi_class_agnostic"),
    *("roi_box_stds", "atss_convs", "soft_nms_iou", "use_denoising", "use_padding_mask", "pad_size"),
)


def listed(name: str) -> dict[str, tuple[int, ...]]:
    """key -> shape."""
    shapes = {}
    for key, text in KEYS[name].items():
        inner = text[text.index("[") + 1 : -1]
        shapes[key] = tuple(int(n) for n in inner.split(",")) if inner else ()
    return shapes


def meta_state(name: str) -> dict[str, Tensor]:
    whole = {"float32": torch.float32, "int64": torch.int64}
    kinds = {key: whole[text.split("[")[0]] for key, text in KEYS[name].items()}
    return {key: torch.empty(shape, dtype=kinds[key], device="meta") for key, shape in listed(name).items()}


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def tiny(**values: Any) -> Any:
    torch.manual_seed(0)
    return build_model("co_detr_test", **values)


# Checkpoints ---------------------------------------------------------------------------------------------------------


def test_there_are_lists_of_every_kind() -> None:
    assert len(LISTS) == 14


@pytest.mark.parametrize("name", LISTS)
def test_published_key_lists_convert_both_ways_with_nothing_left_over(name: str) -> None:
    state = meta_state(name)
    config = CoDetrConfig(**config_from_original(None, state))
    with torch.device("meta"):
        model = CoDetrForObjectDetection(config)
    own = shapes_of(model.state_dict())
    assert shapes_of(from_original(state, config)) == own
    # converters drop counts and tables: the sizes follow from the rest
    bare = {
        k: v for k, v in state.items() if not k.endswith(("num_batches_tracked", "_index", "freqs_cos", "freqs_sin"))
    }
    assert shapes_of(from_original(bare, config)) == own
    back = shapes_of(to_original(model.state_dict(), config))
    assert back == listed(WRITTEN.get(name, name))


@pytest.mark.parametrize(("model", "name"), PUBLISHED.items())
def test_named_models_are_the_published_ones(model: str, name: str) -> None:
    built = build_model(model, device="meta")
    found = CoDetrConfig(**config_from_original(None, meta_state(name)))
    for key in SIZES:
        if key in ("use_padding_mask", "pad_size") and "vit" not in name:
            continue  # a matter of the data that shapes do not tell
        if key == "soft_nms_iou" and "vit" in model:
            continue
        ours, theirs = getattr(built.config, key), getattr(found, key)
        assert (list(ours) if isinstance(ours, tuple) else ours) == (
            list(theirs) if isinstance(theirs, tuple) else theirs
        ), key
    assert shapes_of(built.to_original()) == listed(name)


def test_values_survive_the_way_there_and_back() -> None:
    weights = load_file(FIXTURES / "codino_weights.safetensors")
    model = load_original("co_detr", weights)
    back = model.to_original()
    named = {k.replace("dn_generator.label_embedding", "label_embedding"): v for k, v in weights.items()}
    counts = {k for k in back if k.endswith("num_batches_tracked")}
    assert set(back) - counts == set(named) - counts
    for key in set(named) - counts:
        assert torch.equal(back[key], named[key]), key
    again = load_original("co_detr", back)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_checkpoints_without_auxiliary_heads_or_with_masks_load() -> None:
    weights = load_file(FIXTURES / "codeform_weights.safetensors")
    aux = ("rpn_head.", "roi_head.", "bbox_head.", "query_head.downsample", "query_head.transformer.aux_pos_")
    aux += ("query_head.transformer.pos_feats_", "query_head.transformer.head_pos_embed")
    few = {k: v for k, v in weights.items() if not k.startswith(aux)}
    small, whole = load_original("co_detr", few).eval(), load_original("co_detr", weights).eval()
    assert not small.config.has_auxiliary_heads
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(small(pixels).logits, whole(pixels).logits)
    more = weights | {
        "roi_head.0.mask_head.0.convs.0.weight": torch.ones(2),
        "query_head.loss_cls.fed_loss_weight": torch.ones(7),
    }
    assert set(load_original("co_detr", more).state_dict()) == set(whole.state_dict())


def test_ema_copies_are_taken_only_from_an_untrained_checkpoint() -> None:
    weights = load_file(FIXTURES / "codino_weights.safetensors")
    copies = {"ema_" + k.replace(".", "_"): v + 1 for k, v in weights.items() if v.is_floating_point()}
    plain = load_original("co_detr", weights).state_dict()
    beside = load_original("co_detr", weights | copies).state_dict()
    assert all(torch.equal(v, beside[k]) for k, v in plain.items())
    last = {k: v * 0 for k, v in weights.items() if k.startswith("query_head.reg_branches.") and ".4." in k}
    averaged = load_original("co_detr", weights | last | copies).state_dict()
    assert torch.equal(averaged["encoder.level_embed"], plain["encoder.level_embed"] + 1)
    assert torch.equal(averaged["heads.regress.0.4.weight"], plain["heads.regress.0.4.weight"] + 1)
    with pytest.raises(CheckpointError, match="only EMA copies"):
        load_original("co_detr", copies)


def test_both_names_of_the_label_embedding() -> None:
    weights = load_file(FIXTURES / "codino_weights.safetensors")
    old = "query_head.dn_generator.label_embedding.weight"
    assert old in weights
    renamed = {k.replace("dn_generator.", ""): v for k, v in weights.items()}
    for state in (weights, renamed):
        model = load_original("co_detr", state)
        assert torch.equal(model.denoising.label_embedding.weight, weights[old])


def test_merging_columns_of_mmdets_swin() -> None:
    """mmdetection 3 reads 2 x 2 patches with `nn.Unfold`, Microsoft's code concatenates four strided views."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 4, 4)
    weight, norm = torch.randn(12, 24), torch.randn(24)
    keys = {"patch_embed.projection.weight": torch.randn(6, 3, 4, 4), "stages.0.downsample.norm.weight": norm}
    state = {f"backbone.{k}": v for k, v in (keys | {"stages.0.downsample.reduction.weight": weight}).items()}
    converted = backbone_from_original(state, "swin")
    ours = {k.split("downsample.")[1]: v for k, v in converted.items() if "downsample" in k}
    theirs = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)  # (1, 4, 24)
    views = [x[:, :, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    merged = torch.cat(views, 1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(merged * ours["norm.weight"] @ ours["reduction.weight"].T, theirs * norm @ weight.T)
    assert "backbone.net.swin.embeddings.patch_embeddings.projection.weight" in converted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_head.transformer.level_embeds": None}, "no checkpoint of the original Co-DETR"),
        ({"neck.convs.0.conv.weight": None}, "projections.0.conv.weight"),
        ({"query_head.unknown": torch.ones(1)}, "query_head.unknown"),
        ({"rpn_head.rpn_cls.bias": torch.ones(3)}, "rpn_cls.bias"),
    ],
)
def test_checkpoints_that_do_not_fit_name_the_key(change: dict[str, Any], words: str) -> None:
    weights: dict[str, Any] = load_file(FIXTURES / "codino_weights.safetensors") | change
    with pytest.raises(CheckpointError, match=words):
        load_original("co_detr", {k: v for k, v in weights.items() if v is not None})


def test_foreign_configurations() -> None:
    weights = load_file(FIXTURES / "codino_weights.safetensors")
    with pytest.raises(ConfigError, match="did you mean 'num_query'"):
        load_original("co_detr", weights, {"num_qery": 20})
    anchors = {"rpn": {"octave_base_scale": 8, "scales_per_octave": 1, "ratios": [1.0]}}
    with pytest.raises(ConfigError, match="every published Co-DETR"):
        load_original("co_detr", weights, {"anchors": anchors})
    mmdet = {
        "type": "CoDETR",
        "query_head": {"dn_cfg": {"box_noise_scale": 0.4, "group_cfg": {"num_dn_queries": 500}}, "lambda_1": 0.5},
        "rpn_head": {"loss_cls": {"loss_weight": 4.0}},
        "train_cfg": [{}, {"rpn_proposal": {"nms_pre": 77, "nms": {"iou_threshold": 0.6}}}],
        "test_cfg": [{"max_per_img": 9, "score_thr": 0.05, "nms": {"type": "soft_nms", "iou_threshold": 0.7}}],
        "use_lsj": True,
    }
    config = load_original("co_detr", weights, {"model": mmdet}).config
    assert (config.num_dn_queries, config.dn_box_noise, config.aux_query_loss_weight) == (500, 0.4, 0.5)
    assert (config.rpn_nms_pre, config.rpn_nms_iou, config.aux_loss_weight) == (77, 0.6, 2.0)
    assert (config.max_detections, config.score_threshold, config.soft_nms_iou) == (9, 0.05, 0.7)
    assert not config.use_padding_mask


# Initialisation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_initialisation_is_sense_xs(variant: str) -> None:
    model = tiny(variant=variant, d_model=64, ffn_dim=256)
    focal = -math.log(99)
    for part in (model.encoder, model.decoder, model.two_stage):
        for key, value in part.named_parameters():
            if value.ndim == 2 and not key.endswith(
                ("sampling_offsets.weight", "attention_weights.weight", "level_embed")
            ):
                bound = math.sqrt(6 / sum(value.shape))  # in_proj counts as one (3 C, C) matrix
                assert 0.9 * bound < value.abs().max() <= bound, key
    assert 0.7 < model.encoder.level_embed.std() < 1.3
    assert 0.9 < model.query_embedding.weight.std() < 1.1
    for layer in (*model.encoder.layers, *model.decoder.layers):
        attention = layer.attention if hasattr(layer, "attention") else layer.cross_attention
        assert not attention.sampling_offsets.weight.any()
        assert not attention.attention_weights.weight.any()
        bias = attention.sampling_offsets.bias.view(4, 5, 2, 2)  # heads, levels, points, (x, y)
        first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        torch.testing.assert_close(bias[:, 0, 0], first, atol=1e-6, rtol=0)
        torch.testing.assert_close(bias[:, 4, 1], 2 * first, atol=1e-6, rtol=0)
        assert layer.ffn.fc1.bias.any()  # biases stay torch's default
    for classify, regress in zip(model.heads.classify, model.heads.regress):
        torch.testing.assert_close(classify.bias, torch.full_like(classify.bias, focal))
        assert not regress[-1].weight.any()
        assert not regress[-1].bias.any()
    aux = model.collaborative
    for weight, std in ((aux.rpn.rpn_conv.weight, 0.01), (aux.roi.fc_cls.weight, 0.01), (aux.roi.fc_reg.weight, 0.001)):
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    torch.testing.assert_close(aux.atss.atss_cls.bias, torch.full_like(aux.atss.atss_cls.bias, focal))
    bound = math.sqrt(6 / (model.neck.extra[0].conv.weight[0].numel() + 9 * 64))
    assert 0.95 * bound < model.neck.extra[0].conv.weight.abs().max() <= bound
    if variant == "dino":
        assert 0.8 < model.denoising.label_embedding.weight.std() < 1.2


# Training leaves no trace at inference -------------------------------------------------------------------------------


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
    assert shapes_of(bare.state_dict()) == shapes_of(plain.state_dict())


@pytest.mark.parametrize("change", [{}, {"use_aux_queries": False}, {"use_roi_head": False}, {"use_atss_head": False}])
@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_every_part_can_be_left_out(variant: str, change: dict[str, Any]) -> None:
    model = tiny(variant=variant, **change).train()
    output = model(**model.example_inputs(2, labels=True))
    output.loss.backward()
    names = set(output.loss_dict)
    assert ("loss_cls0" in names) == ("use_roi_head" not in change)
    assert ("loss_centerness1" in names) == ("use_atss_head" not in change)
    assert ("loss_cls_aux0" in names) == ("use_roi_head" not in change and "use_aux_queries" not in change)
    assert ("dn_loss_cls" in names) == (variant == "dino")
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []  # what distributed training needs


@pytest.mark.parametrize("counts", [(0, 2), (0, 0), (1, 0)])
@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_images_without_boxes_train(variant: str, counts: tuple[int, int]) -> None:
    model = tiny(variant=variant).train()
    inputs = model.example_inputs(2, labels=True)
    inputs["labels"] = [{k: v[:n] for k, v in one.items()} for one, n in zip(inputs["labels"], counts)]
    output = model(**inputs)
    output.loss.backward()
    assert all(v.isfinite() for v in output.loss_dict.values())
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_box_smaller_than_a_pixel_and_one_as_large_as_the_image_train() -> None:
    model = tiny().train()
    inputs = model.example_inputs(1)
    boxes = torch.tensor([[0.5, 0.5, 0.004, 0.004], [0.5, 0.5, 1.0, 1.0]])
    output = model(**inputs, labels=[{"class_labels": torch.tensor([0, 4]), "boxes": boxes}])
    output.loss.backward()
    assert output.loss.isfinite()


def test_too_little_background_makes_fewer_queries() -> None:
    from hybridzoo.models.co_detr.collaborative import select_queries

    labels = torch.tensor([[0, 1, 5, 5], [5, 5, 5, 5]])
    assert select_queries(labels, 5, 300)[0].shape == (2, 4)
    many = torch.zeros(1, 400, dtype=torch.long)
    assert select_queries(many, 5, 300)[0].shape == (1, 300)
    mixed = torch.tensor([[5] * 20 + [1] * 3])
    chosen, positives = select_queries(mixed, 5, 300)
    assert chosen.shape == (1, 9)
    assert positives == [3]
    assert chosen[0, :3].tolist() == [20, 21, 22]


def test_evaluation_with_labels_draws_nothing() -> None:
    model = tiny().eval()
    inputs = model.example_inputs(2, labels=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        one, two = model(**inputs), model(**inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.loss, two.loss)
    assert set(one.loss_dict) == {p + n for p in ("", "d0.", "enc_") for n in ("loss_cls", "loss_bbox", "loss_iou")}


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for enable in (False, True):
        model = tiny(use_denoising=False, use_aux_queries=False).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(**model.example_inputs(1, labels=True)).loss.backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-4, atol=1e-6)


def test_layers_of_a_vit_get_falling_rates() -> None:
    from hybridzoo.training.param_groups import param_groups

    sizes = {
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "mlp_dim": 16,
        "global_blocks": (2,),
        "window_size": 2,
        "pretrain_grid": 4,
    }
    model = tiny(backbone="vit", backbone_config=sizes)
    groups = param_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5, no_decay_norm_bias=True)
    rates = {}
    names = {id(p): k for k, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
    blocks = [rates[f"backbone.net.blocks.{i}.mlp.w1.weight"] for i in range(3)]
    assert blocks == [0.125, 0.25, 0.5]
    assert rates["backbone.net.patch_embed.weight"] == rates["backbone.net.pos_embed"] == 0.0625
    assert rates["decoder.layers.0.ffn.fc1.weight"] == 1.0


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_every_loss_in_bf16(variant: str, autocast: bool) -> None:
    model = tiny(variant=variant).train()
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(**model.example_inputs(2, labels=True))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(v.isfinite() for v in output.loss_dict.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_from_the_proposals_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which proposals are best is a choice among near ties for random weights; given the choice, bf16 is close."""
    model = tiny().eval()
    inputs = model.example_inputs(2)
    kept: list[Any] = []
    model.two_stage.register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        monkeypatch.setattr(model.two_stage, "forward", lambda *_: kept[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(**inputs, output_hidden_states=True)
    memory = found.encoder_last_hidden_state.float()
    torch.testing.assert_close(memory, expected.encoder_last_hidden_state, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.pred_boxes.float(), expected.pred_boxes, rtol=0, atol=0.05)


# Inference -----------------------------------------------------------------------------------------------------------


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


def test_the_backbone_of_the_paper_is_torchvisions_resnet() -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    theirs = resnet50(weights=None).eval()
    model = build_model("co_dino_r50", encoder_layers=1, decoder_layers=1, num_queries=4)
    model.load_backbone(theirs.state_dict())
    backbone = model.backbone.eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for found, layer in zip(maps, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)):
            y = layer(y)
            torch.testing.assert_close(found, y, atol=1e-4, rtol=1e-4)
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert any("embedder" in k for k in frozen)
    assert all(".stages.0." in k or "embedder" in k or "normalization" in k for k in frozen)
    model.train()
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_efficientnet_of_the_two_layouts(tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    torch.manual_seed(0)
    whole = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in whole.items()}
    # efficientnet_pytorch's file: the same tensors in the same order, other names
    other = {("_conv_stem.weight" if i == 0 else f"_{i}"): v for i, v in enumerate(whole.values())}
    torch.save(other, tmp_path / "other.pth")
    small = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 8}
    models = [build_model("co_detr_mini", **small) for _ in range(2)]
    models[0].load_backbone(whole)
    from hybridzoo.models.co_detr.backbone_weights import read_backbone

    models[1].load_backbone(read_backbone(models[1].backbone, tmp_path / "other.pth"))
    a, b = (m.backbone.state_dict() for m in models)
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    with pytest.raises(CheckpointError, match="conv_stem"):
        models[0].load_backbone({k: v for k, v in whole.items() if k != "conv_stem.weight"})


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
