"""One decoding step of a static cache as a CUDA graph: hundreds of small kernels launched as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridzoo.layers.cache import HybridCache


class DecodeGraph:
    """Captures `model(one token per row, cache)`; the cache's tensors are read and written in place.

    Args:
        model: a `HybridCausalLM` in eval mode on a GPU.
        cache: a static cache that has seen a prompt and one further token (which warmed the kernels up).
    """

    def __init__(self, model: Any, cache: HybridCache) -> None:
        assert cache.lengths is not None
        self.cache = cache
        self.ids = torch.zeros(cache.lengths.shape[0], 1, dtype=torch.long, device=cache.lengths.device)
        columns, past = cache.columns, cache.past
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            out = model(self.ids, past_key_values=cache, use_cache=True)
        self.logits: Tensor = out.logits
        cache.columns, cache.past = columns, past  # capturing runs nothing, so nothing has been fed

    @staticmethod
    def wanted(cache: HybridCache, input_ids: Tensor | None, x: Tensor, keep_hidden: bool) -> bool:
        """A single token for each row of a filled static cache on a GPU, without gradients."""
        return (
            cache.static
            and cache.capture
            and input_ids is not None
            and x.is_cuda
            and x.shape[1] == 1
            and cache.columns > 0
            and not keep_hidden
            and not torch.is_grad_enabled()
        )

    def __call__(self, input_ids: Tensor) -> Tensor:
        """(B, 1) -> logits (B, 1, V) fp32."""
        self.ids.copy_(input_ids)
        self.graph.replay()
        self.cache.columns += 1
        if isinstance(self.cache.past, int):  # a tensor of lengths is counted inside the graph
            self.cache.past += 1
        return self.logits.clone()
