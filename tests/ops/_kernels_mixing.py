"""Suites of `_kernels_against_reference.py`: deformable attention, delta rule, linear attention, long convolution."""

from __future__ import annotations

from typing import Any

import torch
from _kernels_common import DEVICE, SHARD, SHARDS, example_of

from hybridzoo.ops._selftest import relative_error, run_example
from hybridzoo.ops.dispatch import Example, get_op


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
    return example_of(call)


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
    if SHARD:  # the rest once is enough
        return found
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
    return example_of(call)


DELTA_VARIANTS: dict[str, dict[str, Any]] = {  # a name's second word -> other constants of the launches
    "again": {"keep": False},
}


def run_delta() -> dict[str, Any]:
    from hybridzoo.ops.delta_rule import triton as launches
    from hybridzoo.ops.delta_rule.custom_ops import delta_rule_triton_op

    cases = {
        "T1": delta_case(1, 1, 1, 4, 3),
        "T64": delta_case(1, 64, 1, 16, 16, state=False),
        "T130-B2-H2": delta_case(2, 130, 2, 20, 36),
        "K80-V72": delta_case(1, 70, 1, 80, 72),
        "alike": delta_case(1, 64, 1, 8, 8, alike=0.95),
        "empty-segments": delta_case(1, 140, 1, 8, 8, cu=(0, 0, 3, 3, 70, 139, 140, 140)),
        "fp16": delta_case(1, 70, 2, 16, 16, torch.float16),  # the interpreter has no matrix products of bf16
        "T64-V70": delta_case(1, 64, 1, 16, 70, state=False),
        "K140-V20": delta_case(1, 66, 1, 140, 20),
        "T130-B2-H2 again": delta_case(2, 130, 2, 20, 36),
        "empty-segments again": delta_case(1, 140, 1, 8, 8, cu=(0, 0, 3, 3, 70, 139, 140, 140)),
    }
    if DEVICE == "cuda":
        for variant in DELTA_VARIANTS:
            cases[f"real {variant} bf16"] = delta_case(2, 1000, 4, 128, 128, torch.bfloat16)
        cases["real"] = delta_case(2, 1000, 4, 128, 128)
        cases["real-alike"] = delta_case(2, 500, 4, 128, 128, alike=0.9)
        cases["real-bf16"] = delta_case(2, 1000, 4, 128, 128, torch.bfloat16)
        cases["real-K256-bf16"] = delta_case(1, 700, 2, 256, 256, torch.bfloat16)
        cases["real-K256"] = delta_case(1, 200, 2, 256, 256)
        cases["real-K64-fp16"] = delta_case(3, 333, 2, 64, 128, torch.float16)
        cases["real-packed"] = delta_case(1, 3000, 2, 128, 128, cu=(0, 5, 5, 1000, 1001, 3000))
    by_name = {b.name: b for b in get_op("delta_rule").backends}
    found = {}
    usual = launches.TUNING
    for name, example in list(cases.items())[SHARD::SHARDS]:
        variant = DELTA_VARIANTS.get(name.split()[1], {}) if " " in name else {}
        launches.TUNING = usual._replace(**variant)
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
        if DEVICE == "cuda":
            again = run_example(by_name["triton"], example)
            found[name]["not deterministic"] = float(any(not torch.equal(again[k], got[k]) for k in got))
    launches.TUNING = usual
    if SHARD:  # the rest once is enough
        return found
    torch.use_deterministic_algorithms(False)
    call = delta_case(1, 66, 1, 8, 8).call
    leaves = [call[n].clone().requires_grad_() for n in ("q", "k", "v", "beta")]
    state = call["initial_state"].clone().requires_grad_()
    checked = torch.library.opcheck(delta_rule_triton_op, (*leaves, 0.4, state, None, True))
    found["opcheck"] = {name: float(verdict != "SUCCESS") for name, verdict in checked.items()}
    return found


def attention_case(
    B: int,
    T: int,
    H: int,
    K: int,
    V: int,
    dtype: torch.dtype = torch.float32,
    normalize: bool = False,
    causal: bool = True,
    decay: bool = False,
    state: bool = False,
    positive: bool = False,
    eps: float = 1e-6,
) -> Example:
    call = {
        "q": torch.rand(B, T, H, K).to(dtype),
        "k": torch.rand(B, T, H, K).to(dtype),
        "v": (torch.rand if positive else torch.randn)(B, T, H, V).to(dtype),
        "decay": torch.linspace(0.0, 3.0, H) if decay else None,
        "causal": causal,
        "normalize": normalize,
        "scale": 0.4,
        "eps": eps,
        "initial_state": torch.rand(B, H, K, V + normalize) if state else None,
    }
    return example_of(call)


def run_attention() -> dict[str, Any]:
    from hybridzoo.ops.linear_attention import _kernels
    from hybridzoo.ops.linear_attention import triton as launch
    from hybridzoo.ops.linear_attention.custom_ops import linear_attention_triton_op

    if DEVICE == "cpu":  # the interpreter has no products of bf16: what has been rounded is multiplied in fp32
        import _kernels_widened

        _kernels.dot = _kernels_widened.dot

    cases = {
        "T1": attention_case(1, 1, 1, 4, 3),
        "T64": attention_case(1, 64, 1, 16, 16, state=True),
        "T130-B2-H2": attention_case(2, 130, 2, 20, 36, state=True),
        "spans": attention_case(1, 300, 1, 8, 70, state=True),
        "decay": attention_case(1, 300, 2, 8, 5, decay=True, state=True),
        "decay-spans": attention_case(2, 600, 3, 8, 5, decay=True),
        "normalised": attention_case(2, 130, 1, 8, 5, normalize=True),
        "normalised-decay-state": attention_case(1, 270, 2, 8, 5, normalize=True, decay=True, state=True),
        "non-causal": attention_case(1, 290, 1, 8, 5, causal=False),
        "non-causal-normalised": attention_case(2, 65, 1, 8, 5, causal=False, normalize=True),
        "K80-V72": attention_case(1, 70, 1, 80, 72),
        "fp16": attention_case(1, 70, 2, 16, 16, torch.float16),  # the interpreter has no matrix products of bf16
        "decay-fp16": attention_case(1, 130, 2, 16, 16, torch.float16, decay=True),
        "normalised-fp16": attention_case(1, 70, 2, 16, 16, torch.float16, normalize=True),
        # q, k and v positive: the gradient of q is small beside the sums that it is a difference of
        "positive-bf16": attention_case(1, 300, 2, 8, 12, torch.bfloat16, True, state=True, positive=True),
        "positive-decay-bf16": attention_case(1, 300, 2, 8, 12, torch.bfloat16, True, decay=True, positive=True),
        "positive-non-causal-bf16": attention_case(1, 600, 2, 8, 12, torch.bfloat16, True, False, positive=True),
        "positive-eps": attention_case(1, 70, 1, 8, 12, normalize=True, positive=True, eps=3.0),
    }
    if DEVICE == "cuda":
        cases["real"] = attention_case(2, 1000, 4, 64, 256, state=True)
        cases["real-bf16"] = attention_case(2, 1000, 4, 128, 128, torch.bfloat16, state=True)
        cases["real-decay-bf16"] = attention_case(2, 1000, 4, 64, 128, torch.bfloat16, decay=True)
        cases["real-decay"] = attention_case(2, 1000, 4, 64, 128, decay=True, state=True)
        cases["real-normalised-bf16"] = attention_case(2, 3000, 1, 64, 256, torch.bfloat16, normalize=True)
        cases["real-non-causal-bf16"] = attention_case(2, 3000, 1, 64, 256, torch.bfloat16, True, False)
        cases["real-K256-bf16"] = attention_case(1, 700, 2, 256, 256, torch.bfloat16)
        cases["real-positive-decay-bf16"] = attention_case(
            1, 3000, 2, 64, 256, torch.bfloat16, True, decay=True, state=True, positive=True
        )
        cases["real-positive-K128-bf16"] = attention_case(1, 700, 2, 128, 128, torch.bfloat16, True, positive=True)
        cases["real-positive-K256-bf16"] = attention_case(1, 700, 2, 256, 128, torch.bfloat16, True, positive=True)
        cases["real-K128"] = attention_case(1, 300, 2, 128, 96, normalize=True)
        cases["real-K64-fp16"] = attention_case(3, 333, 2, 64, 128, torch.float16)
    by_name = {b.name: b for b in get_op("linear_attention").backends}
    found = {}
    for name, example in list(cases.items())[SHARD::SHARDS]:
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
        if DEVICE == "cuda":
            again = run_example(by_name["triton"], example)
            found[name]["not deterministic"] = float(any(not torch.equal(again[k], got[k]) for k in got))
    if SHARD:  # the rest once is enough
        return found
    torch.use_deterministic_algorithms(False)
    assert launch.TUNING.span == 256
    call = attention_case(1, 66, 1, 8, 8, normalize=True, state=True).call
    leaves = [call[n].clone().requires_grad_() for n in ("q", "k", "v")]
    leaves.append(torch.tensor([0.1], device=DEVICE, requires_grad=True))
    state = call["initial_state"].clone().requires_grad_()
    checked = torch.library.opcheck(linear_attention_triton_op, (*leaves, True, True, 0.4, 1e-6, state))
    found["opcheck"] = {name: float(verdict != "SUCCESS") for name, verdict in checked.items()}
    return found


def long_conv_case(
    B: int,
    L: int,
    D: int,
    taps: int,
    ahead: int = 0,
    dtype: torch.dtype = torch.float32,
    skip: bool = True,
    scale: float = 1.0,
) -> Example:
    call = {
        "x": (torch.randn(B, L, D) * scale).to(dtype),
        "kernel": torch.randn(D, taps),
        "reverse_kernel": torch.randn(D, ahead) if ahead else None,
        "skip": torch.randn(D) if skip else None,
    }
    return example_of(call)


def quiet(example: Example) -> Example:
    """The first half silent, the second one nearly so, but for a few positions."""
    x = example.call["x"]
    x[:, : x.shape[1] // 2] = 0
    x[:, x.shape[1] // 2 : -9] *= 1e-4
    return example


def run_long_conv() -> dict[str, Any]:
    """Lengths around one and several segments; small sides put many segments into short inputs."""
    from hybridzoo.ops.long_conv import triton as launch
    from hybridzoo.ops.long_conv.custom_ops import long_conv_triton_op

    usual: dict[str, Any] = {}
    small = {"sides": ((16, 16),), "warps": (4,), "warps_backward": (4,)}
    oblong = {"sides": ((16, 32),), "warps": (4,), "warps_backward": (4,), "programs": 1}
    cases: dict[str, tuple[dict[str, Any], Example]] = {
        "L1": (small, long_conv_case(1, 1, 2, 1)),
        "L2-both": (small, long_conv_case(2, 2, 3, 2, 1)),
        "L255": (small, long_conv_case(3, 255, 2, 200, skip=False)),
        "L256-both": (small, long_conv_case(2, 256, 3, 256, 255)),
        "L257": (small, long_conv_case(1, 257, 2, 257)),
        "L700-both": (small, long_conv_case(2, 700, 3, 700, 699)),
        "L1000-one-ahead": (small, long_conv_case(1, 1000, 3, 3, 999)),
        "oblong": (oblong, long_conv_case(3, 300, 65, 300, 10)),
        "oblong-segments": (oblong, long_conv_case(1, 1100, 2, 600)),
        "usual-300": (usual, long_conv_case(2, 300, 2, 300)),
        "usual-1500": (usual, long_conv_case(2, 1500, 2, 1500, 1499)),
        "usual-5000": (usual, long_conv_case(1, 5000, 2, 5000)),
        "bf16": (small, long_conv_case(2, 257, 16, 257, 100, torch.bfloat16)),
        "short-bf16": (usual, long_conv_case(1, 1, 2, 1, dtype=torch.bfloat16)),
        "tiny-bf16": (usual, long_conv_case(1, 1100, 2, 1100, dtype=torch.bfloat16, scale=1e-12)),
        "huge-bf16": ({"sides_half": ((64, 16),)}, long_conv_case(2, 1100, 2, 7, dtype=torch.bfloat16, scale=1e12)),
        "segments-fp16": ({"sides_half": ((64, 16),)}, long_conv_case(3, 2500, 2, 2500, 2499, torch.float16)),
        "causal-segments-fp16": ({"sides_half": ((64, 16),)}, long_conv_case(2, 4096, 2, 4000, dtype=torch.float16)),
        "few-taps-ahead-fp16": (
            {"sides_half": ((64, 16),)},
            long_conv_case(1, 2049, 2, 1500, 100, torch.float16, False),
        ),
        "apart-fp16": ({"sides_half": ((64, 16),), "together": 0}, long_conv_case(2, 2500, 2, 2500, 99, torch.float16)),
        "silence-bf16": ({"sides_half": ((64, 16),)}, quiet(long_conv_case(1, 3000, 2, 3000, dtype=torch.bfloat16))),
    }
    if DEVICE == "cuda":
        for L in (1, 100, 1024, 1025, 2048, 2049, 4096, 4097, 16384):
            cases[f"real-L{L}"] = (usual, long_conv_case(3, L, 66, L))
        cases["real-both"] = (usual, long_conv_case(5, 4096, 40, 4096, 4095))
        cases["real-both-bf16"] = (usual, long_conv_case(5, 9000, 40, 9000, 8999, torch.bfloat16))
        for L in (777, 1500, 4000, 8192):
            cases[f"real-L{L}-bf16"] = (usual, long_conv_case(3, L, 66, L, dtype=torch.bfloat16))
        cases["real-L65536-bf16"] = (usual, long_conv_case(1, 65536, 8, 65536, dtype=torch.bfloat16))
        cases["real-fp16"] = (usual, long_conv_case(3, 3000, 66, 100, dtype=torch.float16))
    by_name = {b.name: b for b in get_op("long_conv").backends}
    found = {}
    for name, (tuning, example) in list(cases.items())[SHARD::SHARDS]:
        launch.TUNING = launch.Tuning(**tuning)
        want = run_example(by_name["torch"], example, torch.float64)
        got = run_example(by_name["triton"], example)
        found[name] = {key: relative_error(got[key], want[key]) for key in want}
        if DEVICE == "cuda":
            again = run_example(by_name["triton"], example)
            found[name]["not deterministic"] = float(any(not torch.equal(again[k], got[k]) for k in got))
    launch.TUNING = launch.Tuning(**small)
    wide = torch.randn(2, 33, 12, device=DEVICE)
    part = {**long_conv_case(2, 33, 4, 33).call, "x": wide[..., 4:8]}
    found["strided"] = {"out.0": relative_error(by_name["triton"].run(**part), by_name["torch"].run(**part))}
    if SHARD:  # the rest once is enough
        return found
    torch.use_deterministic_algorithms(False)
    call = long_conv_case(1, 40, 2, 40, 39).call
    leaves = [call[n].clone().requires_grad_() for n in ("x", "kernel", "reverse_kernel", "skip")]
    checked = torch.library.opcheck(long_conv_triton_op, tuple(leaves))
    found["opcheck"] = {name: float(verdict != "SUCCESS") for name, verdict in checked.items()}
    return found
