"""MaskMamba's parts against the originals that they come from: Vim's layers, MaskGIT's rule, LlamaGen's conditions."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo import build_model
from hybridzoo.errors import ConfigError
from hybridzoo.models.maskmamba.blocks import ClassCondition, TextCondition
from hybridzoo.models.maskmamba.decoding import (
    guidance,
    halton_order,
    mask_by_topk,
    mask_length,
    mask_ratio,
    revealed,
)
from hybridzoo.models.maskmamba.mixers import VimMamba

FIXTURES = Path(__file__).parents[1] / "fixtures" / "maskmamba"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
VIM = ["mamba_uni", "bimamba_v1", "bimamba_v2", "bimamba_v2_div2", "bimamba_v2_layerscale"]


def read(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    document = json.loads((FIXTURES / f"{name}.json").read_text())
    return load_file(FIXTURES / f"{name}.safetensors"), document.get("config", document)


@pytest.mark.parametrize("name", VIM)
def test_vim_layers(name):
    t, c = read(f"vim_{name}")
    layer = VimMamba(
        c["d_model"],
        c["bimamba_type"],
        c["expand"],
        c["d_state"],
        c["d_conv"],
        c["dt_rank"],
        divide=c["if_divide_out"],
        layer_scale_init_value=c.get("init_layer_scale"),
    )
    layer.load_state_dict({k[3:]: v for k, v in t.items() if k.startswith("sd.")})
    torch.testing.assert_close(layer(t["in.x"]), t["out.y"], **CLOSE)


def test_condition_embeddings():
    t, c = read("llamagen_cond_embedders")
    drop = t["in.drop"].bool()
    classes = ClassCondition(c["num_classes"], c["dim"])
    classes.load_state_dict({"embedding_table.weight": t["sd.label.embedding_table.weight"]})
    torch.testing.assert_close(classes(t["in.labels"]), t["out.label"], rtol=0, atol=0)
    torch.testing.assert_close(classes(t["in.labels"], drop), t["out.label_drop"], rtol=0, atol=0)
    texts = TextCondition(c["caption_dim"], c["dim"], c["token_num"])
    texts.load_state_dict({k.removeprefix("sd.caption."): v for k, v in t.items() if k.startswith("sd.caption.")})
    torch.testing.assert_close(texts(t["in.caption"]), t["out.caption"], **CLOSE)
    torch.testing.assert_close(texts(t["in.caption"], drop), t["out.caption_drop"], **CLOSE)


SCHEDULE = json.loads((FIXTURES / "maskgit_schedule.json").read_text())


@pytest.mark.parametrize("name", SCHEDULE["schedules"])
def test_mask_schedules(name):
    rows = torch.tensor(SCHEDULE["schedules"][name], dtype=torch.float64)
    found = mask_ratio(rows[:, 0], name, SCHEDULE["N"])
    torch.testing.assert_close(found.double(), rows[:, 1], rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("steps", SCHEDULE["mask_len"])
def test_masked_tokens_per_step(steps):
    total, now, found = torch.tensor([SCHEDULE["N"]]), torch.tensor([SCHEDULE["N"]]), []
    for step in range(int(steps)):
        now = mask_length(step, int(steps), total, now)
        found.append(int(now))
    assert found == SCHEDULE["mask_len"][steps]


def test_mask_by_topk():
    t, _ = read("maskgit_mask_by_topk_t0")
    assert torch.equal(mask_by_topk(t["in.probs"], t["in.mask_len"]).long(), t["out.mask"])
    assert torch.equal(mask_by_topk(t["in.probs"], t["in.mask_len"][:, 0]).long(), t["out.mask"])


def test_mask_by_topk_with_noise():
    probs = torch.full((4000, 8), 0.1)
    probs[:, 0] = torch.inf  # known
    probs[:, 1] = 0.3
    masked = mask_by_topk(probs, torch.full((4000,), 3), 1.0, torch.Generator().manual_seed(0))
    assert (masked.sum(1) == 3).all()
    assert not masked[:, 0].any()
    assert masked[:, 1].float().mean() < masked[:, 2:].float().mean() - 0.1
    # the most confident of two tokens under Gumbel noise is a draw in proportion to the probabilities
    pair = torch.tensor([[0.3, 0.1]]).expand(4000, 2)
    kept = ~mask_by_topk(pair, torch.ones(4000), 1.0, torch.Generator().manual_seed(1))
    assert abs(kept[:, 0].float().mean() - 0.75) < 0.03


def test_rest_of_the_tokens_is_at_least_one_and_leaves_the_known():
    assert mask_length(19, 20, torch.tensor([256, 3]), torch.tensor([20, 1])).tolist() == [1, 1]
    assert mask_length(0, 20, torch.tensor([256, 5]), torch.tensor([256, 5])).tolist() == [255, 4]


def test_guidance_schedules():
    assert [guidance(t, 5, 4.0, "constant") for t in range(5)] == [4.0] * 5
    assert [guidance(t, 4, 4.0, "linear") for t in range(4)] == [1.0, 2.0, 3.0, 4.0]
    cosine = [guidance(t, 5, 3.0, "power-cosine") for t in range(5)]
    torch.testing.assert_close(torch.tensor(cosine), 2 - torch.cos(torch.arange(5) * torch.pi / 4))
    assert guidance(1, 3, 3.0, "power-cosine", power=2.0) < 2
    assert guidance(0, 1, 4.0, "linear") == 4.0
    with pytest.raises(ConfigError, match=r"did you mean 'linear'"):
        guidance(0, 2, 4.0, "linaer")


def radical_inverse(n: int, base: int) -> float:
    """Digit by digit, as the definition says."""
    value, place = 0.0, 1.0 / base
    while n:
        value, n, place = value + (n % base) * place, n // base, place / base
    return value


@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 7), (4, 9), (1, 3)])
def test_halton_order(height, width):
    order, n = [], 1
    while len(order) < height * width:
        # half a unit of the last place keeps the sum of digits on the right side of a cell's border
        cell = int(radical_inverse(n, 2) * height + 1e-9) * width + int(radical_inverse(n, 3) * width + 1e-9)
        if cell not in order:
            order.append(cell)
        n += 1
    assert halton_order(height, width).tolist() == order


def test_tokens_of_a_fixed_order_per_step():
    counts = [revealed(t, 32, 256) for t in range(32)]
    assert counts[-1] == 256
    assert all(b > a for a, b in pairwise(counts))
    assert counts[:3] == [5, 10, 15]  # 1 - arccos(r) / (pi / 2) of 256, rounded down
    assert [revealed(t, 4, 4) for t in range(4)] == [1, 2, 3, 4]


# Table of the specification: parameters in millions for N/2 Mamba + N/2 attention layers and for the pure stacks.
@pytest.mark.parametrize(
    ("size", "transformer", "hybrid", "mamba"),
    [("b", 98.6, 100.0, 101.4), ("l", 320.4, 324.8, 329.3), ("xl", 731.0, 740.8, 750.6)],
)
def test_parameter_counts(size, transformer, hybrid, mamba):
    for scheme, want in (("pure_transformer", transformer), ("serial_v2", hybrid), ("pure_mamba", mamba)):
        model = build_model(f"maskmamba_{size}", device="meta", scheme=scheme)
        found = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(found - want) < 1e-3 * want, (scheme, found)
    if size == "xl":
        assert round(sum(p.numel() for p in build_model("maskmamba_xl", device="meta").parameters()) / 1e6) == 741
