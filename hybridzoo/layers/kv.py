"""Keys and values of an attention layer: where a cache keeps them, and what a call sees.

The first `num_meta` slots hold the meta tokens. The rest is a ring: position p is in slot num_meta + (p - num_meta) mod
ring. A layer without a window gets as many slots as there are positions, so that its ring never turns. Where a slot's
position is follows from the row's length alone, so rows of different lengths need no table.

Legend: B rows, G key heads, S slots, T positions of this call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridzoo.layers.mixer import KV, MixerContext, State
from hybridzoo.ops.hybrid_attention import AttentionPlan

_BLOCK = 64  # a growing cache grows by so many slots


def slot_positions(lengths: Tensor, slots: int, meta: int) -> Tensor:
    """(B, 1) positions seen -> (B, slots) the position that each slot holds, -1 if none."""
    slot = torch.arange(slots, device=lengths.device).unsqueeze(0)
    last = lengths - 1
    held = last - torch.remainder(last - slot, max(slots - meta, 1))
    held = torch.where(held >= meta, held, -1)
    return torch.where(slot < meta, torch.where(slot < lengths, slot, -1), held)


def extend_kv(
    state: State | None, k: Tensor, v: Tensor, window: int | None, ctx: MixerContext
) -> tuple[KV, State | None]:
    """Put this call's keys and values beside the cached ones.

    Args:
        state: {"k": (B, G, S, K), "v": (B, G, S, V)} or None.
        k, v: (B, G, T, K) and (B, G, T, V) of this call, rotated; packed rows already cut into rows.
        window: keys that a query sees, itself included; None for all.
        ctx: of the call.

    Returns:
        What the queries of this call attend to, and the new state if it was asked for.
    """
    if ctx.cu_seqlens is not None:
        return _packed(state, k, v, window, ctx), None
    shown = None if window is None else window - ctx.narrow
    if state is None or ctx.fresh:
        plan = _plan(ctx, ("own", shown), lambda: AttentionPlan(k.shape[2], k.shape[2], k.device, shown, ctx.num_meta))
        kv = KV(k, v, plan)
        return kv, _write(state, k, v, window, ctx) if ctx.return_state else None
    if k.shape[2] == 1 and ctx.return_state:
        new = _write(state, k, v, window, ctx)
        return _slots_kv(new, shown, ctx, ctx.after, ctx.seen + 1), new
    old = _slots_kv(state, shown, ctx, ctx.past, ctx.seen, plan=False)
    keys, values = torch.cat([old.k, k.to(old.k.dtype)], 2), torch.cat([old.v, v.to(old.v.dtype)], 2)
    held = old.k.shape[2]

    def make() -> AttentionPlan:
        sizes = (k.shape[2], keys.shape[2], k.device, shown, ctx.num_meta)
        if isinstance(ctx.past, int) and held == ctx.past:
            return AttentionPlan(*sizes)
        past = _column(ctx.past, k)
        at = torch.cat([slot_positions(past, state["k"].shape[2], ctx.num_meta)[:, :held], past + _steps(k)], 1)
        return AttentionPlan(*sizes, q_positions=past + _steps(k), k_positions=at)

    kv = KV(keys, values, _plan(ctx, ("both", shown, held), make))
    return kv, _write(state, k, v, window, ctx) if ctx.return_state else None


def _steps(k: Tensor) -> Tensor:
    return torch.arange(k.shape[2], device=k.device).unsqueeze(0)


def _column(lengths: int | Tensor, like: Tensor) -> Tensor:
    return torch.full((1, 1), lengths, device=like.device) if isinstance(lengths, int) else lengths


def _plan(ctx: MixerContext, key: Any, make: Callable[[], AttentionPlan]) -> AttentionPlan:
    if key not in ctx.memo:
        ctx.memo[key] = make()
    return ctx.memo[key]


def _slots_kv(
    state: State, shown: int | None, ctx: MixerContext, lengths: int | Tensor, seen: int, plan: bool = True
) -> KV:
    """The used slots. A row's own query is the last position in them."""
    k, v = state["k"], state["v"]
    slots = k.shape[2]
    if isinstance(lengths, int) or not (ctx.inplace and ctx.length == 1):  # a graph is captured for all slots
        k, v = k[:, :, : min(seen, slots)], v[:, :, : min(seen, slots)]

    def make() -> AttentionPlan:
        if isinstance(lengths, int) and not ctx.narrow:  # the slots hold exactly what is to be seen
            return AttentionPlan(1, k.shape[2], k.device)
        after = _column(lengths, k)
        at = slot_positions(after, slots, ctx.num_meta)[:, : k.shape[2]]
        return AttentionPlan(1, k.shape[2], k.device, shown, ctx.num_meta, q_positions=after - 1, k_positions=at)

    empty = AttentionPlan(0, 0, k.device)
    return KV(k, v, _plan(ctx, ("slots", shown, slots, k.shape[2]), make) if plan else empty)


def _write(state: State | None, k: Tensor, v: Tensor, window: int | None, ctx: MixerContext) -> State:
    """The slots after this call."""
    needed = ctx.seen + k.shape[2]
    cap = None if window is None else ctx.num_meta + window
    new = {}
    for name, chunk in (("k", k), ("v", v)):
        old = None if state is None else state[name]
        buffer = old if ctx.inplace and old is not None else _grown(old, chunk, needed, cap)
        mine = buffer is not old or ctx.inplace or not torch.is_grad_enabled()
        new[name] = _fill(buffer, chunk.to(buffer.dtype), ctx, mine)
    return new


def _grown(old: Tensor | None, chunk: Tensor, needed: int, cap: int | None) -> Tensor:
    """A buffer with at least `needed` slots, but no more than `cap`; the old one if it is large enough."""
    have = 0 if old is None else old.shape[2]
    want = -(-needed // _BLOCK) * _BLOCK
    want = want if cap is None else min(want, cap)
    if old is not None and have >= min(needed, want):
        return old
    shape = (chunk.shape[0], chunk.shape[1], want, chunk.shape[3])
    dtype = chunk.dtype if old is None else old.dtype
    buffer = torch.zeros(shape, dtype=dtype, device=chunk.device)
    if old is not None:
        buffer[:, :, :have] = old
    return buffer


def _fill(buffer: Tensor, chunk: Tensor, ctx: MixerContext, inplace: bool) -> Tensor:
    slots, meta, length = buffer.shape[2], ctx.num_meta, chunk.shape[2]
    ring = max(slots - meta, 1)
    if isinstance(ctx.past, int) and ctx.counts is None:
        buffer = buffer if inplace else buffer.clone()
        for slot, source, count in _stretches(ctx.past, length, meta, ring):
            buffer[:, :, slot : slot + count] = chunk[:, :, source : source + count]
        return buffer
    past, after = _column(ctx.past, chunk), _column(ctx.after, chunk)
    if length == 1 and ctx.counts is None:
        if ("slot", slots) not in ctx.memo:
            slot = torch.where(past < meta, past, meta + torch.remainder(past - meta, ring))
            ctx.memo["slot", slots] = slot.view(-1, 1, 1, 1)
        index = ctx.memo["slot", slots].expand(buffer.shape[0], buffer.shape[1], 1, buffer.shape[3])
        return buffer.scatter_(2, index, chunk) if inplace else buffer.scatter(2, index, chunk)
    source = slot_positions(after, slots, meta) - past  # (B, S): which of this call's positions a slot holds now
    source = source.expand(buffer.shape[0], slots)
    index = source.clamp(0, length - 1)[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
    merged = torch.where((source >= 0)[:, None, :, None], chunk.gather(2, index), buffer)
    return buffer.copy_(merged) if inplace else merged


def _stretches(first: int, length: int, meta: int, ring: int) -> list[tuple[int, int, int]]:
    """(slot, where in the call, how many) for what a call at position `first` leaves in the slots.

    That is meta tokens, and of the others as many as the ring holds. Host integers: nothing waits for the device.
    """
    heads = min(max(meta - first, 0), length)
    start = max(heads, length - ring)
    slot = meta + (first + start - meta) % ring
    before = min(length - start, meta + ring - slot)  # up to the ring's end
    made = [(first, 0, heads), (slot, start, before), (meta, start + before, length - start - before)]
    return [piece for piece in made if piece[2] > 0]


def _packed(state: State | None, k: Tensor, v: Tensor, window: int | None, ctx: MixerContext) -> KV:
    """Rows of documents; a state holds the meta tokens only, (1, G, meta, K), which every document sees."""
    segments = ctx.seq_idx
    assert segments is not None
    positions, own = ctx.positions.view(ctx.rows, -1), k.shape[2]

    def make() -> AttentionPlan:
        k_positions, k_segments = positions, segments
        if state is not None:
            meta = torch.arange(ctx.num_meta, device=positions.device).expand(ctx.rows, -1)
            k_positions = torch.cat([meta, positions], 1)
            k_segments = torch.cat([torch.full_like(meta, -1), segments], 1)
        sizes = (own, k_positions.shape[1], positions.device, window, ctx.num_meta)
        return AttentionPlan(*sizes, positions, k_positions, segments, k_segments)

    if state is not None:
        meta_k, meta_v = (state[n][:1].expand(ctx.rows, -1, -1, -1)[:, :, : ctx.num_meta] for n in ("k", "v"))
        k, v = torch.cat([meta_k.to(k.dtype), k], 2), torch.cat([meta_v.to(v.dtype), v], 2)
    return KV(k, v, _plan(ctx, ("packed", window, state is not None), make))
