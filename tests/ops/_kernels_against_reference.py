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
from hybridzoo.ops.scan_paths import scan_paths  # noqa: E402


def _poison() -> None:
    """Every torch.empty comes filled with NaN, so that memory left unwritten shows up in the comparison."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def _moved(x: torch.Tensor) -> torch.Tensor:
    """On the device with the same strides, which `Tensor.to` drops for slices."""
    if x.is_contiguous() or not x.is_floating_point():
        return x.to(DEVICE)
    whole = torch.empty(x.untyped_storage().nbytes() // x.element_size(), dtype=x.dtype, device=DEVICE)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(x)


def _example(call: dict[str, Any]) -> Example:
    moved = {k: _moved(v) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
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


def msda_case(
    maps: list[tuple[int, int]],
    P: int,
    D: int,
    Q: int = 5,
    B: int = 1,
    H: int = 1,
    dtype: torch.dtype = torch.float32,
    locations: torch.Tensor | None = None,
) -> Example:
    """Points from two pixels before a map to one behind it, away from the pixel centres, where the gradient jumps."""
    sizes = torch.tensor([[w, h] for h, w in maps]).view(-1, 1, 2)
    if locations is None:
        drawn = torch.rand(2, B, Q, H, len(maps), P, 2)
        locations = (((drawn[0] * (sizes + 3)).floor() - 2) + 0.05 + 0.9 * drawn[1] + 0.5) / sizes
    call = {
        "value": torch.randn(B, sum(h * w for h, w in maps), H, D).to(dtype),
        "shapes": maps,
        "locations": locations,
        "weights": torch.randn(B, Q, H, len(maps) * P).softmax(3).view(B, Q, H, len(maps), P).to(dtype),
    }
    return _example(call)


def msda_locations(name: str) -> torch.Tensor:
    """(1, Q, 1, 2, 1, 2) for maps of (4, 8) and (1, 2): every half pixel from outside to outside, or far away."""
    if name == "borders":  # exact in binary, so that every precision sees the same pixel
        steps = torch.arange(-3, 20) / 16
        return torch.cartesian_prod(steps[::3], steps).view(1, -1, 1, 1, 1, 2).repeat(1, 1, 1, 2, 1, 1)
    far = torch.tensor([-1e9, -1e4, -0.2, 0.3, 1.4, 1e4, 1e9])
    far = torch.cartesian_prod(far, far)
    far = far[~(far == 0.3).all(1)]
    return far.view(1, -1, 1, 1, 1, 2).repeat(1, 1, 1, 2, 1, 1)


def msda_cases() -> dict[str, tuple[dict[str, int], Example]]:
    """Name -> tuning constants and input. Tiles of 16 values put several blocks of queries into short inputs."""
    small, usual = {"forward": 16, "backward": 16}, {}
    pair = [(4, 8), (1, 2)]
    cases: dict[str, tuple[dict[str, int], Example]] = {
        "L1-P1-D8": (small, msda_case([(3, 5)], 1, 8)),
        "L2-P3-D12-B2-H3": (usual, msda_case([(3, 5), (1, 2)], 3, 12, B=2, H=3)),
        "L3-P2-D5-blocks": (small, msda_case([(3, 5), (2, 2), (1, 1)], 2, 5)),
        "L4-P8-D16": (usual, msda_case([(5, 4), (3, 2), (2, 1), (1, 1)], 8, 16)),
        "L5-P4-D32": (usual, msda_case([(5, 4), (4, 3), (3, 2), (2, 1), (1, 1)], 4, 32, Q=9)),
        "L1-P7-D40": (usual, msda_case([(6, 7)], 7, 40)),
        "L1-P5-D64-tile-below-one-query": (small, msda_case([(6, 7)], 5, 64, Q=2)),
        "Q1": (usual, msda_case(pair, 2, 8, Q=1, H=2)),
        "borders": (usual, msda_case(pair, 1, 8, Q=184, locations=msda_locations("borders"))),
        "far-outside": (usual, msda_case(pair, 1, 8, Q=48, locations=msda_locations("far-outside"))),
        "bf16": (usual, msda_case(pair, 3, 24, dtype=torch.bfloat16)),
        "fp16": (usual, msda_case(pair, 3, 24, dtype=torch.float16)),
    }
    if DEVICE == "cuda":
        four = [(100, 167), (50, 84), (25, 42), (13, 21)]
        cases["real-decoder"] = (usual, msda_case(four, 4, 32, Q=900, B=2, H=8))
        cases["real-decoder-bf16"] = (usual, msda_case(four, 4, 32, Q=900, B=2, H=8, dtype=torch.bfloat16))
        cases["real-encoder"] = (usual, msda_case(four, 4, 32, Q=22223, H=8))
        for D in (1, 8, 48, 64, 96, 256):
            cases[f"real-D{D}"] = (usual, msda_case(four[1:], 3, D, Q=333, B=2, H=3))
    return cases


def run_msda() -> dict[str, Any]:
    from hybridzoo.ops.ms_deform_attn import triton as launch
    from hybridzoo.ops.ms_deform_attn.custom_op import ms_deform_attn_op

    by_name = {b.name: b for b in get_op("ms_deform_attn").backends}
    found = {}
    for name, (tuning, example) in list(msda_cases().items())[SHARD::SHARDS]:
        launch.TUNING = launch.Tuning(**tuning)
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
    launch.TUNING = launch.Tuning()
    call = msda_case([(4, 3), (1, 2)], 2, 8, H=2).call
    sliced = {k: torch.stack([v, v], -1)[..., 0] if k != "shapes" else v for k, v in call.items()}
    assert not sliced["value"].is_contiguous()
    found["strided"] = {"out.0": relative_error(by_name["triton"].run(**sliced), by_name["torch"].run(**call))}
    lost = {**call, "locations": call["locations"].clone()}
    lost["locations"][0, 1, 0, 0, 0, 0] = float("nan")
    out = by_name["triton"].run(**lost).isnan()
    found["nan"] = {"not where it belongs": float(not out[0, 1, :8].all() or bool(out.sum() != 8))}
    torch.use_deterministic_algorithms(False)
    leaves = [call[k].clone().requires_grad_() for k in ("value", "locations", "weights")]
    checked = torch.library.opcheck(ms_deform_attn_op, (leaves[0], [4, 3, 1, 2], *leaves[1:]))
    found["opcheck"] = {name: float(verdict != "SUCCESS") for name, verdict in checked.items()}
    return found


def delta_case(
    B: int,
    T: int,
    H: int,
    K: int,
    V: int,
    dtype: torch.dtype = torch.float32,
    cu: tuple[int, ...] | None = None,
    state: bool = True,
    alike: float = 0.0,
) -> Example:
    """`alike` moves all keys towards one, which makes the triangular systems hard."""

    def unit(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=-1)

    keys = unit((1 - alike) * unit(torch.randn(B, T, H, K)) + alike * unit(torch.randn(K)))
    call = {
        "q": torch.randn(B, T, H, K).to(dtype),
        "k": keys.to(dtype),
        "v": torch.randn(B, T, H, V).to(dtype),
        "beta": (2 * torch.rand(B, T, H)).to(dtype),
        "scale": 0.4,
        "initial_state": torch.randn(len(cu) - 1 if cu else B, H, K, V) if state else None,
        "cu_seqlens": torch.tensor(cu) if cu else None,
    }
    return _example(call)


def run_delta() -> dict[str, Any]:
    from hybridzoo.ops.delta_rule.custom_ops import delta_rule_triton_op

    cases = {
        "T1": delta_case(1, 1, 1, 4, 3),
        "T64": delta_case(1, 64, 1, 16, 16, state=False),
        "T130-B2-H2": delta_case(2, 130, 2, 20, 36),
        "K80-V72": delta_case(1, 70, 1, 80, 72),
        "alike": delta_case(1, 64, 1, 8, 8, alike=0.95),
        "empty-segments": delta_case(1, 140, 1, 8, 8, cu=(0, 0, 3, 3, 70, 139, 140, 140)),
        "fp16": delta_case(1, 70, 2, 16, 16, torch.float16),  # the interpreter has no matrix products of bf16
    }
    if DEVICE == "cuda":
        cases["real"] = delta_case(2, 1000, 4, 128, 128)
        cases["real-alike"] = delta_case(2, 500, 4, 128, 128, alike=0.9)
        cases["real-bf16"] = delta_case(2, 1000, 4, 128, 128, torch.bfloat16)
        cases["real-K256-bf16"] = delta_case(1, 700, 2, 256, 256, torch.bfloat16)
        cases["real-K256"] = delta_case(1, 200, 2, 256, 256)
        cases["real-K64-fp16"] = delta_case(3, 333, 2, 64, 128, torch.float16)
        cases["real-packed"] = delta_case(1, 3000, 2, 128, 128, cu=(0, 5, 5, 1000, 1001, 3000))
    by_name = {b.name: b for b in get_op("delta_rule").backends}
    found = {}
    for name, example in list(cases.items())[SHARD::SHARDS]:
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
        if DEVICE == "cuda":
            again = run_example(by_name["triton"], example)
            found[name]["not deterministic"] = float(any(not torch.equal(again[k], got[k]) for k in got))
    torch.use_deterministic_algorithms(False)
    call = delta_case(1, 66, 1, 8, 8).call
    leaves = [call[n].clone().requires_grad_() for n in ("q", "k", "v", "beta")]
    state = call["initial_state"].clone().requires_grad_()
    checked = torch.library.opcheck(delta_rule_triton_op, (*leaves, 0.4, state, None, True))
    found["opcheck"] = {name: float(verdict != "SUCCESS") for name, verdict in checked.items()}
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
    return _example(call)


def run_scan_2d() -> dict[str, Any]:
    from hybridzoo.ops.selective_scan import triton as launch
    from hybridzoo.ops.selective_scan_2d.custom_ops import scan_2d_op

    chunked = {"chunk_training": 4, "chunk_inference": 4, "enough_per_sm": 10**6}
    walked = {"chunk_training": 4, "chunk_inference": 4, "enough_per_sm": 0}
    cases: dict[str, tuple[dict[str, Any], Example]] = {
        "hilbert-8": (chunked, scan_2d_case("hilbert", 3, 4, 8, 2, 5, 2)),
        "hilbert-8-walked": (walked, scan_2d_case("hilbert", 3, 4, 8, 2, 5, 2)),
        "sweep-2": (chunked, scan_2d_case("sweep", 3, 3, 2, 1, 70, 1)),
        "zigzag-4": (walked, scan_2d_case("zigzag", 1, 5, 4, 1, 3, 3)),
        "bf16": (chunked, scan_2d_case("hilbert", 3, 4, 4, 1, 4, 2, torch.bfloat16)),
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


SUITES = {
    "selective_scan": run_scan,
    "causal_conv1d": run_conv,
    "ms_deform_attn": run_msda,
    "delta_rule": run_delta,
    "selective_scan_2d": run_scan_2d,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    _poison()
    print(json.dumps(SUITES[OP]()))
