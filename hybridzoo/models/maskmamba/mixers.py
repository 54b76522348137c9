"""Mixers of MaskMamba: Bi-Mamba-v2, Vim's bidirectional Mamba, and self-attention. All map (B, L, D) to (B, L, D).

Bi-Mamba-v2 is a reconstruction (Chen et al. 2024, https://arxiv.org/abs/2409.19937; no public code): the causal
convolutions of Vim's Bi-Mamba become same-padded ones, the second branch runs from the end of the sequence, and the
branches are concatenated instead of gated and added. Parameter names are Vim's (hustvl/Vim,
`mamba_ssm/modules/mamba_simple.py`, Apache-2.0), whose own layers are here too.

Legend: B batch, L length, D width, I width of one branch, N states, R rank of dt.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.models.maskmamba.configuration import MaskMambaConfig
from hybridzoo.ops.causal_conv1d import causal_conv1d
from hybridzoo.ops.flip_concat import flip_concat
from hybridzoo.ops.selective_scan import selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
JOINT_SCANS = 1 << 22  # numbers in the input of a scan, up to which two scans do not fill a GPU one by one


def set_time_step(projection: nn.Linear) -> None:
    """Mamba's initial values of the step size: weight uniform within R ** -0.5, softplus(bias) log-uniform."""
    bound = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -bound, bound)
    low, high = math.log(DT_MIN), math.log(DT_MAX)
    dt = torch.empty_like(projection.bias).uniform_(low, high).exp().clamp_min(DT_FLOOR)
    with torch.no_grad():
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus


def state_matrix(width: int, d_state: int) -> nn.Parameter:
    """A_log of the state matrix -diag(1 … N): (width, N). fp32 in the scan, without weight decay."""
    return nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(width, 1))


def selective_inputs(a: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, I) -> step sizes before bias and softplus (B, L, I), and B and C (B, L, N) of the scan."""
    dt, b, c = x_proj(a).split((dt_proj.in_features, d_state, d_state), dim=-1)
    return F.linear(dt, dt_proj.weight), b, c


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Literal["causal", "same"] = "causal") -> Tensor:
    """Depthwise convolution (B, L, I) and SiLU."""
    y = causal_conv1d(x, weight, bias, activation="silu", padding=padding)
    assert isinstance(y, Tensor)
    return y


def scan(
    u: Tensor, dt: Tensor, b: Tensor, c: Tensor, a_log: Tensor, d: Tensor, dt_bias: Tensor, z: Tensor | None = None
) -> Tensor:
    """The selective scan with A = -exp(a_log); states and parameters in fp32 whatever the inputs' type."""
    A = -torch.exp(a_log.float())
    y = selective_scan(u, dt, A, b, c, d, z, dt_bias, dt_softplus=True)
    assert isinstance(y, Tensor)
    return y


def scan_pair(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Two independent scans; each tuple is (u, dt, B, C, A_log, D, bias of dt) as `scan` takes them.

    A GPU that long sequences fill runs them one after the other, reading every slice where it lies. Elsewhere a step of
    time is what costs, so both run as two groups of channels of one call.
    """
    if first[0].is_cuda and (torch.is_grad_enabled() or first[0].numel() > JOINT_SCANS):
        return scan(*first), scan(*second)
    u, dt, b, c, a_log, d, bias = zip(first, second)
    y = scan(
        torch.cat(u, -1),
        torch.cat(dt, -1),
        torch.stack(b, 2),
        torch.stack(c, 2),
        torch.cat(a_log),
        torch.cat(d),
        torch.cat(bias),
    )
    y_first, y_second = y.chunk(2, dim=-1)
    return y_first, y_second


class MambaBase(nn.Module):
    """What both Mamba layers share: the numbered set of scan parameters, with and without the suffix `_b`."""

    d_state: int
    in_proj: nn.Linear
    out_proj: nn.Linear
    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    conv1d_c: nn.Conv1d
    x_proj: nn.Linear
    x_proj_b: nn.Linear
    dt_proj: nn.Linear
    dt_proj_b: nn.Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter
    D_b: nn.Parameter

    def add_scan(self, width: int, rank: int, d_state: int, suffix: str = "", a_name: str = "A_log") -> None:
        """Register `x_proj`, `dt_proj`, `A_log` and `D` of one direction."""
        setattr(self, f"x_proj{suffix}", nn.Linear(width, rank + 2 * d_state, bias=False))
        setattr(self, f"dt_proj{suffix}", nn.Linear(rank, width))
        setattr(self, a_name, state_matrix(width, d_state))
        setattr(self, f"D{suffix}", nn.Parameter(torch.ones(width)))

    def set_initial_values(self) -> None:
        """Mamba's own initial values of the scan; called by the model after the linear layers'."""
        for name, child in self.named_children():
            if name.startswith("dt_proj") and isinstance(child, nn.Linear):
                set_time_step(child)
            elif isinstance(child, nn.Conv1d):
                child.reset_parameters()
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name.endswith("_log"):
                    parameter.copy_(torch.arange(1, self.d_state + 1, dtype=parameter.dtype).log().expand_as(parameter))
                elif name in ("D", "D_b"):
                    parameter.fill_(1.0)


def depthwise(width: int, taps: int, bias: bool) -> nn.Conv1d:
    """Holder of a depthwise convolution's weights, in Conv1d's layout."""
    return nn.Conv1d(width, width, taps, groups=width, bias=bias)


class BiMambaV2(MambaBase):
    """Two branches, forward and backward, each convolution, SiLU and scan; concatenated.

        u = in_proj(x) -+- u_f - conv1d   - SiLU -------- scan ------- y_f -+- cat - out_proj
                        +- u_b - conv1d_b - SiLU - flip - scan - flip - y_b -+

    Args:
        width: D of the input.
        config: expand (I = expand D / 2), d_state, d_conv, dt_rank, conv_bias, second_branch, flip_before_conv.
            `second_branch="conv_only"` leaves out the second scan (MambaVision's layer), "both" adds a third branch
            without scan.
    """

    def __init__(self, width: int, config: MaskMambaConfig) -> None:
        super().__init__()
        self.d_state, self.flip_before_conv = config.d_state, config.flip_before_conv
        self.backward_scan = config.second_branch != "conv_only"
        self.branches = 3 if config.second_branch == "both" else 2
        self.inner = inner = config.expand * width // 2
        rank = config.dt_rank or math.ceil(width / 16)
        self.in_proj = nn.Linear(width, self.branches * inner, bias=False)
        self.out_proj = nn.Linear(self.branches * inner, width, bias=False)
        for suffix in ("", "_b", "_c")[: self.branches]:
            setattr(self, f"conv1d{suffix}", depthwise(inner, config.d_conv, config.conv_bias))
        self.add_scan(inner, rank, config.d_state)
        if self.backward_scan:
            self.add_scan(inner, rank, config.d_state, "_b", "A_b_log")

    def forward(self, x: Tensor) -> Tensor:
        inner, flip_first = self.inner, self.flip_before_conv
        u, u_b, u_c = self.in_proj(x).tensor_split((inner, 2 * inner), dim=-1)  # (B, L, I) each, the last may be empty
        a = self._convolve(u, self.conv1d)
        u_b = flip_concat(None, u_b) if flip_first or self._mirrors else u_b
        a_b = self._convolve(u_b, self.conv1d_b, mirrored=self._mirrors and not flip_first)
        first = (a, *self._selective(a, ""))
        if self.backward_scan:
            a_b = a_b if flip_first or self._mirrors else flip_concat(None, a_b)
            y, y_b = scan_pair(first, (a_b, *self._selective(a_b, "_b")))
        else:
            y, y_b = scan(*first), a_b
        y = flip_concat(y, y_b) if self.backward_scan or flip_first else torch.cat((y, y_b), dim=-1)
        if self.branches == 3:
            y = torch.cat((y, self._convolve(u_c, self.conv1d_c)), dim=-1)
        return self.out_proj(y)

    @property
    def _mirrors(self) -> bool:
        """Whether the second branch is flipped at once: a symmetric window on the flipped sequence, with mirrored taps,
        gives the flipped convolution, and one pass over memory less.
        """
        return self.backward_scan and self.conv1d_b.kernel_size[0] % 2 == 1

    def _convolve(self, u: Tensor, holder: nn.Conv1d, mirrored: bool = False) -> Tensor:
        weight = holder.weight.squeeze(1)
        return convolve(u, weight.flip(1) if mirrored else weight, holder.bias, "same")

    def _selective(self, a: Tensor, suffix: str) -> tuple[Tensor, ...]:
        """dt, B, C, A_log, D and the bias of dt of one direction."""
        dt_proj: nn.Linear = getattr(self, f"dt_proj{suffix}")
        dt, b, c = selective_inputs(a, getattr(self, f"x_proj{suffix}"), dt_proj, self.d_state)
        a_log = self.A_b_log if suffix else self.A_log
        return dt, b, c, a_log, getattr(self, f"D{suffix}"), dt_proj.bias


class VimMamba(MambaBase):
    """Vim's Mamba layer: gated, with causal convolutions, in one direction or two.

        x, z = in_proj(input);  y = scan(SiLU(causal conv(x))) SiLU(z);  out_proj(y + flip of the other direction)

    Args:
        width: D.
        bimamba_type: "none"; "v1": the second direction shares everything but A; "v2": it has parameters of its own,
            and runs on the flipped input from the convolution on.
        expand, d_state, d_conv, dt_rank, conv_bias: as in Mamba; dt_rank None is ceil(D / 16).
        divide: v2: half the sum of both directions.
        layer_scale_init_value: a learned scale `gamma` of the output.
    """

    def __init__(
        self,
        width: int,
        bimamba_type: str = "v2",
        expand: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        dt_rank: int | None = None,
        conv_bias: bool = True,
        divide: bool = False,
        layer_scale_init_value: float | None = None,
    ) -> None:
        super().__init__()
        inner, rank = expand * width, dt_rank or math.ceil(width / 16)
        self.bimamba_type, self.d_state, self.divide = bimamba_type, d_state, divide
        self.layer_scale_init_value = layer_scale_init_value
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = depthwise(inner, d_conv, conv_bias)
        self.add_scan(inner, rank, d_state)
        if bimamba_type == "v1":
            self.A_b_log = state_matrix(inner, d_state)
        elif bimamba_type == "v2":
            self.conv1d_b = depthwise(inner, d_conv, conv_bias)
            self.add_scan(inner, rank, d_state, "_b", "A_b_log")
        self.out_proj = nn.Linear(inner, width, bias=False)
        if layer_scale_init_value is not None:
            self.gamma = nn.Parameter(torch.full((width,), float(layer_scale_init_value)))

    def set_initial_values(self) -> None:
        super().set_initial_values()
        if self.layer_scale_init_value is not None:
            nn.init.constant_(self.gamma, float(self.layer_scale_init_value))

    def _direction(self, x: Tensor, z: Tensor, suffix: str) -> Tensor:
        conv, d = getattr(self, f"conv1d{suffix}"), getattr(self, f"D{suffix}")
        dt_proj, a_log = getattr(self, f"dt_proj{suffix}"), self.A_b_log if suffix else self.A_log
        a = convolve(x, conv.weight.squeeze(1), conv.bias)
        dt, b, c = selective_inputs(a, getattr(self, f"x_proj{suffix}"), dt_proj, self.d_state)
        return self._scan(a, z, dt, b, c, a_log, d, dt_proj.bias)

    def _scan(
        self, a: Tensor, z: Tensor, dt: Tensor, b: Tensor, c: Tensor, a_log: Tensor, d: Tensor, bias: Tensor
    ) -> Tensor:
        return scan(a, dt, b, c, a_log, d, bias, z)

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).chunk(2, dim=-1)  # (B, L, I) each
        if self.bimamba_type == "v1":
            a = convolve(x, self.conv1d.weight.squeeze(1), self.conv1d.bias)
            dt, b, c = selective_inputs(a, self.x_proj, self.dt_proj, self.d_state)
            shared = (a, z, dt, b, c)
            y = self._scan(*shared, self.A_log, self.D, self.dt_proj.bias)
            a, z, dt, b, c = (t.flip(1) for t in shared)
            y = y + self._scan(a, z, dt, b, c, self.A_b_log, self.D, self.dt_proj.bias).flip(1)
        else:
            y = self._direction(x, z, "")
            if self.bimamba_type == "v2":
                y = y + self._direction(x.flip(1), z.flip(1), "_b").flip(1)
                y = y / 2 if self.divide else y
        y = self.out_proj(y)
        return y * self.gamma if self.layer_scale_init_value is not None else y


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens, without a mask.

    Args:
        width: D; `num_heads` divides it.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D / H)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
