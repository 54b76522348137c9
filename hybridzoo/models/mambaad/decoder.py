"""MambaAD's decoder: four stages of LSS modules, coarsest first, each but the first behind a 2x patch expansion.

Legend: B batch, C_s width of stage s, H_s W_s its grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.errors import InputError
from hybridzoo.layers.autocast import autocast_dtype
from hybridzoo.models.mambaad.blocks import LSSModule, grid_paths
from hybridzoo.models.mambaad.configuration import check_decoder, modules_of
from hybridzoo.ops.add_layer_norm import add_layer_norm
from hybridzoo.ops.linear import Linear
from hybridzoo.ops.scan_paths import scan_paths

NORM_EPS = 1e-5  # the decoder passes torch's LayerNorm, where a module alone would have 1e-6


def fit_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) cut at the lower right, or continued by its last row and column, to height x width."""
    x = x[:, :height, :width]
    down, right = height - x.shape[1], width - x.shape[2]
    if down or right:
        x = F.pad(x.permute(0, 3, 1, 2), (0, right, 0, down), mode="replicate").permute(0, 2, 3, 1)
    return x


class PatchExpand(nn.Module):
    """Linear to 4 times the new width, its parts put side by side as 2x2 pixels, LayerNorm."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.expand = Linear(dim_in, 4 * dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) -> (B, 2 H, 2 W, C)."""
        batch, height, width, _ = x.shape
        y = self.expand(x).view(batch, height, width, 2, 2, -1).transpose(2, 3)  # rows: (H, p1), columns: (W, p2)
        y = y.reshape(batch, 2 * height, 2 * width, -1)
        norm = self.norm
        wide = torch.float32 if autocast_dtype(y.device.type) else None  # of the residual stream
        return add_layer_norm(y, None, norm.weight, norm.bias, eps=norm.eps, out_dtype=wide)[1]


class Stage(nn.Module):
    """An optional patch expansion and LSS modules."""

    def __init__(self, upsample: PatchExpand | None, blocks: Sequence[LSSModule]) -> None:
        super().__init__()
        self.upsample = upsample
        self.blocks = nn.ModuleList(blocks)


class ScanTables(nn.Module):
    """The paths of the grids that a decoder is built for, as buffers that are not saved: they follow from the config.

    Other grids get their paths when they come.
    """

    def __init__(self, curve: str, directions: int, grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.curve, self.directions = curve, directions
        self.grids = tuple(dict.fromkeys(grids))
        for grid in self.grids:
            self.register_buffer(self._name(grid), scan_paths(curve, *grid, directions), persistent=False)

    @staticmethod
    def _name(grid: tuple[int, int]) -> str:
        return f"paths_{grid[0]}x{grid[1]}"

    def reset(self) -> None:
        """Write the tables again, after the module was made without memory."""
        from transformers import initialization as init

        for grid in self.grids:
            buffer = cast(Tensor, getattr(self, self._name(grid)))
            with torch.device("cpu"):
                init.copy_(buffer, scan_paths(self.curve, *grid, self.directions).to(buffer.device))

    def forward(self, height: int, width: int, device: torch.device) -> Tensor:
        """(K, H W) paths of a grid."""
        if (height, width) in self.grids:
            return cast(Tensor, getattr(self, self._name((height, width))))
        return grid_paths(self.curve, height, width, self.directions, device)


class MambaDecoder(nn.Module):
    """The Mamba decoder.

    Args:
        dims: widths of the stages, coarsest first.
        depths: HSS blocks per stage (see `modules_of`).
        d_state, expand, dt_rank, scan_type, num_directions, mixer: see `SS2D`.
        drop_path_rate: of the first block; it falls linearly to 0 at the last.
        grids: (H, W) of the stages whose scan tables are kept as buffers.
    """

    def __init__(
        self,
        dims: Sequence[int] = (512, 256, 128, 64),
        depths: Sequence[int] = (3, 4, 6, 3),
        *,
        d_state: int = 16,
        expand: int = 2,
        dt_rank: int | None = None,
        scan_type: str = "hilbert",
        num_directions: int = 8,
        mixer: str = "scan",
        drop_path_rate: float = 0.2,
        grids: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        check_decoder(tuple(dims), tuple(depths), scan_type, num_directions)
        self.scan_tables = ScanTables(scan_type, num_directions, () if mixer == "conv" else grids)
        self.mixer = mixer
        total = sum(depths)
        rates = [drop_path_rate * (total - 1 - i) / max(1, total - 1) for i in range(total)]
        self.layers_up = nn.ModuleList()
        for s, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            modules, blocks = modules_of(depth)
            first = sum(depths[:s])  # the original gives module j the rate of its stage's block j
            stage = [
                LSSModule(
                    dim,
                    blocks,
                    drop_path=rates[first + j],
                    norm_eps=NORM_EPS,
                    d_state=d_state,
                    expand=expand,
                    dt_rank=dt_rank,
                    scan_type=scan_type,
                    num_directions=num_directions,
                    mixer=mixer,
                )
                for j in range(modules)
            ]
            self.layers_up.append(Stage(PatchExpand(dims[s - 1], dim) if s else None, stage))

    def forward(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """The maps of all stages but the first.

        Args:
            x: (B, C_0, H_0, W_0).
            sizes: (H, W) of stages 1, 2, …; left out, each is twice the one before.

        Returns:
            (B, C_s, H_s, W_s), finest first.

        Raises:
            InputError: a grid of a single position, which instance normalisation cannot take.
        """
        if x.shape[2] * x.shape[3] < 2:
            raise InputError(
                f"the decoder's coarsest map is {x.shape[2]} x {x.shape[3]}; it must hold at least two positions: "
                "give larger images (more than 32 pixels on one side, with a teacher of strides 4, 8, 16)"
            )
        y = x.permute(0, 2, 3, 1)
        maps: list[Tensor] = []
        for s, stage in enumerate(cast("list[Stage]", list(self.layers_up))):
            if stage.upsample is not None:
                y = stage.upsample(y)
                if sizes is not None:
                    y = fit_map(y, *sizes[s - 1])
            paths = None if self.mixer == "conv" else self.scan_tables(y.shape[1], y.shape[2], y.device)
            for block in stage.blocks:
                y = block(y, paths)
            maps.append(y.permute(0, 3, 1, 2))
        return maps[:0:-1]

    @classmethod
    def from_original(cls, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Self:
        """The decoder alone with the original's weights (`layers_up.*`), in eval mode.

        Args:
            state: the original's `net_s` state dict; its scan tables are checked and not kept.
            config: the original's arguments: dims_decoder, depths_decoder, d_state, scan_type, num_direction, ….
        """
        from hybridzoo.models.mambaad.convert import decoder_config_from_original, load_part

        return load_part(cls(**decoder_config_from_original(config, state)), state)
