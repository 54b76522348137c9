"""How a measurement computes, by name, the same for every benchmark that takes these names.

| name | weights | matrix products | cuDNN's convolutions |
| --- | --- | --- | --- |
| fp32 | fp32 | fp32 | fp32 |
| default | fp32 | fp32 | TF32: what torch does unasked |
| tf32 | fp32 | TF32 | TF32 |
| amp | fp32 | bf16 by autocast | bf16 by autocast |
| bf16 | bf16 | bf16 | bf16 |

TF32 is allowed under "amp" and "bf16" too, for what stays in fp32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

WEIGHTS = {
    "fp32": torch.float32,
    "default": torch.float32,
    "tf32": torch.float32,
    "amp": torch.float32,
    "bf16": torch.bfloat16,
}


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Autocast to bf16 under "amp"; under every other name it does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "amp")


@contextlib.contextmanager
def tf32_of(dtype: str, *, cudnn_benchmark: bool | None = None) -> Iterator[None]:
    """TF32 as a name says, whatever it was before, and as before afterwards.

    Args:
        dtype: a key of `WEIGHTS`.
        cudnn_benchmark: whether cuDNN tries its algorithms; None leaves that as it is.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = dtype not in ("fp32", "default")
    cudnn.allow_tf32 = dtype != "fp32"
    cudnn.benchmark = cudnn.benchmark if cudnn_benchmark is None else cudnn_benchmark
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
