"""CHELA models in use: baselines, padding, batch norm, bad input, pairs, decoding states, generation."""

from __future__ import annotations

import pytest
import torch
from chela_models import MERGED, OPTIONS, make, tokens

from hybridzoo import build_model, list_models
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.layers.chela.norms import SequenceBatchNorm

# Baselines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n.removesuffix("_linear") for n in list_models("chela_*_linear")])
def test_baselines_have_equal_parameters(name):
    def size(which: str) -> int:
        return sum(p.numel() for p in build_model(which, device="meta").parameters())

    ours = size(name)
    for baseline in ("linear", "conv", "mega", "transformer"):
        assert size(f"{name}_{baseline}") == pytest.approx(ours, rel=0.005), baseline


def test_the_mini_model_fits_into_two_megabytes():
    assert sum(p.numel() for p in build_model("chela_mini", device="meta").parameters()) * 4 <= 2e6


@pytest.mark.parametrize("mixer", ["chela", "linear", "conv", "mega", "attention"])
def test_the_order_of_tokens_matters(mixer):
    options = {
        "chela": {},
        "linear": {"use_short": False, "use_long": False, "positions": "rotary"},
        "conv": {"use_attention": False},
    }
    own = {"mega": {"z_width": 8, "value_width": 16, "averages": 4}, "attention": {"num_heads": 2}}
    if mixer in own:
        model = make(mixer=mixer, mixer_options=own[mixer])
    else:
        model = make(options=options[mixer])
    ids = tokens(model)
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, model(ids.flip(1)).logits, atol=1e-4)


# Padding and batch norm ----------------------------------------------------------------------------------------------

ENCODERS = {
    "default": ("chela_test", {}),
    "batch norm": (
        "chela_test",
        {"norm": "batch", "pre_norm": True, "mixer_options": {**OPTIONS, **MERGED["branches"]}},
    ),
    "scale, literal": ("chela_test", {"norm": "scale", "preset": "literal"}),
    "denominator, rotary": (
        "chela_test",
        {"mixer_options": {**OPTIONS, "attn_norm": "denominator", "feature_map": "elu1", "positions": "rotary"}},
    ),
    "mega": ("chela_mega_test", {}),
    "transformer": ("chela_test", {"mixer": "attention", "mixer_options": {"num_heads": 2}}),
}


@pytest.mark.parametrize("case", ENCODERS)
@pytest.mark.parametrize("side", ["left", "right", "between"])
@torch.no_grad()
def test_alone_equals_padded(case, side):
    name, config = ENCODERS[case]
    model = make(name, **config)
    lengths, width = (25, 40, 3), 40
    rows = [tokens(model, 1, n)[0] for n in lengths]
    ids, mask = torch.full((3, width), 7), torch.zeros(3, width, dtype=torch.long)  # 7: padding by the mask alone
    for i, row in enumerate(rows):
        at = torch.arange(len(row))
        if side == "left":
            at = at + width - len(row)
        elif side == "between":
            at = at + (at >= len(row) // 2) * (width - len(row))
        ids[i, at], mask[i, at] = row, 1
    together = model(ids, attention_mask=mask, output_hidden_states=True)
    for i, row in enumerate(rows):
        alone = model(row.unsqueeze(0), output_hidden_states=True)
        torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=1e-4, atol=1e-5)
        last = together.hidden_states[-1][i][mask[i] == 1]
        torch.testing.assert_close(last, alone.hidden_states[-1][0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_padding_token_needs_no_mask():
    model = make()
    ids = tokens(model, 2, 30)
    padded = torch.cat([ids, torch.zeros(2, 10, dtype=torch.long)], 1)
    torch.testing.assert_close(model(padded).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["batch norm", "default"])
def test_training_on_a_padded_batch_equals_training_without_padding(case):
    """Loss, gradients and batch statistics: padding is neither counted nor normalised."""
    name, config = ENCODERS[case]
    results = []
    for pad in (0, 9):
        model = make(name, **config, dropout=0.0).train()
        ids = torch.cat([tokens(model, 2, 30), torch.zeros(2, pad, dtype=torch.long)], 1)
        loss = model(ids, labels=torch.tensor([0, 2])).loss
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if ".kernel_list." not in n}
        results.append((loss.detach(), grads, {n: b for n, b in model.named_buffers() if "running" in n}))
    (a, grads_a, stats_a), (b, grads_b, stats_b) = results
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for name in grads_a:
        torch.testing.assert_close(grads_a[name], grads_b[name], rtol=1e-3, atol=1e-4, msg=name)
    for name in stats_a:
        torch.testing.assert_close(stats_a[name], stats_b[name], rtol=1e-4, atol=1e-5)


def test_batch_norm_of_one_row_and_of_one_position():
    name, config = ENCODERS["batch norm"]
    model = make(name, **config).train()
    assert model(tokens(model, 1, 20), labels=torch.tensor([1])).loss.isfinite()
    with pytest.raises(InputError, match="more than one position"):
        SequenceBatchNorm(4).train()(torch.randn(1, 1, 4))
    with pytest.raises(InputError, match="more than one position"):
        SequenceBatchNorm(4).train()(torch.randn(1, 3, 4), torch.tensor([[True, False, False]]))


def test_batch_norm_equals_torchs_on_the_kept_positions():
    torch.manual_seed(0)
    ours, theirs = SequenceBatchNorm(5).train(), torch.nn.BatchNorm1d(5).train()
    x, valid = torch.randn(3, 7, 5), torch.rand(3, 7) > 0.3
    got, want = ours(x, valid), theirs(x[valid])
    torch.testing.assert_close(got[valid], want)
    assert torch.equal(got[~valid], x[~valid])
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


# Bad input -----------------------------------------------------------------------------------------------------------


def test_bad_tokens():
    model = make()
    ids = tokens(model, 2, 10)
    mask = torch.ones_like(ids)
    mask[1] = 0
    with pytest.raises(InputError, match=r"rows \[1\] hold nothing but padding"):
        model(ids, attention_mask=mask)
    with pytest.raises(InputError, match=r"rows \[0, 1\] hold nothing but padding"):
        model(torch.zeros_like(ids))
    with pytest.raises(InputError, match="outside the vocabulary of 20"):
        model(ids + 20)
    with pytest.raises(InputError, match="attention_mask must be"):
        model(ids, attention_mask=mask[:, :5])
    with pytest.raises(InputError, match="no tokens"):
        model(ids[:, :0])
    with pytest.raises(InputError, match="integers"):
        model(ids.float())
    with pytest.raises(InputError, match="either input_ids"):
        model()
    with pytest.raises(InputError, match="classes 0 to 2"):
        model(ids, labels=torch.tensor([0, 3]))
    with pytest.raises(InputError, match="as many second texts"):
        make("chela_pair_test")(ids, pair_input_ids=ids[:1])


def test_bad_images():
    model = make("chela_image_test")
    with pytest.raises(InputError, match="pixel_values must be"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.long))
    with pytest.raises(InputError, match="9 x 9 pixels are more than max_length=64"):
        model(torch.zeros(2, 1, 9, 9))
    with pytest.raises(InputError, match="expected images"):
        model(torch.zeros(2, 2, 8, 8))
    grey = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(grey.expand(-1, 3, -1, -1)).logits, model(grey).logits)


@torch.no_grad()
def test_pairs_are_encoded_one_by_one():
    model = make("chela_pair_test")
    inputs = model.example_inputs(3)
    together = model(**inputs).logits
    swapped = {}
    for ours, theirs in (("input_ids", "pair_input_ids"), ("attention_mask", "pair_attention_mask")):
        swapped[ours], swapped[theirs] = inputs[theirs], inputs[ours]
    assert not torch.allclose(model(**swapped).logits, together, atol=1e-4)  # a - b has a sign
    short = {k: v[:, :40] for k, v in inputs.items()}
    longer = {k: torch.cat([v, torch.zeros_like(v[:, :9])], 1) if "pair" in k else v for k, v in short.items()}
    torch.testing.assert_close(model(**longer).logits, model(**short).logits, rtol=1e-4, atol=1e-5)


# Decoding ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_bounded_kernel_bounds_the_state():
    ids = torch.randint(3, 90, (1, 200), generator=torch.Generator().manual_seed(0))
    sizes = {}
    for taps in (None, 9):
        model = make("chela_lm_test", {"kernel_length": taps})
        cache = model.new_cache()
        sizes[taps] = []
        for start in range(0, 200, 50):
            model(ids[:, start : start + 50], past_key_values=cache)
            sizes[taps].append(cache.nbytes)
    assert len(set(sizes[9])) == 1
    growth = [b - a for a, b in zip(sizes[None], sizes[None][1:])]
    assert growth == [50 * 16 * 4 * 2] * 3  # 50 positions of 16 channels, fp32, 2 layers
    bounded = make("chela_lm_test", {"kernel_length": 9}, max_length=64)
    with pytest.warns(UserWarning, match="more than the 64"):
        assert bounded(ids).logits.shape[1] == 200  # longer than the model is made for: a warning, as with other mixers


@torch.no_grad()
def test_generation_with_and_without_a_cache():
    model = make("chela_lm_test")
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = ids
    for _ in range(6):
        plain = torch.cat([plain, model(plain).logits[:, -1:].argmax(-1)], 1)
    for kind in (None, "static"):
        made = model.generate(ids, max_new_tokens=6, do_sample=False, cache_implementation=kind)
        assert torch.equal(made, plain)


def test_facts_for_training():
    model = build_model("chela_test")
    without = model.no_weight_decay()
    assert {n.split(".mix.")[1] for n in without if n.startswith("encoder.layers.0.")} >= {
        *("gamma", "beta", "long.D", "long.kernel_list.0"),
    }
    prefixes = tuple(prefix for group in model.layer_groups() for prefix in group)
    assert all(name.startswith(prefixes) for name, _ in model.named_parameters())


def test_the_longest_input_is_no_default_of_generate(tmp_path):
    model = make("chela_lm_test")
    model.save_pretrained(tmp_path)
    for one in (model, build_model(tmp_path)):
        assert one.config.max_length == 256
        assert one.generation_config.max_length != 256
        made = one.generate(torch.tensor([[3, 4]]), max_new_tokens=3, do_sample=False)
        assert made.shape == (1, 5)


def test_lengthened_models_agree_where_both_see_everything() -> None:
    from hybridzoo.models.chela.lengthen import lengthened

    for name in ("chela_mini", "chela_mini_transformer"):
        model = build_model(name).eval()
        longer = lengthened(model, 1200)
        ids = torch.randint(3, 18, (2, 500), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(longer(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
        assert longer(torch.randint(3, 18, (1, 1200))).logits.shape == (1, 10)
    with pytest.raises(ConfigError, match="not above"):
        lengthened(model, 512)
    with pytest.raises(ConfigError, match="mixers"):
        lengthened(build_model("chela_mega_test"), 999)
