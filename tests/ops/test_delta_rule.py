"""`delta_rule` against its two defining lines run position by position."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error
from hybridzoo.ops.delta_rule import delta_rule, delta_rule_step
from hybridzoo.ops.dispatch import get_op


def by_position(q, k, v, beta, scale, initial_state=None, cu_seqlens=None):
    rows = [(b, 0, q.shape[1]) for b in range(q.shape[0])]
    if cu_seqlens is not None:
        rows = [(0, lo, hi) for lo, hi in pairwise(cu_seqlens.tolist())]
    outs, finals = [], []
    for s, (b, lo, hi) in enumerate(rows):
        S = q.new_zeros(q.shape[2], q.shape[3], v.shape[3]) if initial_state is None else initial_state[s]
        for t in range(lo, hi):
            error = v[b, t] - torch.einsum("hkv,hk->hv", S, k[b, t])
            S = S + beta[b, t][:, None, None] * k[b, t][:, :, None] * error[:, None]
            outs.append(scale * torch.einsum("hkv,hk->hv", S, q[b, t]))
        finals.append(S)
    return torch.stack(outs).view(v.shape), torch.stack(finals)


def inputs(B=2, T=9, H=2, K=4, V=3, dtype=torch.float64):
    q, k = torch.randn(B, T, H, K, dtype=dtype), F.normalize(torch.randn(B, T, H, K, dtype=dtype), dim=-1)
    return {"q": q, "k": k, "v": torch.randn(B, T, H, V, dtype=dtype), "beta": 2 * torch.rand(B, T, H, dtype=dtype)}


@pytest.mark.parametrize(
    ("T", "cu"),
    [(1, None), (7, None), (63, None), (64, None), (65, None), (130, None), (75, (0, 0, 1, 66, 66, 75, 75))],
)
def test_equals_the_recurrence_in_outputs_and_gradients(T, cu):
    leaves = inputs(B=1 if cu else 2, T=T)
    leaves["initial_state"] = torch.randn(len(cu) - 1 if cu else 2, 2, 4, 3, dtype=torch.float64)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    rest = {"scale": 0.3, "cu_seqlens": torch.tensor(cu) if cu else None}
    got = delta_rule(**leaves, **rest, return_final_state=True)
    want = by_position(**leaves, **rest)
    weights = [torch.randn_like(x) for x in want]
    got_grads = torch.autograd.grad(got, list(leaves.values()), weights)
    want_grads = torch.autograd.grad(want, list(leaves.values()), weights)
    for g, w in zip((*got, *got_grads), (*want, *want_grads)):
        assert relative_error(g, w) < 1e-10


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_extreme_beta(beta):
    x = inputs(T=70)
    x["beta"] = torch.full_like(x["beta"], beta)
    assert relative_error(delta_rule(**x, scale=1.0), by_position(**x, scale=1.0)[0]) < 1e-10 or beta == 0.0
    if beta == 0.0:
        assert not delta_rule(**x).any()


def test_gradcheck():
    x = inputs(B=1, T=5, H=1, K=2, V=2)
    assert torch.autograd.gradcheck(lambda *t: delta_rule(*t), [v.requires_grad_() for v in x.values()])


@pytest.mark.parametrize("cut", [1, 64, 65])
def test_split_and_carry_equals_one_call(cut):
    x = inputs(T=100)
    whole, last = delta_rule(**x, return_final_state=True)
    state, outs = None, []
    for part in (slice(0, cut), slice(cut, 100)):
        out, state = delta_rule(**{n: t[:, part] for n, t in x.items()}, initial_state=state, return_final_state=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("inplace", [False, True])
def test_steps_equal_the_rule(inplace):
    x = inputs(T=6)
    want, last = delta_rule(**x, return_final_state=True)
    state = torch.zeros(2, 2, 4, 3, dtype=torch.float64)
    address = state.data_ptr()
    for t in range(6):
        out, state = delta_rule_step(state, **{n: v[:, t] for n, v in x.items()}, inplace=inplace)
        torch.testing.assert_close(out, want[:, t])
        assert (state.data_ptr() == address) == inplace
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_wide(dtype):
    x = {n: t.to(dtype) for n, t in inputs(T=200).items()}
    got = delta_rule(**x, scale=1.0)
    assert got.dtype == dtype
    want = by_position(**{n: t.double() for n, t in x.items()}, scale=1.0)[0]
    assert relative_error(got, want) < {torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]


def test_traces():
    x = inputs(T=70)

    def f(q):
        return delta_rule(**{**x, "q": q})

    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x["q"]), f(x["q"]))


def test_exports_to_plain_operators():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, beta):
            return delta_rule(q, k, v, beta)

    x = tuple(inputs(T=70).values())
    program = torch.export.export(Layer(), x)
    assert not any("hybridzoo" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*x), Layer()(*x))


def test_slices_are_read_as_they_lie():
    x = inputs(T=20)
    apart = {n: torch.stack([t, t], -1)[..., 0] for n, t in x.items()}
    assert not any(t.is_contiguous() for t in apart.values())
    torch.testing.assert_close(delta_rule(**apart), delta_rule(**x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.zeros(2, 9, 2, 5)}, "q and k must be (B, T, H, K)"),
        ({"beta": torch.zeros(2, 9)}, "beta must be (2, 9, 2), it is (2, 9)"),
        ({"initial_state": torch.zeros(1, 2, 4, 3)}, "initial_state must be (2, 2, 4, 3)"),
        ({"cu_seqlens": torch.tensor([0, 9])}, "with a batch of 2"),
    ],
)
def test_bad_inputs_are_named(change, words):
    with pytest.raises(InputError) as caught:
        delta_rule(**{**inputs(), **change})
    assert words in str(caught.value)


def test_segment_bounds_are_checked():
    with pytest.raises(InputError, match="must rise from 0 to the length 9"):
        delta_rule(**inputs(B=1), cu_seqlens=torch.tensor([0, 4, 8]))


CASES = ("T1", "T64", "T64-V70", "T130-B2-H2", "K80-V72", "K140-V20", "alike", "empty-segments", "fp16", "opcheck")
VARIANTS = ("T130-B2-H2 again", "empty-segments again")


@pytest.mark.parametrize("case", CASES + VARIANTS)
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and every gradient, memory poisoned beforehand, in Triton's interpreter; and `torch.library.opcheck`."""
    errors = kernel_errors("delta_rule")[case]
    if case != "opcheck":
        wanted = {"out.0", "out.1", "grad.q", "grad.k", "grad.v", "grad.beta", "grad.initial_state"}
        assert set(errors) == wanted - ({"grad.initial_state"} if case.startswith("T64") else set())
    limit = 4e-3 if case == "fp16" else 5e-6
    assert {k: e for k, e in errors.items() if not e <= limit} == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(1, 4, 1, 8).half()}, "in one dtype"),
        ({n: torch.zeros(1, 4, 1, 8).double() for n in "qkv"}, "fp32 at most"),
        ({n: torch.zeros(1, 4, 1, 300) for n in "qkv"}, "256 key channels"),
    ],
)
def test_calls_that_the_kernels_refuse(change, words):
    triton = get_op("delta_rule").backends[0]
    call = {**dict.fromkeys("qkv", torch.zeros(1, 4, 1, 8)), "beta": torch.zeros(1, 4, 1)}
    assert triton.name == "triton"
    assert triton.supports(call) is None
    assert words in str(triton.supports({**call, **change}))
