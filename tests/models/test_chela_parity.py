"""CHELA's long kernel and its Mega baseline against what SGConv's and Mega's own code computes; attention tiles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridzoo import load_original
from hybridzoo.errors import CheckpointError, ConfigError
from hybridzoo.layers.chela.long_conv import MultiScaleConv
from hybridzoo.models.chela.mega import MegaLayer, MovingAverage

FIXTURES = Path(__file__).parents[1] / "fixtures" / "chela"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NORMS = {"layernorm": "layer", "batchnorm": "batch", "scalenorm": "scale"}


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(FIXTURES / f"{name}.safetensors"), json.loads((FIXTURES / f"{name}.json").read_text())["config"]


def weights(tensors: dict[str, Tensor], prefix: str = "sd.") -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


# SGConv -------------------------------------------------------------------------------------------------------------


def sgconv(c: dict[str, Any]) -> MultiScaleConv:
    """The long convolution that a configuration of the original describes."""
    parts = c["mode"].split("_")
    decay = "fixed" if "fixed" in parts else "learnable" if "learnable" in parts else "scale"
    return MultiScaleConv(
        c["d_model"],
        c["l_max"],
        kernel_dim=c["kernel_dim"],
        n_scales=c["num_scales"],
        bidirectional=c.get("bidirectional", False),
        mode=parts[0],
        interpolation="nearest" if "nearest" in parts else "linear",
        decay=decay,
        decay_min=c.get("decay_min", 2.0),
        decay_max=c.get("decay_max", 2.0),
        copies=c.get("channels", 1),
    )


SGCONV = ["cat_bi", "cat_causal_decayrange", "sum_causal", "cat_nearest_ch2", "cat_learnable_decay"]


@pytest.mark.parametrize("name", SGCONV)
def test_long_convolution(name):
    tensors, config = read(f"sgconv_{name}")
    layer = sgconv(config)
    layer.load_state_dict(weights(tensors))
    y = layer(tensors["in.x_bdl"].transpose(1, 2))
    torch.testing.assert_close(y.transpose(1, 2), tensors["out.y_bdl"], **CLOSE)


@pytest.mark.parametrize("name", SGCONV)
def test_long_kernel(name):
    """The original lays a kernel of two directions on a circle of 2 L positions."""
    tensors, config = read(f"sgconv_{name}")
    layer = sgconv(config)
    layer.load_state_dict(weights(tensors))
    length = config["l_max"]
    back, ahead = layer.kernels(length)
    want = tensors["out.kernel"].flatten(0, 1)
    torch.testing.assert_close(back, want[:, :length], **CLOSE)
    if config.get("bidirectional"):
        assert ahead is not None
        torch.testing.assert_close(ahead, want[:, length + 1 :].flip(1), **CLOSE)
    else:
        assert ahead is None


def test_a_shorter_sequence_is_divided_by_the_norm_of_the_whole_kernel():
    tensors, config = read("sgconv_cat_bi")
    layer = sgconv(config)
    layer.load_state_dict(weights(tensors))
    torch.testing.assert_close(layer.kernels(20)[0], layer.kernels(48)[0][:, :20])


def test_the_norm_is_that_of_the_first_kernel():
    """As the original stores it at the first forward; later changes of the weights do not change it."""
    torch.manual_seed(0)
    layer = MultiScaleConv(5, 40, kernel_dim=4, bidirectional=True)
    layer.init_weights()
    whole = torch.cat([layer.kernels(40)[0], layer.kernels(40)[1]], 1)
    assert 0 < whole.square().sum() <= 10 + 1e-4  # 5 channels, 2 directions of norm 1, cut to 40 positions
    stored = layer.kernel_norm.clone()
    with torch.no_grad():
        layer.kernel_list[0].mul_(3)
    layer(torch.randn(1, 40, 5))
    assert torch.equal(layer.kernel_norm, stored)


def test_as_many_scales_as_reach_the_longest_sequence():
    assert len(MultiScaleConv(2, 2048, kernel_dim=1).kernel_list) == 12
    assert len(MultiScaleConv(2, 16384, kernel_dim=64, init_scale=1).kernel_list) == 8
    assert len(MultiScaleConv(2, 1024, kernel_dim=32, n_scales=3).kernel_list) == 3


def test_the_kernels_that_stretch_equal_torchs_operations():
    """Outputs and gradients in Triton's interpreter."""
    pytest.importorskip("triton")
    command = [sys.executable, str(Path(__file__).with_name("_stretch_kernels.py")), "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 12
    assert {case: error for case, error in errors.items() if not error < 1e-6} == {}


def test_transforms_are_kept_until_a_weight_changes():
    """In Triton's interpreter: one transform of the taps for two calls after every change, and never an old one."""
    pytest.importorskip("triton")
    command = [sys.executable, str(Path(__file__).with_name("_kept_transforms.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 22
    assert {step: seen for step, seen in found.items() if seen != [int("more rows" not in step), 0.0]} == {}


# Mega ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal", "bi"])
def test_moving_average(name):
    tensors, c = read(f"mega_ema_{name}")
    layer = MovingAverage(c["embed_dim"], c["ndim"], bidirectional=c["bidirectional"], truncation=c["truncation"])
    layer.load_state_dict(weights(tensors))
    x = tensors["in.x_tbc"].transpose(0, 1)
    torch.testing.assert_close(layer(x).transpose(0, 1), tensors["out.y_tbc"], **CLOSE)
    torch.testing.assert_close(layer.kernel(x.shape[1]), tensors["out.kernel"], **CLOSE)
    got = layer(x, tensors["in.padding_mask"] == 0).transpose(0, 1)
    torch.testing.assert_close(got, tensors["out.y_padded_tbc"], **CLOSE)


def test_truncated_moving_average():
    """The fixture names `mega_ema_bi` for its weights, but was made with another omega, which is not stored.

    So the kernel is checked without it: what the original adds to the convolution, y = silu(conv(x) + omega x), must be
    the input times one number a channel, at every position where silu can be inverted.
    """
    tensors, c = read("mega_ema_bi_trunc5")
    layer = MovingAverage(c["embed_dim"], c["ndim"], truncation=c["truncation"])
    layer.load_state_dict(weights(read("mega_ema_bi")[0]))
    x, y = tensors["in.x_tbc"].double(), tensors["out.y_tbc"].double()
    before = y.clamp_min(0.05)
    for _ in range(60):  # Newton's steps on silu(before) = y
        gate = before.sigmoid()
        before = before - (before * gate - y) / (gate * (1 + before * (1 - gate)))
    usable = y > 0.05
    back, ahead = layer.kernel(x.shape[0]).detach().double().chunk(2)  # (D, 5) each
    rows = torch.nn.functional.pad(x, (0, 0, 0, 0, 4, 4))
    conv = sum(back[:, s] * rows[4 - s : 17 - s] + ahead[:, s] * rows[4 + s : 17 + s] for s in range(5))
    checked = 0
    for channel in range(x.shape[2]):
        at = usable[:, :, channel]
        rest, inputs = (before - conv)[:, :, channel][at], x[:, :, channel][at]
        largest = inputs.abs().argmax()
        omega = rest[largest] / inputs[largest]
        torch.testing.assert_close(rest, omega * inputs, rtol=1e-4, atol=1e-4)
        checked += len(rest) - 1
    assert checked > 40
    want = torch.nn.functional.silu(conv + layer.omega.double() * x)
    torch.testing.assert_close(layer(x.float().transpose(0, 1)).transpose(0, 1).double(), want, **CLOSE)


@pytest.mark.parametrize("name", ["softmax_ln_post", "laplace_bn_pre", "softmax_sn_post_chunk"])
def test_gated_attention(name):
    tensors, c = read(f"mega_gated_attention_{name}")
    layer = MegaLayer(
        c["embed_dim"],
        c["zdim"],
        c["hdim"],
        c["ndim"],
        c["max_positions"],
        attention=c["attention_activation"],
        norm=NORMS[c["norm_type"]],
        pre_norm=c["prenorm"],
        chunk_size=c.get("chunk_size"),
        causal=not c["bidirectional"],
    ).eval()
    missing, unexpected = layer.load_state_dict(weights(tensors, "sd.attn."), strict=False)
    assert not unexpected
    assert {key.rpartition(".")[2] for key in missing} <= {"num_batches_tracked"}
    x = tensors["in.x_tbc"].transpose(0, 1)
    torch.testing.assert_close(layer(x).transpose(0, 1), tensors["out.attn_tbc"], **CLOSE)
    valid = tensors["in.padding_mask"] == 0
    got, want = layer(x, valid), tensors["out.attn_padded_tbc"].transpose(0, 1)
    torch.testing.assert_close(got[valid], want[valid], **CLOSE)


@pytest.mark.parametrize("name", ["text", "image"])
def test_encoder(name):
    tensors, config = read(f"mega_lra_encoder_{name}")
    model = load_original("chela", weights(tensors), config)
    tokens, lengths = tensors["in.tokens"], tensors["in.lengths"]
    mask = (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).long()
    with torch.no_grad():
        out = model(tokens, attention_mask=None if name == "image" else mask)
    states = tensors["out.last_state_tbc"].transpose(0, 1)
    valid = torch.ones_like(mask).bool() if name == "image" else mask.bool()
    torch.testing.assert_close(out.last_hidden_state[valid], states[valid], **CLOSE)
    torch.testing.assert_close(out.pooler_output, tensors["out.sentence_rep"], **CLOSE)


@pytest.mark.parametrize("name", ["text", "image"])
def test_encoder_converts_both_ways(name):
    tensors, config = read(f"mega_lra_encoder_{name}")
    given = weights(tensors)
    back = load_original("chela", given, config).to_original()
    assert back.keys() == given.keys()
    assert all(torch.equal(back[key], given[key]) for key in given)
    without = load_original("chela", {f"{k}": v for k, v in given.items()})  # sizes from the shapes alone
    assert without.config.hidden_size == config["embedding_dim"]
    assert without.config.num_hidden_layers == config["num_encoder_layers"]


def test_foreign_checkpoints_and_unknown_arguments():
    tensors, config = read("mega_lra_encoder_text")
    with pytest.raises(CheckpointError, match="no official weights"):
        load_original("chela", {"layers.0.attention.weight": torch.zeros(2, 2)})
    with pytest.raises(ConfigError, match="did you mean 'hidden_dim'"):
        load_original("chela", weights(tensors), {**config, "hiden_dim": 16})
    with pytest.raises(ConfigError, match="rel_pos_bias"):
        load_original("chela", weights(tensors), {**config, "rel_pos_bias": "rotary"})
