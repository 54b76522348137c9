"""Launches of the kernels of `hybrid_attention`: one query a row (decoding), and whole rows without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridzoo.ops._launch import cdiv, launch, next_power_of_2
from hybridzoo.ops.hybrid_attention.plan import AttentionPlan

_TILE = 128  # queries of a program that reads whole rows
_EVERYTHING = 1 << 30


class Tuning(NamedTuple):
    """Constants of decoding that decide speed only."""

    block: int = 64  # slots a program reads at a time
    stages: int = 3  # blocks on their way or in use
    programs: int = 4  # of a multiprocessor at most: all run at once


TUNING = Tuning()


def supports(call: Mapping[str, Any]) -> str | None:
    """One query a row, or rows of 16-bit floats that are aligned at their end; no gradients."""
    q, k, v, plan = (call[n] for n in ("q", "k", "v", "plan"))
    if plan.q_length != 1 and not plan.aligned:
        return "the kernels take several queries a row only without explicit positions"
    if plan.q_length != 1 and q.dtype == torch.float32:
        return "the kernel of whole rows is for 16-bit floats"
    if plan.q_segments is not None:
        return "the kernels know no packed documents"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16) or k.dtype != q.dtype or v.dtype != q.dtype:
        return f"q, k and v must be of one type of 16 or 32 bits, they are {q.dtype}, {k.dtype}, {v.dtype}"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "the kernels have no backward"
    if q.shape[3] > 256 or v.shape[3] > 256 or q.shape[1] // k.shape[1] > 64:
        return "heads of at most 256 channels, and at most 64 query heads to a key head"
    if torch.version.hip is not None:
        return "the kernels have been checked on NVIDIA GPUs only"
    return None


def attention_triton(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """(B, H, T, K), (B, G, S, K), (B, G, S, V) -> (B, H, T, V)"""
    return (_decode if plan.q_length == 1 else _rows)(q, k, v, plan, scale)


def _rows(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from hybridzoo.ops.hybrid_attention._kernels_prefill import prefill_kernel

    (batch, heads, queries, width), (_, groups, slots, value_width) = q.shape, v.shape
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty(batch, queries, heads, value_width)  # heads last: what follows wants them so
    launch(prefill_kernel, (cdiv(queries, _TILE), batch * heads),
        q, k, v, out, scale, queries, slots,
        _EVERYTHING if plan.window is None else plan.window, plan.prefix, heads, heads // groups,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        num_warps=8, K=width, V=value_width,
        KP=max(16, next_power_of_2(width)), VP=max(16, next_power_of_2(value_width)), BM=_TILE, BN=64,
    )  # fmt: skip
    return out.transpose(1, 2)


def _decode(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    from hybridzoo.ops.hybrid_attention._kernels import decode_kernel, join_kernel

    (batch, heads, _, width), (_, groups, slots, value_width) = q.shape, v.shape
    rows = heads // groups
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    splits = _splits(q, batch * groups, slots)
    piece = cdiv(cdiv(slots, splits), TUNING.block) * TUNING.block
    splits = max(1, cdiv(slots, piece))
    explicit = not plan.everything
    q_at = k_at = q
    if explicit:
        q_at, k_at = plan.positions()
        q_at = q_at.expand(batch, 1).contiguous()
        k_at = k_at.contiguous()
    out = q.new_empty(batch, groups, rows, value_width)
    parts, top, total = out, out, out
    if splits > 1:
        parts = torch.empty(batch, groups, splits, rows, value_width, dtype=torch.float32, device=q.device)
        top, total = torch.empty(2, batch, groups, splits, rows, dtype=torch.float32, device=q.device).unbind(0)
    padded = {"RP": max(16, next_power_of_2(rows)), "KP": max(16, next_power_of_2(width))}
    decode_kernel[(batch * groups, splits)](
        *(q, k, v, q_at, k_at, parts, top, total, scale, slots, piece),
        *(_EVERYTHING if plan.window is None else plan.window, plan.prefix),
        *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), k.stride(2), v.stride(0), v.stride(1), v.stride(2)),
        k_at.stride(0) if explicit and k_at.shape[0] > 1 else 0,
        groups,
        R=rows,
        K=width,
        V=value_width,
        VP=max(16, next_power_of_2(value_width)),
        BLOCK=TUNING.block,
        POSITIONS=explicit,
        SPLITS=splits,
        num_warps=4,  # pyright: ignore[reportCallIssue]
        num_stages=TUNING.stages,  # pyright: ignore[reportCallIssue]
        **padded,
    )
    if splits > 1:
        join_kernel[(batch * groups, rows)](
            *(parts, top, total, out),
            R=rows,
            V=value_width,
            VP=next_power_of_2(value_width),
            SPLITS=splits,
            SP=next_power_of_2(splits),
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )
    return out.view(batch, heads, 1, value_width)


def _splits(q: Tensor, pairs: int, slots: int) -> int:
    """Pieces of a row that fill the device but queue nowhere, of at least two blocks each."""
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
    programs = processors * TUNING.programs
    blocks = max(1, slots // (2 * TUNING.block))
    return max(1, min(programs // pairs, blocks, 128))
