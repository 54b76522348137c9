"""Scan orders against MambaAD's own tables, and their defining properties on any grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo.errors import ConfigError, UnknownNameError
from hybridzoo.ops.scan_paths import CURVES, inverse_paths, scan_order, scan_paths

TABLES = load_file(Path(__file__).resolve().parent.parent / "fixtures" / "ops" / "mambaad_scans.safetensors")
GRIDS = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (6, 4), (4, 10), (13, 8), (9, 21), (3, 16)]


@pytest.mark.parametrize("side", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("curve", CURVES)
def test_tables_are_mambaads(curve, side):
    order = scan_order(curve, side, side)
    assert torch.equal(order, TABLES[f"{curve}.{side}.index_flat"].long())
    assert torch.equal(inverse_paths(order), TABLES[f"{curve}.{side}.index_flat_inv"].long())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("curve", CURVES)
def test_every_position_is_visited_once_in_every_direction(curve, grid):
    paths = scan_paths(curve, *grid, directions=8)
    assert paths.shape == (8, grid[0] * grid[1])
    assert torch.equal(paths.sort(1).values, torch.arange(grid[0] * grid[1]).expand(8, -1))
    assert torch.equal(paths[4:], paths[:4].flip(1))
    assert torch.equal(scan_paths(curve, *grid, directions=4)[:2], paths[:2])
    assert torch.equal(scan_paths(curve, *grid, directions=2), paths[[0, 4]])
    assert torch.equal(scan_paths(curve, *grid, directions=1), paths[:1])


@pytest.mark.parametrize("grid", [*GRIDS, (8, 8), (7, 12), (12, 7), (10, 10)])
def test_hilbert_walks_to_neighbours(grid):
    """Steps go to one of the eight neighbours; a diagonal one is needed only where no other curve exists."""
    order = scan_order("hilbert", *grid)
    row, col = order // grid[1], order % grid[1]
    step = torch.stack([row.diff().abs(), col.diff().abs()])
    assert (step.max(0).values == 1).all() if order.numel() > 1 else True
    assert (step.sum(0) == 2).sum() <= 1


def test_directions_are_turns_of_the_grid():
    grid = torch.arange(6).view(2, 3)
    paths = scan_paths("sweep", 2, 3)
    turned = torch.rot90(grid, 1)
    for path, base in zip(paths, (grid, grid.t(), turned, turned.t())):
        assert torch.equal(path, base.reshape(-1))


def test_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'hilbert'"):
        scan_order("hilbet", 4, 4)
    with pytest.raises(ConfigError, match="at least 1 x 1"):
        scan_order("sweep", 0, 4)
    with pytest.raises(ConfigError, match="1, 2, 4 or 8, it is 3"):
        scan_paths("sweep", 4, 4, directions=3)
