"""MaskMamba as a zoo model: layers written out again, schemes, conditions, losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from maskmamba_models import CLOSE, lively, noise

from hybridzoo import build_model
from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.models.maskmamba.mixers import BiMambaV2, scan, scan_pair

SCHEMES = ["serial_v1", "serial_v2", "group_v1", "group_v2", "pure_mamba", "pure_transformer"]


@pytest.fixture(scope="module")
def model():
    return lively(build_model("maskmamba_test"))


@pytest.fixture(scope="module")
def text_model():
    return lively(build_model("maskmamba_test", condition="text", text_dim=12, text_length=6))


# Bi-Mamba-v2 ---------------------------------------------------------------------------------------------------------


def plain_branch(x: torch.Tensor, w: dict[str, torch.Tensor], suffix: str, reverse: bool, scan: bool) -> torch.Tensor:
    """Convolution, SiLU and scan of one branch, step by step."""
    taps = w[f"conv1d{suffix}.weight"].shape[-1]
    padded = F.pad(x.transpose(1, 2), ((taps - 1) // 2, taps // 2))
    a = F.silu(F.conv1d(padded, w[f"conv1d{suffix}.weight"], w[f"conv1d{suffix}.bias"], groups=x.shape[2]))
    a = a.transpose(1, 2)
    if not scan:
        return a
    order = range(x.shape[1] - 1, -1, -1) if reverse else range(x.shape[1])
    A = -w["A_b_log" if suffix else "A_log"].exp()
    rank = w[f"dt_proj{suffix}.weight"].shape[1]
    h, out = torch.zeros(x.shape[0], *A.shape), torch.zeros_like(a)
    for t in order:
        dt, b, c = (a[:, t] @ w[f"x_proj{suffix}.weight"].T).split((rank, A.shape[1], A.shape[1]), dim=1)
        delta = F.softplus(dt @ w[f"dt_proj{suffix}.weight"].T + w[f"dt_proj{suffix}.bias"])
        h = torch.exp(delta[:, :, None] * A) * h + (delta * a[:, t])[:, :, None] * b[:, None, :]
        out[:, t] = (h * c[:, None, :]).sum(2) + w[f"D{suffix}"] * a[:, t]
    return out


@pytest.mark.parametrize("taps", [1, 3, 4])
@pytest.mark.parametrize("second", ["ssm_flip", "conv_only", "both"])
@pytest.mark.parametrize("flip", [False, True])
def test_bi_mamba_v2_written_out(second, taps, flip):
    torch.manual_seed(0)
    config = MaskMambaConfig(d_state=4, d_conv=taps, second_branch=second, flip_before_conv=flip)
    layer = BiMambaV2(16, config)
    x, w = noise(2, 9, 16), layer.state_dict()
    parts = (x @ w["in_proj.weight"].T).split(16, dim=-1)
    turned = parts[1].flip(1) if flip else parts[1]
    if second == "conv_only" or not flip:
        middle = plain_branch(turned, w, "_b", reverse=True, scan=second != "conv_only")
    else:  # flipped first, then like a forward branch
        middle = plain_branch(turned, w, "_b", reverse=False, scan=True)
    middle = middle.flip(1) if flip else middle
    found = [plain_branch(parts[0], w, "", reverse=False, scan=True), middle]
    if second == "both":
        found.append(plain_branch(parts[2], w, "_c", reverse=False, scan=False))
    torch.testing.assert_close(layer(x), torch.cat(found, -1) @ w["out_proj.weight"].T, **CLOSE)


def test_reversing_the_sequence_swaps_the_branches():
    torch.manual_seed(0)
    layer = BiMambaV2(16, MaskMambaConfig(d_state=4))
    swapped = BiMambaV2(16, MaskMambaConfig(d_state=4))
    state = {}
    for key, value in layer.state_dict().items():
        other = {"A_log": "A_b_log", "A_b_log": "A_log", "D": "D_b", "D_b": "D"}.get(key)
        name, _, rest = key.partition(".")
        if other is None and name not in ("in_proj", "out_proj"):
            other = f"{name.removesuffix('_b') if name.endswith('_b') else name + '_b'}.{rest}"
        if name == "in_proj":
            value = torch.cat(value.chunk(2, 0)[::-1])
        elif name == "out_proj":
            value = torch.cat(value.chunk(2, 1)[::-1], 1)
        elif "conv1d" in name and value.ndim == 3:
            value = value.flip(2)
        state[other or key] = value
    swapped.load_state_dict(state)
    x = noise(2, 11, 16)
    torch.testing.assert_close(swapped(x.flip(1)).flip(1), layer(x), **CLOSE)


def test_scans_in_one_call_equal_two():
    """What a CPU does, and a GPU with short sequences, against what a GPU does with long ones."""

    def inputs(seed):
        u, dt, b, c = noise(2, 7, 4, seed=seed), noise(2, 7, 4, seed=seed + 1), noise(2, 7, 3), noise(2, 7, 3, seed=9)
        return u, dt, b, c, noise(4, 3, seed=seed + 2), noise(4, seed=seed), noise(4, seed=seed + 1)

    for both, alone in zip(scan_pair(inputs(0), inputs(3)), (scan(*inputs(0)), scan(*inputs(3)))):
        torch.testing.assert_close(both, alone)


def test_every_token_reaches_every_other(model):
    """Both layers look both ways: a change of any code changes the logits of all."""
    inputs = model.example_inputs(1)
    base = model(**inputs).logits
    for at in (0, 12, 24):
        ids = inputs["input_ids"].clone()
        ids[0, at] = (ids[0, at] + 1) % 64
        change = (model(ids, inputs["class_labels"]).logits - base).abs().amax(-1)[0]
        assert (change > 1e-6).all()


@pytest.mark.parametrize("options", [{}, {"norm": "rms_norm"}, {"mlp_ratio": 0}])
def test_layers_pass_on_branches_and_lose_none(options):
    """x + mixer(norm(x)), then x + MLP(norm(x)), written out."""
    model = lively(build_model("maskmamba_test", **options))
    x = noise(2, 9, 32)
    found, plain = model.stack(x), x
    for layer in model.stack.layers:
        plain = plain + layer.mixer(layer.norm1(plain))
        plain = plain if layer.mlp is None else plain + layer.mlp(layer.norm2(plain))
    torch.testing.assert_close(found, plain, **CLOSE)


# Schemes and conditions ----------------------------------------------------------------------------------------------


def test_layers_of_the_schemes():
    def layers(scheme, n=5, **kw):
        return "".join(MaskMambaConfig(scheme=scheme, num_layers=n, **kw).layers())

    assert layers("serial_v1") == "MSMSM"
    assert layers("serial_v2") == "MMMSS"
    assert layers("serial_v2", 4) == "MMSS"
    assert layers("pure_mamba") == "MMMMM"
    assert layers("pure_transformer") == "SSSSS"
    assert MaskMambaConfig(scheme="group_v1", num_layers=2).layers() == ["MS", "MS"]
    assert MaskMambaConfig(scheme="group_v2", num_layers=1).layers() == ["MMSS"]
    assert MaskMambaConfig(scheme="group_v2", num_layers=1, group_pattern="MSMS").layers() == ["MSMS"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("position", ["head", "middle", "tail"])
def test_every_scheme_and_position_trains(scheme, position):
    model = build_model("maskmamba_test", scheme=scheme, num_heads=4, condition_position=position)
    out = model(**model.example_inputs(3, labels=True))
    out.loss.backward()
    assert out.logits.shape == (3, 25, 64)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"mamba_layer": "vim_v1", "d_conv": 4},
        {"mamba_layer": "vim_v2", "d_conv": 4, "layer_scale_init_value": 0.1},
        {"mamba_layer": "vim_none"},
        {"norm": "rms_norm", "tie_head": False, "mlp_ratio": 0},
        {"scheme": "group_v1", "group_projection": True},
        {"second_branch": "conv_only", "conv_bias": False},
        {"second_branch": "both", "expand": 1, "dt_rank": 3, "drop_path_rate": 0.3},
    ],
)
def test_open_choices_train(options):
    torch.manual_seed(0)
    model = build_model("maskmamba_test", **options).train()
    model(**model.example_inputs(4, labels=True)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    again = type(model.config).from_dict(model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()


def test_group_mixers_see_their_own_channels():
    model = lively(build_model("maskmamba_test", scheme="group_v1"))
    mixer = model.stack.layers[0].mixer
    x = noise(1, 7, 32)
    other = x.clone()
    other[..., 16:] += 1
    a, b = mixer(x), mixer(other)
    torch.testing.assert_close(a[..., :16], b[..., :16])
    assert (a[..., 16:] - b[..., 16:]).abs().min() > 0
    assert type(mixer.mixers[0]).__name__ == "BiMambaV2"


@pytest.mark.parametrize(("position", "start"), [("head", 0), ("middle", 12), ("tail", 25)])
def test_condition_stands_where_it_should(position, start):
    model = build_model("maskmamba_test", condition_position=position)
    tokens, condition = noise(1, 25, 32), noise(1, 1, 32, seed=1)
    joined, at = model._join(tokens, condition)
    assert at == (start, start + 1)
    torch.testing.assert_close(joined[:, start], condition[:, 0])
    torch.testing.assert_close(torch.cat((joined[:, :start], joined[:, start + 1 :]), 1), tokens)


def test_dropped_condition_is_the_null_class(model):
    inputs = model.example_inputs(3)
    drop = torch.tensor([True, False, True])
    null = torch.where(drop, 10, inputs["class_labels"])
    torch.testing.assert_close(
        model(**inputs, condition_drop=drop).logits, model(inputs["input_ids"], null).logits, rtol=0, atol=0
    )


def test_text_conditions(text_model):
    inputs = text_model.example_inputs(2)
    short = inputs["text_embeds"][:, 2:]
    filled = inputs["text_embeds"].clone()
    filled[:, :2] = 0
    ids = inputs["input_ids"]
    torch.testing.assert_close(text_model(ids, text_embeds=short).logits, text_model(ids, text_embeds=filled).logits)
    null = text_model.condition.uncond_embedding.expand(2, -1, -1)
    drop = torch.ones(2, dtype=torch.bool)
    torch.testing.assert_close(
        text_model(**inputs, condition_drop=drop).logits, text_model(ids, text_embeds=null).logits
    )
    assert 0.2 < float(text_model.condition.uncond_embedding.std()) < 0.4  # 12 ** -0.5
    assert text_model.generate(text_embeds=short, steps=2, cfg_scale=2.0).shape == (2, 5, 5)


# Sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(5, 5), (3, 7), (8, 2), (1, 1), (13, 11)])
def test_any_grid(model, grid):
    ids = torch.randint(65, (2, *grid), generator=torch.Generator().manual_seed(0))
    out = model(ids, torch.tensor([1, 2]), labels=ids % 64)
    assert out.logits.shape == (2, grid[0] * grid[1], 64)
    assert out.loss.isfinite()
    if grid == (5, 5):
        torch.testing.assert_close(out.logits, model(ids.flatten(1), torch.tensor([1, 2])).logits, rtol=0, atol=0)


def test_positions_follow_the_image():
    model = build_model("maskmamba_test")
    with torch.no_grad():
        model.token_position.copy_(torch.arange(5.0).repeat_interleave(5)[:, None].expand(25, 32))
    table = model.positions(10, 3).view(10, 3, 32)
    torch.testing.assert_close(table[:, 0], table[:, 2])
    assert (table[1:, 0, 0] > table[:-1, 0, 0]).all()
    assert table[0, 0, 0] < 0.3
    assert table[-1, 0, 0] > 3.7


# Loss ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_loss_weighs_masked_and_other_tokens(weight):
    model = lively(build_model("maskmamba_test", unmasked_loss_weight=weight))
    inputs = model.example_inputs(3, labels=True)
    inputs["labels"][0, :5] = -100
    out = model(**inputs)
    each = F.cross_entropy(out.logits.transpose(1, 2), inputs["labels"], reduction="none", label_smoothing=0.1)
    w = torch.where(inputs["input_ids"] == 64, 1.0, weight) * (inputs["labels"] != -100)
    torch.testing.assert_close(out.loss, (each * w).sum() / w.sum())


def test_no_masked_token_is_no_loss(model):
    ids = torch.zeros(1, 25, dtype=torch.long)
    assert model(ids, torch.tensor([0]), labels=ids).loss == 0


def test_weight_decay_spares_tables_and_scans(model):
    spared = model.no_weight_decay()
    assert {"token_position", "token_embedding.weight", "stack.layers.0.mixer.A_b_log"} <= spared
    assert not any("proj" in name for name in spared)


def test_initial_values_of_the_scan():
    torch.manual_seed(0)
    layer = build_model("maskmamba_b").stack.layers[0].mixer
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17.0).expand(768, 16))
    step = F.softplus(layer.dt_proj_b.bias)
    assert 0.9e-3 < step.min() < 2e-3
    assert 0.05 < step.max() < 0.1001
    assert layer.dt_proj.weight.abs().max() <= 48**-0.5
    assert (layer.D == 1).all()
