"""A recurrent layer that skips padding, in a packed form and in a form that exports and compiles; same weights.

Legend: B rows, T positions, D input width, H units per direction. Rows are right-padded: row b holds its tokens at
positions 0 … lengths[b]-1. Use `tokens_first_order` to bring rows of any mask into that form.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import initialization as init

# cuDNN would rather have the parameters in one buffer; copying them there (8 MB) costs far less than an encoder pass.
warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")


def is_tracing() -> bool:
    """Whether the model is being compiled, exported or traced: then nothing may depend on the values of tensors."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def _any_length_while_exporting(steps: object) -> Iterator[None]:
    """Let torch.export keep a recurrent op whole when the number of steps is symbolic, as torch.onnx does on its own.

    Without it, the op is unrolled over the example's steps, and the exported program takes no other length. The patches
    are torch's, but private: where a version lacks them, only the example's length exports.
    """
    with ExitStack() as stack:
        if isinstance(steps, torch.SymInt) and not torch.compiler.is_dynamo_compiling():
            from torch.export import _patches

            for cell in ("lstm", "gru"):
                patch = getattr(_patches, f"register_{cell}_while_loop_decomposition", None)
                if patch is not None:
                    stack.enter_context(patch())
            ops = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
            for op in ops:  # an earlier torch.compile has left the unpatched kernel in the op's cache
                getattr(op, "_dispatch_cache", {}).clear()
            stack.callback(lambda: [getattr(op, "_dispatch_cache", {}).clear() for op in ops])
        yield


def tokens_first_order(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The order that moves every row's tokens to the front, and the mask in that order.

    Left-padded rows and masks with holes become right-padded rows whose tokens keep their order.

    Args:
        mask: (B, T) bool, True at tokens.

    Returns:
        order (B, T) int64: position t of the new row holds position order[b, t] of the old one; and lengths (B,) int64,
        at least 1: in a row without any token the first position counts as one, so that nothing divides by zero.
    """
    lengths = mask.sum(1)
    ahead = mask.cumsum(1) - 1  # (B, T) rank of a token among the tokens
    behind = lengths[:, None] + (~mask).cumsum(1) - 1  # rank of a pad, after all tokens
    place = torch.where(mask, ahead, behind)
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(place)
    return torch.zeros_like(place).scatter(1, place, positions), lengths.clamp(min=1)


def reverse_index(lengths: Tensor, steps: int) -> Tensor:
    """(B, T) index that reverses each row inside its own length and leaves the padding where it is."""
    t = torch.arange(steps, device=lengths.device)[None, :]
    last = lengths[:, None] - 1
    return torch.where(t <= last, last - t, t)


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, D), index (B, T) -> the rows' positions in the order of index."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


class MaskedRNN(nn.Module):
    """LSTM or GRU over right-padded rows, in one or both directions; a row's states never depend on its padding.

    In eager mode the rows are packed. While compiling or exporting, each direction is a one-directional call on padded
    rows, the backward one on rows reversed inside their own length: the same states to rounding. Both forms read the
    same parameters, which carry the names, shapes and initial values of `nn.LSTM`/`nn.GRU`. The module owns them itself
    because torch.compile refuses to look inside torch's recurrent modules, and because those make their
    parameters views of one buffer on a GPU, which EMA copies, FSDP and safetensors all have to undo.

    Args:
        cell: "lstm" or "gru".
        input_size: D.
        hidden_size: H.
        num_layers: stacked layers.
        dropout: between stacked layers, in training.
        bidirectional: both directions; the output is (B, T, 2H), forward first.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.cell, self.hidden_size, self.num_layers, self.dropout = cell, hidden_size, num_layers, float(dropout)
        self.directions = ("", "_reverse") if bidirectional else ("",)
        gates = 4 if cell == "lstm" else 3
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self.directions)
            for suffix in self.directions:
                shapes = {"weight_ih": (width,), "weight_hh": (hidden_size,), "bias_ih": (), "bias_hh": ()}
                for name, rest in shapes.items():
                    parameter = nn.Parameter(torch.empty(gates * hidden_size, *rest))
                    self.register_parameter(f"{name}_l{layer}{suffix}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's own start: every value uniform in +-1/sqrt(H)."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound)  # transformers' form: spares what a checkpoint has filled

    def extra_repr(self) -> str:
        return (
            f"{self.cell}, hidden_size={self.hidden_size}, layers={self.num_layers}, directions={len(self.directions)}"
        )

    def forward(self, x: Tensor, lengths: Tensor | None, *, exportable: bool | None = None) -> Tensor:
        """States of the last layer.

        Args:
            x: (B, T, D) right-padded.
            lengths: (B,) int64 in 1 … T; None means that every position counts.
            exportable: which form; None chooses by `is_tracing()`.

        Returns:
            (B, T, H or 2H), zero at padding; under autocast in the parameters' dtype.
        """
        if lengths is None:
            lengths = torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.int64)
        form = self._exportable if (is_tracing() if exportable is None else exportable) else self._packed
        if not torch.is_autocast_enabled(x.device.type):
            return form(x, lengths)
        # Hundreds of steps, each rounded: the recurrence stays in the parameters' precision. (CUDA's autocast would run
        # it in fp16 even when asked for bf16, where the small gradients of a mean over many tokens vanish.)
        dtype: Any = self.weight_ih_l0.dtype
        with torch.autocast(x.device.type, enabled=False):
            return form(x.to(dtype), lengths)

    def _packed(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        weights = [w for n in range(self.num_layers) for suffix in self.directions for w in self._weights(n, suffix)]
        rows = self.num_layers * len(self.directions)
        zero = x.new_zeros(rows, x.shape[0], self.hidden_size)
        call: Any = torch.lstm if self.cell == "lstm" else torch.gru
        states = call(
            packed.data,
            packed.batch_sizes,
            (zero, zero) if self.cell == "lstm" else zero,
            weights,
            True,  # biases
            self.num_layers,
            self.dropout,
            self.training,
            len(self.directions) == 2,
        )[0]
        packed = PackedSequence(states, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]

    def _exportable(self, x: Tensor, lengths: Tensor) -> Tensor:
        t = torch.arange(x.shape[1], device=x.device)[None, :].expand(x.shape[0], -1)  # (B, T)
        flip = reverse_index(lengths, x.shape[1])
        for layer in range(self.num_layers):
            if layer:
                x = nn.functional.dropout(x, self.dropout, self.training)
            # Picking every step in its own order changes nothing, except for an exporter: torch's patch gives the
            # states the example's number of steps, and a gather takes the symbolic one from its index.
            states = _pick(self._one_direction(x, layer, ""), t)
            if len(self.directions) == 2:
                states = torch.cat(
                    [states, _pick(self._one_direction(_pick(x, flip), layer, "_reverse"), flip)], dim=-1
                )
            x = states
        return x * (t < lengths[:, None])[:, :, None].to(x.dtype)

    def _one_direction(self, x: Tensor, layer: int, suffix: str) -> Tensor:
        zero = x.new_zeros(1, x.shape[0], self.hidden_size)
        weights = self._weights(layer, suffix)
        with _any_length_while_exporting(x.shape[1]):
            # the positional arguments: biases, layers, dropout, training, both directions, batch first
            if self.cell == "lstm":
                return torch.lstm(x, (zero, zero), weights, True, 1, 0.0, self.training, False, True)[0]
            return torch.gru(x, zero, weights, True, 1, 0.0, self.training, False, True)[0]

    def _weights(self, layer: int, suffix: str) -> list[Tensor]:
        return [getattr(self, f"{name}_l{layer}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
