"""Mamba's selective state space layer without its projections, shared by the Mamba and the Hymba mixer.

Gu & Dao 2023, https://arxiv.org/abs/2312.00752, section 3; the norms of dt, B and C are those of Jamba and Hymba.

Legend: B rows, T positions, I inner channels, N states, R rank of dt.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from hybridzoo.layers.fused import fused, stands_for, three_normalised
from hybridzoo.layers.mixer import MixerContext, MixerInfo, State, choose, require
from hybridzoo.layers.norms import RMSNorm
from hybridzoo.layers.short_conv import LONG, ShortConv
from hybridzoo.ops.selective_scan import selective_scan, selective_scan_step

_NO_STEP = -1e4  # softplus of it is 0: the state stays as it is
DT_INITS = ("zero", "mamba")


class SelectiveSSM(nn.Module):
    """u = silu(conv(x)); dt, B, C from u; y = scan(u) * silu(z).

    Args:
        inner: I.
        d_state: N.
        d_conv: taps of the convolution.
        dt_rank: R.
        conv_bias: whether the convolution has a bias.
        inner_norms: RMSNorms of dt, B and C.
        dt_init: start of dt's bias: `"zero"`, or `"mamba"`: softplus of it is log-uniform in [0.001, 0.1].
        info: place of the layer.
    """

    def __init__(
        self,
        inner: int,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        *,
        conv_bias: bool,
        inner_norms: bool,
        dt_init: str,
        info: MixerInfo,
    ) -> None:
        super().__init__()
        choose("dt_init", dt_init, DT_INITS)
        require(min(d_state, d_conv, dt_rank) > 0, f"d_state={d_state}, d_conv={d_conv}, dt_rank={dt_rank} must be > 0")
        self.dt_init, self.sizes = dt_init, [dt_rank, d_state, d_state]
        self.conv1d = ShortConv(inner, d_conv, bias=conv_bias, activation="silu")
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        norms = [RMSNorm(n, info.norm_eps, round_first=info.round_first) if inner_norms else None for n in self.sizes]
        self.dt_norm, self.B_norm, self.C_norm = norms
        self.init_weights()

    def init_weights(self) -> None:
        """A_n = -n, D = 1, dt's bias by `dt_init`."""
        with torch.no_grad():
            states = torch.arange(1, self.A_log.shape[1] + 1, dtype=torch.float32, device=self.A_log.device)
            init.copy_(self.A_log, states.log().expand_as(self.A_log))
            init.ones_(self.D)
            bias = self.dt_proj.bias
            if self.dt_init == "zero":
                init.zeros_(bias)
                return
            low, high = math.log(1e-3), math.log(1e-1)
            dt = (torch.rand_like(bias) * (high - low) + low).exp()
            init.copy_(bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            scale = self.dt_proj.in_features**-0.5
            init.uniform_(self.dt_proj.weight, -scale, scale)

    def _steps(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, I) -> dt (B, T, I) without its bias, which joins inside the scan in fp32, and B and C (B, T, N)."""
        room = -self.sizes[0] % 8 if self._fills_lines(u) else 0
        if room:
            weight = self.x_proj.weight
            products = F.linear(u, F.pad(weight, (0, 0, 0, -weight.shape[0] % 8)))[..., : weight.shape[0]]
        else:
            products = self.x_proj(u)
        dt, B, C = products.split(self.sizes, -1)
        if self.dt_norm is not None and self.B_norm is not None and self.C_norm is not None:
            if self.dt_norm.round_first and not torch.is_grad_enabled():
                weights = self.dt_norm.weight, self.B_norm.weight, self.C_norm.weight
                dt, B, C = fused(three_normalised, dt, B, C, weights, self.dt_norm.eps, room)
            else:
                dt, B, C = self.dt_norm(dt), self.B_norm(B), self.C_norm(C)
        weight = self.dt_proj.weight.to(dt.dtype)
        return F.linear(dt, F.pad(weight, (0, room)) if room else weight), B, C

    def _fills_lines(self, u: Tensor) -> bool:
        """Whether weights are copied with zeros so that all rows are whole 16 bytes.

        Rows of 100 or 132 numbers keep cuBLAS from its faster kernels, which long prompts notice.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or u.shape[1] < LONG or not _on_tensor_cores(u):
            return False
        plain = type(self.x_proj) is nn.Linear and self.x_proj.weight.dtype == u.dtype  # not quantised, no adapter
        return plain and self.x_proj.weight.device == u.device and self.dt_norm is not None and self.dt_norm.round_first

    def forward(self, x: Tensor, z: Tensor, ctx: MixerContext, state: State | None) -> tuple[Tensor, State | None]:
        """Run.

        Args:
            x, z: (B, T, I) input and gate.
            ctx: of the call.
            state: {"conv": (B, W - 1, I), "ssm": (B, I, N)} or None.

        Returns:
            (B, T, I) and the new state if it was asked for.
        """
        u, conv = self.conv1d(x, ctx, None if state is None else state["conv"])
        dt, B, C = self._steps(u)
        if ctx.valid is not None and ctx.return_state:
            dt = dt.masked_fill(~ctx.valid.unsqueeze(2), _NO_STEP)
        dt, B, C, z = (t.to(u.dtype) for t in (dt, B, C, z))
        before = None if state is None else state["ssm"]
        if x.shape[1] == 1 and before is not None and ctx.cu_seqlens is None:
            parts = (u[:, 0], dt[:, 0], self.A_log, B[:, 0], C[:, 0], self.D, z[:, 0], self.dt_proj.bias)
            y, after = fused(_step, before, *parts, inplace=ctx.inplace)
            y = y.unsqueeze(1)
        else:
            out = selective_scan(
                *(u, dt, _rates(self.A_log), B, C, self.D, z, self.dt_proj.bias),
                dt_softplus=True,
                initial_state=before,
                return_final_state=ctx.return_state,
                cu_seqlens=ctx.cu_seqlens,
            )
            y, after = out if isinstance(out, tuple) else (out, None)
        if not ctx.return_state or conv is None or after is None:
            return y, None
        return y, {"conv": conv, "ssm": after}


def _on_tensor_cores(x: Tensor) -> bool:
    return x.is_cuda and x.element_size() == 2


def _rates(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), fp32 or fp64."""
    return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())


def _step(state: Tensor, u: Tensor, dt: Tensor, A_log: Tensor, *rest: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
    return selective_scan_step(state, u, dt, _rates(A_log), *rest, dt_softplus=True, inplace=inplace)


stands_for("scan_step", _step)
