"""Hymba against numbers of NVIDIA's model file, its layouts and its configuration space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError
from hybridzoo.layers.rotary import Rotary

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lm" / "hymba_tiny.safetensors"
CLOSE = {"rtol": 1e-4, "atol": 5e-4}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return json.loads(FIXTURE.with_suffix(".json").read_text())["config"]


@pytest.fixture(scope="module")
def weights(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state_dict."): v for k, v in golden.items() if k.startswith("state_dict.")}


@torch.no_grad()
def test_logits_hidden_states_and_loss(golden: Any, weights: Any, config: Any) -> None:
    model = load_original("hymba", weights, config)
    ids = golden["full.input_ids"]
    out = model(ids, labels=ids, output_hidden_states=True)
    torch.testing.assert_close(out.logits, golden["full.logits"], **CLOSE)
    torch.testing.assert_close(out.loss, golden["full.loss"][0], **CLOSE)
    assert len(out.hidden_states) == 8
    for i, hidden in enumerate(out.hidden_states):
        torch.testing.assert_close(hidden, golden[f"full.hidden.{i}"], **CLOSE)


@torch.no_grad()
def test_other_rotary_embedding(golden: Any, weights: Any, config: Any) -> None:
    model = load_original("hymba", weights, {**config, "rope_type": None})
    torch.testing.assert_close(model(golden["full.input_ids"]).logits, golden["full.logits_rope_default"], **CLOSE)


def test_rotary_tables(golden: Any, config: Any) -> None:
    positions = torch.arange(28).unsqueeze(0)
    rotary = Rotary(8, 10_000.0, "ntk", config["max_position_embeddings"], config["orig_max_position_embeddings"])
    cos, sin = rotary.tables(positions, 28)
    torch.testing.assert_close(cos.repeat(1, 1, 2), golden["rope.cos"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sin.repeat(1, 1, 2), golden["rope.sin"], rtol=1e-5, atol=1e-5)


def test_published_ntk_base() -> None:
    """10000 * (2 * 8192 / 2048 - 1) ** (64 / 62), from the published configuration."""
    _, sin = Rotary(64, 10_000.0, "ntk", 8192, 2048).tables(torch.tensor([[1]]), 1)
    base = float(torch.asin(sin[0, 0, 16].double())) ** -2  # frequency 16 of 32 is base ** -0.5
    assert base == pytest.approx(74534.83, rel=1e-5)


@pytest.mark.parametrize("kind", ["short", "long"])
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@torch.no_grad()
def test_official_cached_decoding(golden: Any, weights: Any, config: Any, kind: str, static: bool) -> None:
    """NVIDIA's cached logits and states, which differ from its own forward by one key of the window."""
    model = load_original("hymba", weights, {**config, "decode_window": "official"})
    ids, expected = golden["cached.input_ids"], golden[f"cached.{kind}_prompt.logits"]
    prompt = {"short": 3, "long": 17}[kind]
    cache = model.new_cache(1, 40) if static else model.new_cache()
    got = [model(ids[:, :prompt], past_key_values=cache).logits[:, -1:]]
    got += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(prompt, 30)]
    torch.testing.assert_close(torch.cat(got, 1), expected, **CLOSE)
    for layer in (1, 6):
        conv, ssm = cache.states[layer]["conv"].transpose(1, 2), cache.states[layer]["ssm"]
        torch.testing.assert_close(conv, golden[f"cached.{kind}_prompt.conv_state.{layer}"][:, :, 1:], **CLOSE)
        torch.testing.assert_close(ssm, golden[f"cached.{kind}_prompt.ssm_state.{layer}"], **CLOSE)


@torch.no_grad()
def test_default_decoding_agrees_with_the_full_forward(golden: Any, weights: Any, config: Any) -> None:
    model = load_original("hymba", weights, config)
    ids, cache = golden["cached.input_ids"], None
    full = model(ids).logits
    torch.testing.assert_close(full, golden["cached.full_forward_logits"], **CLOSE)
    for start, size in ((0, 3), *((i, 1) for i in range(3, 20)), (20, 10)):
        out = model(ids[:, start : start + size], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        torch.testing.assert_close(out.logits, full[:, start : start + size], rtol=1e-4, atol=1e-4)


def test_official_generation(golden: Any, weights: Any, config: Any) -> None:
    model = load_original("hymba", weights, {**config, "decode_window": "official"})
    tokens = model.generate(golden["generate.prompt"], max_new_tokens=12, do_sample=False)
    assert torch.equal(tokens, golden["generate.tokens"])


def test_layout_goes_both_ways(weights: Any, config: Any) -> None:
    model = load_original("hymba", weights, config)
    back = model.to_original()
    assert set(back) - {"lm_head.weight"} == set(weights)
    assert all(torch.equal(back[k], v) for k, v in weights.items())


@pytest.mark.parametrize("norm", ["rms", "perhead-rms"])
def test_unused_norms_of_consumers_are_dropped_and_written(norm: str, weights: Any, config: Any) -> None:
    weights, heads = dict(weights), config["num_attention_heads"]
    shapes = {"rms": ((8,), (8,)), "perhead-rms": ((1, heads, 1, 8), (1, 2, 1, 8))}[norm]
    for i in range(config["num_hidden_layers"]):
        for name, shape in zip(("q", "k"), shapes):
            weights[f"model.layers.{i}.mamba.self_attn.{name}_norm.weight"] = torch.rand(shape) + 0.5
    model = load_original("hymba", weights, {**config, "kq_norm": norm})
    back = model.to_original()
    assert {k: v.shape for k, v in back.items() if k != "lm_head.weight"} == {k: v.shape for k, v in weights.items()}
    ids = torch.arange(3, 20).unsqueeze(0)
    before = model(ids).logits
    weights["model.layers.2.mamba.self_attn.k_norm.weight"] = torch.zeros(shapes[1])  # layer 2 reads layer 1's keys
    after = load_original("hymba", weights, {**config, "kq_norm": norm})(ids).logits
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_the_published_layer_plan() -> None:
    """Producers and global layers of Hymba-1.5B, 17 caches of keys in 32 layers (paper, Algorithm 1)."""
    spec = build_model("hymba_1_5b", device="meta").config.decoder_spec()
    owners = [i for i, layer in enumerate(spec.layers) if layer.kv_from is None]
    assert owners == [0, 1, 3, 5, 7, 9, 11, 13, 15, 16, 19, 21, 23, 25, 27, 29, 31]
    assert [i for i, layer in enumerate(spec.layers) if layer.options.window is None] == [0, 15, 31]
    assert {layer.options.window for layer in spec.layers} == {None, 1025}


@pytest.mark.parametrize(
    ("name", "count"), [("hymba_125m", 129_944_064), ("hymba_350m", 353_701_888), ("hymba_1_5b", 1_522_797_824)]
)
def test_sizes_of_the_original_code(name: str, count: int) -> None:
    assert sum(p.numel() for p in build_model(name, device="meta").parameters()) == count


@pytest.mark.parametrize(
    "change",
    [
        {"mlp_hidden_act": "relu2"},
        {"intermediate_size": 0},
        {"tie_word_embeddings": False},
        {"mamba_inner_layernorms": False},
        {"mamba_conv_bias": False},
        {"mamba_proj_bias": True},
        {"rope": False},
        {"rope_type": "dynamic_ntk"},
        {"sliding_window": None, "global_attn_idx": None},
        {"kv_reuse_group": None},
        {"num_memory_tokens": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_configuration_space(change: dict[str, Any], config: dict[str, Any]) -> None:
    """Every option builds, changes the layout as it should, goes through the original's layout, and decodes."""
    torch.manual_seed(0)
    values = {**config, **change}
    names = {"num_experts", "num_experts_per_tok", "num_mamba", "memory_tokens_interspersed_every"}
    model = build_model("hymba_test", **{k: v for k, v in values.items() if k in type(_config()).zoo_types})
    model.eval()
    assert not names & set(type(model.config).zoo_types)
    again = load_original("hymba", model.to_original(), {**values, "use_cache": False})
    ids = torch.randint(3, 97, (2, 14))
    full = model(ids).logits
    torch.testing.assert_close(again(ids).logits, full, rtol=0, atol=0)
    cache = model.new_cache()
    parts = [model(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 6), (6, 7), (7, 14))]
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)


def _config() -> Any:
    return build_model("hymba_test", device="meta").config


def test_dynamic_ntk_stretches_with_the_row() -> None:
    """Up to the original length nothing changes; beyond it the base grows with the row's own length."""
    rotary = Rotary(8, 10_000.0, "dynamic_ntk", 64, 16)
    plain = Rotary(8, 10_000.0)
    positions = torch.arange(16).unsqueeze(0)
    torch.testing.assert_close(rotary.tables(positions, 16), plain.tables(positions, 16))
    grown = Rotary(8, 10_000.0 * (2 * 40 / 16 - 1) ** (8 / 6))
    rows = rotary.tables(positions.expand(2, -1), torch.tensor([[40], [16]]))
    torch.testing.assert_close(rows[0][0], grown.tables(positions, 0)[0][0])
    torch.testing.assert_close(rows[0][1], plain.tables(positions, 0)[0][0])


def test_reuse_every_second_layer(config: Any) -> None:
    """The original's other rule: layer i reads the last layer that i is no multiple of."""
    from hybridzoo.models.hymba.convert import config_from_original

    values = {**config, "kv_reuse_group": None, "kv_reuse_every_i_layer": 2, "global_attn_idx": None}
    state = {"model.embed_tokens.weight": torch.zeros(1), "model.layers.0.mamba.in_proj.weight": torch.zeros(1)}
    assert config_from_original(values, state)["kv_reuse_group"] == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_reuse_group": [[1, 3]]}, "not consecutive"),
        ({"kv_reuse_group": [[6, 7]]}, "outside the model"),
        ({"kv_reuse_group": [[1, 2], [2, 3]]}, "two groups"),
        ({"kv_reuse_group": [[0, 1]]}, "cannot read the keys"),
        ({"global_attn_idx": [9]}, "global_attn_idx"),
        ({"kq_norm": "layer"}, "kq_norm|qk_norm"),
        ({"rope_type": "yarn"}, "rope_type"),
        ({"num_experts": 4}, "num_experts"),
        ({"num_key_value_heads": 4}, "multiple"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"mlp_hidden_act": "gelu"}, "activation"),
        ({"windows": 3}, "windows"),
        ({"decode_window": "nvidia"}, "decode_window"),
    ],
    ids=str,
)
def test_impossible_configurations(change: dict[str, Any], message: str, weights: Any, config: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        load_original("hymba", weights, {**config, **change})


def test_foreign_weights_and_missing_configuration(weights: Any, config: Any) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of Hymba"):
        load_original("hymba", {"model.layers.0.attn.q_proj.weight": torch.zeros(1)}, config)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_original("hymba", weights)
    extra = {**weights, "model.layers.0.mamba.surprise": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="surprise"):
        load_original("hymba", extra, config)


def test_published_folder_loads_as_it_is(weights: Any, config: Any, golden: Any, tmp_path: Path) -> None:
    """config.json and weights as NVIDIA's repository has them, with transformers' own keys."""
    extra = {"model_type": "hymba", "architectures": ["HymbaForCausalLM"], "auto_map": {"AutoConfig": "x.Y"}}
    extra |= {"torch_dtype": "float32", "transformers_version": "4.44.0", "conv_dim": {"0": 96}, "v_head_dim": 128}
    (tmp_path / "config.json").write_text(json.dumps({**config, **extra}))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = build_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(golden["full.input_ids"]).logits, golden["full.logits"], **CLOSE)
    assert build_model(tmp_path, decode_window="official").config.decode_window == "official"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors"):
        build_model(tmp_path)
