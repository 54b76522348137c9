"""`selective_scan`: the definition against autograd through a plain loop, Mamba's own numbers, and our kernels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hybridzoo.errors import BackendError, InputError
from hybridzoo.ops._selftest import relative_error, run_example
from hybridzoo.ops.dispatch import Example, get_op
from hybridzoo.ops.selective_scan import custom_ops, reference, selective_scan, selective_scan_step

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "ops"


def plain_loop(u, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, seq_idx, cu_seqlens, **_):
    """The recurrence as it is written in the docstring, one step and one segment at a time."""
    repeats = u.shape[2] // B.shape[2]
    B, C = (x.repeat_interleave(repeats, 2) for x in (B, C))
    delta = dt if dt_bias is None else dt + dt_bias
    delta = F.softplus(delta) if dt_softplus else delta
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    rows = [(b, 0, u.shape[1]) for b in range(u.shape[0])] if bounds is None else [(0, *p) for p in pairwise(bounds)]
    outs, finals = [], []
    for s, (b, lo, hi) in enumerate(rows):
        h = torch.zeros_like(A) if initial_state is None else initial_state[s]
        ys = []
        for t in range(lo, hi):
            if seq_idx is not None and t > lo and seq_idx[b, t] != seq_idx[b, t - 1]:
                h = torch.zeros_like(A)
            h = torch.exp(delta[b, t, :, None] * A) * h + (delta[b, t] * u[b, t])[:, None] * B[b, t]
            ys.append((h * C[b, t]).sum(-1))
        outs.extend(ys)
        finals.append(h)
    y = torch.stack(outs).view(u.shape)
    y = y if D is None else y + D * u
    return (y if z is None else y * F.silu(z)), torch.stack(finals)


def make(B, L, D, N, G=1, dtype=torch.float64, full=True, cu=None, resets=False, scale=1.0, state=True) -> Example:
    def rand(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    call = {
        "u": rand(B, L, D).to(dtype),
        "dt": (rand(B, L, D) * scale).to(dtype),
        "A": -rand(D, N).exp(),
        "B": rand(B, L, G, N).to(dtype),
        "C": rand(B, L, G, N).to(dtype),
        "D": rand(D) if full else None,
        "z": rand(B, L, D).to(dtype) if full else None,
        "dt_bias": rand(D) if full else None,
        "dt_softplus": full,
        "initial_state": rand(len(cu) - 1 if cu else B, D, N) if state else None,
        "return_final_state": True,
        "seq_idx": (torch.arange(L) // 3).expand(B, L) if resets else None,
        "cu_seqlens": torch.tensor(cu) if cu else None,
    }
    if not full:
        call["dt"] = call["dt"].abs()
    return Example("", call, tuple(k for k, v in call.items() if isinstance(v, torch.Tensor) and v.is_floating_point()))


class _Loop:
    run = staticmethod(plain_loop)


TORCH = next(b for b in get_op("selective_scan").backends if b.name == "torch")

CASES = {
    "B1-L1-D1-N1": {"B": 1, "L": 1, "D": 1, "N": 1},
    "B2-L7-D6-N4-G3": {"B": 2, "L": 7, "D": 6, "N": 4, "G": 3},
    "B1-L31-D5-N16": {"B": 1, "L": 31, "D": 5, "N": 16},
    "B2-L33-D4-N64": {"B": 2, "L": 33, "D": 4, "N": 64},
    "B3-L10-plain": {"B": 3, "L": 10, "D": 4, "N": 3, "full": False, "state": False},
    "B2-L11-seq_idx": {"B": 2, "L": 11, "D": 4, "N": 3, "resets": True},
    "packed-empty-segments": {"B": 1, "L": 12, "D": 4, "N": 3, "cu": (0, 0, 5, 5, 11, 12, 12)},
    "packed-no-state": {"B": 1, "L": 9, "D": 4, "N": 3, "G": 2, "cu": (0, 4, 9), "state": False},
    "extreme-dt": {"B": 1, "L": 9, "D": 4, "N": 3, "scale": 60.0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("piece", [4, 64])
def test_reference_equals_the_loop(case, piece, monkeypatch):
    monkeypatch.setattr(reference, "piece_length", lambda u, n: piece)
    example = make(**CASES[case])
    want = run_example(_Loop, example)
    got = run_example(TORCH, example)
    assert want.keys() == got.keys()
    for key in want:
        assert relative_error(got[key], want[key]) < 1e-12, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reference_rounds_once(dtype):
    """16-bit inputs are widened, so outputs and gradients are as close as their own rounding allows."""
    example = make(2, 40, 6, 8, dtype=dtype)
    example = Example(
        "",
        {k: v.float() if torch.is_tensor(v) and v.dtype == torch.float64 else v for k, v in example.call.items()},
        example.differentiable,
    )
    want = run_example(TORCH, example, torch.float64)
    got = run_example(TORCH, example)
    assert got["out.0"].dtype == dtype
    assert got["out.1"].dtype == torch.float32
    assert got["grad.u"].dtype == dtype
    assert got["grad.A"].dtype == torch.float32
    limit = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    for key in want:
        assert relative_error(got[key], want[key]) < 2 * limit, key


@pytest.mark.parametrize("cu", [None, (0, 2, 2, 5)])
def test_gradcheck(cu, monkeypatch):
    monkeypatch.setattr(reference, "piece_length", lambda u, n: 2)
    call = make(1, 5, 2, 2, cu=cu).call
    names = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")

    def f(*tensors):
        return selective_scan(**{**call, **dict(zip(names, tensors))}, backend="torch")

    assert torch.autograd.gradcheck(f, [call[n].requires_grad_() for n in names])


def test_mambas_own_numbers():
    x = load_file(FIXTURES / "vim_selective_scan_ref.safetensors")
    first = {k[3:]: v for k, v in x.items() if k.startswith("in.")}
    u, dt, z = (first[k].transpose(1, 2) for k in ("u", "delta", "z"))
    B, C = (first[k].transpose(1, 2) for k in ("B", "C"))
    y, final = selective_scan(
        u, dt, first["A"], B, C, first["D"], z, first["delta_bias"], dt_softplus=True, return_final_state=True
    )
    plain = selective_scan(u, dt, first["A"], B, C)
    torch.testing.assert_close(y.transpose(1, 2), x["out.gated"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(final, x["out.last_state"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.transpose(1, 2), x["out.plain"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_split_and_carry_equals_one_call(cut):
    call = make(2, 13, 4, 3).call
    whole, last = selective_scan(**call)

    def part(lo, hi, state):
        cutting = {k: v[:, lo:hi] for k, v in call.items() if k in ("u", "dt", "B", "C", "z")}
        return selective_scan(**{**call, **cutting, "initial_state": state})

    y1, middle = part(0, cut, call["initial_state"])
    y2, end = part(cut, 13, middle)
    torch.testing.assert_close(torch.cat([y1, y2], 1), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_steps_equal_the_scan(inplace):
    call = make(2, 6, 4, 3, G=2).call
    want, last = selective_scan(**call)
    state = call["initial_state"].clone()
    address = state.data_ptr()
    for t in range(6):
        u, dt, B, C, z = (call[k][:, t] for k in ("u", "dt", "B", "C", "z"))
        y, state = selective_scan_step(
            state, u, dt, call["A"], B, C, call["D"], z, call["dt_bias"], dt_softplus=True, inplace=inplace
        )
        torch.testing.assert_close(y, want[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)
    assert (state.data_ptr() == address) == inplace


def test_slices_of_a_projection_are_read_in_place():
    wide = torch.randn(2, 9, 3 * 4)
    u, dt, z = wide.chunk(3, -1)
    bc = torch.randn(2, 9, 6)
    A = -torch.rand(4, 3)
    y = selective_scan(u, dt, A, bc[..., :3], bc[..., 3:], z=z, dt_softplus=True)
    dense = selective_scan(
        *(x.contiguous() for x in (u, dt)),
        A,
        *(x.contiguous() for x in bc.chunk(2, -1)),
        z=z.contiguous(),
        dt_softplus=True,
    )
    torch.testing.assert_close(y, dense, rtol=1e-6, atol=1e-6)


def test_memory_stays_far_below_the_full_state_tensor():
    """Training keeps one state in 32 or more steps, not (B, L, D, N)."""
    u = torch.randn(1, 2048, 32)
    call = make(1, 2048, 32, 16, dtype=torch.float32).call
    kept = custom_ops._kept_torch(u, call["A"], None)
    assert torch.Size(kept).numel() * 32 <= 2048 * 32 * 16
    saved = []
    leaf = u.requires_grad_()
    floats = {k: v.float() if torch.is_tensor(v) else v for k, v in call.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        selective_scan(**{**floats, "u": leaf})
    assert max(saved) <= 2048 * 32 * 2


@pytest.mark.parametrize("name", ["selective_scan_torch", "selective_scan_torch_backward"])
@pytest.mark.parametrize("cu", [None, (0, 2, 2, 5)])
def test_opcheck(name, cu):
    call = make(1, 5, 4, 2, cu=cu).call
    inputs = [call[k] for k in ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    forward = torch.ops.hybridzoo.selective_scan_torch.default
    tail = (None, call["cu_seqlens"])
    if name.endswith("backward"):
        y, final, kept = forward(*inputs, True, call["initial_state"], *tail, True)
        args = (torch.ones_like(y), torch.ones_like(final), *inputs, True, *tail, kept)
    else:
        leaves = [x.clone().requires_grad_() for x in inputs]
        args = (*leaves, True, call["initial_state"].clone().requires_grad_(), *tail, True)
    torch.library.opcheck(getattr(torch.ops.hybridzoo, name).default, args)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    call = make(2, 9, 4, 3, dtype=torch.float32).call
    u = call["u"].requires_grad_()

    def f(u):
        y, final = selective_scan(**{**call, "u": u})
        return (y * y).sum() + final.float().sum()

    want = torch.autograd.grad(f(u), u)[0]
    got = torch.autograd.grad(torch.compile(f, fullgraph=True, backend=backend)(u), u)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("resets", [False, True])
def test_exports_to_plain_operators(resets):
    call = make(2, 9, 4, 3, G=2, resets=resets).call

    class Layer(torch.nn.Module):
        def forward(self, u, dt):
            return selective_scan(**{**call, "u": u, "dt": dt})

    program = torch.export.export(Layer(), (call["u"], call["dt"]))
    assert not any("hybridzoo" in str(node.target) for node in program.graph.nodes)
    want = selective_scan(**call)
    for got, expected in zip(program.module()(call["u"], call["dt"]), want):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_autocast_does_not_touch_the_state():
    call = make(1, 9, 4, 3, dtype=torch.float32).call
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = selective_scan(**call)
    torch.testing.assert_close(y, selective_scan(**call)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u": torch.zeros(2, 0, 4)}, "no empty dimension"),
        ({"A": torch.zeros(5, 3)}, "A must be real (4, N)"),
        ({"B": torch.zeros(2, 9, 3, 3)}, "G a divisor of 4"),
        ({"C": torch.zeros(2, 9, 2, 3)}, "differ in shape"),
        ({"D": torch.zeros(3)}, "D must be (4,), it is (3,)"),
        ({"initial_state": torch.zeros(1, 4, 3)}, "initial_state must be (2, 4, 3)"),
        ({"cu_seqlens": torch.tensor([0, 9])}, "with a batch of 2"),
    ],
)
def test_bad_inputs_are_named(change, words):
    call = make(2, 9, 4, 3).call
    with pytest.raises(InputError) as caught:
        selective_scan(**{**call, **change})
    assert words in str(caught.value)


def test_segment_bounds_are_checked():
    call = make(1, 9, 4, 3, cu=(0, 4, 8)).call
    with pytest.raises(InputError, match="must rise from 0 to the length 9"):
        selective_scan(**call)


def test_kernels_asked_for_on_the_cpu_say_why():
    with pytest.raises(BackendError, match="it runs on cuda, the inputs are on cpu"):
        selective_scan(**make(1, 3, 2, 2).call, backend="triton")


@pytest.mark.parametrize(
    "case",
    [
        *("chunked-L1", "chunked-L4", "chunked-L9", "walked-L5"),
        *(
            f"{way}-{what}"
            for way in ("chunked", "walked")
            for what in ("B2-groups-N3", "plain", "seq_idx", "empty-segments", "extreme-dt")
        ),
        *("tiny-dt", "N64", "strided", "bf16", "two-warp-tile"),
    ],
)
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and every gradient, memory poisoned beforehand, in Triton's interpreter."""
    limit = 1.5e-2 if case == "bf16" else 5e-6
    errors = kernel_errors("selective_scan")[case]
    assert {"out.0", "inference", "grad.A"} <= errors.keys()
    assert {k: e for k, e in errors.items() if not e <= limit} == {}


def test_short_sequences_are_cut_into_more_chunks(monkeypatch):
    """So that a device of 132 multiprocessors has work; a training keeps the states of its own chunks."""
    triton = pytest.importorskip("triton") and pytest.importorskip("hybridzoo.ops.selective_scan.triton")
    monkeypatch.setattr(triton, "_multiprocessors", lambda device: 132)

    def chunk(length, groups=1, keep=False, batch=2):
        u = torch.empty(batch, length, 1280 * groups, device="meta")
        plan = triton.make_plan(u, 16, groups, batch, keep, backward=False)
        return None if plan.one_pass else plan.chunk

    assert [chunk(length) for length in (200, 257, 1025, 4097, 16385)] == [None, 32, 32, 128, 128]
    assert chunk(1025, groups=2) == 64
    assert chunk(257, keep=True) == 64
