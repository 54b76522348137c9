"""DeltaNet against numbers of fla, its layouts of two years, and its configuration space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError
from hybridzoo.layers.delta_mixer import DeltaMixer
from hybridzoo.layers.mixer import MixerContext, MixerInfo, make_options

FOLDER = Path(__file__).parents[1] / "fixtures" / "lm"
MODELS = ["deltanet_tiny", "deltanet_hybrid_swa_tiny", "deltanet_hybrid_global_tiny"]
LAYERS = json.loads((FOLDER / "deltanet_layers_tiny.json").read_text())
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Golden:
    def __init__(self, name: str) -> None:
        self.values = load_file(FOLDER / f"{name}.safetensors")
        self.config = json.loads((FOLDER / f"{name}.json").read_text())["config"]
        self.weights = {k.removeprefix("state_dict."): v for k, v in self.values.items() if "state_dict." in k}
        self.model = load_original("deltanet", self.weights, self.config)


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@torch.no_grad()
def test_logits_hidden_states_and_loss(golden: Golden) -> None:
    ids = golden.values["full.input_ids"]
    out = golden.model(ids, labels=ids, output_hidden_states=True)
    torch.testing.assert_close(out.logits, golden.values["full.logits"], **CLOSE)
    torch.testing.assert_close(out.loss, golden.values["full.loss"][0], **CLOSE)
    for i, hidden in enumerate(out.hidden_states):
        torch.testing.assert_close(hidden, golden.values[f"full.hidden.{i}"], **CLOSE)


@torch.no_grad()
def test_cached_steps_and_chunks(golden: Golden) -> None:
    ids = golden.values["full.input_ids"]
    length = ids.shape[1]
    for name, sizes in (("step", [5] + [1] * (length - 5)), ("chunked_prefill", [7, 9, length - 16])):
        cache, start, got = golden.model.new_cache(), 0, []
        for size in sizes:
            got.append(golden.model(ids[:, start : start + size], past_key_values=cache).logits)
            start += size
        torch.testing.assert_close(torch.cat(got, 1), golden.values[f"cached.{name}.logits"], **CLOSE)
        if name == "step":
            check_states(golden.values, cache)


def check_states(values: dict[str, torch.Tensor], cache: Any) -> None:
    """fla keeps one more convolution input than is needed, and keys with heads side by side."""
    compared = 0
    for key, expected in values.items():
        parts = key.split(".")
        if parts[:2] != ["cached", "step"] or parts[2] == "logits":
            continue
        state = cache.states[int(parts[3])]
        if parts[2] == "recurrent_state":
            got = state["delta"]
        elif parts[2] == "conv_state":
            got, expected = state[f"conv_{parts[4]}"].transpose(1, 2), expected[:, :, 1:]
        else:  # the slots of a window are a ring: compare as sets of positions
            got = state[parts[2][-1]].transpose(1, 2).flatten(2)[:, : expected.shape[1]]
            got, expected = got.sort(1).values, expected.sort(1).values
        torch.testing.assert_close(got, expected, **CLOSE)
        compared += 1
    assert compared >= 8


@torch.no_grad()
def test_left_padding(golden: Golden) -> None:
    mask = golden.values["leftpad.attention_mask"]
    got = golden.model(golden.values["leftpad.input_ids"], attention_mask=mask).logits
    torch.testing.assert_close(got[mask == 1], golden.values["leftpad.logits"][mask == 1], **CLOSE)


@pytest.mark.parametrize("variant", LAYERS)
@torch.no_grad()
def test_layer_options(variant: str) -> None:
    values = load_file(FOLDER / "deltanet_layers_tiny.safetensors")
    options = {k: v for k, v in LAYERS[variant].items() if k not in ("mode", "hidden_size", "norm_eps")}
    info = MixerInfo(norm_eps=LAYERS[variant]["norm_eps"])
    layer = DeltaMixer(LAYERS[variant]["hidden_size"], make_options("delta", options), info)
    prefix = f"{variant}.state_dict."
    layer.load_state_dict({k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})
    x = values[f"{variant}.x"]
    context = MixerContext(torch.arange(x.shape[1]).unsqueeze(0))
    torch.testing.assert_close(layer(x, context).y, values[f"{variant}.y"], **CLOSE)


def test_layout_goes_both_ways(golden: Golden) -> None:
    back = golden.model.to_original()
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], v) for k, v in golden.weights.items())


def test_old_layouts(golden: Golden) -> None:
    """Gate and up projection in one tensor; norms inside the modules."""
    old: dict[str, torch.Tensor] = {}
    for key, tensor in golden.weights.items():
        if key.endswith("mlp.up_proj.weight"):
            continue
        if key.endswith("mlp.gate_proj.weight"):
            tensor = torch.cat([tensor, golden.weights[key.replace("gate_proj", "up_proj")]])
        key = key.replace(".attn_norm.", ".attn.norm.").replace(".mlp_norm.", ".mlp.norm.")
        old[key] = tensor
    again = load_original("deltanet", old, {**golden.config, "norm_first": True})
    own = golden.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in again.state_dict().items())
    both = {**old, "model.layers.0.attn_norm.weight": torch.ones(48)}
    with pytest.raises(CheckpointError, match="two tensors"):
        load_original("deltanet", both, golden.config)


def test_sizes_are_read_from_shapes() -> None:
    golden = Golden("deltanet_tiny")
    model = load_original("deltanet", golden.weights)
    ids = golden.values["full.input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, golden.values["full.logits"], **CLOSE)
    hybrid = Golden("deltanet_hybrid_swa_tiny")
    with pytest.raises(ConfigError, match=r"layers \[1, 3\] are attention"):
        load_original("deltanet", hybrid.weights)


@pytest.mark.parametrize(
    ("name", "count"),
    [("deltanet_340m", 374_362_112), ("deltanet_1_3b", 1_365_677_056), ("deltanet_2_7b", 2_704_185_856)],
)
def test_sizes_of_the_original_code(name: str, count: int) -> None:
    assert sum(p.numel() for p in build_model(name, device="meta").parameters()) == count


def test_hybrids_of_the_paper() -> None:
    """Attention in every other layer, or in layers 2 and N/2 + 1, counted from 1."""
    kinds = [layer.kind for layer in build_model("deltanet_swa_1_3b", device="meta").config.decoder_spec().layers]
    assert kinds == ["delta", "swa"] * 12
    kinds = [layer.kind for layer in build_model("deltanet_global_340m", device="meta").config.decoder_spec().layers]
    assert [i for i, kind in enumerate(kinds) if kind == "attention"] == [1, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "num_heads=5 must divide"),
        ({"qk_norm": "l3"}, "qk_norm"),
        ({"qk_activation": "gelu"}, "qk_activation"),
        ({"hidden_act": "gelu"}, "swish"),
        ({"attn": {"layers": [9], "num_heads": 4}}, "layer 9"),
        ({"attn": {"layer": [1], "num_heads": 4}}, "did you mean 'layers'"),
        ({"attn": {"layers": [1]}}, "num_heads"),
        ({"use_gates": True}, "did you mean 'use_gate'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
    ids=str,
)
def test_impossible_configurations(change: dict[str, Any], message: str) -> None:
    golden = Golden("deltanet_tiny")
    with pytest.raises(ConfigError, match=message):
        load_original("deltanet", golden.weights, {**golden.config, **change})


def test_foreign_weights() -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of fla's DeltaNet"):
        load_original("deltanet", {"model.embed_tokens.weight": torch.zeros(1)}, {})


def test_published_folder_loads_as_it_is(golden: Golden, tmp_path: Path) -> None:
    """config.json with fla's model type beside a torch file."""
    values = {**golden.config, "model_type": "delta_net", "architectures": ["DeltaNetForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    torch.save(golden.weights, tmp_path / "pytorch_model.bin")
    model = build_model(tmp_path, dtype="auto")
    ids = golden.values["full.input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, golden.values["full.logits"], **CLOSE)
    with pytest.raises(ConfigError, match="device_map"):
        build_model(tmp_path, device_map="cpu")
