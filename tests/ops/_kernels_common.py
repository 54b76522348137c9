"""What the suites of `_kernels_against_reference.py` share: its arguments, and calls on the device."""

from __future__ import annotations

import os
import sys
from typing import Any

OP, DEVICE = sys.argv[1:3]
SHARD, SHARDS = (int(part) for part in (sys.argv[3] if len(sys.argv) > 3 else "0/1").split("/"))
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

import torch  # noqa: E402

from hybridzoo.ops.dispatch import Example  # noqa: E402


def poison() -> None:
    """Every torch.empty comes filled with NaN, so that memory left unwritten shows up in the comparison."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def _moved(x: torch.Tensor) -> torch.Tensor:
    """On the device with the same strides, which `Tensor.to` drops for slices."""
    if x.is_contiguous() or not x.is_floating_point():
        return x.to(DEVICE)
    whole = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype, device=DEVICE)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(x)


def example_of(call: dict[str, Any]) -> Example:
    moved = {k: _moved(v) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    return Example("", moved, leaves_of(call))


def leaves_of(call: dict[str, Any]) -> tuple[str, ...]:
    return tuple(k for k, v in call.items() if isinstance(v, torch.Tensor) and v.is_floating_point())
