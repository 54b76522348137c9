"""The parts of a recipe against closed forms and against timm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm.scheduler
import torch
import torch.nn.functional as F
from torch import nn

from hybridzoo import build_model
from hybridzoo.errors import ConfigError
from hybridzoo.training.arguments import make_mixup
from hybridzoo.training.batch_augment import BatchAugment, can_augment
from hybridzoo.training.callbacks import Ema, Guard
from hybridzoo.training.losses import balanced_weights, classification_loss, validation_metrics
from hybridzoo.training.param_groups import param_groups
from hybridzoo.training.sampling import EpochBatchSampler, Key, global_rng_kept, sample_seeds, seed_globals, uniforms
from hybridzoo.training.schedule import Schedule, make_schedule, total_steps
from hybridzoo.training.schema import AugmentSection, TrainingSection

# Schedule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0), (5, 0), (5, 10)])
def test_cosine_is_timms(warmup, cooldown):
    t = TrainingSection(
        epochs=30,
        warmup_epochs=warmup,
        cooldown_epochs=cooldown,
        learning_rate=1e-3,
        min_learning_rate=1e-5,
        warmup_learning_rate=1e-6,
    )
    ours, updates = make_schedule(t, 7), 7
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = timm.scheduler.CosineLRScheduler(
        optimizer,
        t_initial=30 * updates,
        lr_min=1e-5,
        warmup_t=warmup * updates,
        warmup_lr_init=1e-6,
        t_in_epochs=False,
    )
    assert total_steps(t, updates) == (30 + cooldown) * updates
    for step in range(total_steps(t, updates)):
        theirs.step_update(step)
        expected = optimizer.param_groups[0]["lr"] if step else (1e-6 if warmup else 1e-3)
        assert ours(step) == pytest.approx(expected, rel=1e-12), step


def test_linear_and_constant():
    t = TrainingSection(max_steps=100, warmup_ratio=0.1, scheduler="linear", learning_rate=1.0)
    s = make_schedule(t, 17)
    assert [s(0), s(5), s(10), s(55), s(100)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = Schedule("constant", 1.0, 0.0, 0.0, warmup_steps=4, decay_steps=10)
    assert [constant(0), constant(2), constant(4), constant(50)] == [0, 0.5, 1, 1]


# Optimizer groups --------------------------------------------------------------------------------------------------


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def layer_groups(self):
        return [["embed"], ["blocks.0"], ["blocks.1", "norm"], ["head"]]

    def no_weight_decay(self):
        return {"embed.weight"}


def by_name(groups):
    return {n: g for g in groups for n in g["names"]}


def test_decay_groups_and_layer_decay():
    groups = by_name(
        param_groups(Stack(), learning_rate=1.0, weight_decay=0.1, no_decay_norm_bias=True, layer_decay=0.5)
    )
    lr = {"embed": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "norm": 0.5, "head": 1.0}
    for name, group in groups.items():
        assert group["lr"] == lr[name.rpartition(".")[0]], name
        assert group["weight_decay"] == (0.1 if name in {"blocks.0.weight", "blocks.1.weight", "head.weight"} else 0.0)
    plain = by_name(
        param_groups(Stack(), learning_rate=1.0, weight_decay=0.1, no_decay_norm_bias=False, layer_decay=None)
    )
    assert [n for n, g in plain.items() if not g["weight_decay"]] == ["embed.weight"]
    assert {g["lr"] for g in plain.values()} == {1.0}


def test_layer_decay_needs_groups_and_something_to_train():
    with pytest.raises(ConfigError, match="layer_groups"):
        param_groups(nn.Linear(2, 2), learning_rate=1, weight_decay=0, no_decay_norm_bias=True, layer_decay=0.5)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        param_groups(frozen, learning_rate=1, weight_decay=0, no_decay_norm_bias=True, layer_decay=None)


def test_rates_by_name():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.ModuleDict({"offsets": nn.Linear(2, 2)})})
    model["head"]["backbone_like"] = nn.Linear(2, 2)
    options = {"learning_rate": 1.0, "weight_decay": 0.1, "no_decay_norm_bias": False, "layer_decay": None}
    scales = {"backbone": 0.1, "offsets": 0.5, "head.offsets.bias": 0.25}
    groups = param_groups(model, lr_scales=scales, **options)
    found = {name: g["lr"] for g in groups for name in g["names"]}
    assert found == {
        "backbone.weight": 0.1,
        "backbone.bias": 0.1,
        "head.offsets.weight": 0.5,
        "head.offsets.bias": 0.25,  # the longest key
        "head.backbone_like.weight": 1.0,  # whole parts only
        "head.backbone_like.bias": 1.0,
    }
    assert groups[-1]["lr"] == 1.0
    with pytest.raises(ConfigError, match="'backbon'; did you mean 'backbone'"):
        param_groups(model, lr_scales={"backbon": 0.1}, **options)


def test_step_schedule():
    t = TrainingSection(epochs=12, scheduler="step", milestones=[8, 11], learning_rate=1.0, warmup_epochs=1)
    rates = [make_schedule(t, 10)(step) for step in range(120)]
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == rates[79] == 1.0
    assert rates[80] == rates[109] == pytest.approx(0.1)
    assert rates[110] == pytest.approx(0.01)
    short = make_schedule(TrainingSection(epochs=12, max_steps=24, scheduler="step", milestones=[11]), 1000)
    assert short(21) == 10 * short(22)


@pytest.mark.parametrize("name", ["iformer_test", "roberta_bilstm_test"])
def test_registered_models_have_ordered_layers(name):
    groups = param_groups(
        build_model(name), learning_rate=1.0, weight_decay=0.1, no_decay_norm_bias=True, layer_decay=0.5
    )
    scales = [g["lr_scale"] for g in groups]
    assert scales == sorted(scales)
    assert scales[-1] == 1.0
    assert len(set(scales)) >= 3
    head = [n for g in groups if g["lr_scale"] == 1.0 for n in g["names"]]
    assert any(n.startswith(tuple(type(build_model(name)).head_names)) for n in head)


# Loss, metrics, average --------------------------------------------------------------------------------------------


def test_losses_against_their_definitions():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, generator=g), torch.tensor([0, 1, 2, 2, 2, 1])
    logp = logits.log_softmax(-1)
    smooth = -(0.9 * logp[range(6), labels] + 0.1 * logp.mean(-1)).mean()
    assert torch.allclose(classification_loss(logits, labels, smoothing=0.1), smooth)
    soft = torch.rand(6, 3, generator=g).softmax(-1)
    assert torch.allclose(classification_loss(logits, soft, smoothing=0.1), -(soft * logp).sum(-1).mean())
    weights = balanced_weights(labels.tolist(), 3)
    assert torch.allclose(weights, torch.tensor([2.0, 1.0, 2 / 3]))
    assert weights[labels].mean().item() == pytest.approx(1.0)
    expected = -(weights[labels] * logp[range(6), labels]).mean()
    whole = classification_loss(logits, labels, weights=weights)
    assert torch.allclose(whole, expected)
    halves = [(logits[i : i + 3], labels[i : i + 3]) for i in (0, 3)]
    assert torch.allclose(sum(classification_loss(*h, weights=weights) for h in halves) / 2, whole)
    assert not torch.allclose(sum(F.cross_entropy(*h, weight=weights) for h in halves) / 2, whole)  # torch's own mean
    with pytest.raises(ConfigError, match="class 3"):
        balanced_weights(labels.tolist(), 4)


def test_metrics_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    found = validation_metrics(type("P", (), {"predictions": predicted, "label_ids": labels}))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert found["f1_weighted"] == pytest.approx(metrics.f1_score(labels, predicted, average="weighted"))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))


def test_ema_is_the_weighted_sum_of_all_values():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model, 0.35)
    expected = model[0].weight.detach().clone()
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 0.35, 0.35]):  # rises to 0.35 and stays there
        with torch.no_grad():
            model[0].weight.fill_(step + 1.0)
            model[1].num_batches_tracked.fill_(step)
        ema.update(model, step)
        expected = decay * expected + (1 - decay) * (step + 1.0)
    assert torch.allclose(ema.state["0.weight"], expected)
    assert ema.state["1.num_batches_tracked"].item() == 5
    with ema.applied(model):
        assert torch.equal(model[0].weight, ema.state["0.weight"])
    assert torch.equal(model[0].weight, torch.full((2, 2), 6.0))


def test_guard_names_the_first_bad_step_only_when_it_looks():
    from hybridzoo.errors import TrainingError

    guard = Guard(torch.device("cpu"), every=5)
    for step, value in ((1, 0.5), (2, math.nan), (3, math.inf), (4, 1.0)):
        guard.note(torch.tensor(value), step)
    with pytest.raises(TrainingError, match=r"step 2; .*somewhere"):
        guard.check(lambda: "somewhere")


def test_mixup_targets(image_recipe):
    mixup = make_mixup(image_recipe(mixup=0.8, label_smoothing=0.1, cutmix=0.0), 10)
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2).clone()
    with global_rng_kept():
        seed_globals(3)
        mixed, target = mixup(x.clone(), torch.tensor([0, 1, 2, 3]))
    lam = (mixed[0, 0, 0, 0].item() - 3) / (0 - 3)  # row 0 is mixed with row 3
    assert 0 < lam < 1
    on, off = 1 - 0.1 + 0.01, 0.01
    assert target.shape == (4, 10)
    assert torch.allclose(target.sum(-1), torch.ones(4))
    assert target[0, 0].item() == pytest.approx(lam * on + (1 - lam) * off, abs=1e-5)
    assert target[0, 3].item() == pytest.approx((1 - lam) * on + lam * off, abs=1e-5)
    with pytest.raises(ConfigError, match="even"):
        make_mixup(image_recipe(mixup=0.8, batch_size=3), 10)
    assert make_mixup(image_recipe(), 10) is None


# Sampling and batch augmentation -----------------------------------------------------------------------------------


def test_sampler_covers_an_epoch_once_on_all_processes_together():
    samplers = [EpochBatchSampler(50, 4, seed=1, rank=r, world=3) for r in range(3)]
    seen = [k.index for s in samplers for batch in s for k in batch]
    assert len(samplers[0]) == 4
    assert len(seen) == len(set(seen)) == 48
    again = EpochBatchSampler(50, 4, seed=1)
    first = list(again)
    assert list(again) == first  # the epoch alone decides
    again.epoch = 1
    assert [[k.index for k in b] for b in again] != [[k.index for k in b] for b in first]
    assert all(len(b) == 2 for b in EpochBatchSampler(2, 4, seed=0))
    assert all(len(b) == 4 for r in range(3) for b in EpochBatchSampler(5, 4, seed=0, rank=r, world=3))


def test_length_buckets_save_padding():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    waste = {}
    for name, given in (("plain", None), ("bucketed", lengths)):
        batches = list(EpochBatchSampler(1000, 10, seed=0, lengths=given))
        assert sorted(k.index for b in batches for k in b) == list(range(1000))
        waste[name] = sum(max(lengths[k.index] for k in b) * len(b) for b in batches) / lengths.sum()
    assert waste["plain"] > 1.5
    assert waste["bucketed"] < 1.1
    longest = [max(lengths[k.index] for k in b) for b in EpochBatchSampler(1000, 10, seed=0, lengths=lengths)]
    assert longest != sorted(longest, reverse=True)


def test_repeated_augmentation_gives_each_process_its_own_draw():
    batches = [list(EpochBatchSampler(24, 4, seed=0, rank=r, world=3, repeats=3)) for r in range(3)]
    for step in zip(*batches):
        for keys in zip(*step):
            assert len({k.index for k in keys}) == 1
            assert sorted(k.draw for k in keys) == [0, 1, 2]


def test_sample_numbers_depend_on_the_key_alone():
    keys = [Key(0, 5, 0), Key(0, 6, 0), Key(1, 5, 0), Key(0, 5, 1)]
    seeds = sample_seeds(7, keys)
    assert len(set(seeds.tolist())) == 4
    assert sample_seeds(7, keys[2:3])[0] == seeds[2]
    assert sample_seeds(8, keys[:1])[0] != seeds[0]
    u = uniforms(sample_seeds(1, [Key(0, i, 0) for i in range(20_000)]), 3)
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.03  # four standard errors
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


def test_batch_augment_moves_flips_and_erases_what_it_says():
    images = torch.randint(1, 256, (400, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seeds = sample_seeds(0, [Key(0, i, 0) for i in range(400)])
    plain = images.float() / 255
    nothing = BatchAugment(AugmentSection(), [0.0], [1.0])(images, seeds)
    assert torch.equal(nothing, plain)
    flipped = BatchAugment(AugmentSection(hflip=0.25), [0.0], [1.0])(images, seeds)
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 0.18 < mirrored.float().mean() < 0.32
    moved = BatchAugment(AugmentSection(padding_crop=2), [0.0], [1.0])(images, seeds)
    padded = F.pad(plain, (2, 2, 2, 2))
    shifts = set()
    for i in range(100):
        hits = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[i, :, y : y + 8, x : x + 8], moved[i])]
        assert len(hits) == 1
        shifts |= set(hits)
    assert len(shifts) == 25
    erased = BatchAugment(AugmentSection(random_erasing=0.5), [0.0], [1.0])(images, seeds) != plain
    share = erased.flatten(1).any(1).float().mean()
    assert 0.4 < share < 0.6
    for mask in erased[erased.flatten(1).any(1)][:50, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all()
    crop = BatchAugment(AugmentSection(scale=[0.3, 0.6]), [0.0], [1.0])(images, seeds)
    assert crop.shape == plain.shape
    assert crop.min() >= plain.min()
    whole = BatchAugment(AugmentSection(scale=[1.0, 1.0], ratio=[1.0, 1.0]), [0.0], [1.0])(images, seeds)
    assert torch.allclose(whole, plain, atol=1e-5)
    subset = BatchAugment(AugmentSection(hflip=0.5, padding_crop=2, random_erasing=0.5), [0.3], [0.4])
    assert torch.equal(subset(images, seeds)[10:20], subset(images[10:20], seeds[10:20]))  # no matter which batch


def test_batch_augment_leaves_the_rest_to_pil():
    assert can_augment(AugmentSection(hflip=0.5, padding_crop=2))
    assert can_augment(AugmentSection(scale=[0.5, 1.0], interpolation="bilinear"))
    assert not can_augment(AugmentSection(auto_augment="rand-m9"))
    assert not can_augment(AugmentSection(color_jitter=0.4))
    assert not can_augment(AugmentSection(scale=[0.5, 1.0], interpolation="bicubic"))
