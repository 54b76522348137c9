"""iFormer against numbers made by the authors' code. Tolerances: logits 1e-5, feature maps 1e-4, absolute, fp32."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hybridzoo import build_model, load_original, model_info
from hybridzoo.models.iformer.mixers import InceptionMixer

FIXTURES = Path(__file__).parent.parent / "fixtures" / "iformer"
LOGITS = {"atol": 1e-5, "rtol": 0}
FEATURES = {"atol": 1e-4, "rtol": 0}


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    facts = FIXTURES / f"{name}.json"
    return load_file(FIXTURES / f"{name}.safetensors"), json.loads(facts.read_text()) if facts.exists() else {}


def state_of(fixture: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state."): v for k, v in fixture.items() if k.startswith("state.")}


def values(shape: tuple[int, ...], key: str) -> torch.Tensor:
    """Numbers in [-1, 1) computed from the key and the position alone: a 32-bit integer hash, in float64."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    h = (i * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()))) & mask
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(2246822519)) & mask
    h = ((h ^ (h >> np.uint64(13))) * np.uint64(3266489917)) & mask
    h = h ^ (h >> np.uint64(16))
    return torch.from_numpy(h.astype(np.float64) / 2**31 - 1).reshape(shape)


def procedural_state(keys: dict[str, dict]) -> dict[str, torch.Tensor]:
    """A full-size state dict whose every entry follows from its key name."""
    state = {}
    for key, entry in keys.items():
        shape, last = tuple(entry["shape"]), key.rsplit(".", 1)[-1]
        v = values(shape, key)
        if last == "num_batches_tracked":
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        if last == "running_var":
            v = 1 + 0.25 * v
        elif last in ("running_mean", "bias") or last.startswith("pos_embed"):
            v = 0.1 * v
        elif last.startswith("layer_scale_"):
            v = 0.1 + 0.05 * v
        elif len(shape) == 1:
            v = 1 + 0.1 * v
        else:
            v = v * (3 * shape[0] / v.numel()) ** 0.5
        state[key] = v.float()
    return state


@pytest.fixture(scope="module")
def tiny():
    fixture, facts = golden("tiny")
    return load_original("iformer", state_of(fixture), facts["config"]), fixture


@pytest.mark.parametrize("size", [64, 96])
def test_tiny_outputs(tiny, size):
    model, want = tiny
    with torch.no_grad():
        last, stages = model.iformer.forward_intermediates(want[f"input.x{size}"], output_fmt="NHWC", norm=False)
        pooled = model.iformer.forward_head(last.permute(0, 3, 1, 2), pre_logits=True)
        logits = model(want[f"input.x{size}"]).logits
    for k, stage in enumerate(stages, start=1):
        torch.testing.assert_close(stage, want[f"output.stage{k}_{size}"], **FEATURES)
    torch.testing.assert_close(last.flatten(1, 2), want[f"output.norm_{size}"], **FEATURES)
    torch.testing.assert_close(pooled, want[f"output.pooled_{size}"], **LOGITS)
    torch.testing.assert_close(logits, want[f"output.logits_{size}"], **LOGITS)


def test_tiny_gradients(tiny):
    model, want = tiny
    x = want["input.x64"].clone().requires_grad_()
    loss = F.cross_entropy(model(x).logits, torch.tensor([3, 7]))
    torch.testing.assert_close(loss, want["grad.loss"].squeeze(0), **LOGITS)
    checked = [k.removeprefix("grad.") for k in want if k.startswith("grad.") and k not in ("grad.loss", "grad.x64")]
    parameters = [dict(model.iformer.named_parameters())[k] for k in checked]
    assert len(checked) == 7
    for key, gradient in zip(["x64", *checked], torch.autograd.grad(loss, [x, *parameters]), strict=True):
        expected = want[f"grad.{key}"]
        scale = expected.abs().max().clamp(min=1e-12)
        torch.testing.assert_close(gradient / scale, expected / scale, **LOGITS, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("pool_size", [1, 2])
def test_mixer(pool_size):
    want, facts = golden(f"mixer_pool{pool_size}")
    config = dict(facts["config"])
    mixer = InceptionMixer(attention_heads=config.pop("attention_head"), **config).eval()
    mixer.load_state_dict(state_of(want))
    paths = {}
    mixer.high_mixer.register_forward_hook(lambda m, i, out: paths.__setitem__("high", out))
    mixer.low_mixer.register_forward_hook(lambda m, i, out: paths.__setitem__("low", out))
    with torch.no_grad():
        y, bias = mixer(want["input.x"])
        y = y + bias
    torch.testing.assert_close(y, want["output.y"], **LOGITS)
    high = torch.cat(paths["high"], dim=3).permute(0, 3, 1, 2)
    low = F.interpolate(paths["low"][0].permute(0, 3, 1, 2), size=high.shape[2:], mode="nearest")
    torch.testing.assert_close(high, want["output.high"], **LOGITS)
    torch.testing.assert_close(low, want["output.low"], **LOGITS)


def test_procedural_formula():
    want = [-0.45350474305450916, -0.8226712099276483, 0.7159241307526827, -0.6041759247891605]
    assert values((4,), "head.weight").tolist() == want


@pytest.mark.parametrize("name", ["small", "base", "large", "small_384"])
def test_full_size_outputs(name):
    """Full-size networks, weights and image computed by formula; small_384 has the position tables of 224 pixels."""
    want, _ = golden(f"{name}_procedural")
    keys = json.loads((FIXTURES / f"{name.removesuffix('_384')}_keys.json").read_text())
    model = load_original(f"iformer_{name}", procedural_state(keys))
    assert model.iformer.pos_embed1.shape[1:3] == (56, 56)
    side = model.config.image_size
    x = values((1, 3, side, side), "input").float()
    with torch.no_grad():
        last, stages = model.iformer.forward_intermediates(x, output_fmt="NHWC")
        pooled = model.iformer.forward_head(last.permute(0, 3, 1, 2), pre_logits=True)
        logits = model.iformer.head(pooled)
    for k, stage in enumerate(stages, start=1):
        centre = stage[:, stage.shape[1] // 2, stage.shape[2] // 2]
        torch.testing.assert_close(centre, want[f"output.stage{k}_center"], **FEATURES)
    torch.testing.assert_close(pooled, want["output.pooled"], **LOGITS)
    torch.testing.assert_close(logits, want["output.logits"], **LOGITS)


SIZES = json.loads((FIXTURES / "sizes.json").read_text())["models"]


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_flops(name):
    info = model_info(name)
    assert info.parameters == SIZES[name]["params"]
    assert info.flops == SIZES[name]["torch_FlopCounterMode_flops"]


@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize("suffix", ["", "_384"])
def test_published_keys_convert_both_ways(size, suffix):
    keys = json.loads((FIXTURES / f"{size}_keys.json").read_text())
    model = build_model(f"iformer_{size}{suffix}", device="meta")
    ours = model.to_original()
    assert {k: (list(v.shape), str(v.dtype)) for k, v in ours.items()} == {
        k: (e["shape"], f"torch.{e['dtype']}") for k, e in keys.items()
    }
    back = model._convert_module().from_original(ours, model.config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in model.state_dict().items()}
