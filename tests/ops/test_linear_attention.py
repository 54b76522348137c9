"""`linear_attention` against the full matrix of weights, Lightning Attention's numbers, and itself in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error
from hybridzoo.ops.dispatch import get_op
from hybridzoo.ops.linear_attention import linear_attention

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "ops"


def by_matrix(q, k, v, decay=None, causal=True, normalize=False, scale=1.0, eps=1e-10, initial_state=None):
    """softmax-free attention with its (T, T) weights, and the state as a sum over all positions."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1) if normalize else v
    at = torch.arange(q.shape[2], dtype=q.dtype)
    lag = at[:, None] - at
    rate = torch.zeros(q.shape[1], dtype=q.dtype) if decay is None else decay
    aged = torch.exp(-rate.view(-1, 1, 1) * lag.clamp(min=0))
    weights = (q * scale) @ k.mT * (aged * (lag >= 0) if causal else 1.0)
    out = weights @ v
    last = q.shape[2] - 1
    final = (k * torch.exp(-rate.view(-1, 1, 1) * (last - at)[:, None])).mT @ v
    if initial_state is not None:
        out = out + torch.exp(-rate.view(-1, 1, 1) * (at + 1)[:, None]) * ((q * scale) @ initial_state)
        final = final + torch.exp(-rate.view(-1, 1, 1) * (last + 1)) * initial_state
    if normalize:
        out = out[..., :-1] / (out[..., -1:] + eps)
    return out.transpose(1, 2), final


def inputs(B=2, T=37, H=3, K=4, V=5, dtype=torch.float64):
    return [torch.rand(B, T, H, n, dtype=dtype) for n in (K, K, V)]


@pytest.mark.parametrize("T", [1, 5, 63, 64, 65, 130])
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_the_matrix_in_outputs_and_gradients(T, decayed, normalize):
    tensors = {
        **dict(zip("qkv", inputs(T=T))),
        "initial_state": torch.rand(2, 3, 4, 5 + normalize, dtype=torch.float64),
        **({"decay": torch.tensor([0.0, 0.3, 9.0], dtype=torch.float64)} if decayed else {}),
    }
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    got = linear_attention(**leaves, normalize=normalize, scale=0.7, return_final_state=True)
    want = by_matrix(**leaves, normalize=normalize, scale=0.7)
    weights = [torch.randn_like(x) for x in want]
    got_grads = torch.autograd.grad(got, list(leaves.values()), weights)
    want_grads = torch.autograd.grad(want, list(leaves.values()), weights)
    for g, w in zip((*got, *got_grads), (*want, *want_grads)):
        assert relative_error(g, w) < 1e-10


@pytest.mark.parametrize("normalize", [False, True])
def test_non_causal(normalize):
    q, k, v = inputs()
    got = linear_attention(q, k, v, causal=False, normalize=normalize)
    torch.testing.assert_close(got, by_matrix(q, k, v, causal=False, normalize=normalize)[0])


@pytest.mark.parametrize("which", ["decay", "nodecay"])
def test_lightning_attentions_own_numbers(which):
    x = load_file(FIXTURES / f"linear_attention_{which}.safetensors")
    q, k, v = (x[f"in.{n}"].transpose(1, 2).contiguous().requires_grad_() for n in "qkv")
    out = linear_attention(q, k, v, decay=x.get("in.slope"))
    torch.testing.assert_close(out.transpose(1, 2), x["out.o"], rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(out, (q, k, v), x["in.dout"].transpose(1, 2))
    for grad, name in zip(grads, "qkv"):
        torch.testing.assert_close(grad.transpose(1, 2), x[f"out.d{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [1, 64, 70])
def test_split_and_carry_equals_one_call(cut):
    q, k, v = inputs(T=100)
    options = {"decay": torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64), "normalize": True}
    whole, last = linear_attention(q, k, v, **options, return_final_state=True)
    state, outs = None, []
    for part in (slice(0, cut), slice(cut, 100)):
        out, state = linear_attention(
            q[:, part], k[:, part], v[:, part], **options, initial_state=state, return_final_state=True
        )
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole)
    torch.testing.assert_close(state, last)


def test_sixteen_bit_inputs_are_summed_in_fp32():
    q, k, v = (x.bfloat16() for x in inputs(T=500))
    got = linear_attention(q, k, v, normalize=True)
    assert got.dtype == torch.bfloat16
    want, _ = by_matrix(q.double(), k.double(), v.double(), normalize=True)
    assert relative_error(got, want) < 4e-3


def test_traces():
    q, k, v = inputs(T=70)

    def f(q):
        return linear_attention(q, k, v, normalize=True)

    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(q), f(q))


def test_exports_to_plain_operators():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return linear_attention(q, k, v, normalize=True, decay=torch.tensor([0.0, 0.1, 1.0], dtype=q.dtype))

    x = tuple(inputs(T=70))
    program = torch.export.export(Layer(), x)
    assert not any("hybridzoo" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*x), Layer()(*x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": torch.zeros(2, 37, 3, 5)}, "q and k must be (B, T, H, K)"),
        ({"decay": torch.zeros(2)}, "decay must be (3,), it is (2,)"),
        ({"initial_state": torch.zeros(2, 3, 4, 5), "normalize": True}, "initial_state must be (2, 3, 4, 6)"),
        ({"causal": False, "return_final_state": True}, "causal=True only"),
    ],
)
def test_bad_inputs_are_named(change, words):
    with pytest.raises(InputError) as caught:
        linear_attention(**{**dict(zip("qkv", inputs())), **change})
    assert words in str(caught.value)


def test_gradcheck():
    q, k, v = (x.requires_grad_() for x in inputs(B=1, T=5, H=2, K=2, V=2))
    decay = torch.tensor([0.1, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v, decay: linear_attention(q, k, v, decay=decay, normalize=True), (q, k, v, decay)
    )


@pytest.mark.parametrize("decay", [0.0, 1e-6, 50.0, 1e4])
def test_extreme_decay(decay):
    q, k, v = inputs(T=130)
    rate = torch.full((3,), decay, dtype=torch.float64)
    got = linear_attention(q, k, v, decay=rate, return_final_state=True)
    want = by_matrix(q, k, v, rate)
    for g, w in zip(got, want):
        assert relative_error(g, w) < 1e-10


def test_slices_are_read_as_they_lie():
    wide = torch.rand(2, 37, 3, 13, dtype=torch.float64)
    q, k, v = wide[..., :4], wide[..., 4:8], wide[..., 8:]
    assert not q.is_contiguous()
    torch.testing.assert_close(linear_attention(q, k, v), by_matrix(q, k, v)[0])


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_gradients_that_are_small_differences_keep_their_digits(offset):
    """Normalised and not causal, the mean of v cancels in the gradients of q and k: fp32 against fp64."""
    torch.manual_seed(0)
    q, k, v = (x.float() for x in inputs(T=300, K=8, V=12))
    leaves = [x.requires_grad_() for x in (q, k, v + offset)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    got, want = (linear_attention(*x, causal=False, normalize=True, backend="torch") for x in (leaves, wide))
    weight = torch.rand_like(want)
    grads = torch.autograd.grad(got, leaves, weight.float()), torch.autograd.grad(want, wide, weight)
    assert relative_error(got, want) < 1e-6
    assert all(relative_error(g, w) < 2e-6 for g, w in zip(*grads))


CASES = ("T1", "T64", "T130-B2-H2", "spans", "decay", "decay-spans", "normalised", "normalised-decay-state")
MORE = ("non-causal", "non-causal-normalised", "K80-V72", "fp16", "decay-fp16", "normalised-fp16", "opcheck")
POSITIVE = ("positive-bf16", "positive-decay-bf16", "positive-non-causal-bf16", "positive-eps")


@pytest.mark.parametrize("case", CASES + MORE + POSITIVE)
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and gradients, memory poisoned beforehand, in Triton's interpreter; and `torch.library.opcheck`."""
    errors = kernel_errors("linear_attention")[case]
    if case != "opcheck":
        assert {"out.0", "grad.q", "grad.k", "grad.v"} <= set(errors)
    if case in ("T64", "T130-B2-H2", "spans", "decay", "normalised-decay-state", "positive-bf16"):
        assert {"out.1", "grad.initial_state"} <= set(errors)
    assert ("grad.decay" in errors) == ("decay" in case)
    limit = 1.5e-2 if case.endswith("bf16") else 4e-3 if case.endswith("fp16") else 5e-6
    assert {k: e for k, e in errors.items() if not e <= limit} == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(1, 4, 1, 8).half()}, "in one dtype"),
        ({n: torch.zeros(1, 4, 1, 8).double() for n in "qkv"}, "fp32 at most"),
        ({n: torch.zeros(1, 4, 1, 130) for n in "qkv"}, "128 key channels"),
        ({n: torch.zeros(1, 4, 1, 257).half() for n in "qkv"}, "256 key channels"),
    ],
)
def test_calls_that_the_kernels_refuse(change, words):
    triton = get_op("linear_attention").backends[0]
    call = {**dict.fromkeys("qkv", torch.zeros(1, 4, 1, 8)), "decay": None}
    assert triton.name == "triton"
    assert triton.supports(call) is None
    assert words in str(triton.supports({**call, **change}))
