"""Metrics of anomaly detection: ADer's own numbers, brute-force definitions, scikit-learn, memory, degenerate cases."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hybridzoo.errors import InputError
from hybridzoo.eval.metrics.anomaly import SEVEN, image_scores, score_class, threshold_metrics
from hybridzoo.eval.metrics.anomaly_regions import label_regions
from hybridzoo.eval.metrics.ranking import average_precision, f1_max, roc_auc

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mambaad"
EXACT = 1e-12
ADER = {
    "i_auroc": "mAUROC_sp_max",
    "i_ap": "mAP_sp_max",
    "i_f1max": "mF1_max_sp_max",
    "p_auroc": "mAUROC_px",
    "p_ap": "mAP_px",
    "p_f1max": "mF1_max_px",
    "aupro": "mAUPRO_px",
}
CASES = ("a", "b_ties", "c")


def fixture(case):
    arrays = load_file(FIXTURES / "ad_metrics.safetensors")
    want = json.loads((FIXTURES / "ad_metrics.json").read_text())["cases"][case]
    return arrays[f"{case}.maps"], arrays[f"{case}.masks"], want


def random_class(seed, n=6, side=20, decimals=None):
    """Maps that are somewhat larger on random blobs; the second image and the last are normal."""
    random = np.random.default_rng(seed)
    maps, masks = random.normal(size=(n, side, side)), np.zeros((n, side, side), bool)
    for i in range(n):
        for _ in range(3):
            y, x = random.integers(0, side - 5, 2)
            masks[i, y : y + random.integers(1, 6), x : x + random.integers(1, 6)] = True
    masks[[1, n - 1]] = False
    maps += 1.5 * masks
    return (maps if decimals is None else maps.round(decimals)).astype(np.float32), masks


@pytest.mark.parametrize("steps", [100, 200])
@pytest.mark.parametrize("case", CASES)
def test_aders_numbers(case, steps):
    maps, masks, want = fixture(case)
    got = score_class(maps, masks, evaluator="ader", steps=steps)
    for ours, theirs in ADER.items():
        assert got[ours] == pytest.approx(want[f"max_step_aupro={steps}"][theirs], abs=EXACT), ours
    assert got["mad"] == pytest.approx(np.mean([got[name] for name in SEVEN]), abs=EXACT)


@pytest.mark.parametrize("case", CASES)
def test_aders_other_numbers(case):
    maps, masks, want = fixture(case)
    plain, pooled = want["max_step_aupro=100"], want["pooling_ks=[16,16],max_step_aupro=100"]
    got = score_class(maps, masks, pooling=16)
    for name in ("i_auroc", "i_ap", "i_f1max"):
        assert got[name] == pytest.approx(pooled[ADER[name]], abs=EXACT)
    every, some = threshold_metrics(maps, masks), threshold_metrics(maps, masks, np.arange(0.2, 0.81, 0.1))
    for ours, theirs in (("iou", "mIoU"), ("dice", "mDice"), ("acc", "mAcc")):
        assert every[f"{ours}_max"] == pytest.approx(plain[f"{theirs}_max_px"], abs=EXACT)
    for ours, theirs in (("f1", "mF1"), ("iou", "mIoU"), ("dice", "mDice"), ("acc", "mAcc")):
        assert some[f"{ours}_mean"] == pytest.approx(plain[f"{theirs}_px_0.2_0.8_0.1"], abs=EXACT)


# Definitions, written down as slowly as they read --------------------------------------------------------------------


def brute_labels(mask):
    numbers, count = np.zeros(mask.shape, int), 0
    for y, x in zip(*np.nonzero(mask)):
        if numbers[y, x]:
            continue
        count += 1
        stack = [(y, x)]
        while stack:
            a, b = stack.pop()
            if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1] and mask[a, b] and not numbers[a, b]:
                numbers[a, b] = count
                stack += [(a + i, b + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return numbers, count


def brute_pro_curve(maps, masks, thresholds, strict):
    """(false-positive rate, mean overlap of the regions) at each threshold."""
    labels = [brute_labels(m) for m in masks]
    points = []
    for th in thresholds:
        found = maps > th if strict else maps >= th
        overlaps = [f[n == r].mean() for f, (n, count) in zip(found, labels) for r in range(1, count + 1)]
        points.append((found[~masks].mean(), np.mean(overlaps)))
    return np.array(points)


def area(x, y):
    return float(sum((b - a) * (c + d) / 2 for a, b, c, d in zip(x, x[1:], y, y[1:])))


@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_aupro_is_its_definition(seed, decimals):
    maps, masks = random_class(seed, decimals=decimals)
    wide = maps.astype(np.float64)
    thresholds = np.arange(wide.min(), wide.max(), (wide.max() - wide.min()) / 100)
    rate, overlap = brute_pro_curve(wide, masks, thresholds[::-1], strict=True).T
    keep = rate < 0.3
    rate, overlap = rate[keep], overlap[keep]
    want = area((rate - rate.min()) / (rate.max() - rate.min()), overlap)
    assert score_class(maps, masks)["aupro"] == pytest.approx(want, abs=EXACT)

    values = np.unique(wide)[::-1]
    rate, overlap = brute_pro_curve(wide, masks, values, strict=False).T
    rate, overlap = np.append(0, rate), np.append(0, overlap)
    last = np.flatnonzero(rate <= 0.3)[-1]
    share = (0.3 - rate[last]) / (rate[last + 1] - rate[last])
    at_limit = overlap[last] + share * (overlap[last + 1] - overlap[last])
    keep = rate <= 0.3
    want = area(np.append(rate[keep], 0.3), np.append(overlap[keep], at_limit)) / 0.3
    assert score_class(maps, masks, evaluator="exact")["aupro"] == pytest.approx(want, abs=EXACT)


@pytest.mark.parametrize("decimals", [None, 1])
def test_f1_is_its_definition(decimals):
    maps, masks = random_class(2, decimals=decimals)

    def f1(found, eps):
        true = (found & masks).sum()
        precision, recall = true / (found.sum() + eps), true / (masks.sum() + eps)
        return 2 * precision * recall / (precision + recall + eps) if true else 0.0

    wide = maps.astype(np.float64)
    normalised = (wide - wide.min()) / (wide.max() - wide.min())
    want = max(f1(normalised > th, 1e-8) for th in np.linspace(0, 1, 21))
    assert score_class(maps, masks)["p_f1max"] == pytest.approx(want, abs=EXACT)
    want = max(f1(wide >= th, 0) for th in np.unique(wide))
    assert score_class(maps, masks, evaluator="exact")["p_f1max"] == pytest.approx(want, abs=EXACT)


def test_ranking_is_its_definition():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 12, 60) / 4, random.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert roc_auc(scores, labels) == pytest.approx(np.mean(pairs), abs=EXACT)
    points = []
    for th in np.unique(scores)[::-1]:
        found = scores >= th
        points.append((labels[found].mean(), labels[found].sum() / labels.sum()))
    precision, recall = np.array(points).T
    want = (np.diff(recall, prepend=0) * precision).sum()
    assert average_precision(scores, labels) == pytest.approx(want, abs=EXACT)
    assert f1_max(scores, labels) == pytest.approx((2 * precision * recall / (precision + recall)).max(), abs=EXACT)


@pytest.mark.parametrize("decimals", [None, 1])
def test_pixel_ranking_agrees_with_scikit_learn(decimals):
    sklearn = pytest.importorskip("sklearn.metrics")
    maps, masks = random_class(3, decimals=decimals)
    got = score_class(maps, masks, evaluator="exact")
    truth, scores = masks.ravel(), maps.ravel()
    assert got["p_auroc"] == pytest.approx(sklearn.roc_auc_score(truth, scores), abs=EXACT)
    assert got["p_ap"] == pytest.approx(sklearn.average_precision_score(truth, scores), abs=EXACT)
    precision, recall, _ = sklearn.precision_recall_curve(truth, scores)
    with np.errstate(invalid="ignore"):
        want = np.nanmax(2 * precision * recall / (precision + recall))
    assert got["p_f1max"] == pytest.approx(want, abs=EXACT)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_regions_are_those_of_a_flood_fill(density):
    random = np.random.default_rng(7)
    for shape in ((1, 9), (9, 1), (17, 23)):
        mask = random.random(shape) < density
        numbers, count = label_regions(mask)
        want, wanted = brute_labels(mask)
        assert count == wanted
        assert np.array_equal(numbers, want)
    assert label_regions(np.zeros((3, 3), bool))[1] == 0


def test_pooled_scores_are_means_of_windows():
    maps = np.random.default_rng(0).random((2, 9, 7))
    want = [max(m[y : y + 3, x : x + 3].mean() for y in range(7) for x in range(5)) for m in maps]
    np.testing.assert_allclose(image_scores(maps, 3), want, atol=1e-12)


def test_memory_stays_below_twice_the_maps():
    random = np.random.default_rng(0)
    n, side = 64, 256
    masks = np.zeros((n, side, side), bool)
    masks[::2, 40:100, 40:100] = True
    tracemalloc.start()
    maps = random.random((n, side, side), dtype=np.float32)
    tracemalloc.reset_peak()
    begin = time.perf_counter()
    score_class(maps, masks, evaluator="ader", overwrite=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * maps.nbytes
    assert time.perf_counter() - begin < 20


def test_overwriting_gives_the_same_numbers():
    maps, masks = random_class(4)
    for evaluator in ("ader", "exact"):
        kept = maps.copy()
        want = score_class(kept, masks, evaluator=evaluator)
        assert np.array_equal(kept, maps)
        assert score_class(kept, masks, evaluator=evaluator, overwrite=True) == want


@pytest.mark.parametrize("evaluator", ["ader", "exact"])
def test_degenerate_classes(evaluator):
    maps, masks = random_class(5)
    none = score_class(maps, np.zeros_like(masks), evaluator=evaluator)
    assert math.isnan(none["p_auroc"])
    assert math.isnan(none["i_auroc"])
    assert math.isnan(none["aupro"])
    assert none["p_ap"] == none["i_ap"] == 0
    every = score_class(maps, np.ones_like(masks), evaluator=evaluator)
    assert math.isnan(every["p_auroc"])
    assert math.isnan(every["aupro"])
    assert every["p_ap"] == every["i_f1max"] == 1
    constant = score_class(np.ones_like(maps), masks, evaluator=evaluator)
    assert constant["p_auroc"] == constant["i_auroc"] == 0.5
    assert math.isnan(constant["aupro"]) is (evaluator == "ader")
    perfect = score_class(masks.astype(np.float32), masks, evaluator=evaluator)
    assert perfect["p_auroc"] == perfect["i_auroc"] == perfect["p_ap"] == 1
    # ADer keeps a single point here and has no area; the whole curve has one
    assert math.isnan(perfect["aupro"]) if evaluator == "ader" else perfect["aupro"] == pytest.approx(1)


def test_without_masks_only_image_metrics():
    maps, masks = random_class(6)
    got = score_class(maps, None, labels=masks.any((1, 2)))
    assert set(got) == {"i_auroc", "i_ap", "i_f1max"}
    assert got["i_auroc"] == score_class(maps, masks)["i_auroc"]


@pytest.mark.parametrize(
    ("maps", "masks", "options", "match"),
    [
        (np.zeros((2, 4, 4)), np.zeros((2, 5, 4)), {}, "resize the masks"),
        (np.full((2, 4, 4), np.nan), np.zeros((2, 4, 4)), {}, "maps of 2 images are not finite"),
        (np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), {}, "at least one image"),
        (np.zeros((2, 4)), np.zeros((2, 4)), {}, "must be"),
        (np.zeros((2, 4, 4)), None, {}, "nothing to score against"),
        (np.zeros((2, 4, 4)), None, {"labels": np.zeros(3)}, "one per map"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), {"evaluator": "adr"}, "did you mean 'ader'"),
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4)), {"pooling": 5}, "pooling=5"),
    ],
)
def test_what_cannot_be_scored(maps, masks, options, match):
    with pytest.raises(InputError, match=match):
        score_class(maps, masks, **options)
