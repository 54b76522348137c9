"""Hybrid language models: patterns and their errors, generation through transformers, caches, bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, TextIteratorStreamer

from hybridzoo import build_model, list_models
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.layers.cache import CACHE_NAME, HybridCache
from hybridzoo.layers.mixer import letters, parse_pattern, register_mixer

NAMES = ["hymba_test", "deltanet_test", "hybrid_lm_test"]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def make(name: str, **config: Any) -> Any:
    torch.manual_seed(0)
    built = build_model(name, **config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return built


def prompts(model: Any, batch: int = 1, length: int = 6) -> torch.Tensor:
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def greedy(model: Any, ids: torch.Tensor, new: int) -> torch.Tensor:
    """Without a cache, token by token."""
    for _ in range(new):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids


# Patterns ------------------------------------------------------------------------------------------------------------


def test_pattern_and_layer_list_give_the_same_model() -> None:
    mixers = {"delta": {"num_heads": 2}, "swa": {"num_heads": 4, "window": 7}}
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "kv_groups": None, "num_meta_tokens": 0}
    by_pattern = make("hybrid_lm_test", pattern="D S D S", mixers=mixers, **sizes)
    layers = [{"mixer": "delta", "num_heads": 2}, {"mixer": "swa", "num_heads": 4, "window": 7}] * 2
    by_list = make("hybrid_lm_test", pattern=None, mixers=None, layers=layers, **sizes)
    ids = prompts(by_pattern, 2, 12)
    torch.testing.assert_close(by_list(ids).logits, by_pattern(ids).logits, rtol=0, atol=0)


def test_patterns_repeat() -> None:
    assert parse_pattern("D D, A", 6) == ["delta", "delta", "attention"] * 2
    assert set(letters()) == set("ACDHMS")
    model = build_model("hybrid_lm_test", pattern="DA", num_hidden_layers=4, kv_groups=None)
    assert [layer.kind for layer in model.config.decoder_spec().layers] == ["delta", "attention"] * 2
    with pytest.raises(ValueError, match="already registered"):
        register_mixer("delta", letter="X", target="nowhere:Nothing")
    with pytest.raises(ValueError, match="already registered"):
        register_mixer("other", letter="D", target="nowhere:Nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "DXA"}, "unknown letter 'X'.*D delta"),
        ({"pattern": " "}, "empty pattern"),
        ({"pattern": "DDA", "num_hidden_layers": 4}, "do not divide num_hidden_layers=4"),
        ({"layers": [{"mixer": "delta"}]}, "either pattern"),
        ({"pattern": None, "layers": []}, "layers is empty"),
        ({"pattern": None, "layers": [{"num_heads": 2}]}, "names no mixer"),
        ({"pattern": None, "layers": [{"mixer": "delt"}]}, "did you mean 'delta'"),
        ({"mixers": {"detla": {}}}, "did you mean 'delta'"),
        ({"mixers": {"delta": {"num_head": 2}}}, "did you mean 'num_heads'"),
        ({"mixers": {"delta": {"num_heads": "2"}}}, "must be int"),
        ({"mixers": {"swa": {"window": None}}, "pattern": "S", "kv_groups": None}, "window"),
        ({"kv_groups": [[3, 5]]}, "not consecutive"),
        ({"kv_groups": [[4, 3]]}, "not consecutive"),
        ({"kv_groups": [[6, 7]]}, "outside the model's"),
        ({"kv_groups": [[0, 1]]}, "no keys and values"),
        ({"kv_groups": [[2, 3]]}, "cannot read the keys"),
        ({"kv_groups": [[3, 4], [4, 5]]}, "two groups"),
        ({"num_meta_tokens": -1}, "num_meta_tokens"),
        ({"hidden_size": 30}, "multiple|divide"),
        ({"mlp_activation": "gelu"}, "activation"),
    ],
    ids=str,
)
def test_impossible_patterns(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model("hybrid_lm_test", **change)


# Generation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dynamic", "static", "none"])
def test_greedy_generation(model: Any, kind: str) -> None:
    ids = prompts(model, 2)
    options = {"none": {"use_cache": False}, "dynamic": {}, "static": {"cache_implementation": "static"}}[kind]
    got = model.generate(ids, max_new_tokens=15, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    assert torch.equal(got, greedy(model, ids, 15))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prompts_of_different_lengths(model: Any, kind: str) -> None:
    """A left-padded batch generates what each prompt generates alone."""
    lengths = [7, 3, 1]
    rows = [prompts(model, 1, 7)[:, :n] + i for i, n in enumerate(lengths)]
    rows = [r.clamp_max(model.config.vocab_size - 1) for r in rows]
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 7 - row.shape[1] :], mask[i, 7 - row.shape[1] :] = row[0], 1
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    got = model.generate(ids, attention_mask=mask, cache_implementation=kind, **options)
    for i, row in enumerate(rows):
        assert torch.equal(got[i, 7:], greedy(model, row, 12)[0, row.shape[1] :])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_beam_search_equals_search_without_cache(model: Any, kind: str) -> None:
    ids = prompts(model, 2)
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with_cache = model.generate(ids, cache_implementation=kind, **options)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **options))


def test_sampling_is_reproducible_and_samples(model: Any) -> None:
    ids = prompts(model, 1)
    options = {"max_new_tokens": 12, "do_sample": True, "top_k": 20, "temperature": 1.5, "num_return_sequences": 3}
    runs = []
    for cache in (True, True, False):
        torch.manual_seed(1)
        runs.append(model.generate(ids, use_cache=cache, eos_token_id=None, pad_token_id=0, **options))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert len({tuple(row.tolist()) for row in runs[0]}) > 1


class Letters:
    """Enough of a tokenizer for a streamer."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(f"<{int(i)}>" for i in ids)


def test_streaming(model: Any) -> None:
    ids = prompts(model, 1)
    streamer = TextIteratorStreamer(Letters(), skip_prompt=True, timeout=10)  # type: ignore[arg-type]
    got = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0, streamer=streamer)
    assert "".join(streamer) == Letters().decode(got[0, ids.shape[1] :])


def test_generation_continues_from_a_cache(model: Any) -> None:
    """A conversation: generate, append, generate again, without reading the beginning twice."""
    ids, options = prompts(model, 1), {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cache = model.new_cache()
    first = model.generate(ids, past_key_values=cache, max_new_tokens=5, **options)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat([first, prompts(model, 1, 4)], 1)
    second = model.generate(longer, past_key_values=cache, max_new_tokens=5, **options)
    assert torch.equal(second, greedy(model, longer, 5))


def test_logits_processors_and_embeddings(model: Any) -> None:
    ids = prompts(model, 2)
    seen: list[int] = []

    def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(input_ids.shape[1])
        return scores

    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    got = model.generate(ids, logits_processor=LogitsProcessorList([processor]), **options)
    assert seen == [6, 7, 8]
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **options), got[:, 6:])


def test_what_cannot_go_back_says_so() -> None:
    """Recurrent states cannot be cropped; attention can, as long as its window has dropped nothing."""
    hymba = make("hymba_test")
    cache = hymba(prompts(hymba), use_cache=True).past_key_values
    assert not cache.is_croppable
    with pytest.raises(InputError, match="layer 0 keeps a recurrent state"):
        cache.crop(-2)
    with pytest.raises(ValueError, match="stateful"):
        hymba.generate(prompts(hymba), assistant_model=make("hymba_test"), max_new_tokens=3)
    mixers = {"attention": {"num_heads": 4}, "swa": {"num_heads": 4, "window": 12}}
    pure = make("hybrid_lm_test", pattern="AS", mixers=mixers, kv_groups=None)
    ids = prompts(pure, 2, 16)
    cache = pure(ids[:, :10], use_cache=True).past_key_values
    cache.crop(-4)
    assert cache.get_seq_length() == 6
    with torch.no_grad():
        got = pure(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(got, pure(ids).logits[:, 6:], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="layer 1 has a window"):
        cache.crop(-1)
    with pytest.raises(InputError, match="cannot remove 99"):
        pure(ids, use_cache=True).past_key_values.crop(-99)


@torch.no_grad()
def test_the_prefix_state_is_kept_until_a_weight_changes() -> None:
    model = make("hymba_test")
    first = model.model.prefix()
    assert model.model.prefix() is first
    ids = prompts(model)
    before = model(ids, use_cache=True).logits
    torch.testing.assert_close(before, model(ids).logits, rtol=1e-4, atol=1e-4)
    model.model.meta_tokens.mul_(1.5)
    assert model.model.prefix() is not first
    after = model(ids, use_cache=True).logits
    torch.testing.assert_close(after, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-2)


@torch.no_grad()
def test_cache_sizes() -> None:
    """Windowed layers keep their window, shared keys are kept once, and `nbytes` counts what is there."""
    model = make("hymba_test")
    config, length = model.config, 200
    cache = model.new_cache(2, length)
    model(prompts(model, 2, 150), past_key_values=cache)
    head, value, heads = 8, 16, 2
    per_slot = 2 * heads * (head + value) * 4  # rows, heads, widths, bytes
    windowed = 4 + config.sliding_window + 1  # meta tokens, W before a query, and itself
    slots = 3 * (4 + length) + 2 * windowed  # layers 0, 3, 5; 1 for 2, and 4
    recurrent = config.num_hidden_layers * 2 * 64 * (config.mamba_d_conv - 1 + config.mamba_d_state) * 4
    assert cache.nbytes == slots * per_slot + recurrent
    grown = model(prompts(model, 2, 150), use_cache=True).past_key_values
    assert grown.nbytes < cache.nbytes


# Bad input -----------------------------------------------------------------------------------------------------------


def test_bad_inputs(model: Any) -> None:
    ids, vocabulary = prompts(model, 2), model.config.vocab_size
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "either input_ids"),
        ({"input_ids": ids, "inputs_embeds": torch.zeros(2, 6, 32)}, "not both"),
        ({"input_ids": ids[0]}, r"\(B, T\) integers"),
        ({"input_ids": ids.float()}, "integers"),
        ({"input_ids": ids[:, :0]}, "empty prompt"),
        ({"input_ids": ids + vocabulary}, "does the tokenizer belong"),
        ({"input_ids": -ids}, "does the tokenizer belong"),
        ({"inputs_embeds": torch.zeros(2, 6, 31)}, r"\(B, T, 32\)"),
        ({"input_ids": ids, "attention_mask": torch.ones(2, 5)}, "attention_mask must be"),
        ({"input_ids": ids, "attention_mask": torch.ones(2, 1, 6, 6)}, "attention_mask must be"),
        ({"input_ids": ids, "labels": ids[:, :3]}, "labels must be"),
        ({"input_ids": ids, "cu_seqlens": torch.tensor([0, 6])}, "use seq_idx for several rows"),
        ({"input_ids": ids[:1], "cu_seqlens": torch.tensor([0, 4])}, "rise from 0 to the row's length 6"),
        ({"input_ids": ids[:1], "cu_seqlens": torch.tensor([1, 6])}, "rise from 0"),
        ({"input_ids": ids[:1], "cu_seqlens": torch.tensor([0, 4, 3, 6])}, "rise from 0"),
        ({"input_ids": ids[:1], "cu_seqlens": torch.tensor([0.0, 6.0])}, "integers"),
        ({"input_ids": ids, "seq_idx": ids[:, :4]}, "seq_idx must be"),
        ({"input_ids": ids, "seq_idx": ids, "use_cache": True}, "without attention_mask and cache"),
        ({"input_ids": ids, "seq_idx": ids, "attention_mask": torch.ones(2, 6)}, "without attention_mask and cache"),
        ({"input_ids": ids[:1], "seq_idx": ids[:1], "cu_seqlens": torch.tensor([0, 6])}, "not both"),
        ({"input_ids": ids, "past_key_values": object()}, "HybridCache"),
    ]
    for inputs, message in cases:
        with pytest.raises(InputError, match=message):
            model(**inputs)


def test_the_cache_has_two_names(model: Any) -> None:
    """transformers 5.24 calls it `cache`, earlier ones `past_key_values`; outputs have the installed one's name."""
    ids = prompts(model, 2)
    old, new = model.new_cache(), model.new_cache()
    first, second = model(ids, past_key_values=old), model(ids, cache=new)
    assert torch.equal(first.logits, second.logits)
    assert first[CACHE_NAME] is old
    assert second[CACHE_NAME] is new
    again = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0, return_dict_in_generate=True)
    assert again[CACHE_NAME].columns == ids.shape[1] + 1
    with pytest.raises(InputError, match="two names of one argument"):
        model(ids, past_key_values=old, cache=new)


def test_caches_of_others(model: Any) -> None:
    ids = prompts(model, 2)
    other = make("hybrid_lm_test", pattern="DD", kv_groups=None)
    with pytest.raises(InputError, match="another model"):
        model(ids, past_key_values=other.new_cache())
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(InputError, match="holds 2 rows and the input has 1"):
        model(ids[:1], past_key_values=cache)
    if any("k" in state for state in cache.states):
        with pytest.raises(InputError, match="bfloat16"):
            copy.deepcopy(model).to(torch.bfloat16)(ids, past_key_values=cache)
    small = model.new_cache(2, 8)
    model(ids, past_key_values=small)
    with pytest.raises(InputError, match="holds 8 positions; 6 are used and 3 more"):
        model(ids[:, :3], past_key_values=small)
    with pytest.raises(InputError, match="needs batch_size"):
        model.new_cache(max_length=8)
    from transformers import DynamicCache

    for call in (model, lambda i, **k: model.generate(i, **k)):
        with pytest.raises(InputError, match="DynamicCache"):
            call(ids, past_key_values=DynamicCache())
    with pytest.raises(InputError, match="quantized"):
        model.generate(ids, cache_implementation="quantized", max_new_tokens=2)
    with pytest.raises(InputError, match="makes its own masks"):
        HybridCache("", 0, []).get_mask_sizes(1, 0)


def test_long_prompts_warn_once(model: Any) -> None:
    ids = prompts(model, 1, 300)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="300 tokens are more than the 256"):
            model(ids)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(ids)


def test_empty_prompts_and_foreign_tokenizers(model: Any) -> None:
    with pytest.raises((InputError, ValueError, IndexError), match=r"empty|no token|out of"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=2, bos_token_id=None)
    model.check_tokenizer(range(model.config.vocab_size))
    with pytest.raises(InputError, match="do not belong together"):
        model.check_tokenizer(range(model.config.vocab_size + 1))


@pytest.mark.parametrize("name", list_models("*_test", task="text-generation"))
def test_every_weight_has_a_gradient(name: str) -> None:
    """Data-parallel training does not look for unused weights (`training.arguments.ddp_options`)."""
    model = build_model(name).train()
    model(**model.example_inputs(2, labels=True)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_loss_is_the_mean_over_labels(model: Any) -> None:
    ids = prompts(model, 2, 10)
    labels = ids.masked_fill(torch.arange(10) % 3 == 0, -100)
    out = model(ids, labels=labels)
    flat, targets = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(flat, targets))
    summed = model(ids, labels=labels, num_items_in_batch=7).loss
    torch.testing.assert_close(summed * 7, out.loss * int((targets != -100).sum()))
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, out.logits[:, [0, 4]])
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0
