"""From what a caller passes to what the decoder's layers want: checked ids, sorted padding, packed documents.

Legend: B rows, T positions, D model width, S documents.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridzoo.errors import InputError


def embedded(embed: Any, input_ids: Tensor | None, inputs_embeds: Tensor | None, *, check_range: bool) -> Tensor:
    """(B, T, D) embeddings of whichever of the two is given.

    Raises:
        InputError: none or both, a wrong shape or type, no positions, or ids outside the vocabulary.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give either input_ids (B, T) or inputs_embeds (B, T, D), and not both")
    width, vocabulary = embed.weight.shape[1], embed.weight.shape[0]
    if inputs_embeds is not None:
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != width or 0 in inputs_embeds.shape:
            raise InputError(f"inputs_embeds must be (B, T, {width}), it is {tuple(inputs_embeds.shape)}")
        return inputs_embeds
    assert input_ids is not None
    if input_ids.dim() != 2 or input_ids.dtype not in (torch.long, torch.int32):
        raise InputError(f"input_ids must be (B, T) integers, they are {tuple(input_ids.shape)} {input_ids.dtype}")
    if 0 in input_ids.shape:
        raise InputError(
            f"input_ids {tuple(input_ids.shape)} hold no token: an empty prompt; start with the tokenizer's bos token"
        )
    if check_range:
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocabulary:
            raise InputError(
                f"input_ids reach from {low} to {high}, and the model's vocabulary has {vocabulary} tokens, 0 to "
                f"{vocabulary - 1}: does the tokenizer belong to this model?"
            )
    return embed(input_ids)


def check_limit(length: int, limit: int | None) -> None:
    """Raise InputError for rows longer than some layer can take."""
    if limit is not None and length > limit:
        raise InputError(
            f"{length} tokens are more than the {limit} that the model's long convolutions were made for; cut the "
            "input, or build the model for more positions (max_position_embeddings, or max_length of CHELA), or "
            "with a bounded kernel (kernel_length of the chela mixer)"
        )


class Padding(NamedTuple):
    """Rows with their tokens in front: the order that sorts them, the one that puts them back, and the counts."""

    order: Tensor  # (B, T)
    back: Tensor  # (B, T)
    counts: Tensor  # (B,)
    valid: Tensor  # (B, T) bool, after sorting

    def sort(self, x: Tensor) -> Tensor:
        """(B, T, D) as given -> tokens first."""
        return x.gather(1, self.order.unsqueeze(2).expand_as(x))

    def unsort(self, x: Tensor) -> Tensor:
        """(B, T, D) tokens first -> as given."""
        return x.gather(1, self.back.unsqueeze(2).expand_as(x))


def padding_of(mask: Tensor | None, batch: int, length: int, columns: int, *, may_wait: bool) -> Padding | None:
    """The padding of a call; None if there is none.

    Args:
        mask: (B, T), or (B, columns + T) with what a cache has seen; 0 at padding.
        batch, length: B and T.
        columns: positions in the cache.
        may_wait: look at the values; False inside a graph, where a mask always counts as padding.

    Raises:
        InputError: a mask of another shape.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in (length, columns + length):
        more = f" or ({batch}, {columns + length}), which includes the cached positions" if columns else ""
        raise InputError(f"attention_mask must be ({batch}, {length}){more}; it is {tuple(mask.shape)}")
    mask = mask[:, mask.shape[1] - length :] != 0
    if may_wait and bool(mask.all()):
        return None
    order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)
    counts = mask.sum(1)
    valid = torch.arange(length, device=mask.device) < counts.unsqueeze(1)
    return Padding(order, order.argsort(1), counts, valid)


class Packing(NamedTuple):
    """Documents one after the other: their bounds, numbers in each row, and positions in each document."""

    cu_seqlens: Tensor  # (S + 1,) over all rows
    seq_idx: Tensor  # (B, T) number of the document in its row
    offsets: Tensor  # (1, B * T) position in the document
    starts: Tensor  # (B, T) bool


def packing_of(
    cu_seqlens: Tensor | None, seq_idx: Tensor | None, batch: int, length: int, device: Any
) -> Packing | None:
    """The packing of a call; None if nothing is packed.

    Raises:
        InputError: both are given, or offsets that do not fit the rows.
    """
    if cu_seqlens is None and seq_idx is None:
        return None
    if cu_seqlens is not None and seq_idx is not None:
        raise InputError("give cu_seqlens or seq_idx, not both")
    if seq_idx is not None:
        if tuple(seq_idx.shape) != (batch, length) or seq_idx.is_floating_point():
            raise InputError(
                f"seq_idx must be ({batch}, {length}) integers, it is {tuple(seq_idx.shape)} {seq_idx.dtype}"
            )
        first = torch.ones(batch, 1, dtype=torch.bool, device=device)
        starts = torch.cat([first, seq_idx[:, 1:] != seq_idx[:, :-1]], 1)
        bounds = starts.flatten().nonzero().squeeze(1)
        cu = torch.cat([bounds, bounds.new_full((1,), batch * length)])
    else:
        assert cu_seqlens is not None
        if batch != 1 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.is_floating_point():
            raise InputError(
                "cu_seqlens must be S + 1 integers, S >= 1, for one row of packed documents; it is "
                f"{tuple(cu_seqlens.shape)} {cu_seqlens.dtype} for {batch} rows (use seq_idx for several rows)"
            )
        values = cu_seqlens.tolist()
        if values[0] != 0 or values[-1] != length or values != sorted(values):
            shown = values if len(values) <= 12 else [*values[:6], "...", *values[-3:]]
            raise InputError(f"cu_seqlens must rise from 0 to the row's length {length}, it is {shown}")
        cu = cu_seqlens.to(device=device, dtype=torch.long)
        starts = torch.zeros(1, length + 1, dtype=torch.bool, device=device)
        starts[0, cu] = True
        starts = starts[:, :length]
    at = torch.arange(batch * length, device=device).unsqueeze(0)
    begin = torch.where(starts.view(1, -1), at, 0).cummax(1).values
    return Packing(cu, starts.long().cumsum(1), at - begin, starts)
