"""LSTM and GRU layers that export with a free sequence length.

torch.export unrolls `torch.lstm` and `torch.gru` step by step, which fixes the length and makes graphs of thousands of
nodes. While `one_op_per_layer()` is active, each call of one layer in one direction becomes one `hybridzoo::` op;
ONNX has the same layers as operators of its own (`onnx_translations`). A .pt2 file with such an op is loaded after
`import hybridzoo.export`, which registers it.

Legend: B rows, T positions, D input width, H units; gates: 4 (LSTM) or 3 (GRU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("hybridzoo::lstm_layer", mutates_args=())
def lstm_layer(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer, left to right.

    Args:
        x: (B, T, D).
        h0, c0: (1, B, H).
        w_ih, w_hh, b_ih, b_hh: (4H, D), (4H, H), (4H,), (4H,), in torch's gate order i, f, g, o.

    Returns:
        states (B, T, H), last state (1, B, H), last cell (1, B, H).
    """
    states, h, c = torch.lstm(x, (h0, c0), [w_ih, w_hh, b_ih, b_hh], True, 1, 0.0, False, False, True)
    return states.contiguous(), h, c  # torch gives (T, B, H) seen as (B, T, H); tracing must see the real strides


@lstm_layer.register_fake
def _(x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Any:
    return x.new_empty(*x.shape[:2], w_hh.shape[1]), torch.empty_like(h0), torch.empty_like(c0)


@torch.library.custom_op("hybridzoo::gru_layer", mutates_args=())
def gru_layer(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    """One GRU layer, left to right; gate order r, z, n, shapes as `lstm_layer` with 3H for 4H."""
    states, h = torch.gru(x, h0, [w_ih, w_hh, b_ih, b_hh], True, 1, 0.0, False, False, True)
    return states.contiguous(), h


@gru_layer.register_fake
def _(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Any:
    return x.new_empty(*x.shape[:2], w_hh.shape[1]), torch.empty_like(h0)


class one_op_per_layer(TorchFunctionMode):
    """Replace one-layer, one-direction, batch-first `torch.lstm` / `torch.gru` calls by the ops above."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (torch.lstm, torch.gru) and not kwargs and len(args) == 9:
            x, state, weights, biases, layers, _, training, both_directions, batch_first = args
            if biases and layers == 1 and not training and not both_directions and batch_first:
                if func is torch.lstm:
                    return torch.ops.hybridzoo.lstm_layer(x, *state, *weights)
                return torch.ops.hybridzoo.gru_layer(x, state, *weights)
        return func(*args, **(kwargs or {}))


def onnx_translations() -> dict[Any, Any]:
    """What `torch.onnx.export(custom_translation_table=…)` needs to write the ops as ONNX LSTM and GRU operators."""
    from onnxscript import opset20

    op: Any = opset20  # its annotations describe graph values of one type each

    def blocks(weight: Any, order: tuple[int, ...], count: int) -> Any:
        """Reorder the gate blocks along the first axis and add ONNX's axis of directions."""
        size = int(weight.shape[0]) // count
        zero = op.Constant(value_ints=[0])
        ends = [(op.Constant(value_ints=[i * size]), op.Constant(value_ints=[(i + 1) * size])) for i in order]
        return op.Unsqueeze(op.Concat(*[op.Slice(weight, start, end, zero) for start, end in ends], axis=0), zero)

    def layer(kind: str, order: tuple[int, ...], x: Any, state: tuple, weights: tuple) -> tuple:
        count = len(order)
        w_ih, w_hh, b_ih, b_hh = weights
        bias = op.Concat(blocks(b_ih, order, count), blocks(b_hh, order, count), axis=1)
        inputs = (op.Transpose(x, perm=[1, 0, 2]), blocks(w_ih, order, count), blocks(w_hh, order, count), bias, None)
        # The shape of the initial state is (1, B, H) in both; its last axis is static.
        hidden = int(w_hh.shape[1])
        call = op.LSTM if kind == "lstm" else op.GRU
        more = {} if kind == "lstm" else {"linear_before_reset": 1}
        states, *last = call(*inputs, *state, hidden_size=hidden, **more)
        # (T, directions, B, H) -> (B, T, H)
        states = op.Transpose(op.Squeeze(states, op.Constant(value_ints=[1])), perm=[1, 0, 2])
        return (states, *last)

    def lstm(x, h0, c0, w_ih, w_hh, b_ih, b_hh):  # torch: i f g o; ONNX: i o f c
        return layer("lstm", (0, 3, 1, 2), x, (h0, c0), (w_ih, w_hh, b_ih, b_hh))

    def gru(x, h0, w_ih, w_hh, b_ih, b_hh):  # torch: r z n; ONNX: z r h
        return layer("gru", (1, 0, 2), x, (h0,), (w_ih, w_hh, b_ih, b_hh))

    return {torch.ops.hybridzoo.lstm_layer.default: lstm, torch.ops.hybridzoo.gru_layer.default: gru}
