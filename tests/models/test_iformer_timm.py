"""iFormer follows timm's conventions: registration, features, heads, parameter groups, saving."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from packaging.version import Version
from timm.models import get_pretrained_cfg, group_parameters
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import hybridzoo  # noqa: F401  (tells timm about the models)
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.models.iformer.timm_models import checkpoint_filter_fn
from hybridzoo.models.iformer.variants import TEST

NAMES = [f"iformer_{size}{suffix}" for size in ("small", "base", "large") for suffix in ("", "_384")]
SMALL_SIZES = {k: TEST[k] for k in ("depths", "embed_dims", "num_heads", "attention_heads")}


def tiny(**kwargs):
    """The registered entry point with few channels, so that a test takes milliseconds."""
    return timm.create_model("iformer_small", **{**SMALL_SIZES, "img_size": 64, **kwargs})


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ["import hybridzoo, timm", "import timm, hybridzoo"])
def test_registered_whichever_is_imported_first(order):
    code = f"{order}; print(timm.is_model('iformer_small'), timm.list_models(module='timm_models', pretrained=True))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split()[0] == "True"
    assert output.count("sail_in1k") == len(NAMES)


def test_names_do_not_collide_with_timms_mobile_network():
    mobile = set(timm.list_models(module="iformer"))  # none in timm 1.0.20
    assert not mobile & set(NAMES)
    assert mobile | set(NAMES) <= set(timm.list_models("*iformer*"))


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg(name):
    cfg = get_pretrained_cfg(f"{name}.sail_in1k")
    with torch.device("meta"):
        model = timm.create_model(name)
    state = model.state_dict()
    assert f"{cfg.first_conv}.weight" in state
    assert state[f"{cfg.classifier}.weight"].shape[0] == cfg.num_classes == 1000
    side = 384 if name.endswith("_384") else 224
    assert cfg.input_size == (3, side, side)
    assert cfg.crop_pct == (1.0 if side == 384 else 0.9)
    assert (cfg.hf_hub_id, cfg.hf_hub_filename) == ("sail/dl2", f"iformer/{name}.pth")
    assert model.pos_embed1.shape[1:3] == (56, 56)  # the published 384 weights keep the tables of 224
    assert model.forward_features(torch.empty(1, *cfg.input_size, device="meta")).shape[2:] == cfg.pool_size


def test_forward_is_features_then_head(images):
    model = tiny().eval()
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 2, 2)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))


@pytest.mark.parametrize("fmt", ["NCHW", "NHWC"])
def test_forward_intermediates_end_in_forward_features(images, fmt):
    model = tiny().eval()
    last, maps = model.forward_intermediates(images, output_fmt=fmt)
    features = model.forward_features(images)
    assert torch.equal(last if fmt == "NCHW" else last.permute(0, 3, 1, 2), features)
    for found, info in zip(maps, model.feature_info, strict=True):
        found = found if fmt == "NCHW" else found.permute(0, 3, 1, 2)
        assert found.shape == (2, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
    normed = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    assert torch.equal(normed[0], features)


def test_stop_early_runs_no_later_stage(images):
    model = tiny().eval()
    ran = []
    for k in range(1, 5):
        getattr(model, f"blocks{k}")[0].register_forward_hook(lambda *_, k=k: ran.append(k))
    last, maps = model.forward_intermediates(images, indices=[0, -3], stop_early=True)
    assert ran == [1, 2]
    assert len(maps) == 2
    assert torch.equal(last, maps[-1])


@pytest.mark.parametrize("indices", [(4,), (-5,), 5, ()])
def test_feature_indices_out_of_range(images, indices):
    with pytest.raises(InputError, match="4 stages"):
        tiny().forward_intermediates(images, indices=indices)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (-2,)])
def test_features_only(images, out_indices):
    whole = tiny(drop_path_rate=0.0).eval()
    model = tiny(features_only=True, out_indices=out_indices).eval()
    inner = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    model.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in inner})
    found = model(images)
    assert [f.shape[1] for f in found] == model.feature_info.channels()
    assert [64 // f.shape[2] for f in found] == model.feature_info.reduction()
    for ours, want in zip(found, whole.forward_intermediates(images, list(out_indices), intermediates_only=True)):
        assert torch.equal(ours, want)
    if max(out_indices) == 2 or out_indices == (-2,):
        assert not any(k.startswith(("blocks4", "norm.", "head")) for k in inner)


@pytest.mark.parametrize(
    ("num_classes", "pool", "shape"), [(7, None, (2, 7)), (0, None, (2, 64)), (0, "", (2, 64, 2, 2))]
)
def test_reset_classifier(images, num_classes, pool, shape):
    model = tiny().eval()
    model.reset_classifier(num_classes, pool)
    assert model(images).shape == shape
    assert model.num_classes == num_classes
    assert model.get_classifier() is model.head
    again = tiny(num_classes=num_classes, **({} if pool is None else {"global_pool": pool})).eval()
    assert again(images).shape == shape


@pytest.mark.parametrize("pool", ["", "avgmax"])
def test_impossible_pooling_is_refused(pool):
    with pytest.raises(ConfigError, match="global_pool"):
        tiny(num_classes=3, global_pool=pool)


def test_gradient_checkpointing_changes_nothing(images):
    plain, saving = tiny(drop_path_rate=0.3).train(), tiny(drop_path_rate=0.3).train()
    saving.load_state_dict(plain.state_dict())
    saving.set_grad_checkpointing()
    gradients = []
    for model in (plain, saving):
        torch.manual_seed(0)
        model(images).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_layer_groups_run_from_stem_to_head():
    model = tiny()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {n for n, _ in model.named_parameters()}
    order = ["patch_embed.proj1.weight", "pos_embed1", "blocks1.0.norm1.weight", "patch_embed2.proj.weight"]
    order += ["blocks2.0.mlp.fc1.weight", "pos_embed3", "blocks3.0.norm1.bias", "blocks3.1.norm1.bias"]
    order += ["patch_embed4.norm.bias", "blocks4.0.attn.proj.weight", "norm.weight", "head.weight"]
    depths = [groups[n] for n in order]
    assert depths == sorted(depths)
    assert depths[0] == depths[1] == 0
    assert len(set(depths)) == 1 + 3 + 5 + 1  # stem, downsamplings, blocks (the norm is in the last one's group), head
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["blocks3.0.norm1.bias"] == coarse["blocks3.1.norm1.bias"] == coarse["pos_embed3"]
    assert len(param_groups_layer_decay(model, layer_decay=0.5)) > len(depths)


def test_position_tables_decay_and_vectors_do_not():
    """As in the original's training, whose exception list names a parameter that does not exist."""
    model = tiny()
    no_decay, decay = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for p in decay["params"]}
    assert decay["weight_decay"] == 0.05
    assert no_decay["weight_decay"] == 0.0
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name


@pytest.mark.parametrize("safe", [True, False])
def test_save_for_hf_and_reload(tmp_path, images, safe):
    if safe and Version(timm.__version__) < Version("1.0.26"):
        pytest.skip("timm before 1.0.26 reads no safetensors from a local folder, of no model")
    model = tiny(num_classes=5).eval()
    save_for_hf(model, tmp_path, model_args={**SMALL_SIZES, "img_size": 64}, safe_serialization=safe)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(model(images), again(images))


def test_pretrained_file_with_other_input(tmp_path):
    """timm's adaptation to grey images and other classes works through our cfg."""
    source = tiny()
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.pth")
    model = tiny(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}, in_chans=1, num_classes=3)
    want = source.patch_embed.proj1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj1.weight, want)
    assert torch.equal(model.blocks4[0].attn.proj.weight, source.blocks4[0].attn.proj.weight)
    assert model.head.weight.shape == (3, 64)


def test_published_tables_fit_a_model_built_for_384(images):
    """Resizing the tables once while loading is the same as resizing them in every forward."""
    small, large = tiny(img_size=64).eval(), tiny(img_size=96).eval()
    large.load_state_dict(checkpoint_filter_fn(small.state_dict(), large))
    assert large.pos_embed1.shape[1:3] == (24, 24)
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(small(x), large(x), atol=1e-5, rtol=0)


def test_img_size_may_be_rectangular():
    model = tiny(img_size=(64, 96)).eval()
    assert model.pos_embed1.shape[1:3] == (16, 24)
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 1000)
