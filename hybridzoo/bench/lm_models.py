"""Language models for the benchmarks: ours and their rivals with random weights, and one decoding step of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.layers.cache import CACHE_NAME


@dataclass(frozen=True, kw_only=True)
class LmSettings:
    """How to measure.

    Attributes:
        context: tokens in the cache when a token is decoded, and of a prompt.
        batch_sizes: of decoding; a size that does not fit into memory ends the list.
        prefill_batch_size: prompts read together.
        train: (batch size, sequence length) of training steps.
        gradient_checkpointing: in training steps.
        seconds: about how long each measurement lasts.
        device: where.
        dtype: of weights and activations.
        backends: `op=backend` that the measured calls must take; the others are left to auto.
    """

    context: int = 8192
    batch_sizes: tuple[int, ...] = (1, 16, 64, 128, 256)
    prefill_batch_size: int = 1
    train: tuple[tuple[int, int], ...] = ((8, 2048),)
    gradient_checkpointing: bool = False
    seconds: float = 1.0
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    backends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in self.backends:
            if len(text.split("=")) != 2:
                raise ConfigError(f"backend {text!r}: give op=name, as hybrid_attention=triton")
        if self.context < 2 or self.prefill_batch_size < 1 or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError("context must be at least 2, and batch sizes at least 1")


def _llama(**sizes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(attn_implementation="sdpa", **sizes))  # pyright: ignore[reportCallIssue]


def _fla_deltanet() -> Any:
    try:
        from fla.models import DeltaNetConfig, DeltaNetForCausalLM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"fla_deltanet_1_3b needs flash-linear-attention ({error})") from error
    sizes = {"hidden_size": 2048, "num_hidden_layers": 24, "num_heads": 16, "vocab_size": 32000}
    return DeltaNetForCausalLM(DeltaNetConfig(**sizes, tie_word_embeddings=False))


_LLAMA_3_2 = {
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
RIVALS: dict[str, Callable[[], Any]] = {
    "llama_3_2_3b": lambda: _llama(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        **_LLAMA_3_2,
    ),
    "llama_3_2_1b": lambda: _llama(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        **_LLAMA_3_2,
    ),
    "llama_1_3b": lambda: _llama(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        vocab_size=32000,
        tie_word_embeddings=False,
    ),
    "fla_deltanet_1_3b": _fla_deltanet,
    "llama_tiny": lambda: _llama(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    ),
}


def build(name: str, settings: LmSettings) -> Any:
    """A model with random weights on the device, in eval mode; raises ConfigError for an unknown name."""
    from hybridzoo import registry
    from hybridzoo.loading import build_model

    before = torch.get_default_dtype()
    torch.set_default_dtype(settings.dtype)  # large models are never held in fp32
    try:
        with torch.device(settings.device):
            if name in RIVALS:
                return RIVALS[name]().eval()
            if not registry.is_model(name) or registry.get_model(name)[0].task != "text-generation":
                known = [*registry.list_models(task="text-generation"), *RIVALS]
                raise ConfigError(unknown("language model", name, known))
            return build_model(name, device=settings.device).to(settings.dtype).eval()
    finally:
        torch.set_default_dtype(before)


class FixedKV:
    """The smallest cache that transformers' attention layers accept: all slots full, the last one written each step.

    Args:
        config: of a Llama-like model.
        batch, length: rows and slots.
    """

    is_compileable = False
    is_initialized = True

    def __init__(self, config: Any, batch: int, length: int, device: Any, dtype: torch.dtype):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, length, head)
        self.k = torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.5)
        self.v = torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.5)
        self.length = length
        self.is_sliding = self.is_linear = self.is_dummy = [False] * config.num_hidden_layers

    @property
    def nbytes(self) -> int:
        return (self.k.numel() + self.v.numel()) * self.k.element_size()

    def update(self, k: torch.Tensor, v: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
        self.k[layer, :, :, self.length - 1 :] = k
        self.v[layer, :, :, self.length - 1 :] = v
        return self.k[layer], self.v[layer]

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.length - 1

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        return self.length - 1

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.length, 0

    def get_max_cache_shape(self, *_: Any, **__: Any) -> int:
        return self.length


def decoding_step(model: Any, batch: int, settings: LmSettings) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """(eager step, step for a graph, bytes of the cache) with `context` tokens seen.

    Models of the zoo capture their own graph; for them the second step is the one that replays it.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (batch, 1), device=settings.device)
    if hasattr(model, "new_cache"):
        return _zoo_step(model, ids, settings)
    if "fla." in type(model).__module__:
        prompt = torch.randint(0, vocabulary, (batch, 128), device=settings.device)
        past = model(prompt, use_cache=True)[CACHE_NAME]  # the state does not grow with the context

        def step() -> Any:
            return model(ids, use_cache=True, **{CACHE_NAME: past}).logits

        return step, step, 0
    kv = FixedKV(model.config, batch, settings.context, settings.device, settings.dtype)
    position = torch.full((batch, 1), settings.context - 1, device=settings.device)

    def call() -> Any:
        named = {CACHE_NAME: kv}
        return model(ids, position_ids=position, use_cache=True, logits_to_keep=1, **named).logits

    return call, call, kv.nbytes


def _zoo_step(model: Any, ids: torch.Tensor, settings: LmSettings) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    batch, seen = len(ids), settings.context - 1

    def filled() -> Any:
        cache = model.new_cache(batch, settings.context)
        for state in cache.states:
            for tensor in state.values():
                tensor.normal_(0, 0.5)
        cache.advance(seen, seen + cache.num_meta)
        return cache

    cache = filled()

    def eager() -> Any:
        cache.warm = False  # never capture
        out = model(ids, past_key_values=cache, use_cache=True).logits
        cache.advance(-1, cache.past - 1)
        return out

    def replayed() -> Any:
        out = model(ids, past_key_values=cache, use_cache=True).logits
        cache.advance(-1, cache.past - 1)
        return out

    return eager, replayed, cache.nbytes


@contextmanager
def captured(step: Callable[[], Any], model: Any) -> Iterator[Callable[[], Any]]:
    """The step as one call of a CUDA graph; models of the zoo do it themselves."""
    if hasattr(model, "new_cache"):
        step()
        step()
        yield step
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    yield graph.replay
