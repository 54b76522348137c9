"""Co-DETR: checkpoints of all layouts, their configurations, weights of backbones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError
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
