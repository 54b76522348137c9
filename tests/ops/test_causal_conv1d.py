"""`causal_conv1d`: the definition against a loop over positions, and our kernels against the definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error, run_example
from hybridzoo.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from hybridzoo.ops.dispatch import Example, get_op

TORCH = next(b for b in get_op("causal_conv1d").backends if b.name == "torch")


class _Loop:
    """Every segment on its own: state, inputs and zeros in one list, one weighted sum per position."""

    @staticmethod
    def run(x, weight, bias, activation, padding, initial_state, return_final_state, seq_idx, cu_seqlens):
        taps = weight.shape[1]
        left = taps - 1 if padding == "causal" else (taps - 1) // 2
        pieces = []  # (row, first, last, state or None)
        if cu_seqlens is not None:
            pieces = [
                (0, lo, hi, None if initial_state is None else initial_state[s])
                for s, (lo, hi) in enumerate(pairwise(cu_seqlens.tolist()))
            ]
        for b in range(x.shape[0] if cu_seqlens is None else 0):
            cuts = [] if seq_idx is None else [t for t in range(1, x.shape[1]) if seq_idx[b, t] != seq_idx[b, t - 1]]
            for lo, hi in pairwise([0, *cuts, x.shape[1]]):
                pieces.append((b, lo, hi, initial_state[b] if initial_state is not None and lo == 0 else None))
        y, finals = torch.zeros_like(x), []
        rows = []
        for b, lo, hi, state in pieces:
            state = x.new_zeros(taps - 1, x.shape[2]) if state is None else state
            seen = torch.cat([state[taps - 1 - left :], x[b, lo:hi], x.new_zeros(taps - 1 - left, x.shape[2])])
            for t in range(hi - lo):
                value = sum(weight[:, k] * seen[t + k] for k in range(taps))
                rows.append(((b, lo + t), value if bias is None else value + bias))
            if cu_seqlens is not None or hi == x.shape[1]:
                whole = torch.cat([state, x[b, lo:hi]])
                finals.append(whole[len(whole) - (taps - 1) :])
        index = torch.tensor([r[0] for r in rows])
        y = y.index_put((index[:, 0], index[:, 1]), torch.stack([r[1] for r in rows]))
        return (F.silu(y) if activation else y), torch.stack(finals) if return_final_state else None


def make(B, L, D, W, cu=None, resets=False, state=False, plain=False, padding="causal", dtype=torch.float64) -> Example:
    call = {
        "x": torch.randn(B, L, D, dtype=dtype),
        "weight": torch.randn(D, W, dtype=dtype),
        "bias": None if plain else torch.randn(D, dtype=dtype),
        "activation": None if plain else "silu",
        "padding": padding,
        "initial_state": torch.randn(len(cu) - 1 if cu else B, W - 1, D, dtype=dtype) if state else None,
        "return_final_state": state,
        "seq_idx": (torch.arange(L) // 3).expand(B, L) if resets else None,
        "cu_seqlens": torch.tensor(cu) if cu else None,
    }
    return Example("", call, tuple(k for k, v in call.items() if isinstance(v, torch.Tensor) and v.is_floating_point()))


CASES = {
    "L1-W4": {"B": 2, "L": 1, "D": 3, "W": 4},
    "L1-W4-state": {"B": 2, "L": 1, "D": 3, "W": 4, "state": True},
    "W1": {"B": 1, "L": 5, "D": 2, "W": 1, "state": True},
    "W9-longer-than-L": {"B": 1, "L": 5, "D": 2, "W": 9, "state": True},
    "plain": {"B": 2, "L": 7, "D": 3, "W": 3, "plain": True},
    "same-odd": {"B": 2, "L": 7, "D": 3, "W": 5, "padding": "same"},
    "same-even": {"B": 2, "L": 7, "D": 3, "W": 4, "padding": "same"},
    "same-longer-than-L": {"B": 1, "L": 2, "D": 3, "W": 7, "padding": "same"},
    "seq_idx": {"B": 2, "L": 10, "D": 3, "W": 4, "resets": True},
    "seq_idx-state": {"B": 2, "L": 10, "D": 3, "W": 4, "resets": True, "state": True},
    "one-sequence-seq_idx-state": {"B": 2, "L": 3, "D": 3, "W": 5, "resets": True, "state": True},
    "same-seq_idx": {"B": 2, "L": 10, "D": 3, "W": 3, "resets": True, "padding": "same"},
    "empty-segments": {"B": 1, "L": 11, "D": 3, "W": 4, "cu": (0, 0, 2, 2, 10, 11, 11), "state": True},
    "packed": {"B": 1, "L": 11, "D": 3, "W": 4, "cu": (0, 3, 11)},
    "same-packed": {"B": 1, "L": 11, "D": 3, "W": 4, "cu": (0, 3, 11), "padding": "same"},
}


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_the_loop(case):
    example = make(**CASES[case])
    want, got = run_example(_Loop, example), run_example(TORCH, example)
    assert want.keys() == got.keys()
    for key in want:
        assert relative_error(got[key], want[key]) < 1e-12, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_wide(dtype):
    example = make(2, 40, 6, 4, dtype=dtype)
    want, got = run_example(TORCH, example, torch.float64), run_example(TORCH, example)
    assert got["out.0"].dtype == dtype
    for key in want:
        assert relative_error(got[key], want[key]) < {torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype], key


def test_same_padding_is_torchs():
    call = make(2, 9, 4, 5, padding="same", plain=True).call
    want = F.conv1d(call["x"].transpose(1, 2), call["weight"].unsqueeze(1), padding="same", groups=4).transpose(1, 2)
    torch.testing.assert_close(causal_conv1d(**call), want)


@pytest.mark.parametrize("cut", [1, 2, 6])
def test_split_and_carry_equals_one_call(cut):
    call = make(2, 7, 3, 4, state=True).call
    whole, last = causal_conv1d(**call)
    y1, middle = causal_conv1d(**{**call, "x": call["x"][:, :cut]})
    y2, end = causal_conv1d(**{**call, "x": call["x"][:, cut:], "initial_state": middle})
    torch.testing.assert_close(torch.cat([y1, y2], 1), whole)
    torch.testing.assert_close(end, last)


@pytest.mark.parametrize("inplace", [False, True])
def test_steps_equal_the_convolution(inplace):
    call = make(2, 6, 3, 4, state=True).call
    want, last = causal_conv1d(**call)
    state = call["initial_state"].clone()
    address = state.data_ptr()
    for t in range(6):
        y, state = causal_conv1d_step(
            state, call["x"][:, t], call["weight"], call["bias"], activation="silu", inplace=inplace
        )
        torch.testing.assert_close(y, want[:, t])
        assert (state.data_ptr() == address) == inplace
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("case", ["plain", "seq_idx-state", "empty-segments"])
def test_compiles_and_exports(case):
    call = make(**CASES[case]).call

    class Layer(torch.nn.Module):
        def forward(self, x):
            out = causal_conv1d(**{**call, "x": x})
            return out[0] if isinstance(out, tuple) else out

    layer, x = Layer(), call["x"]
    want = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), want)
    program = torch.export.export(layer, (x,))
    assert not any("hybridzoo" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 7)}, "x must be (B, L, D)"),
        ({"weight": torch.zeros(4, 3)}, "weight must be (3, W)"),
        ({"bias": torch.zeros(2)}, "bias must be (3,), it is (2,)"),
        ({"activation": "gelu"}, "activation must be None or 'silu', it is 'gelu'"),
        ({"padding": "valid"}, "padding must be 'causal' or 'same'"),
        ({"padding": "same", "return_final_state": True}, "states exist for padding='causal' only"),
        ({"initial_state": torch.zeros(2, 4, 3)}, "initial_state must be (2, 3, 3)"),
        ({"cu_seqlens": torch.tensor([0, 7])}, "with a batch of 2"),
    ],
)
def test_bad_inputs_are_named(change, words):
    with pytest.raises(InputError) as caught:
        causal_conv1d(**{**make(2, 7, 3, 4).call, **change})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "case",
    [
        *("L1", "L2", "L31", "L32", "L33", "W1", "W2", "W3", "W9", "same-W1", "same-W3", "same-W4", "same-W7"),
        *("D65", "plain", "seq_idx", "same-packed", "empty-segments", "bf16", "strided"),
        *(f"plain-L{L}" for L in (1, 3, 8, 9, 32, 33, 64, 65, 129, 259)),
        *("plain-same-W2", "plain-same-W3", "plain-same-W4", "plain-fp16", "plain-large"),
    ],
)
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and every gradient, memory poisoned beforehand, in Triton's interpreter."""
    errors = kernel_errors("causal_conv1d")[case]
    assert "out.0" in errors
    limit = {"bf16": 1.5e-2, "plain-fp16": 4e-3}.get(case, 5e-6)
    assert {k: e for k, e in errors.items() if not e <= limit} == {}
