"""`hybrid_attention` by a fused kernel of scaled_dot_product_attention that reads grouped keys as they lie.

For plain causal rows. The definition repeats keys and values for every query head first, because it runs anywhere: that
costs a pass over both and their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridzoo.ops.hybrid_attention.plan import AttentionPlan


def _kernels(q: Tensor, k: Tensor, v: Tensor) -> list[SDPBackend]:
    """The fused kernels that take these inputs with grouped heads; without a GPU, for tests, the plain one."""
    if q.device.type != "cuda":
        return [SDPBackend.MATH]
    can = torch.backends.cuda
    params = can.SDPAParams(q, k, v, None, 0.0, True, True)
    found = {
        SDPBackend.CUDNN_ATTENTION: can.can_use_cudnn_attention(params),
        SDPBackend.FLASH_ATTENTION: can.can_use_flash_attention(params),
    }
    return [kernel for kernel, usable in found.items() if usable]


def supports(call: Mapping[str, Any]) -> str | None:
    """Plain causal rows with fewer key heads than query heads."""
    q, k, v, plan = (call[n] for n in ("q", "k", "v", "plan"))
    if not plan.causal:
        return "it is for plain causal rows"
    if q.shape[1] == k.shape[1]:
        return "without grouped heads the definition is the same call"
    if not _kernels(q, k, v):
        return "no fused kernel of this machine takes these inputs with grouped heads"
    return None


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """As `attention_torch`, for a plan that is plain causal."""
    with sdpa_kernel(_kernels(q, k, v)):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
