"""iFormer as a zoo model: configuration, conversion, preprocessing, export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from iformer_networks import CLOSE, lively, noise
from PIL import Image
from timm.data import create_transform
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from hybridzoo import build_model, load_original
from hybridzoo.data.image_processor import image_processor
from hybridzoo.errors import CheckpointError, ConfigError
from hybridzoo.models.iformer.mixers import AttentionMixer

# Configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depths": [1, 1, 2]}, "depths"),
        ({"attention_heads": [1, 2, 4]}, "3 entries for 5 blocks"),
        ({"attention_heads": [1, 2, 4, 5, 8]}, r"attention_heads\[4\]=8: stage 4 has 8 heads; give 1 to 7"),
        ({"embed_dims": [16, 33, 48, 64]}, "multiple of num_heads"),
        ({"embed_dims": [6, 12, 18, 24], "num_heads": [2, 4, 6, 8]}, "must be even"),
        ({"stem_stride": 3}, r"choose one of \[1, 2, 4\]"),
        ({"high_mixer": "conv"}, "inception, attention"),
        ({"image_size": 4}, "at least 5"),
        ({"image_mean": [0.5]}, "one per channel"),
        ({"image_std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"interpolation": "bicubik"}, "bicubic"),
        ({"drop_path_rate": 1.0}, "below 1"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"embed_dim": [16, 32, 48, 64]}, "embed_dims"),
        ({"depths": "1,1,2,1"}, "depths"),
    ],
)
def test_impossible_configurations_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        build_model("iformer_test", **values)


def test_the_ablation_has_equal_size_and_no_convolution_in_its_high_path():
    nets = [build_model(name, device="meta") for name in ("iformer_mini", "iformer_mini_attention")]
    sizes = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert max(sizes) <= 2_000_000
    assert abs(sizes[0] - sizes[1]) / sizes[0] < 0.02
    for block in (b for k in range(1, 5) for b in getattr(nets[1].iformer, f"blocks{k}")):
        assert isinstance(block.attn.high_mixer, AttentionMixer)
    assert build_model("iformer_mini_attention").eval()(noise(1, 1, 28, 28)).logits.shape == (1, 10)


# Conversion ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original():
    """A small network whose heads have the published width 32, in the original's layout, with its arguments."""
    arguments = {
        "img_size": 64,
        "num_classes": 10,
        "depths": [1, 1, 2, 1],
        "embed_dims": [64, 96, 128, 160],
        "num_heads": [2, 3, 4, 5],
        "attention_heads": [1, 1, 2, 3, 4],
    }
    values = {**arguments, "image_size": 64, "num_labels": 10}
    del values["img_size"], values["num_classes"]
    net = lively(build_model("iformer_small", **values))
    return net, net.to_original(), arguments


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": s},
    ],
    ids=["plain", "state_dict", "module", "model"],
)
@pytest.mark.parametrize("given", [True, False], ids=["config", "shapes"])
def test_load_original(original, tmp_path, wrap, given):
    net, state, arguments = original
    torch.save(wrap(state), tmp_path / "weights.pth")
    loaded = load_original("iformer", tmp_path / "weights.pth", arguments if given else None)
    x = noise(1, 3, 64, 64)
    assert torch.equal(loaded(x).logits, net(x).logits)
    assert loaded.to_original().keys() == state.keys()


def test_384_arguments_with_the_tables_of_224(original):
    """The original's own 384 constructor asks for larger tables than its published file holds; ours reads the file."""
    _, state, arguments = original
    loaded = load_original("iformer", state, {**arguments, "img_size": 96})
    assert loaded.config.image_size == 96
    assert loaded.config.position_size == 64
    assert loaded.iformer.pos_embed1.shape[1:3] == (16, 16)
    resized = build_model("iformer_small", **{**loaded.config.to_diff_dict(), "position_size": 96})
    resized.load_strict(resized._convert_module().from_original(state, resized.config), where="test").eval()
    assert resized.iformer.pos_embed1.shape[1:3] == (24, 24)
    x = noise(1, 3, 96, 96)
    torch.testing.assert_close(loaded(x).logits, resized(x).logits, **CLOSE)


def test_conversion_leaves_its_input_alone(original):
    net, state, _ = original
    before = {k: v.clone() for k, v in state.items()}
    net._convert_module().from_original(state, net.config)
    assert all(torch.equal(before[k], state[k]) for k in before)
    assert len(before) == len(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks3.1.attn.conv_fuse.weight"), "1 missing: iformer.blocks3.1.attn.conv_fuse.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected: iformer.extra"),
        (lambda s: s.update({"head.bias": torch.zeros(11)}), "mis-shaped: iformer.head.bias"),
        (lambda s: s.pop("pos_embed1"), "no checkpoint of the original iFormer"),
    ],
)
def test_foreign_checkpoints_are_named(original, change, words):
    _, state, arguments = original
    state = dict(state)
    change(state)
    with pytest.raises(CheckpointError, match=words):
        load_original("iformer", state, arguments)


def test_unknown_argument_and_unreadable_heads(original):
    _, state, arguments = original
    with pytest.raises(ConfigError, match="embed_dims"):
        load_original("iformer", state, {**arguments, "embed_dim": 3})
    narrow = build_model("iformer_test", stem_stride=4).to_original()
    with pytest.raises(ConfigError, match="number of heads cannot be read"):
        load_original("iformer", narrow)
    with pytest.raises(ConfigError, match="stem_stride=1"):
        build_model("iformer_mini").to_original()


# Preprocessing and transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iformer_small", "iformer_small_384", "iformer_mini"])
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (28, 28)])
def test_processor_equals_timms_evaluation_transform(name, size):
    config = build_model(name, device="meta").config
    pixels = np.random.RandomState(0).randint(0, 255, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image = image.convert("L") if config.num_channels == 1 else image
    transform = create_transform(
        (config.num_channels, config.image_size, config.image_size),
        mean=config.image_mean,
        std=config.image_std,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    ours = image_processor(config)(image, return_tensors="pt")["pixel_values"][0]
    levels = (ours - transform(image)).abs() * 255 * torch.tensor(config.image_std).view(-1, 1, 1)
    assert levels.max() < 2.01  # of 255: Pillow and torchvision round their resizing differently
    assert levels.mean() < 0.02


@pytest.mark.parametrize("name", ["iformer_test", "iformer_mini"])
def test_auto_classes_and_pipeline_from_a_folder(tmp_path, name):
    net = lively(build_model(name, id2label={i: f"class {i}" for i in range(10)}))
    net.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = net.example_inputs(2)
    assert torch.equal(net(**x).logits, again(**x).logits)
    image = Image.fromarray(np.random.RandomState(1).randint(0, 255, (50, 40, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
    scores = net(**pixels).logits.softmax(-1)[0]
    found = pipeline("image-classification", model=str(tmp_path))(image, top_k=3)
    assert [f["label"] for f in found] == [f"class {i}" for i in scores.topk(3).indices.tolist()]
    assert found[0]["score"] == pytest.approx(scores.max().item(), rel=1e-4)


def test_exports_with_free_batch_height_and_width():
    net = lively(build_model("iformer_test", depths=[1, 1, 1, 1], attention_heads=[1, 2, 4, 7]))
    free = torch.export.Dim.DYNAMIC
    example = noise(2, 3, 40, 56)
    program = torch.export.export(net.iformer, (example,), dynamic_shapes={"x": {0: free, 2: free, 3: free}})
    other = noise(3, 3, 51, 39)
    torch.testing.assert_close(program.module()(other), net(other).logits, **CLOSE)


def test_the_ablation_compiles_without_graph_breaks():
    net = lively(build_model("iformer_mini_attention"))
    x = noise(2, 1, 28, 28)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x).logits, net(x).logits, **CLOSE)
