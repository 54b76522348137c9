"""Measures of generated images from feature vectors: Fréchet distance, kernel distance, precision and recall, Inception
score. Which network the features come from names the number (`generation_features`); here it is only arithmetic.

Fréchet distance: Heusel et al. 2017, https://arxiv.org/abs/1706.08500. Kernel distance: Bińkowski et al. 2018,
https://arxiv.org/abs/1801.01401. Precision and recall: Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991.
Inception score: Salimans et al. 2016, https://arxiv.org/abs/1606.03498.

Legend: N images, F features, K classes. Everything is computed in float64.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridzoo._atomic_file import whole_file
from hybridzoo.errors import DataError

BLOCK = 2048  # rows of a distance matrix held at once


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (F,) and covariance (F, F; divided by N - 1) of N feature vectors."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureStatistics:
        """Of (N, F) features.

        Raises:
            DataError: fewer than two images, or values that are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) < 2:
            raise DataError(f"statistics need at least 2 feature vectors (N, F), got {features.shape}")
        if not np.isfinite(features).all():
            raise DataError("the features hold NaN or infinite values")
        return cls(features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1), len(features))

    def save(self, path: str | Path) -> None:
        """As .npz with `mu`, `sigma` and `n`, the names that ADM's and pytorch-fid's files have."""
        _save_npz(path, mu=self.mean, sigma=self.covariance, n=np.asarray(self.count))

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """From such a file; one without `n` counts as very large.

        Raises:
            DataError: missing, or not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                count = int(file["n"]) if "n" in file else 2**31
                return cls(np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64), count)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no statistics (an .npz with mu and sigma): {error}") from error


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: no
    complex numbers, no jitter on the diagonal, and singular covariances (fewer images than features) are fine.

    Raises:
        DataError: features of different width.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(f"features of {a.mean.shape[0]} and of {b.mean.shape[0]} numbers cannot be compared")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * _roots(values)) @ vectors.T
    crossed = _roots(np.linalg.eigvalsh(root @ b.covariance @ root)).sum()
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * crossed
    return max(0.0, float(np.square(a.mean - b.mean).sum() + trace))


def _roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Square roots; what is only rounding (the root would make 1e-8 of 1e-16) is zero."""
    noise = eigenvalues.max(initial=0.0) * len(eigenvalues) * np.finfo(np.float64).eps
    return np.sqrt(np.where(eigenvalues > noise, eigenvalues, 0.0))


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0, device: Any = "cpu"
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / F + 1)^3.

    Args:
        real: (N, F).
        fake: (M, F).
        subsets: draws without replacement.
        size: images of each draw; less where there are fewer.
        seed: of the draws.
        device: where the products are computed.

    Returns:
        Mean and standard deviation over the subsets.
    """
    size = min(size, len(real), len(fake))
    if size < 2:
        raise DataError(f"the kernel distance needs at least 2 images of each kind, got {len(real)} and {len(fake)}")
    a, b, rng = _wide(real, device), _wide(fake, device), np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x = a[torch.from_numpy(rng.choice(len(real), size, replace=False)).to(a.device)]
        y = b[torch.from_numpy(rng.choice(len(fake), size, replace=False)).to(b.device)]
        within = [((k := _cubic(z, z)).sum() - k.trace()) / (size * (size - 1)) for z in (x, y)]
        values.append(within[0] + within[1] - 2 * _cubic(x, y).mean())
    found = torch.stack(values).cpu().numpy()
    return float(found.mean()), float(found.std())


def _wide(x: np.ndarray, device: Any) -> Tensor:
    place = torch.device(device)
    return torch.from_numpy(np.asarray(x, np.float64)).to("cpu" if place.type == "mps" else place)  # MPS has no float64


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.t() / x.shape[1] + 1) ** 3


def precision_recall(
    real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3, device: Any = "cpu"
) -> tuple[float, float]:
    """Improved precision (share of fake images inside the real ones' manifold) and recall (the other way round).

    A manifold is the union of balls around its images, each reaching to the image's k-th nearest neighbour.

    Args:
        real: (N, F).
        fake: (M, F).
        neighbours: k.
        device: where the distances are computed.

    Returns:
        Shares from 0 to 1.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise DataError(f"precision and recall with k={neighbours} need more images than {len(real)} and {len(fake)}")
    a, b = _wide(real, device), _wide(fake, device)
    return _covered(a, b, neighbours), _covered(b, a, neighbours)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances."""
    return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * (x @ y.t())).clamp_min(0)


def _covered(centres: Tensor, points: Tensor, neighbours: int) -> float:
    # an image is its own nearest neighbour, so the k-th other one is at place k, counted from 0
    radii = torch.cat([_distances(b, centres).kthvalue(neighbours + 1, dim=1).values for b in centres.split(BLOCK)])
    inside = torch.cat([(_distances(b, centres) <= radii).any(1) for b in points.split(BLOCK)])
    return float(inside.double().mean())


def inception_score(probabilities: np.ndarray, *, splits: int = 10, shuffle: int | None = None) -> tuple[float, float]:
    """exp of the mean Kullback-Leibler divergence of p(y | x) from p(y), per split.

    Args:
        probabilities: (N, K), rows of sum 1.
        splits: consecutive parts of equal size (ADM: 5,000 images each, unshuffled).
        shuffle: a seed to shuffle with first (torch-fidelity: 2020); None leaves the order.

    Returns:
        Mean and standard deviation over the splits.
    """
    p = np.asarray(probabilities, np.float64)
    if len(p) < splits:
        raise DataError(f"{len(p)} images cannot be split into {splits} parts")
    if shuffle is not None:
        p = p[np.random.RandomState(shuffle).permutation(len(p))]
    scores = []
    for part in np.array_split(p, splits):
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * (np.log(part) - np.log(part.mean(0))), 0.0)
        scores.append(np.exp(terms.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def save_images_npz(images: np.ndarray, path: str | Path, labels: np.ndarray | None = None) -> None:
    """Write samples as ADM's evaluator reads them: `arr_0` (N, H, W, 3) uint8, and `arr_1` labels if given.

    Grey images get three equal channels.

    Raises:
        DataError: not uint8 images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"expected (N, H, W, 1 or 3) uint8 images, got {images.dtype} {images.shape}")
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    _save_npz(path, arr_0=images, **({} if labels is None else {"arr_1": labels}))


def _save_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Whole or not at all; `.npz` is added where the name lacks it, as numpy does."""
    target = Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")
    try:
        with whole_file(target) as staged, staged.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DataError(f"cannot write {target} ({error.strerror or error}); give another path") from error


def load_images_npz(path: str | Path) -> np.ndarray:
    """(N, H, W, 3) uint8 of such a file (also ADM's reference batches).

    Raises:
        DataError: missing, or without images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no images (an .npz with arr_0): {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(f"{path}: arr_0 must be (N, H, W, 3) uint8, it is {images.dtype} {images.shape}")
    return images
