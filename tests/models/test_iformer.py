"""iFormer as a zoo model: inputs of any size, losses, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from iformer_networks import CLOSE, lively, noise

from hybridzoo import build_model
from hybridzoo.errors import InputError
from hybridzoo.models.iformer.blocks import table_sides
from hybridzoo.models.iformer.convert import fit_tables
from hybridzoo.models.iformer.mixers import DropPath, InceptionMixer


@pytest.fixture(scope="module")
def model():
    return lively(build_model("iformer_test"))


# Inputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (32, 64), (33, 47), (50, 31), (5, 5), (5, 97)])
def test_rectangular_and_odd_images(model, height, width):
    """A transposed image through the transposed network gives the transposed maps: no height is taken for a width."""
    transposed = build_model("iformer_test").eval()
    state = model.state_dict()
    for key, value in state.items():
        if "pos_embed" in key:
            state[key] = value.transpose(1, 2)
        elif value.ndim == 4:
            state[key] = value.transpose(2, 3)
    transposed.load_state_dict(state)
    x = noise(2, 3, height, width)
    with torch.no_grad():
        ours = model(x, output_hidden_states=True)
        theirs = transposed(x.transpose(2, 3), output_hidden_states=True)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(a, b.transpose(2, 3), **CLOSE)
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    assert ours.logits.std() > 1e-3


def plain_mixer(mixer: InceptionMixer, x: torch.Tensor, high: int, heads: int, pool: int) -> torch.Tensor:
    """The mixer written out once more, step by step and in NCHW, for any height and width."""
    w, (_, height, width, _) = mixer.state_dict(), x.shape
    x = x.permute(0, 3, 1, 2).contiguous()
    half, low = high // 2, x.shape[1] - high
    first = F.conv2d(x[:, :half].contiguous(), w["high_mixer.conv1.weight"])
    first = F.gelu(F.conv2d(first, w["high_mixer.proj1.weight"], padding=1, groups=high))
    second = F.max_pool2d(x[:, half:high].contiguous(), 3, stride=1, padding=1)
    second = F.gelu(F.conv2d(second, w["high_mixer.proj2.weight"], w["high_mixer.proj2.bias"]))
    rows = [
        [x[:, high:, i * pool : (i + 1) * pool, j * pool : (j + 1) * pool].mean((2, 3)) for j in range(width // pool)]
        for i in range(height // pool)
    ]
    h, v_, tokens = height // pool, width // pool, torch.stack([t for row in rows for t in row], dim=1)
    qkv = tokens @ w["low_mixer.qkv.weight"].T + w["low_mixer.qkv.bias"]
    q, k, v = (t.unflatten(2, (heads, low // heads)) for t in qkv.split(low, dim=2))
    attention = torch.einsum("bnhd,bmhd->bhnm", q, k).mul((low // heads) ** -0.5).softmax(-1)
    third = torch.einsum("bhnm,bmhd->bnhd", attention, v).reshape(-1, h, v_, low)
    up = [[third[:, i * h // height, j * v_ // width] for j in range(width)] for i in range(height)]
    third = torch.stack([torch.stack(row, dim=2) for row in up], dim=2)
    y = torch.cat((first, second, third), dim=1)
    y = y + F.conv2d(y, w["conv_fuse.weight"], padding=1, groups=y.shape[1])
    return F.conv2d(y, w["proj.weight"], w["proj.bias"]).permute(0, 2, 3, 1)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (2, 9), (3, 2)])
def test_mixer_on_rectangular_and_odd_maps(pool, size):
    torch.manual_seed(0)
    mixer = lively(InceptionMixer(24, num_heads=6, attention_heads=2, pool_size=pool))
    x = noise(2, *size, 24)
    with torch.no_grad():
        y, want = mixer(x), plain_mixer(mixer, x, high=16, heads=2, pool=pool)
    if isinstance(y, tuple):  # the last projection's bias comes apart, for whoever adds it in passing
        y = y[0] + y[1]
    torch.testing.assert_close(y, want, **CLOSE)


def test_position_tables_follow_height_and_width_not_the_area(model):
    """A map of 8x32 has as many places as the 16x16 table and still needs it resized."""
    x = noise(1, 3, 16, 64)
    built_for_it = build_model("iformer_test").eval()
    backbone = type(model.iformer)(**{**model.config.backbone_arguments(), "img_size": (16, 64)}).eval()
    backbone.load_state_dict(fit_tables(model.iformer.state_dict(), table_sides((16, 64), 2)))
    built_for_it.iformer = backbone
    assert backbone.pos_embed1.shape[1:3] == (8, 32)
    torch.testing.assert_close(model(x).logits, built_for_it(x).logits, **CLOSE)


def test_alone_equals_in_a_batch(model):
    x = noise(5, 3, 40, 40)
    with torch.no_grad():
        batch, alone = model(x).logits, torch.cat([model(row[None]).logits for row in x])
    torch.testing.assert_close(batch, alone, **CLOSE)


def test_layout_of_the_input_does_not_matter(model):
    x = noise(2, 3, 40, 40)
    strided = noise(2, 40, 3, 40).transpose(1, 2)
    torch.testing.assert_close(model(x).logits, model(x.to(memory_format=torch.channels_last)).logits, **CLOSE)
    torch.testing.assert_close(model(strided).logits, model(strided.contiguous()).logits, **CLOSE)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 1, 32, 32), r"\(batch, 3, height, width\), got \(1, 1, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"got \(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "uint8: scale to"),
        (torch.zeros(1, 3, 4, 32), "at least 5 pixels"),
        (np.zeros((1, 3, 32, 32)), "got ndarray"),
    ],
)
def test_bad_images_are_named(model, images, words):
    with pytest.raises(InputError, match=words):
        model(images)


def test_grey_model_takes_rgb_of_equal_channels():
    grey = lively(build_model("iformer_mini"))
    x = noise(2, 1, 28, 28)
    torch.testing.assert_close(grey(x).logits, grey(x.expand(-1, 3, -1, -1)).logits, **CLOSE)
    with pytest.raises(InputError, match="1 channel"):
        grey(noise(2, 2, 28, 28))


# Losses --------------------------------------------------------------------------------------------------------------


def test_losses(model):
    x, config = noise(4, 3, 32, 32), model.config
    labels = torch.tensor([0, 9, 3, 3])
    hard = model(x, labels=labels)
    torch.testing.assert_close(hard.loss, F.cross_entropy(hard.logits, labels))
    soft = F.one_hot(labels, 10).float() * 0.9 + 0.01
    torch.testing.assert_close(model(x, labels=soft).loss, F.cross_entropy(hard.logits, soft))
    assert model(x, labels=labels, return_dict=False)[0] == hard.loss
    try:
        config.problem_type = "multi_label_classification"
        want = F.binary_cross_entropy_with_logits(hard.logits, soft)
        torch.testing.assert_close(model(x, labels=soft).loss, want)
        config.problem_type = "regression"
        torch.testing.assert_close(model(x, labels=soft).loss, F.mse_loss(hard.logits, soft))
    finally:
        config.problem_type = None


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 10]), "classes 0 to 9"),
        (torch.tensor([0, -1]), "from -1"),
        (torch.tensor([0, 1, 2]), r"shape \(2,\)"),
        (torch.rand(2, 3), r"shape \(2, 10\)"),
    ],
)
def test_bad_labels_are_named(model, labels, words):
    with pytest.raises(InputError, match=words):
        model(noise(2, 3, 32, 32), labels=labels)


# Training ------------------------------------------------------------------------------------------------------------


def test_drop_path_drops_whole_samples_and_scales_the_rest():
    net = lively(build_model("iformer_test"))
    block = net.iformer.blocks4[0]
    x = noise(1, 3, 32, 32)

    def last_map(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return net.iformer.forward_intermediates(images, indices=1, intermediates_only=True)[0]

    torch.nn.init.zeros_(block.layer_scale_2)  # only the mixer's branch is left
    with_branch = last_map(x)
    scale = block.layer_scale_1.detach().clone()
    torch.nn.init.zeros_(block.layer_scale_1)
    without = last_map(x)
    with torch.no_grad():
        block.layer_scale_1.copy_(scale)
    block.drop_path.rate = 0.25
    torch.testing.assert_close(last_map(x), with_branch)  # nothing is dropped in eval mode
    block.drop_path.train()
    torch.manual_seed(0)
    found = last_map(x.expand(400, -1, -1, -1))
    dropped = (found - without).abs().amax((1, 2, 3)) < 1e-4
    kept = without + (with_branch - without) / 0.75
    torch.testing.assert_close(found[~dropped], kept.expand_as(found[~dropped]), **CLOSE)
    assert 0.18 < dropped.float().mean() < 0.32


def test_drop_path_rises_linearly_over_the_blocks():
    backbone = build_model("iformer_small", device="meta", drop_path_rate=0.2).iformer
    rates = [m.rate for m in backbone.modules() if isinstance(m, DropPath)]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.2, 18))


def test_gradient_checkpointing_of_transformers():
    plain, saving = build_model("iformer_test"), build_model("iformer_test")
    saving.load_state_dict(plain.state_dict())
    saving.gradient_checkpointing_enable()
    assert saving.is_gradient_checkpointing
    gradients = []
    for net in (plain.train(), saving.train()):
        net(**net.example_inputs(2, labels=True)).loss.backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients)


def test_initial_values():
    torch.manual_seed(0)
    state = build_model("iformer_test").state_dict()
    for key, value in state.items():
        if key.endswith(("running_mean", "bias")):
            assert value.abs().max() == 0, key
        elif "layer_scale" in key:
            assert (value == 1e-6).all(), key
        elif value.ndim > 1:
            assert 0.01 < value.std() < 0.03, key
            assert value.abs().max() < 0.12, key
        elif key.endswith(("running_var", "norm1.weight", "norm2.weight", "norm.weight")):
            assert (value == 1).all(), key


@pytest.mark.parametrize("name", ["iformer_test", "iformer_mini_attention"])
def test_gradients_in_training_mode_match_finite_differences(name):
    net = lively(build_model(name, dtype="float64")).train()
    inputs = net.example_inputs(4, labels=True)
    net(**inputs).loss.backward()
    directions = [torch.randn_like(p) for p in net.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(net.parameters(), directions, strict=True))

    def loss_at(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(net.parameters(), directions, strict=True):
                p.add_(d, alpha=step)
            loss = net(**inputs).loss
            for p, d in zip(net.parameters(), directions, strict=True):
                p.sub_(d, alpha=step)
        return loss

    step = 1e-6
    torch.testing.assert_close((loss_at(step) - loss_at(-step)) / (2 * step), slope, rtol=1e-5, atol=1e-7)


def test_batch_norms_normalise_by_the_batch_and_track_it():
    net = lively(build_model("iformer_test"))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "patch_embed" in name and p.ndim == 1:
                p.copy_(noise(*p.shape) * 0.3 + 1)
    w = {k.removeprefix("iformer.patch_embed."): v.clone() for k, v in net.state_dict().items()}
    x = noise(3, 3, 32, 32)
    y = x
    for i, stride in ((1, 2), (2, 1)):
        y = F.conv2d(y, w[f"proj{i}.weight"], w[f"proj{i}.bias"], stride, padding=1)
        statistics = [w[f"norm{i}.running_mean"], w[f"norm{i}.running_var"]]
        y = F.batch_norm(y, *statistics, w[f"norm{i}.weight"], w[f"norm{i}.bias"], training=True)
        y = F.gelu(y) if i == 1 else y
    with torch.no_grad():
        found = net.iformer.patch_embed.train()(x)
    torch.testing.assert_close(found, y.permute(0, 2, 3, 1), **CLOSE)
    for key, value in net.iformer.patch_embed.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(value, w[key], **CLOSE)
        elif "tracked" in key:
            assert value == 1


def test_layer_groups_hold_every_parameter_once(model):
    groups = model.layer_groups()
    for name, _ in model.named_parameters():
        assert sum(name.startswith(prefix) for group in groups for prefix in group) == 1, name
    order = [
        next(i for i, g in enumerate(groups) if any(n.startswith(p) for p in g))
        for n in (
            "iformer.patch_embed.proj1.weight",
            "iformer.blocks1.0.norm1.weight",
            "iformer.patch_embed2.proj.weight",
            "iformer.blocks3.1.norm1.weight",
            "iformer.pos_embed4",
            "iformer.head.weight",
        )
    ]
    assert order == sorted(set(order))


def test_freeze_backbone_leaves_the_classifier():
    net = build_model("iformer_test")
    net.freeze_backbone()
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {"iformer.head.weight", "iformer.head.bias"}
