"""The dtype of autocast's matrix products, read outside of autocast, in it, on "meta", and while a graph is traced."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from hybridzoo.layers.autocast import autocast_dtype

DTYPES = [None, torch.bfloat16, torch.float16]


class AsProduct(nn.Module):
    """x in the dtype of the product of x with a square of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, N) -> (N, N)."""
        dtype = autocast_dtype(x.device.type)
        return x.clone() if dtype is None else x.to(dtype)


def chosen(dtype: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_that_of_a_product(dtype: torch.dtype | None) -> None:
    with chosen(dtype):
        assert autocast_dtype("cpu") == dtype
        assert AsProduct()(torch.ones(2, 2)).dtype == (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        with torch.autocast("cpu", enabled=False):
            assert autocast_dtype("cpu") is None
    assert autocast_dtype("cpu") is None


def test_meta_has_no_autocast() -> None:
    with chosen(torch.bfloat16):
        assert autocast_dtype("meta") is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_graphs_hold_it_as_a_constant(dtype: torch.dtype | None) -> None:
    x, want = torch.ones(2, 2), dtype or torch.float32
    with chosen(dtype):
        assert torch.compile(AsProduct(), fullgraph=True, backend="eager")(x).dtype == want
        assert torch.export.export(AsProduct(), (x,)).module()(x).dtype == want
