"""The decoder's layers: SS2D (scans in several directions), HSS block, LSS module (scans and local convolutions).

Paper: MambaAD, sections 3.2 and 3.3. Parameter names and shapes are the original's.

Legend: B batch, H W grid, L = H W, C width, D = expand C inner width, N states, K directions, R rank of the step sizes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridzoo.errors import InputError
from hybridzoo.layers.autocast import autocast_dtype
from hybridzoo.models.mambaad.step_sizes import project, remade, split
from hybridzoo.ops.add_layer_norm import add_layer_norm
from hybridzoo.ops.depthwise_conv2d import depthwise_conv2d
from hybridzoo.ops.dispatch import exporting
from hybridzoo.ops.instance_norm_silu import instance_norm_silu
from hybridzoo.ops.layer_norm_gate import layer_norm_gate
from hybridzoo.ops.linear import Linear, linear
from hybridzoo.ops.scan_paths import scan_paths
from hybridzoo.ops.selective_scan_2d import selective_scan_2d

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
STEP_SIZES_AT_ONCE = 2**27  # bytes, in inference: half of a batch of 16 at 256 pixels, 8 directions, 64 channels

# a map (B, H, W, C), a branch to add to it, and the branch's factors (B,) (stochastic depth), if there are any
Pending = tuple[Tensor, Tensor | None, Tensor | None]


@lru_cache(maxsize=64)
def _cached_paths(curve: str, height: int, width: int, directions: int, device: str) -> Tensor:
    with torch.device("cpu"):
        return scan_paths(curve, height, width, directions).to(device)


@torch.compiler.assume_constant_result
def _constant_paths(curve: str, height: int, width: int, directions: int, device: str) -> Tensor:
    return _cached_paths(curve, height, width, directions, device)


def grid_paths(curve: str, height: int, width: int, directions: int, device: torch.device) -> Tensor:
    """`scan_paths` on a device, made once per grid; a constant for torch.compile."""
    if exporting():  # a tensor from outside the traced program may not enter it
        return scan_paths(curve, height, width, directions).to(device)
    paths = _constant_paths(curve, height, width, directions, str(device))
    return paths.view(directions, height * width)  # a traced constant has no shape of its own until an op gives it one


class SelectiveScans(nn.Module):
    """Selective scans of a map along K paths, summed: the original's parameters, without a module of their own there.

    Every direction has its own projections to step sizes, B and C. Projections are per position and so commute with
    the order: nothing is copied K times but inside the op.
    """

    def __init__(self, inner: int, d_state: int, dt_rank: int, num_directions: int) -> None:
        super().__init__()
        k = num_directions
        self.d_state, self.dt_rank = d_state, dt_rank
        self.x_proj_weight = nn.Parameter(torch.empty(k, dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(k, inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(k, inner))
        self.A_logs = nn.Parameter(torch.empty(k * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(k * inner))

    def forward(self, u: Tensor, paths: Tensor) -> Tensor:
        """u (B, H, W, D), paths (K, L) -> (B, H, W, D)."""
        seq = u.flatten(1, 2)  # (B, L, D)
        weights = (
            self.x_proj_weight.flatten(0, 1),
            -self.A_logs.float().exp().view(*self.dt_projs_bias.shape, -1),
            self.Ds.float().view_as(self.dt_projs_bias),
            self.dt_projs_bias.float(),
        )
        images = self._images_at_once(seq)
        if images < seq.shape[0]:
            y = torch.cat([self._scan(part, paths, *weights) for part in seq.split(images)])
        else:
            y = self._scan(seq, paths, *weights)
        return y.unflatten(1, u.shape[1:3])

    def _images_at_once(self, seq: Tensor) -> int:
        """All where a gradient is wanted; else as many as keep the step sizes, D K numbers a position, small."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return seq.shape[0]
        one = seq[0].numel() * self.dt_projs_bias.shape[0] * seq.element_size()
        return max(1, STEP_SIZES_AT_ONCE // one)

    def _scan(self, seq: Tensor, paths: Tensor, x_proj: Tensor, A: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        projected = linear(seq, x_proj).unflatten(2, (A.shape[0], -1))  # (B, L, K, R + 2 N)
        rank, B, C = split(projected, self.dt_rank, self.d_state)
        rank, weight = rank.flatten(0, 1), self.dt_projs_weight.to(rank.dtype)
        dt = project(rank, weight)  # (B L, K, D)
        with remade(dt, rank, weight):
            return selective_scan_2d(
                seq.contiguous(), dt.unflatten(0, seq.shape[:2]), A, B, C, D, bias, paths=paths, dt_softplus=True
            )

    def count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())


class ConvMixer(nn.Module):
    """1x1, 3x3, 1x1 convolution in place of scans (ablation), of as nearly as possible `parameters` parameters."""

    def __init__(self, inner: int, parameters: int) -> None:
        super().__init__()
        # 9 m^2 + 2 inner m = parameters
        width = max(1, round((math.sqrt(inner**2 + 9 * parameters) - inner) / 9))
        self.layers = nn.Sequential(
            nn.Conv2d(inner, width, 1, bias=False),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.SiLU(),
            nn.Conv2d(width, inner, 1, bias=False),
        )

    def forward(self, u: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        return self.layers(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SS2D(SelectiveScans):
    """x -> (u, z); u: depthwise 3x3, SiLU, scans, LayerNorm; times SiLU(z); projection back.

    Args:
        dim: C.
        d_state: N.
        expand: D = expand C.
        dt_rank: R; None: C / 16, rounded up.
        scan_type: the curve.
        num_directions: K.
        mixer: "scan", or "conv": `ConvMixer` of as many parameters in place of the scans.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: int = 2,
        dt_rank: int | None = None,
        scan_type: str = "hilbert",
        num_directions: int = 8,
        mixer: str = "scan",
    ) -> None:
        inner = expand * dim
        super().__init__(inner, d_state, dt_rank or math.ceil(dim / 16), num_directions)
        self.scan_type, self.num_directions = scan_type, num_directions
        self.conv_mixer: ConvMixer | None = None
        if mixer == "conv":
            self.conv_mixer = ConvMixer(inner, self.count())
            for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
                delattr(self, name)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_norm = nn.LayerNorm(inner, eps=1e-5)
        self.out_proj = Linear(inner, dim, bias=False)
        self.reset_scans()

    @torch.no_grad()
    def reset_scans(self) -> None:
        """The original's start of the scans' own parameters."""
        if self.conv_mixer is not None:
            return
        from transformers import initialization as init

        inner, rank = self.dt_projs_weight.shape[1:]
        init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        dt = torch.rand_like(self.dt_projs_bias) * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN)
        dt = dt.exp().clamp(min=DT_FLOOR)
        init.copy_(self.dt_projs_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        steps = torch.arange(1, self.d_state + 1, device=self.A_logs.device, dtype=torch.float32)
        init.copy_(self.A_logs, steps.log().expand_as(self.A_logs).to(self.A_logs.dtype))
        init.ones_(self.Ds)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); `paths` (K, L), made for the grid where left out.

        Raises:
            InputError: not a map of this width.
        """
        if x.dim() != 4 or x.shape[3] != self.in_proj.in_features:
            raise InputError(f"SS2D: expected a map (B, H, W, {self.in_proj.in_features}), got {tuple(x.shape)}")
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = depthwise_conv2d(u, self.conv2d.weight, self.conv2d.bias, epilogue="silu")  # reads the half where it lies
        if self.conv_mixer is not None:
            y = self.conv_mixer(u)
        else:
            if paths is None:
                paths = grid_paths(self.scan_type, x.shape[1], x.shape[2], self.num_directions, x.device)
            y = super().forward(u, paths)
        norm = self.out_norm
        return self.out_proj(layer_norm_gate(y, z.to(y.dtype), norm.weight, norm.bias, eps=norm.eps))


class HSSBlock(nn.Module):
    """x + drop_path(SS2D(LayerNorm(x)))."""

    def __init__(self, dim: int, drop_path: float = 0.0, norm_eps: float = 1e-6, **scan: object) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=norm_eps)
        self.self_attention = SS2D(dim, **scan)  # type: ignore[arg-type]
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return added(*self.step((x, None, None), paths))

    def step(self, state: Pending, paths: Tensor | None = None) -> Pending:
        """From a map as a sum to the next one: the sum is made by the pass that normalises it."""
        x, branch, kept = state
        norm = self.ln_1
        total, normed = add_layer_norm(
            x, branch, norm.weight, norm.bias, row_scale=kept, eps=norm.eps,
            out_dtype=autocast_dtype(x.device.type),
        )  # fmt: skip
        drops = self.training and bool(self.drop_path.drop_prob)
        kept = self.drop_path(torch.ones(x.shape[0], device=x.device, dtype=torch.float32)) if drops else None
        return total, self.self_attention(normed, paths), kept


def added(x: Tensor, branch: Tensor | None, kept: Tensor | None) -> Tensor:
    """The map that a `Pending` stands for."""
    if branch is None:
        return x
    return x + (branch if kept is None else branch * kept.view(-1, 1, 1, 1).to(branch.dtype))


def _conv(width: int, kernel: int) -> nn.Sequential:
    """1x1 with bias, or depthwise k x k without; instance norm of the sample's own statistics; SiLU."""
    groups = 1 if kernel == 1 else width
    conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=kernel == 1)
    return nn.Sequential(conv, nn.InstanceNorm2d(width, eps=1e-5), nn.SiLU())


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution of (B, H, W, C), which is a matrix product there."""
    return linear(x, conv.weight.flatten(1), conv.bias)


def _convolve(x: Tensor, layers: nn.Sequential) -> Tensor:
    """`_conv`'s layers on (B, H, W, C), nothing brought into another order."""
    conv, norm = cast(nn.Conv2d, layers[0]), cast(nn.InstanceNorm2d, layers[1])
    y = _pointwise(x, conv) if conv.kernel_size == (1, 1) else depthwise_conv2d(x, conv.weight)
    return instance_norm_silu(y, eps=norm.eps)


class LSSModule(GradientCheckpointingLayer):
    """Locality-enhanced state space module: HSS blocks beside two convolution branches, fused, plus the input.

        x -+- HSS block x depth ---------------+
           +- 1x1, depthwise 5x5, 1x1 ---------+- concat (3 C) -> 1x1 -> C, + x
           +- 1x1, depthwise 7x7, 1x1 ---------+

    Args:
        dim: C.
        depth: HSS blocks.
        drop_path: of each of them.
        norm_eps: of their LayerNorm: 1e-6 where the original builds the module alone, 1e-5 inside its decoder.
        d_state, expand, dt_rank, scan_type, num_directions, mixer: see `SS2D`.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 2,
        *,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        d_state: int = 16,
        expand: int = 2,
        dt_rank: int | None = None,
        scan_type: str = "hilbert",
        num_directions: int = 8,
        mixer: str = "scan",
    ) -> None:
        super().__init__()
        scan = {
            "d_state": d_state,
            "expand": expand,
            "dt_rank": dt_rank,
            "scan_type": scan_type,
            "num_directions": num_directions,
            "mixer": mixer,
        }
        self.smm_blocks = nn.ModuleList(HSSBlock(dim, drop_path, norm_eps, **scan) for _ in range(depth))
        self.conv1b7, self.conv77, self.conv1a7 = _conv(dim, 1), _conv(dim, 7), _conv(dim, 1)
        self.conv1b5, self.conv55, self.conv1a5 = _conv(dim, 1), _conv(dim, 5), _conv(dim, 1)
        self.finalconv11 = nn.Conv2d(3 * dim, dim, 1)
        self.reset_convolutions()

    @torch.no_grad()
    def reset_convolutions(self) -> None:
        """Normal with sqrt(2 / fan_out) for every convolution, the scans' depthwise ones included; zero biases."""
        from transformers import initialization as init

        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels // conv.groups
            init.normal_(conv.weight, 0.0, math.sqrt(2 / fan_out))
            if conv.bias is not None:
                init.zeros_(conv.bias)

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); `paths` as in `SS2D`."""
        state: Pending = (x, None, None)
        for block in self.smm_blocks:
            state = cast(HSSBlock, block).step(state, paths)
        y = added(*state)
        local5 = _convolve(_convolve(_convolve(x, self.conv1b5), self.conv55), self.conv1a5)
        local7 = _convolve(_convolve(_convolve(x, self.conv1b7), self.conv77), self.conv1a7)
        return x + _pointwise(torch.cat([y, local5, local7], dim=3), self.finalconv11)
