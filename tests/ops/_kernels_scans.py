"""Suites of `_kernels_against_reference.py`: selective scans and short convolutions."""

from __future__ import annotations

from typing import Any

import torch
from _kernels_common import DEVICE, SHARD, SHARDS, example_of

from hybridzoo.ops._selftest import relative_error, run_example
from hybridzoo.ops.dispatch import Example, get_op
from hybridzoo.ops.scan_paths import scan_paths
from hybridzoo.ops.selective_scan.triton import Backward


def scan_case(
    B: int,
    L: int,
    D: int,
    N: int,
    G: int = 1,
    dtype: torch.dtype = torch.float32,
    full: bool = True,
    cu: tuple[int, ...] | None = None,
    resets: bool = False,
    scale: float = 1.0,
    offset: float = 0.0,
    strided: bool = False,
) -> Example:
    def rand(*shape: int) -> torch.Tensor:
        if strided and len(shape) > 2:  # a slice of something wider, as a projection's output is
            return torch.randn(*shape[:-1], 3 * shape[-1])[..., shape[-1] : 2 * shape[-1]]
        return torch.randn(*shape)

    call = {
        "u": rand(B, L, D).to(dtype),
        "dt": (rand(B, L, D) * scale + offset).to(dtype),
        "A": -rand(D, N).exp(),
        "B": rand(B, L, G, N).to(dtype),
        "C": rand(B, L, G, N).to(dtype),
        "D": rand(D) if full else None,
        "z": rand(B, L, D).to(dtype) if full else None,
        "dt_bias": rand(D) if full else None,
        "dt_softplus": full,
        "initial_state": rand(len(cu) - 1 if cu else B, D, N) if full else None,
        "return_final_state": full,
        "seq_idx": (torch.arange(L) // 3).expand(B, L) if resets else None,
        "cu_seqlens": torch.tensor(cu) if cu else None,
    }
    if not full:
        call["dt"] = call["dt"].abs()
    return example_of(call)


CHUNKED = {
    "chunk_training": 4,
    "backward": Backward(keep=2, fine=2, sub=2),
    "backward_on_paths": Backward(keep=4, fine=2),
    "chunk_inference": 4,
    "enough_per_sm": 10**6,
    "backward_enough_per_sm": 10**6,
}
WALKED = {
    "chunk_training": 8,
    "backward": Backward(keep=4, fine=2, sub=1),
    "backward_on_paths": Backward(keep=8, fine=4, sub=2),
    "chunk_inference": 4,
    "enough_per_sm": 0,
    "backward_enough_per_sm": 0,
}


def scan_cases() -> dict[str, tuple[dict[str, Any], Example]]:
    """Name -> tuning constants and input. Chunks of 4 steps put several chunks and exact tails into short inputs."""
    cases: dict[str, tuple[dict[str, Any], Example]] = {}
    for way, tuning in (("chunked", CHUNKED), ("walked", WALKED)):
        for L in (1, 4, 9) if way == "chunked" else (5,):
            cases[f"{way}-L{L}"] = (tuning, scan_case(1, L, 3, 2))
        cases[f"{way}-B2-groups-N3"] = (tuning, scan_case(2, 9, 6, 3, 2))
        cases[f"{way}-plain"] = (tuning, scan_case(2, 6, 5, 1, full=False))
        cases[f"{way}-seq_idx"] = (tuning, scan_case(2, 10, 4, 2, resets=True))
        cases[f"{way}-empty-segments"] = (tuning, scan_case(1, 12, 4, 2, cu=(0, 0, 5, 5, 11, 12, 12)))
        cases[f"{way}-extreme-dt"] = (tuning, scan_case(1, 9, 4, 2, scale=40.0))
    cases["tiny-dt"] = (CHUNKED, scan_case(1, 9, 4, 2, offset=-18.0))
    cases["N64"] = (WALKED, scan_case(1, 3, 9, 64))
    cases["strided"] = (CHUNKED, scan_case(2, 6, 4, 2, strided=True))
    cases["bf16"] = (CHUNKED, scan_case(1, 9, 4, 2, dtype=torch.bfloat16))
    cases["two-warp-tile"] = (
        {**CHUNKED, "backward_tile": 8, "tile": 16, "backward": Backward(keep=4, sub=4)},
        scan_case(1, 9, 20, 2),
    )
    if DEVICE == "cuda":  # real sizes around the real chunks and tiles, as auto would run them
        usual: dict[str, Any] = {}
        for L in (63, 64, 65, 127, 129, 300):
            cases[f"real-L{L}"] = (usual, scan_case(1, L, 70, 16))
        for N in (1, 2, 8, 17, 32, 64, 128):
            cases[f"real-N{N}"] = (usual, scan_case(2, 150, 48, N, 2))
        cases["real-long"] = (usual, scan_case(1, 2177, 256, 16))
        cases["real-walked"] = (
            {"enough_per_sm": 0, "backward_enough_per_sm": 0},
            scan_case(2, 700, 96, 16, 3),
        )
        cases["real-seq_idx"] = (usual, scan_case(2, 500, 96, 16, resets=True))
        cases["real-packed"] = (usual, scan_case(1, 900, 64, 16, cu=(0, 0, 1, 65, 65, 500, 899, 900, 900)))
        cases["real-strided"] = (usual, scan_case(2, 200, 64, 16, strided=True))
        cases["real-bf16"] = (usual, scan_case(2, 333, 64, 16, dtype=torch.bfloat16))
        cases["real-fp16"] = (usual, scan_case(2, 333, 64, 16, dtype=torch.float16))
        cases["real-two-warps-bf16"] = (
            {"backward_warps": 2, "backward": Backward(sub=4), "warps": 2},
            scan_case(2, 333, 64, 16, dtype=torch.bfloat16),
        )
    return cases


def run_scan() -> dict[str, Any]:
    from hybridzoo.ops.selective_scan import triton as launch

    op = get_op("selective_scan")
    by_name = {b.name: b for b in op.backends}
    found = {}
    for name, (tuning, example) in list(scan_cases().items())[SHARD::SHARDS]:
        launch.TUNING = launch.Tuning(**tuning)
        call = {
            k: v.detach() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for k, v in example.call.items()
        }
        if name.endswith(
            "strided"
        ):  # run_example copies to leaves of dense layout, so compare the outputs of the slices too
            y, final = by_name["triton"].run(**call)
            dense, dense_final = by_name["triton"].run(**{k: _dense(v) for k, v in call.items()})
            assert not call["u"].is_contiguous()
            assert torch.equal(y, dense)
            assert torch.equal(final, dense_final)
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        with torch.no_grad():  # another launch: no states kept
            again = by_name["triton"].run(**call)[0]
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
        found[name]["inference"] = relative_error(again, want["out.0"])
        if DEVICE == "cuda":  # the kernels promise equal bits from run to run
            repeat = run_example(by_name["triton"], example)
            found[name]["not deterministic"] = float(any(not torch.equal(repeat[k], got[k]) for k in got))
    return found


def _dense(x: Any) -> Any:
    return x.contiguous() if isinstance(x, torch.Tensor) else x


def conv_case(
    B: int,
    L: int,
    D: int,
    W: int,
    dtype: torch.dtype = torch.float32,
    cu: tuple[int, ...] | None = None,
    resets: bool = False,
    state: bool = False,
    plain: bool = False,
    padding: str = "causal",
    scale: float = 1.0,
) -> Example:
    call = {
        "x": (torch.randn(B, L, D) * scale).to(dtype),
        "weight": torch.randn(D, W).to(dtype),
        "bias": None if plain else torch.randn(D).to(dtype),
        "activation": None if plain else "silu",
        "padding": padding,
        "initial_state": torch.randn(len(cu) - 1 if cu else B, W - 1, D).to(dtype) if state else None,
        "return_final_state": state,
        "seq_idx": (torch.arange(L) // 3).expand(B, L) if resets else None,
        "cu_seqlens": torch.tensor(cu) if cu else None,
    }
    return example_of(call)


def run_conv() -> dict[str, Any]:
    """Lengths around the 32-row tile, channels around the 64-wide one."""
    cases = {
        **{f"L{L}": conv_case(2, L, 5, 4, state=True) for L in (1, 2, 31, 32, 33)},
        **{f"W{W}": conv_case(1, 34, 3, W) for W in (1, 2, 3, 9)},
        **{f"same-W{W}": conv_case(1, 34, 3, W, padding="same") for W in (1, 3, 4, 7)},
        "D65": conv_case(1, 5, 65, 3),
        "plain": conv_case(2, 33, 4, 4, plain=True),
        "seq_idx": conv_case(2, 35, 4, 3, resets=True, state=True),
        "same-packed": conv_case(1, 34, 4, 5, cu=(0, 2, 2, 33, 34), padding="same"),
        "empty-segments": conv_case(1, 34, 4, 4, cu=(0, 0, 2, 2, 33, 34, 34), state=True),
        "bf16": conv_case(2, 33, 4, 4, torch.bfloat16),
        # without state and packing: runs of 8 positions forward, 32 backward, 4 or 8 of them in a program
        **{f"plain-L{L}": conv_case(2, L, 5, 4) for L in (1, 3, 8, 9, 32, 33, 64, 65, 129, 259)},
        **{f"plain-same-W{W}": conv_case(1, 70, 130, W, padding="same") for W in (2, 3, 4)},
        "plain-fp16": conv_case(2, 70, 136, 4, torch.float16),
        "plain-large": conv_case(1, 40, 8, 4, scale=100.0),
    }
    if DEVICE == "cuda":
        for W in (2, 3, 4):
            cases[f"plain-real-W{W}-bf16"] = conv_case(2, 1001, 328, W, torch.bfloat16)
            cases[f"plain-real-same-W{W}"] = conv_case(2, 1001, 328, W, padding="same")
        cases["real"] = conv_case(3, 1000, 320, 4, state=True)
        cases["real-bf16"] = conv_case(3, 1000, 320, 4, torch.bfloat16)
        cases["real-fp16"] = conv_case(3, 1000, 320, 3, torch.float16, padding="same")
        cases["real-packed"] = conv_case(1, 3000, 130, 4, cu=(0, 5, 5, 1000, 1001, 3000), state=True)
    by_name = {b.name: b for b in get_op("causal_conv1d").backends}
    found = {}
    for name, example in list(cases.items())[SHARD::SHARDS]:
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
    wide = torch.randn(2, 33, 12, device=DEVICE)
    part = {**cases["plain"].call, "x": wide[..., 4:8]}
    sliced = by_name["triton"].run(**part)[0]
    found["strided"] = {"out.0": relative_error(sliced, by_name["torch"].run(**part)[0])}
    return found


def scan_2d_case(
    kind: str, height: int, width: int, K: int, B: int, D: int, N: int, dtype: torch.dtype = torch.float32
) -> Example:
    L = height * width
    call = {
        "u": torch.randn(B, L, D).to(dtype),
        "dt": torch.randn(B, L, K, D).to(dtype),
        "A": -torch.rand(K, D, N),
        "B": torch.randn(B, L, K, N).to(dtype),
        "C": torch.randn(B, L, K, N).to(dtype),
        "D": torch.randn(K, D),
        "dt_bias": torch.randn(K, D),
        "paths": scan_paths(kind, height, width, K),
        "dt_softplus": True,
    }
    return example_of(call)


def run_scan_2d() -> dict[str, Any]:
    from hybridzoo.ops.selective_scan import triton as launch
    from hybridzoo.ops.selective_scan_2d.custom_ops import scan_2d_op

    cases: dict[str, tuple[dict[str, Any], Example]] = {
        "hilbert-8": (CHUNKED, scan_2d_case("hilbert", 3, 4, 8, 2, 5, 2)),
        "hilbert-8-walked": (WALKED, scan_2d_case("hilbert", 3, 4, 8, 2, 5, 2)),
        "sweep-2": (CHUNKED, scan_2d_case("sweep", 3, 3, 2, 1, 70, 1)),
        "zigzag-4": (WALKED, scan_2d_case("zigzag", 1, 5, 4, 1, 3, 3)),
        "bf16": (CHUNKED, scan_2d_case("hilbert", 3, 4, 4, 1, 4, 2, torch.bfloat16)),
    }
    if DEVICE == "cuda":
        for side, width in ((64, 48), (32, 96), (16, 320), (8, 130)):
            cases[f"real-{side}"] = ({}, scan_2d_case("hilbert", side, side, 8, 2, width, 16))
        cases["real-rectangle-bf16"] = ({}, scan_2d_case("hilbert", 20, 33, 4, 2, 96, 16, torch.bfloat16))
    by_name = {b.name: b for b in get_op("selective_scan_2d").backends}
    found = {}
    for name, (tuning, example) in list(cases.items())[SHARD::SHARDS]:
        launch.TUNING = launch.Tuning(**tuning)
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        with torch.no_grad():
            again = by_name["triton"].run(**example.call)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
        found[name]["inference"] = relative_error(again, want["out.0"])
    launch.TUNING = launch.Tuning()
    torch.use_deterministic_algorithms(False)
    call = scan_2d_case("sweep", 2, 3, 2, 1, 4, 2).call
    floats = [call[n].clone().requires_grad_() for n in ("u", "dt", "A", "B", "C", "D", "dt_bias")]
    checked = torch.library.opcheck(scan_2d_op, (*floats, call["paths"].int(), True, True))
    found["opcheck"] = {name: float(verdict != "SUCCESS") for name, verdict in checked.items()}
    return found
