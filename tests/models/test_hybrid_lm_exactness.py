"""One function, however it is fed: whole, in cached chunks, padded, packed, in a batch, static or growing cache."""

from __future__ import annotations

import copy
import itertools
from itertools import pairwise
from typing import Any

import pytest
import torch

from hybridzoo import build_model
from hybridzoo.layers import selective_ssm, short_conv
from hybridzoo.layers.kv import _stretches, slot_positions

MIXERS = {
    "delta": {"num_heads": 2, "use_gate": True},
    "mamba": {"d_state": 4},
    "attention": {"num_heads": 4, "num_kv_heads": 2, "qk_norm": "rms"},
    "swa": {"num_heads": 4, "num_kv_heads": 2, "window": 5},
    "hymba": {"num_heads": 4, "num_kv_heads": 2, "d_state": 4, "window": 6},
    "chela": {"kernel_dim": 4},
}
CHELA_BOUNDED = {"kernel_dim": 4, "kernel_length": 9, "positions": "rotary", "branch_norm": "batch"}
CHELA_OTHERS = {
    "kernel_dim": 4,
    "num_heads": 2,
    "long_short_parallel": 5,
    "conv_order": "long_short",
    "qk_proj": "separate",
    "value_source": "conv",
    "gate_act": "sigmoid",
    "gate_residual": "update",
    "feature_map": "elu1",
    "attn_norm": "denominator",
}
MODELS = {
    "hymba": ("hymba_test", {}),
    "hymba, no meta": ("hymba_test", {"num_memory_tokens": 0}),
    "hymba, kq_norm, no rope": ("hymba_test", {"kq_norm": "perhead-rms", "rope": False}),
    "deltanet": ("deltanet_test", {}),
    "all mixers": ("hybrid_lm_test", {}),
    **{
        f"{kind}, {meta} meta": (
            "hybrid_lm_test",
            {
                "pattern": letter * 2,
                "kv_groups": [[0, 1]] if kind == "swa" else None,
                "num_meta_tokens": meta,
                "mixers": MIXERS,
            },
        )
        for kind, letter in (
            *(("delta", "D"), ("mamba", "M"), ("attention", "A"), ("swa", "S"), ("hymba", "H"), ("chela", "C")),
        )
        for meta in (0, 3)
    },
    "chela, bounded kernel": (
        "hybrid_lm_test",
        {"pattern": "CA", "kv_groups": None, "mixers": {"chela": CHELA_BOUNDED}},
    ),
    "chela, other choices": (
        "hybrid_lm_test",
        {"pattern": "CC", "kv_groups": None, "num_meta_tokens": 0, "mixers": {"chela": CHELA_OTHERS}},
    ),
}
T = 23


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    name, config = MODELS[request.param]
    return make(name, **config)


def make(name: str, **config: Any) -> Any:
    """A model in which every parameter matters: random norms, biases and step sizes."""
    torch.manual_seed(0)
    built = build_model(name, **config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return built


def tokens(model: Any, batch: int = 2, length: int = T) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)


def feed(model: Any, ids: torch.Tensor, sizes: list[int], cache: Any = None, **inputs: Any) -> tuple[torch.Tensor, Any]:
    out, start = [], 0
    for size in sizes:
        got = model(ids[:, start : start + size], past_key_values=cache, use_cache=True, **inputs)
        cache, start = got.past_key_values, start + size
        out.append(got.logits)
    return torch.cat(out, 1), cache


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@torch.no_grad()
def test_full_forward_equals_cached_chunks(model: Any, static: bool) -> None:
    ids = tokens(model)
    full = model(ids).logits
    for sizes in ([1] * T, [T], [5] + [1] * (T - 5), [2, 9, 1, 1, 7, 3], [1, 12, 10]):
        cache = model.new_cache(2, T) if static else None
        got, cache = feed(model, ids, sizes, cache)
        close(got, full)
        assert cache.get_seq_length() == T


@pytest.mark.parametrize("name", ["hymba_test", "hybrid_lm_test"])
@torch.no_grad()
def test_shortcuts_of_long_prompts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(name).eval()
    ids = torch.randint(3, 90, (2, 60))
    whole = model(ids).logits
    monkeypatch.setattr(selective_ssm, "LONG", 8)
    monkeypatch.setattr(short_conv, "LONG", 8)
    monkeypatch.setattr(selective_ssm, "_on_tensor_cores", lambda x: True)
    cache = model.new_cache()
    parts = [model(part, past_key_values=cache).logits for part in ids.split([30, 1, 17, 12], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_the_slots_that_a_call_fills() -> None:
    for meta, ring, first, length in itertools.product((0, 3), (1, 4, 9), (0, 2, 3, 7, 30), (1, 5, 11, 40)):
        after = torch.tensor([[first + length]])
        want = slot_positions(after, meta + ring, meta)[0] - first  # the place in the call, negative if older
        slots = torch.full((meta + ring,), -1)
        for slot, source, count in _stretches(first, length, meta, ring):
            slots[slot : slot + count] = torch.arange(source, source + count)
        assert torch.equal(slots, want.clamp_min(-1)), (meta, ring, first, length)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_padded_equals_alone(model: Any, side: str) -> None:
    """Uncached, and a cached prompt followed by single tokens and by a chunk; rows of four lengths."""
    lengths, width = [9, 4, 1, 6], 9
    rows = [tokens(model, 1, length + 8)[:, 8:] + 0 for length in lengths]
    more = tokens(model, 4, 7)
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    where = []
    for row, (text, length) in enumerate(zip(rows, lengths)):
        start = {"left": width - length, "right": 0, "both": (width - length) // 2}[side]
        ids[row, start : start + length], mask[row, start : start + length] = text[0], 1
        where.append(slice(start, start + length))
    plain = model(ids, attention_mask=mask).logits
    for static in (False, True):
        cache = model.new_cache(4, width + 7) if static else None
        prompt = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = prompt.past_key_values
        after = [model(more[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(3)]
        full_mask = torch.cat([mask, torch.ones(4, 7, dtype=torch.long)], 1)
        after.append(model(more[:, 3:], attention_mask=full_mask, past_key_values=cache, use_cache=True).logits)
        got = torch.cat(after, 1)
        for row, text in enumerate(rows):
            alone = model(torch.cat([text, more[row : row + 1]], 1)).logits[0]
            close(plain[row, where[row]], alone[: lengths[row]])
            close(prompt.logits[row, where[row]], alone[: lengths[row]])
            close(got[row], alone[lengths[row] :])


@torch.no_grad()
def test_padding_inside_later_chunks(model: Any) -> None:
    """Rows that pause: a continuous batch feeds some rows nothing in a step."""
    ids = tokens(model, 2, 12)
    alone = [model(ids[:1]).logits[0], model(ids[1:, :8]).logits[0]]
    cache, got = None, [[], []]
    at = [0, 0]
    for step in ([3, 1], [1, 0], [1, 1], [0, 1], [4, 3], [3, 2]):
        width = max(step)
        chunk, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
        for row, n in enumerate(step):
            chunk[row, :n], mask[row, :n] = ids[row, at[row] : at[row] + n], 1
            at[row] += n
        out = model(chunk, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        for row, n in enumerate(step):
            got[row].append(out.logits[row, :n])
    for row in range(2):
        close(torch.cat(got[row]), alone[row])


@torch.no_grad()
def test_packed_equals_alone(model: Any) -> None:
    ids = tokens(model, 2, 20)
    bounds = [[0, 6, 7, 20], [0, 11, 20]]
    seq_idx = torch.zeros(2, 20, dtype=torch.long)
    alone = torch.zeros(2, 20, model.config.vocab_size)
    for row, cuts in enumerate(bounds):
        for number, (lo, hi) in enumerate(pairwise(cuts)):
            seq_idx[row, lo:hi] = number
            alone[row, lo:hi] = model(ids[row : row + 1, lo:hi]).logits[0]
    close(model(ids, seq_idx=seq_idx).logits, alone)
    close(model(ids[:1], cu_seqlens=torch.tensor(bounds[0])).logits, alone[:1])
    close(model(ids[:1], cu_seqlens=torch.tensor([0, 6, 6, 7, 20])).logits, alone[:1])  # an empty document


def test_packed_loss_and_gradients_equal_the_documents_own(model: Any) -> None:
    ids = tokens(model, 1, 16)
    cuts = [0, 5, 16]
    total, count = 0.0, 0
    for lo, hi in pairwise(cuts):
        part = ids[:, lo:hi]
        total, count = total + model(part, labels=part).loss * (hi - lo - 1), count + hi - lo - 1
    (total / count).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = model(ids, labels=ids, cu_seqlens=torch.tensor(cuts)).loss
    loss.backward()
    torch.testing.assert_close(loss, total / count, rtol=1e-5, atol=1e-5)
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_gradients_flow_through_a_cache(model: Any) -> None:
    """Two cached chunks give the gradients of one forward."""
    ids = tokens(model, 2, 9)
    model(ids, labels=ids).logits.square().mean().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    feed(model, ids, [5, 4])[0].square().mean().backward()
    for name, gradient in expected.items():
        got = dict(model.named_parameters())[name].grad
        assert (got - gradient).norm() <= 1e-3 * gradient.norm(), name


@torch.no_grad()
def test_rows_of_a_cache_can_be_chosen_and_repeated(model: Any) -> None:
    ids = tokens(model, 3, 14)
    full = model(ids).logits
    _, cache = feed(model, ids, [4, 6])
    picked = copy.deepcopy(cache)
    picked.batch_select_indices(torch.tensor([2, 0]))
    close(feed(model, ids[[2, 0], 10:], [4], picked)[0], full[[2, 0], 10:])
    cache.batch_repeat_interleave(2)
    close(feed(model, ids[:, 10:].repeat_interleave(2, 0), [1, 3], cache)[0], full[:, 10:].repeat_interleave(2, 0))
    fixed = feed(model, ids, [10], model.new_cache(3, 14))[1]
    fixed.reorder_cache(torch.tensor([1, 1, 0]))
    close(feed(model, ids[[1, 1, 0], 10:], [1] * 4, fixed)[0], full[[1, 1, 0], 10:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_follows_fp32(model: Any, dtype: torch.dtype) -> None:
    """Whole and cached, half precision is as near to fp32 as its rounding."""
    ids = tokens(model, 2, 12)
    reference = model(ids).logits
    half = copy.deepcopy(model).to(dtype)
    spread = reference.std()
    for logits in (half(ids).logits, feed(half, ids, [4, 1, 1, 6])[0]):
        assert logits.dtype == torch.float32
        assert (logits - reference).abs().mean() < 20 * torch.finfo(dtype).eps * spread


@torch.no_grad()
def test_a_reset_cache_starts_again(model: Any) -> None:
    ids = tokens(model)
    full = model(ids).logits
    for cache in (model.new_cache(), model.new_cache(2, T)):
        feed(model, ids.flip(1), [7, 1, 1], cache)
        cache.reset()
        close(feed(model, ids, [9] + [1] * (T - 9), cache)[0], full)


@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_a_replayed_step_needs_nothing_from_the_host(model: Any, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CUDA graph does, on the CPU: every step runs with the host's counters of the first one."""
    ids = tokens(model)
    mask = torch.ones(2, 8, dtype=torch.long)
    expected = model(ids).logits
    if ragged:
        mask[1, :3] = 0
        expected[1:, 3:] = model(ids[1:, 3:]).logits
    cache = model.new_cache(2, T)
    model(ids[:, :8], attention_mask=mask, past_key_values=cache)
    addresses = [t.data_ptr() for state in cache.states for t in state.values()]
    monkeypatch.setattr("hybridzoo.layers.causal_lm._capturing", lambda: True)
    columns, past = cache.columns, cache.past
    for i in range(8, T):
        cache.columns, cache.past = columns, past
        close(model(ids[:, i : i + 1], past_key_values=cache).logits, expected[:, i : i + 1])
    assert [t.data_ptr() for state in cache.states for t in state.values()] == addresses
    assert cache.lengths.flatten().tolist() == [model.model.spec.num_meta_tokens + n for n in (T, T - 3 * ragged)]
