"""Named sizes. B, L and XL are LlamaGen's, which fits the one parameter count that a reviewer quotes (741 M)."""

from __future__ import annotations

from typing import Any

B: dict[str, Any] = {"num_layers": 12, "hidden_size": 768, "num_heads": 12}
L: dict[str, Any] = {"num_layers": 24, "hidden_size": 1024, "num_heads": 16}
XL: dict[str, Any] = {"num_layers": 36, "hidden_size": 1280, "num_heads": 20}
SIZES = {"b": B, "l": L, "xl": XL}

TEST: dict[str, Any] = {
    "codebook_size": 64,
    "image_size": 10,
    "downsample": 2,
    "tokenizer": "llamagen_vq_test",
    "num_labels": 10,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "d_state": 4,
    "mlp_ratio": 2,
}
# Fashion-MNIST: 28x28 pixels are 7x7 codes.
MINI: dict[str, Any] = {
    "codebook_size": 256,
    "image_size": 28,
    "downsample": 4,
    "tokenizer": "llamagen_vq_mini",
    "num_labels": 10,
    "hidden_size": 128,
    "num_layers": 6,
    "num_heads": 4,
}
