"""The ViT of Co-DINO ViT-L: EVA-02's block with two-dimensional rotary positions, most blocks inside windows.

Pre-norm blocks of attention and SwiGLU (EVA-02, https://arxiv.org/abs/2303.11331) on the patch tokens alone, without a
class token. Windows are cut after the first norm, and what they are padded with is attended to, as in the original
(`mmdet/models/backbones/vit.py` of Sense-X/Co-DETR). The rotary angles are recomputed in each forward instead of
stored.

Shapes: B images, h x w tokens, C channels, H heads, D = C / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridzoo.errors import InputError


class RotaryVisionTransformer(nn.Module):
    """Patches to one map of stride `patch_size`.

    Args:
        in_chans: image channels.
        embed_dim, depth, num_heads, mlp_dim, patch_size: sizes.
        window_size: side of the windows in tokens.
        global_blocks: indices of the blocks that attend to the whole map.
        rope_points: side of the grid that the rotary positions were trained on; others are scaled to it.
        rope_grid: the only side that global blocks accept (large-scale jitter), or None for any.
        pretrain_grid: side of the position table.
        drop_path_rate: stochastic depth of the last block, rising linearly.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int,
        window_size: int,
        global_blocks: list[int],
        rope_points: int,
        rope_grid: int | None,
        pretrain_grid: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.patch_size, self.window_size, self.rope_points, self.rope_grid = (
            *(patch_size, window_size, rope_points, rope_grid),
        )
        self.head_dim = embed_dim // num_heads
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, pretrain_grid**2 + 1, embed_dim))  # the first slot is never read
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            RotaryBlock(embed_dim, num_heads, mlp_dim, rates[i], 0 if i in global_blocks else window_size)
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of the patch -> (B, C, H / patch, W / patch)."""
        x = self.patch_embed(pixel_values).permute(0, 2, 3, 1)  # (B, h, w, C)
        height, width = x.shape[1:3]
        if self.rope_grid is not None and (height, width) != (self.rope_grid, self.rope_grid):
            side = self.rope_grid * self.patch_size
            raise InputError(
                f"this ViT's rotary positions are fixed to images of {side} x {side} pixels (large-scale jitter), got "
                f"{height * self.patch_size} x {width * self.patch_size}. Pad to that size (config.pad_size), or build "
                "it with backbone_config={'rope_grid': None}"
            )
        x = x + self._positions(height, width)
        window = self._angles(self.window_size, self.window_size, x)
        whole = self._angles(height, width, x)
        for block in self.blocks:
            x = block(x, *(window if block.window_size else whole))
        return self.norm(x).permute(0, 3, 1, 2)

    def _positions(self, height: int, width: int) -> Tensor:
        """The table without its class slot, resized to the map: (1, h, w, C)."""
        table = self.pos_embed[:, 1:]
        side = round(table.shape[1] ** 0.5)
        table = table.view(1, side, side, -1)
        if (height, width) == (side, side):
            return table
        resized = F.interpolate(
            table.permute(0, 3, 1, 2).float(), size=(height, width), mode="bicubic", align_corners=False
        )
        return resized.permute(0, 2, 3, 1).to(table.dtype)

    def _angles(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary angles, (h * w, D): rows in the first half of a head, columns in the second."""
        angles = rotary_angles(height, width, self.head_dim, self.rope_points, like.device)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


class RotaryBlock(GradientCheckpointingLayer):
    """x + attention(norm1 x), x + SwiGLU(norm2 x); `window_size=0` attends to the whole map."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, drop_path: float, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RotaryAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, mlp_dim)
        self.drop_path = drop_path

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, h, w, C), the angles' cos and sin of the window or the map -> (B, h, w, C)."""
        y = self.norm1(x)
        if self.window_size:
            y = from_windows(self.attn(to_windows(y, self.window_size), cos, sin), self.window_size, x.shape)
        else:
            y = self.attn(y.flatten(1, 2), cos, sin).view(x.shape)
        x = x + self._drop(y)
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return y
        keep = 1.0 - self.drop_path
        return y * y.new_empty(len(y), 1, 1, 1).bernoulli_(keep) / keep


class RotaryAttention(nn.Module):
    """Multi-head attention with rotated queries and keys; the keys have no bias."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, T, C), (T, D), (T, D) -> (N, T, C)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # (N, H, T, D)
        q, k = (t * cos + quarter_turn(t) * sin for t in (q, k))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """w3(norm(SiLU(w1 x) * w2 x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.norm(F.silu(self.w1(x)) * self.w2(x)))


def rotary_angles(height: int, width: int, head_dim: int, points: int, device: torch.device) -> Tensor:
    """(height * width, head_dim) angles: rows in the first half, columns in the second; sides span `points` places."""
    half = head_dim // 2
    steps = torch.arange(0, half, 2, device=device).float()
    frequencies = 1.0 / 10000.0 ** (steps / half)  # (head_dim / 4,)
    axes = []
    for size in (height, width):
        places = torch.arange(size, device=device).float() / size * points
        axes.append((places[:, None] * frequencies).repeat_interleave(2, dim=1))  # (size, head_dim / 2)
    rows, columns = axes[0][:, None].expand(-1, width, -1), axes[1][None].expand(height, -1, -1)
    return torch.cat((rows, columns), -1).flatten(0, 1)


def quarter_turn(x: Tensor) -> Tensor:
    """(a, b, c, d, …) -> (-b, a, -d, c, …) on the last axis."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-b, a), -1).flatten(-2)


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, h, w, C), zero-padded to windows -> (B * windows, size * size, C)."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    x = x.view(batch, x.shape[1] // size, size, x.shape[2] // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size * size, channels)


def from_windows(windows: Tensor, size: int, shape: torch.Size) -> Tensor:
    """The inverse of `to_windows`, for a map of `shape` (B, h, w, C)."""
    batch, height, width, channels = shape
    rows, columns = -(-height // size), -(-width // size)
    x = windows.view(batch, rows, columns, size, size, channels).transpose(2, 3)
    return x.reshape(batch, rows * size, columns * size, channels)[:, :height, :width]
