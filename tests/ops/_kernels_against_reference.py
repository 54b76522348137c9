"""Runs our Triton kernels against the fp64 reference; prints one JSON line: case -> output or gradient -> error.

    python tests/ops/_kernels_against_reference.py selective_scan cpu     # Triton's interpreter
    python tests/ops/_kernels_against_reference.py selective_scan cuda    # the compiled kernels, and larger cases
    python tests/ops/_kernels_against_reference.py selective_scan cuda 0/8    # every eighth case: compiles in parallel

Not a test module: the interpreter has to be chosen before the kernels are imported, so the tests start this file in a
process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

OP, DEVICE = sys.argv[1:3]
SHARD, SHARDS = (int(part) for part in (sys.argv[3] if len(sys.argv) > 3 else "0/1").split("/"))
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from hybridzoo.ops._selftest import relative_error, run_example  # noqa: E402
from hybridzoo.ops.dispatch import Example, get_op  # noqa: E402


def _poison() -> None:
    """Every torch.empty comes filled with NaN, so that memory left unwritten shows up in the comparison."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def _example(call: dict[str, Any]) -> Example:
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    return Example("", moved, _leaves(call))


def _leaves(call: dict[str, Any]) -> tuple[str, ...]:
    return tuple(k for k, v in call.items() if isinstance(v, torch.Tensor) and v.is_floating_point())


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
    return _example(call)


def scan_cases() -> dict[str, tuple[dict[str, Any], Example]]:
    """Name -> tuning constants and input. Chunks of 4 steps put several chunks and exact tails into short inputs."""
    chunked = {"chunk_training": 4, "chunk_inference": 4, "enough_per_sm": 10**6}
    walked = {"chunk_training": 4, "chunk_inference": 4, "enough_per_sm": 0}
    cases: dict[str, tuple[dict[str, Any], Example]] = {}
    for way, tuning in (("chunked", chunked), ("walked", walked)):
        for L in (1, 4, 9) if way == "chunked" else (5,):
            cases[f"{way}-L{L}"] = (tuning, scan_case(1, L, 3, 2))
        cases[f"{way}-B2-groups-N3"] = (tuning, scan_case(2, 9, 6, 3, 2))
        cases[f"{way}-plain"] = (tuning, scan_case(2, 6, 5, 1, full=False))
        cases[f"{way}-seq_idx"] = (tuning, scan_case(2, 10, 4, 2, resets=True))
        cases[f"{way}-empty-segments"] = (tuning, scan_case(1, 12, 4, 2, cu=(0, 0, 5, 5, 11, 12, 12)))
        cases[f"{way}-extreme-dt"] = (tuning, scan_case(1, 9, 4, 2, scale=40.0))
    cases["tiny-dt"] = (chunked, scan_case(1, 9, 4, 2, offset=-18.0))
    cases["N64"] = (walked, scan_case(1, 3, 9, 64))
    cases["strided"] = (chunked, scan_case(2, 6, 4, 2, strided=True))
    cases["bf16"] = (chunked, scan_case(1, 9, 4, 2, dtype=torch.bfloat16))
    cases["two-warp-tile"] = ({**chunked, "backward_tile": 8, "tile": 16, "backward_sub": 4}, scan_case(1, 9, 20, 2))
    if DEVICE == "cuda":  # real sizes around the real chunks and tiles, as auto would run them
        usual: dict[str, Any] = {}
        for L in (63, 64, 65, 127, 129, 300):
            cases[f"real-L{L}"] = (usual, scan_case(1, L, 70, 16))
        for N in (1, 2, 8, 17, 32, 64, 128):
            cases[f"real-N{N}"] = (usual, scan_case(2, 150, 48, N, 2))
        cases["real-long"] = (usual, scan_case(1, 2177, 256, 16))
        cases["real-walked"] = ({"enough_per_sm": 0}, scan_case(2, 700, 96, 16, 3))
        cases["real-seq_idx"] = (usual, scan_case(2, 500, 96, 16, resets=True))
        cases["real-packed"] = (usual, scan_case(1, 900, 64, 16, cu=(0, 0, 1, 65, 65, 500, 899, 900, 900)))
        cases["real-strided"] = (usual, scan_case(2, 200, 64, 16, strided=True))
        cases["real-bf16"] = (usual, scan_case(2, 333, 64, 16, dtype=torch.bfloat16))
        cases["real-fp16"] = (usual, scan_case(2, 333, 64, 16, dtype=torch.float16))
        cases["real-two-warps-bf16"] = (
            {"backward_warps": 2, "backward_sub": 4, "warps": 2},
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
) -> Example:
    call = {
        "x": torch.randn(B, L, D).to(dtype),
        "weight": torch.randn(D, W).to(dtype),
        "bias": None if plain else torch.randn(D).to(dtype),
        "activation": None if plain else "silu",
        "padding": padding,
        "initial_state": torch.randn(len(cu) - 1 if cu else B, W - 1, D).to(dtype) if state else None,
        "return_final_state": state,
        "seq_idx": (torch.arange(L) // 3).expand(B, L) if resets else None,
        "cu_seqlens": torch.tensor(cu) if cu else None,
    }
    return _example(call)


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
    }
    if DEVICE == "cuda":
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


SUITES = {"selective_scan": run_scan, "causal_conv1d": run_conv}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    _poison()
    print(json.dumps(SUITES[OP]()))
