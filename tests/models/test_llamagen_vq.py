"""LlamaGen's tokenizer: the original's numbers, its checkpoints, the codebook's losses, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError, InputError
from hybridzoo.models.llamagen_vq.quantizer import USAGE_WINDOW, VectorQuantizer, entropy_loss

FIXTURES = Path(__file__).parents[1] / "fixtures" / "maskmamba"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def fixture(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict]:
    """Inputs and outputs, the original's state dict, its configuration."""
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    config = json.loads((FIXTURES / f"{name}.json").read_text())["config"]
    return tensors, {k[3:]: v for k, v in tensors.items() if k.startswith("sd.")}, config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("llamagen_vq_test").eval()


# The original's numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vq16_llamagen", "llamagen_vq"])
def test_encode_indices_decode(family):
    t, state, config = fixture("llamagen_vq_tiny")
    model = load_original(family, state, config)
    with torch.no_grad():
        found = model.encode(t["in.image"])
        torch.testing.assert_close(model.encoder(t["in.image"]), t["out.encoder"], **CLOSE)
        torch.testing.assert_close(found.latents, t["out.quant_conv"], **CLOSE)
        torch.testing.assert_close(found.quant, t["out.quant"], **CLOSE)
        assert torch.equal(found.indices.flatten(), t["out.indices"])
        torch.testing.assert_close(model.decode(found.quant), t["out.decode"], **CLOSE)
        torch.testing.assert_close(model.decode_code(found.indices), t["out.decode_code"], **CLOSE)
        flat = model.decode_code(t["out.indices"], t["out.quant"].shape)
        torch.testing.assert_close(flat, t["out.decode_code"], **CLOSE)
        torch.testing.assert_close(model(t["in.image"]).reconstruction, t["out.decode"], **CLOSE)


def test_codebook_without_normalisation():
    _, state, _ = fixture("llamagen_vq_tiny")
    t, _, config = fixture("llamagen_vq_tiny_nol2")
    found = load_original("llamagen_vq", state, config).encode(t["in.image"])
    torch.testing.assert_close(found.quant, t["out.quant"], **CLOSE)
    assert torch.equal(found.indices.flatten(), t["out.indices"])


@pytest.mark.parametrize("with_config", [True, False])
def test_networks_whose_width_changes(with_config):
    """Half a checkpoint each; what the configuration leaves out is read from the shapes."""
    t, state, config = fixture("llamagen_vq_enc_shortcut")
    model = load_original(
        "vq16_llamagen" if with_config else "llamagen_vq", state, config if with_config else None, strict=False
    )
    found = model.encode(t["in.image"])
    torch.testing.assert_close(model.encoder(t["in.image"]), t["out.encoder"], **CLOSE)
    torch.testing.assert_close(found.quant, t["out.quant"], **CLOSE)
    assert torch.equal(found.indices.flatten(), t["out.indices"])
    t, state, config = fixture("llamagen_vq_dec_shortcut")
    model = load_original("llamagen_vq", state, config if with_config else None, strict=False)
    torch.testing.assert_close(model.decode(t["in.quant"]), t["out.decode"], **CLOSE)
    with pytest.raises(CheckpointError, match="missing: encoder"):
        load_original("llamagen_vq", state, config)


@pytest.mark.parametrize(("name", "file", "tokens"), [("vq16_llamagen", "16", 16), ("vq8_llamagen", "8", 8)])
def test_published_key_lists(name, file, tokens):
    published = json.loads((FIXTURES / f"llamagen_vq-{file}_keys.json").read_text())
    model = build_model(name, device="meta")
    assert {k: list(v.shape) for k, v in model.to_original().items()} == published["keys"]
    assert sum(p.numel() for p in model.parameters()) == published["n_parameters"]
    assert model.config.downsample == tokens
    state = {k: torch.empty(shape, device="meta") for k, shape in published["keys"].items()}
    back = type(model).convert_original(state, model.config, where="the test")
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_wrappers_of_published_files(tmp_path):
    t, state, config = fixture("llamagen_vq_tiny")
    state["quantize.codebook_used"] = torch.arange(USAGE_WINDOW, dtype=torch.float32)
    wrong = {k: v + 1 for k, v in state.items()}
    for i, wrapped in enumerate(({"ema": state, "model": wrong}, {"model": state}, {"state_dict": state}, state)):
        torch.save(wrapped, tmp_path / f"{i}.pt")
        model = load_original("llamagen_vq", tmp_path / f"{i}.pt", config)
        assert torch.equal(model.encode(t["in.image"]).indices.flatten(), t["out.indices"])
        again = model.to_original()
        assert again.keys() == state.keys()
        assert all(torch.equal(again[k], state[k]) for k in state)


def test_foreign_checkpoints_are_named():
    with pytest.raises(CheckpointError, match=r"no checkpoint of LlamaGen's tokenizer"):
        load_original("llamagen_vq", {"a.weight": torch.zeros(1)})
    _, state, _ = fixture("llamagen_vq_tiny")
    with pytest.raises(ConfigError, match=r"codebook_siz.*did you mean 'codebook_size'"):
        load_original("llamagen_vq", state, {"codebook_siz": 64})


# The codebook --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2_norm", [True, False])
def test_losses_and_straight_through_gradient(l2_norm):
    torch.manual_seed(0)
    book = VectorQuantizer(16, 4, l2_norm, entropy=True, show_usage=False).train()
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    out = book(z)
    rows, flat = book.embedding.weight, z.permute(0, 2, 3, 1).reshape(-1, 4)
    if l2_norm:
        rows, flat = rows / rows.norm(dim=1, keepdim=True), flat / flat.norm(dim=1, keepdim=True)
    nearest = torch.cdist(flat, rows).argmin(1)
    assert torch.equal(out.indices.flatten(), nearest)
    chosen = rows[nearest]
    torch.testing.assert_close(out.quant.permute(0, 2, 3, 1).reshape(-1, 4), chosen, **CLOSE)
    torch.testing.assert_close(out.vq_loss, (chosen - flat).square().mean())
    torch.testing.assert_close(out.commit_loss, (chosen - flat).square().mean())
    pull = torch.autograd.grad(out.vq_loss, book.embedding.weight, retain_graph=True)[0]
    want = torch.autograd.grad((chosen - flat.detach()).square().mean(), book.embedding.weight, retain_graph=True)[0]
    torch.testing.assert_close(pull, want)
    assert torch.autograd.grad(out.vq_loss, z, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(out.commit_loss, book.embedding.weight, retain_graph=True, allow_unused=True)[0] is None
    if not l2_norm:  # the gradient of the output passes the codebook unchanged
        up = torch.randn_like(out.quant)
        torch.testing.assert_close(torch.autograd.grad(out.quant, z, up)[0], up)


def test_entropy_of_sure_and_even_codes_is_lowest():
    sure = torch.eye(8).repeat(4, 1)
    even, lazy = torch.zeros(32, 8), torch.eye(8)[:1].repeat(32, 1)
    values = [float(entropy_loss(a)) for a in (sure, lazy, even)]
    torch.testing.assert_close(values[0], -torch.tensor(8.0).log().item(), rtol=1e-3, atol=1e-3)
    assert values[0] < values[1] - 2
    assert values[0] < values[2] - 2


def test_usage_remembers_the_last_indices():
    book = VectorQuantizer(8, 2, True, entropy=False, show_usage=True).train()
    first = book(torch.randn(1, 2, 4, 4))
    assert torch.equal(book.codebook_used[-16:].long(), first.indices.flatten())
    second = book(torch.randn(1, 2, 4, 4))
    assert torch.equal(book.codebook_used[-32:].long(), torch.cat((first.indices, second.indices)).flatten())
    seen = set(book.codebook_used.long().tolist())
    torch.testing.assert_close(second.usage, torch.tensor(len(seen) / 8))


def test_distances_in_pieces_choose_the_same(monkeypatch):
    from hybridzoo.models.llamagen_vq import quantizer

    book, z = VectorQuantizer(64, 4, True, False, False).eval(), torch.randn(2, 4, 5, 5)
    whole = book(z).indices
    monkeypatch.setattr(quantizer, "_ELEMENTS", 64 * 7)
    assert torch.equal(book(z).indices, whole)


def test_a_few_steps_of_training_reduce_the_loss(model):
    torch.manual_seed(0)
    net = build_model("llamagen_vq_test", reconstruction_l1=0.5, entropy_loss_weight=0.1).train()
    inputs = net.example_inputs(4, labels=True)
    inputs["pixel_values"] = inputs["labels"] = F.interpolate(inputs["pixel_values"][..., :4, :4], size=(16, 16))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    losses = []
    for _ in range(15):
        out = net(**inputs)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.pixel_loss.item())
    torch.testing.assert_close(out.loss, out.pixel_loss + out.quantizer_loss)
    assert losses[-1] < 0.7 * losses[0]


# Sizes and bad input -------------------------------------------------------------------------------------------------


def test_rectangular_images(model):
    x = torch.rand(1, 3, 8, 20) * 2 - 1
    found = model.encode(x)
    assert found.indices.shape == (1, 4, 10)
    assert model.decode_code(found.indices).shape == x.shape


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 15, 16), "multiples of 2"),
        (torch.zeros(1, 1, 16, 16), r"\(batch, 3, height, width\), got \(1, 1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8: scale to"),
        ([[0.0]], "got list"),
    ],
)
def test_bad_images_are_named(model, images, words):
    with pytest.raises(InputError, match=words):
        model.encode(images)


@pytest.mark.parametrize(
    ("codes", "shape", "words"),
    [
        (torch.full((1, 2, 2), 64), None, "64 rows.*another tokenizer"),
        (torch.zeros(1, 2, 2), None, "integers"),
        (torch.zeros(4, dtype=torch.long), None, "give shape="),
        (torch.zeros(4, dtype=torch.long), (1, 4, 2, 3), "do not fill"),
    ],
)
def test_bad_codes_are_named(model, codes, shape, words):
    with pytest.raises(InputError, match=words):
        model.decode_code(codes, shape)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_channels": 33}, "multiple of 32"),
        ({"encoder_ch_mult": (1, 1, 1)}, "3 levels and decoder_ch_mult 2"),
        ({"image_size": 15}, "multiple of 2"),
        ({"image_mean": (0.5,)}, "num_channels=3"),
        ({"dropout": 1.0}, "below 1"),
        ({"codebook_size": 0}, "at least 1"),
        ({"commit_loss_weight": -1}, "negative"),
    ],
)
def test_impossible_configurations_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        build_model("llamagen_vq_test", **values)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_the_codebook_starts_small_or_on_the_sphere(l2_norm):
    model = build_model("llamagen_vq_test", codebook_l2_norm=l2_norm)
    rows = model.quantize.embedding.weight.detach()
    if l2_norm:
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
    else:
        assert rows.abs().max() <= 1 / len(rows)
        assert rows.abs().max() > 0.5 / len(rows)
