"""CHELA's layer: merged convolutions, the long kernel, every switch, impossible configurations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from chela_models import BRANCHES, MERGED, OPTIONS, make, tokens

from hybridzoo import build_model
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.layers.chela.block import ChelaMixing
from hybridzoo.layers.chela.long_conv import MultiScaleConv, stretched
from hybridzoo.layers.chela.norms import SequenceBatchNorm
from hybridzoo.layers.chela.options import ChelaOptions
from hybridzoo.layers.chela.short_conv import ShortConv
from hybridzoo.models.chela.configuration import ChelaConfig

# Structural re-parameterisation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MERGED)
@pytest.mark.parametrize("name", ["chela_test", "chela_lm_test"])
@torch.no_grad()
def test_reparameterize(name, case, tmp_path):
    model = make(name, MERGED[case])
    ids = tokens(model)
    before, size = model(ids).logits, sum(p.numel() for p in model.parameters())
    assert model.reparameterize() is model
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)
    shorts = [m for m in model.modules() if isinstance(m, ShortConv)]
    assert shorts
    assert all(s.deploy is not None and not len(s.branches) and s.skip is None for s in shorts)
    if "no norms" not in case:
        assert not any(isinstance(m, SequenceBatchNorm) for s in shorts for m in s.modules())
    once = copy.deepcopy(model.state_dict())
    model.reparameterize()
    assert once.keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in once.items())
    if case == "branches":
        assert sum(p.numel() for p in model.parameters()) < size
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(build_model(tmp_path)(ids).logits, model(ids).logits, rtol=0, atol=0)


@torch.no_grad()
def test_merging_is_not_the_identity():
    """The branches matter, and so do their statistics: otherwise the test above would show nothing."""
    model = make(options=MERGED["branches"])
    ids = tokens(model)
    before = model(ids).logits
    for part in ("branches.2.conv.weight", "branches.3.bn.running_mean", "skip.running_var"):
        other = copy.deepcopy(model)
        tensor = dict([*other.named_parameters(), *other.named_buffers()])[f"encoder.layers.0.mix.short.{part}"]
        tensor.mul_(3)
        assert not torch.allclose(other(ids).logits, before, atol=1e-3), part


def test_reparameterize_wants_eval_mode():
    for name in ("chela_test", "chela_lm_test"):
        with pytest.raises(InputError, match=r"eval\(\)"):
            make(name).train().reparameterize()


@pytest.mark.parametrize("causal", [False, True])
def test_branches_that_follow_their_batches_and_one_kernel_agree_on_the_same_statistics(causal):
    torch.manual_seed(0)
    conv = ShortConv(6, 13, BRANCHES, causal=causal, norm="batch")
    x = torch.randn(4, 50, 6)
    for branch in conv.branches:
        branch.bn.momentum = 1.0  # the statistics of the last batch
    conv.skip.momentum = 1.0
    together = conv.train()(x)
    scale = 200 / 199  # the running variance is the unbiased one
    for norm in (conv.skip, *(b.bn for b in conv.branches)):
        norm.running_var.div_(scale)
    torch.testing.assert_close(conv.eval()(x), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_one_kernel_equals_the_branches_computed_one_by_one(causal):
    """By torch's own dilated convolutions and batch norms, before and after merging."""
    torch.manual_seed(0)
    conv = ShortConv(6, 13, BRANCHES, causal=causal, norm="batch").eval()
    norms = [branch.bn for branch in conv.branches] + [conv.skip]
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 6, 40)
    terms = []
    for (taps, dilation), branch in zip(BRANCHES, conv.branches):
        reach = (taps - 1) * dilation
        padded = torch.nn.functional.pad(x, (reach, 0) if causal else (reach // 2, reach // 2))
        terms.append(torch.nn.functional.conv1d(padded, branch.conv.weight, groups=6, dilation=dilation))
    want = sum(
        torch.nn.functional.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias)
        for y, n in zip([*terms, x], norms)
    )
    torch.testing.assert_close(conv(x.mT).mT, want, rtol=1e-4, atol=1e-4)
    conv.merge()
    torch.testing.assert_close(conv(x.mT).mT, want, rtol=1e-4, atol=1e-4)


def test_causal_branches_end_at_the_present_position():
    conv = ShortConv(1, 9, [[3, 4], [2, 1]], identity=False, causal=True)
    kernel, _ = conv.kernel()
    first, second = (branch.conv.weight.flatten() for branch in conv.branches)
    assert kernel[0].nonzero().flatten().tolist() == [0, 4, 7, 8]
    torch.testing.assert_close(kernel[0, [0, 4, 7]], torch.stack([first[0], first[1], second[0]]))
    torch.testing.assert_close(kernel[0, 8], first[2] + second[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_branches": [[3, 4]]}, "does not fit into 3 taps"),
        ({"short_branches": [[2, 1]]}, "cannot be centred"),
        ({"short_branches": []}, "at least one branch"),
        ({"short_branches": [[3]]}, r"\(taps, dilation\)"),
    ],
)
def test_impossible_branches(options, message):
    with pytest.raises(ConfigError, match=message):
        make(options=options)


# The long kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [1, 2, 5])
@pytest.mark.parametrize("linear", [True, False])
def test_stretched_equals_torchs_interpolation(taps, linear):
    kernels = torch.randn(6, 2, 3, taps, dtype=torch.float64, requires_grad=True)
    mode: dict[str, Any] = {"mode": "linear", "align_corners": False} if linear else {"mode": "nearest"}
    got = stretched(kernels, range(6), linear)
    want = [torch.nn.functional.interpolate(k, scale_factor=2.0**i, **mode) for i, k in enumerate(kernels)]
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    weight = [torch.randn_like(a) for a in got]
    grads = [torch.autograd.grad(parts, kernels, weight)[0] for parts in (got, want)]
    torch.testing.assert_close(*grads)


@torch.no_grad()
def test_kept_kernels_follow_the_weights():
    model = make()
    ids = tokens(model)
    first = model(ids).logits
    torch.testing.assert_close(model(ids).logits, first, rtol=0, atol=0)
    model.encoder.layers[0].mix.long.kernel_list[0].mul_(-2)
    assert not torch.allclose(model(ids).logits, first, atol=1e-3)
    with torch.enable_grad():
        torch.testing.assert_close(model(ids).logits, model(ids).logits.detach())


def test_too_long_sequences_are_refused_unless_the_kernel_is_bounded():
    model = make(max_length=16)
    with pytest.raises(InputError, match="max_length=16"):
        model(tokens(model, 1, 17))
    conv = MultiScaleConv(4, 16, kernel_dim=4)
    conv.init_weights()
    with pytest.raises(InputError, match=r"17 positions.*at most 16"):
        conv(torch.randn(1, 17, 4))
    bounded = MultiScaleConv(4, 16, kernel_dim=4, any_length=True)
    bounded.init_weights()
    x = torch.randn(1, 50, 4)
    y = bounded(x)
    x[:, 0] += 1  # seen up to 15 positions later
    changed = (bounded(x) - y).abs().amax((0, 2)) > 1e-6
    assert changed[:16].any()
    assert not changed[16:].any()
    lm = make("chela_lm_test", max_length=16)
    with pytest.raises(InputError, match="17 tokens are more than the 16"):
        lm(tokens(lm, 1, 17))
    with pytest.raises(InputError, match="17 tokens are more than the 16"):
        lm(tokens(lm, 1, 1), past_key_values=lm(tokens(lm, 1, 16), use_cache=True).past_key_values)


@pytest.mark.parametrize("name", ["chela_test", "chela_mega_test"])
@torch.no_grad()
def test_an_exported_encoder_takes_any_length(name):
    model = make(name)
    inputs = model.example_inputs(2)
    dynamic = {k: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for k in inputs}
    program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic).module()
    for length in (9, model.config.max_length):
        ids = tokens(model, 3, length)
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        want = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(program(input_ids=ids, attention_mask=mask).logits, want, rtol=1e-4, atol=1e-5)


# Switches ------------------------------------------------------------------------------------------------------------

SWITCHES = [
    {"qk_proj": "separate"},
    {"value_source": "conv"},
    {"gate_act": "sigmoid"},
    {"gate_residual": "update"},
    *({"feature_map": f} for f in ("elu1", "relu", "silu", "softmax")),
    *({"attn_norm": n} for n in ("none", "layer")),
    {"attn_norm": "denominator", "feature_map": "elu1"},
    {"conv_order": "long_short"},
    {"num_heads": 2},
    {"positions": "rotary"},
    {"use_short": False},
    {"use_long": False},
    {"use_attention": False},
    {"long_mode": "sum"},
    {"interpolation": "nearest"},
    {"decay": "learnable", "decay_min": 0.5, "decay_max": 1.5},
    {"decay_min": 1.0, "decay_max": 3.0},
    {"n_scales": 2},
    {"init_scale": 1},
    {"kernel_length": 8},
    {"short_identity": False},
    {"branch_norm": "batch"},
    {"long_short_parallel": 7},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
def test_every_switch_works_and_changes_the_layer(switch, causal):
    def outputs(options: dict[str, Any]) -> tuple[torch.Tensor, ChelaMixing]:
        torch.manual_seed(0)
        layer = ChelaMixing(12, 32, ChelaOptions(**{**OPTIONS, **options}), causal=causal)
        for module in layer.modules():
            if hasattr(module, "init_weights"):
                module.init_weights()
        torch.manual_seed(1)
        return layer(torch.randn(2, 32, 12)), layer

    y, layer = outputs(switch)
    assert y.shape == (2, 32, 12)
    assert not torch.allclose(y, outputs({})[0], atol=1e-4)
    y.square().sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("causal", [False, True])
def test_update_blends_with_the_residual(causal):
    """x + u (h - x): where the gate u is 1, nothing of x is left, also where the layer sees a normalised x."""
    model = make("chela_lm_test" if causal else "chela_test", {"gate_residual": "update"}, num_hidden_layers=1)
    if not causal:
        model = make(options={"gate_residual": "update"}, num_hidden_layers=1, pre_norm=True, norm="rms", dropout=0.0)
    mixing = next(m for m in model.modules() if isinstance(m, ChelaMixing))
    with torch.no_grad():
        mixing.u_proj.weight.zero_()
        mixing.u_proj.bias.fill_(50.0)
        x, residual = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
        c = torch.randn(2, 9, 16)
        kept = residual + mixing.combine(residual, c, torch.randn(2, 9, mixing.value_width))
        assert kept.min() > -0.3  # a SiLU's values: nothing of the residual stream, which is below that
        layer = model.model.layers[0] if causal else model.encoder.layers[0]
        for part in (layer.mlp,) if causal else (layer.ffn.fc2,):
            for parameter in part.parameters():
                parameter.zero_()
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda *a: seen.append(a[2][0] if causal else a[2]))
        model(tokens(model, 2, 9))
        hook.remove()
    assert seen[0].min() > -0.3
    assert x.min() < -0.3


def test_presets():
    config = ChelaConfig(preset="literal")
    options = config.options()
    assert (options.qk_proj, options.value_source, options.gate_act) == ("separate", "conv", "sigmoid")
    assert ChelaConfig(preset="literal", mixer_options={"gate_act": "silu"}).options().gate_act == "silu"
    assert ChelaConfig().options() == ChelaOptions()
    averaged = ChelaConfig(preset="averaged", mixer_options={"z_width": 8}).options()
    assert (averaged.feature_map, averaged.attn_norm, averaged.z_width) == ("elu1", "denominator", 8)


def test_averaged_layers_start_no_larger_than_what_they_are_added_to():
    """The default's do on long rows: its norm makes one vector, the same at all positions, as large as the states."""
    ids = torch.randint(3, 18, (2, 700), generator=torch.Generator().manual_seed(0))
    means = {}
    for preset in ("default", "averaged"):
        torch.manual_seed(0)
        model = build_model("chela_lra_listops", preset=preset, initializer_range=0.1).eval()
        found: list[float] = []
        for layer in model.encoder.layers:
            layer.mix.register_forward_hook(lambda m, x, y, found=found: found.append(float(y.norm() / x[0].norm())))
        with torch.no_grad():
            model(ids)
        means[preset] = sum(found) / len(found)
    assert means["averaged"] < 1 < means["default"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mixer_options": {"gate_actt": "silu"}}, "did you mean 'gate_act'"),
        ({"mixer_options": {"gate_act": "relu"}}, "gate_act"),
        ({"mixer_options": {"num_heads": 3}}, "num_heads=3 must divide"),
        ({"mixer_options": {"attn_norm": "denominator"}}, "feature_map='identity'"),
        ({"mixer_options": {"positions": "rotary", "z_width": 9}}, "must be even"),
        ({"mixer_options": {"kernel_length": 0}}, "kernel_length=0"),
        ({"mixer_options": {"long_mode": "product"}}, "long convolution mode"),
        ({"mixer": "mega", "mixer_options": {"gate_act": "silu"}}, "mixer 'mega'"),
        ({"mixer": "attention", "mixer_options": {"num_heads": 3}}, "num_heads=3"),
        ({"preset": "literall"}, "preset"),
        ({"num_documents": 3}, "num_documents=3"),
        ({"pad_token_id": 20}, "pad_token_id=20"),
    ],
)
def test_impossible_configurations(config, message):
    with pytest.raises(ConfigError, match=message):
        build_model("chela_test", **config)


def test_language_models_name_what_they_do_not_have():
    for change in ({"mixer": "mega", "mixer_options": None}, {"norm": "layer"}, {"dropout": 0.1}, {"pre_norm": False}):
        with pytest.raises(ConfigError, match="language models"):
            build_model("chela_lm_test", **change)
