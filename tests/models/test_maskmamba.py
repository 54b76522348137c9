"""MaskMamba as a zoo model: layers written out again, schemes, conditions, losses, generation, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridzoo import build_model
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.models.maskmamba import sampling
from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.models.maskmamba.mixers import BiMambaV2, scan, scan_pair

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SCHEMES = ["serial_v1", "serial_v2", "group_v1", "group_v2", "pure_mamba", "pure_transformer"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(model):
    """Weights large enough that every part shows in the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "_log" not in name and "conv1d" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model.eval()


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


def test_every_token_reaches_every_other(model):
    """Both layers look both ways: a change of any code changes the logits of all."""
    inputs = model.example_inputs(1)
    base = model(**inputs).logits
    for at in (0, 12, 24):
        ids = inputs["input_ids"].clone()
        ids[0, at] = (ids[0, at] + 1) % 64
        change = (model(ids, inputs["class_labels"]).logits - base).abs().amax(-1)[0]
        assert (change > 1e-6).all()


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


# Generation ----------------------------------------------------------------------------------------------------------


def test_generation_is_reproducible(model):
    options = {"steps": 6, "cfg_scale": 3.0}
    first = model.generate([1, 2, 3], generator=7, **options)
    again = model.generate(torch.tensor([1, 2, 3]), generator=torch.Generator().manual_seed(7), **options)
    other = model.generate([1, 2, 3], generator=8, **options)
    assert first.shape == (3, 5, 5)
    assert first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= int(first.min()) <= int(first.max()) < 64


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_with_a_seed_each_an_image_is_the_same_alone_as_in_a_batch(model, order, cfg_scale, monkeypatch):
    options = {"steps": 6, "cfg_scale": cfg_scale, "order": order, "height": 18, "width": 20}  # 90 tokens: two blocks
    classes, seeds = [1, 2, 3, 2], [5, torch.Generator().manual_seed(6), 7, 8]
    together = model.generate(classes, generator=seeds, **options)
    monkeypatch.setattr("hybridzoo.models.maskmamba.sampling._ELEMENTS", 1)  # as little at once as it goes
    for i, seed in enumerate([5, 6, 7, 8]):
        assert torch.equal(model.generate([classes[i]], generator=[seed], **options)[0], together[i])
    assert not torch.equal(together[1], together[3])
    with pytest.raises(InputError, match="2 entries for 4 images"):
        model.generate(classes, generator=[1, 2], **options)


def test_what_the_config_recommends_is_the_default():
    torch.manual_seed(0)
    recommended = {"sampling_steps": 3, "sampling_temperature": 0.5, "sampling_cfg_scale": 2.0}
    model = build_model("maskmamba_test", **recommended).eval()
    with torch.no_grad():  # codes that depend on the class
        model.condition.embedding_table.weight.mul_(100)
        model.token_embedding.weight.mul_(20)
    given = {"steps": 3, "temperature": 0.5, "cfg_scale": 2.0}
    expected = model.generate([1, 2], generator=0, **given)
    assert torch.equal(model.generate([1, 2], generator=0), expected)
    for name, other in (("steps", 9), ("temperature", 50.0), ("cfg_scale", 9.0)):
        assert not torch.equal(model.generate([1, 2], generator=0, **{name: other}), expected)


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
@pytest.mark.parametrize("steps", [1, 3, 25, 40])
def test_every_token_is_drawn(model, order, steps):
    codes = model.generate([1, 4], steps=steps, order=order, generator=0, height=6, width=14)
    assert codes.shape == (2, 3, 7)
    assert int(codes.max()) < 64


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_known_tokens_per_step(model, order, monkeypatch):
    """The number of masked tokens that the network sees, and known tokens that never change."""
    seen, steps = [], 8
    inner = type(model).features

    def watch(self, ids, *args, **kwargs):
        seen.append(ids.flatten(1).clone())
        return inner(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(model), "features", watch)
    codes = model.generate([1, 2], steps=steps, order=order, generator=0).flatten(1)
    masked = [(ids == 64).sum(1).tolist() for ids in seen]
    if order == "confidence":
        want = [25, *[int(25 * torch.cos(torch.tensor((t + 1) / steps * torch.pi / 2))) for t in range(steps - 1)]]
    else:
        known = [int((1 - 2 / torch.pi * torch.arccos(torch.tensor((t + 1) / steps))) * 25) for t in range(steps - 1)]
        want = [25, *[25 - max(t + 1, k) for t, k in enumerate(known)]]
    assert masked == [[n, n] for n in want]
    for ids in seen:
        assert torch.equal(torch.where(ids == 64, codes, ids), codes)


def test_guidance_pushes_away_from_the_unconditional(model, monkeypatch):
    """One step with the most likely code: the argument of u + s (c - u)."""
    ids = torch.full((2, 25), 64)
    labels = torch.tensor([3, 5])
    c, u = model(ids, labels).logits, model(ids, torch.tensor([10, 10])).logits
    for s in (1.0, 2.5, 0.0):
        found = model.generate(labels, steps=1, token_temperature=0.0, cfg_scale=s, cfg_schedule="constant")
        assert torch.equal(found.flatten(1), (u + s * (c - u)).argmax(-1)), s
    whole = model.generate(labels, steps=3, cfg_scale=2.0, token_temperature=0.0, temperature=0.0)
    monkeypatch.setattr(sampling, "_ELEMENTS", 64 * 4 * 3)
    assert torch.equal(model.generate(labels, steps=3, cfg_scale=2.0, token_temperature=0.0, temperature=0.0), whole)


def test_drawn_codes_follow_the_probabilities(model):
    conditions = {"class_labels": torch.zeros(400, dtype=torch.long)}
    decoder = sampling._Decoder(model, conditions, (5, 5), torch.Generator().manual_seed(0), 0.7)
    ids = torch.full((400, 25), 64)
    codes, log_p = decoder.draw(ids, 1.0)
    wanted = (model(ids[:1], torch.zeros(1, dtype=torch.long)).logits[0] / 0.7).softmax(-1)
    found = F.one_hot(codes, 64).float().mean(0)
    assert (found - wanted).abs().max() < 0.12
    torch.testing.assert_close(log_p.exp(), wanted.expand(400, -1, -1).gather(2, codes[..., None])[..., 0], **CLOSE)


def test_inpainting_keeps_the_rest(model):
    codes = torch.randint(64, (2, 5, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[1:3, 1:4] = True
    new = model.generate([1, 2], codes=codes, mask=mask, steps=4, generator=0)
    assert torch.equal(torch.where(mask, 0, new), torch.where(mask, 0, codes))
    assert not torch.equal(new, codes)
    kept = model.generate([1, 2], codes=codes, mask=torch.zeros_like(mask), steps=4)
    assert torch.equal(kept, codes)


def test_generation_ignores_dropout_and_keeps_the_mode():
    model = lively(build_model("maskmamba_test", dropout=0.5)).train()
    codes = model.generate([1], steps=2, generator=0)
    assert model.training
    assert torch.equal(model.eval().generate([1], steps=2, generator=0), codes)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_labels": [11]}, r"11; this model has classes 0 to 9, and 10 is the null class"),
        ({"class_labels": [-1]}, "classes 0 to 9"),
        ({}, "give class_labels"),
        ({"class_labels": [1], "steps": 0}, "steps=0.*1 or more"),
        ({"class_labels": [1], "steps": 2.5}, "whole number"),
        ({"class_labels": [1], "cfg_scale": -1.0}, "cfg_scale"),
        ({"class_labels": [1], "temperature": -1.0}, "temperature"),
        ({"class_labels": [1], "order": "haltonn"}, "did you mean 'halton'"),
        ({"class_labels": [1], "height": 15}, "height=15 must be a multiple of 2"),
        ({"class_labels": [1], "width": 0}, "width=0"),
        ({"class_labels": [1], "codes": torch.full((1, 5, 5), 99)}, "run from 99 to 99.*another tokenizer"),
        ({"class_labels": [1], "codes": torch.zeros(2, 5, 5).long()}, r"\(1, 5, 5\)"),
        ({"class_labels": [1], "mask": torch.ones(5, 5).bool()}, "codes .* are missing"),
        ({"class_labels": [1], "codes": torch.zeros(1, 5, 5).long(), "mask": torch.ones(5, 4).bool()}, "mask must be"),
        ({"text_embeds": torch.zeros(1, 2, 3)}, "class-conditional: give class_labels"),
    ],
)
def test_bad_generation_options_are_named(model, options, words):
    with pytest.raises(InputError, match=words):
        model.generate(**options)


def test_unknown_schedules_are_named(model):
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        model.generate([1], schedule="cosin")
    with pytest.raises(ConfigError, match="unknown mask schedule 'pow'"):
        model.generate([1], schedule="pow")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"input_ids": torch.zeros(1, 24).long()}, "24 tokens do not fill the configured grid of 5 x 5"),
        ({"input_ids": torch.zeros(1, 16).long()}, r"codes.view\(-1, 4, 4\)"),
        ({"input_ids": torch.zeros(1, 25)}, "must be integers"),
        ({"input_ids": torch.full((1, 25), 65)}, "codes 0 to 63 and 64 for a masked token"),
        ({"input_ids": torch.zeros(1, 25).long(), "class_labels": None}, "class_labels is missing"),
        ({"input_ids": torch.zeros(1, 25).long(), "class_labels": torch.zeros(2).long()}, r"of shape \(1,\)"),
        ({"input_ids": torch.zeros(1, 25).long(), "labels": torch.full((1, 25), 64)}, "codes are 0 to 63"),
        ({"input_ids": torch.zeros(1, 25).long(), "labels": torch.zeros(1, 24).long()}, r"of shape \(1, 25\)"),
    ],
)
def test_bad_inputs_are_named(model, inputs, words):
    with pytest.raises(InputError, match=words):
        model(**{"class_labels": torch.zeros(1).long(), **inputs})


@pytest.mark.parametrize(
    ("embeds", "words"),
    [
        (None, "text_embeds is missing"),
        (torch.zeros(1, 3, 13), "13 wide and this model reads 12: .*another text encoder"),
        (torch.zeros(1, 7, 12), r"up to 6"),
        (torch.zeros(1, 12), "must be floats"),
        (torch.zeros(1, 3, 12).long(), "must be floats"),
    ],
)
def test_bad_texts_are_named(text_model, embeds, words):
    with pytest.raises(InputError, match=words):
        text_model(torch.zeros(1, 25).long(), text_embeds=embeds)
    with pytest.raises(InputError, match="text-conditional"):
        text_model(torch.zeros(1, 25).long(), class_labels=torch.zeros(1).long())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "serial"}, "did you mean 'serial_v"),
        ({"condition": "image"}, "unknown condition"),
        ({"image_size": 11}, "multiple of downsample=2"),
        ({"scheme": "group_v2"}, "4 channel group"),
        ({"hidden_size": 33}, "divisible"),
        ({"group_pattern": "MX", "scheme": "group_v1"}, "one M"),
        ({"group_pattern": "MS"}, "goes with a group scheme"),
        ({"mask_schedule": "cos"}, "mask schedule"),
        ({"dropout": 1.0}, "below 1"),
        ({"dt_rank": 0}, "dt_rank=0"),
        ({"num_layers": 0}, "at least 1"),
        ({"second_branch": "none"}, "second_branch"),
    ],
)
def test_impossible_configurations_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        build_model("maskmamba_test", **values)


def test_scans_in_one_call_equal_two():
    """What the CPU does, against what a GPU does."""

    def inputs(seed):
        u, dt, b, c = noise(2, 7, 4, seed=seed), noise(2, 7, 4, seed=seed + 1), noise(2, 7, 3), noise(2, 7, 3, seed=9)
        return u, dt, b, c, noise(4, 3, seed=seed + 2), noise(4, seed=seed), noise(4, seed=seed + 1)

    for both, alone in zip(scan_pair(inputs(0), inputs(3)), (scan(*inputs(0)), scan(*inputs(3)))):
        torch.testing.assert_close(both, alone)
