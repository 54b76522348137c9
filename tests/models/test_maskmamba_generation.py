"""Generation by MaskMamba: seeds, orders, guidance, what is drawn, inpainting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from maskmamba_models import CLOSE, lively

from hybridzoo import build_model
from hybridzoo.errors import InputError
from hybridzoo.models.maskmamba import sampling


@pytest.fixture(scope="module")
def model():
    return lively(build_model("maskmamba_test"))


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


def test_positions_are_resized_once(model, monkeypatch):
    """And given to every step; on the configured grid the network takes its own."""
    calls, given = [], []
    positions, features = type(model).positions, type(model).features

    def watch(self, *args, **kwargs):
        given.append("positions" in kwargs)
        return features(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "positions", lambda self, *grid: (calls.append(grid), positions(self, *grid))[1])
    monkeypatch.setattr(type(model), "features", watch)
    other = model.generate([1, 2], steps=3, height=6, width=14, cfg_scale=2.0, generator=0)
    assert (calls, given) == ([(3, 7)], [True] * 3)
    monkeypatch.setattr(type(model), "features", lambda self, *a, positions=None, **kw: features(self, *a, **kw))
    assert torch.equal(model.generate([1, 2], steps=3, height=6, width=14, cfg_scale=2.0, generator=0), other)
    given.clear()
    monkeypatch.setattr(type(model), "features", watch)
    model.generate([1], steps=2, generator=0)
    assert given == [False] * 2


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
