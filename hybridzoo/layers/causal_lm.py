"""A language model on the shared decoder: loss, caches, packing, padding and transformers' generation.

`hymba`, `deltanet` and `hybrid_lm` are subclasses that name their configuration and nothing else.

Legend: B batch, T positions of this call, D model width, M meta tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from hybridzoo.errors import InputError
from hybridzoo.layers.cache import CACHE_NAME, HybridCache, cache_of
from hybridzoo.layers.decode_graph import DecodeGraph
from hybridzoo.layers.decoder import HybridDecoder
from hybridzoo.layers.decoder_inputs import Packing, Padding, check_limit, embedded, packing_of, padding_of
from hybridzoo.layers.decoder_spec import DecoderConfig
from hybridzoo.layers.mixer import Mixer, MixerContext, State
from hybridzoo.layers.short_conv import ShortConv
from hybridzoo.modeling import ZooModel


class HybridCausalLM(ZooModel, GenerationMixin):
    """Decoder and vocabulary projection."""

    config_class: Any = DecoderConfig
    task: ClassVar[str] = "text-generation"
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}  # type: ignore[misc]
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]  # type: ignore[misc]
    accepts_loss_kwargs = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        spec = config.decoder_spec()
        self.model = HybridDecoder(spec)
        self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self._warned_long = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.model.spec.initializer_range if hasattr(self, "model") else 0.02
        if isinstance(module, (nn.Linear, ShortConv)):
            init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()
        elif isinstance(module, Mixer):
            module.init_weights(std)
        elif hasattr(module, "init_weights") and module is not self:  # a part of a mixer
            module.init_weights()  # type: ignore[operator]
        elif isinstance(module, HybridDecoder) and module.meta_tokens is not None:
            init.normal_(module.meta_tokens, 0.0, 1.0)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the vocabulary projection."""
        self.lm_head = new_embeddings  # type: ignore[assignment]

    # Forward ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: HybridCache | None = None,
        cache: HybridCache | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        seq_idx: Tensor | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predict the next token at every position.

        A row alone, in a padded batch, packed among other documents, or fed in any chunks through a cache gives the
        same numbers.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T) or, with a cache, (B, seen + T): 0 at padding, left or right. Logits at padding mean
                nothing.
            inputs_embeds: (B, T, D) instead of input_ids.
            labels: (B, T) ids; position t is trained to give labels[t + 1], and -100 is left out.
            past_key_values: a cache of this model, see `new_cache`.
            cache: the same under the name that transformers uses from 5.24 on.
            use_cache: return a cache; on if one is passed.
            cu_seqlens: (S + 1,) bounds of documents packed into one row.
            seq_idx: (B, T) integers, another one for each document of a row.
            output_hidden_states: the input of every layer and the normalised output, with the rows of the meta tokens:
                (B, M + T, D); in calls that continue a cache, (B, T, D).
            logits_to_keep: only the last so many positions (0: all), or the positions of an index tensor.
            num_items_in_batch: divide the sum of the losses by this instead of the number of labels.
            return_dict: False gives a plain tuple.

        Returns:
            `CausalLMOutputWithPast`: loss, logits (B, T, V) in fp32, past_key_values, hidden_states.

        Raises:
            InputError: inputs of the wrong shape, type or range, or a cache of another model.
        """
        past_key_values = cache_of(past_key_values, cache)
        compiling = torch.compiler.is_compiling()
        look = not compiling and not _capturing()
        decoding = past_key_values is not None and past_key_values.columns > 0
        on_cpu = self.device.type == "cpu"
        check = look and (on_cpu or not (self.training or decoding))
        x = embedded(self.model.embed_tokens, input_ids, inputs_embeds, check_range=check)
        packing = packing_of(cu_seqlens, seq_idx, x.shape[0], x.shape[1], x.device)
        if packing is None:
            seen = 0 if past_key_values is None else past_key_values.columns
            check_limit(seen + x.shape[1], self.model.position_limit())
        keep = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        cached = use_cache if use_cache is not None else past_key_values is not None
        if packing is not None:
            if attention_mask is not None or past_key_values is not None or use_cache:
                raise InputError(
                    "packed documents (cu_seqlens, seq_idx) go without attention_mask and cache; make padding a "
                    "document of its own, with labels -100"
                )
            hidden, states = self._run_packed(x, packing, keep)
        elif cached or past_key_values is not None:
            past_key_values = past_key_values if past_key_values is not None else self.new_cache()
            if look and DecodeGraph.wanted(past_key_values, input_ids, x, keep):
                replayed = self._replay(past_key_values, input_ids, attention_mask)
                if replayed is not None:
                    return self._result(None, replayed, past_key_values, (), return_dict)
            hidden, states = self._run_cached(x, attention_mask, past_key_values, keep, look)
        else:
            self._warn_long(x.shape[1])
            padding = padding_of(attention_mask, x.shape[0], x.shape[1], 0, may_wait=look)
            hidden, states = self._run_plain(x, padding, keep)
        rows = hidden[:, slice(-logits_to_keep, None)] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
        logits = self.lm_head(rows)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels, x, packing, num_items_in_batch)
        return self._result(loss, logits, past_key_values if cached else None, tuple(states), return_dict)

    def _result(
        self, loss: Tensor | None, logits: Tensor, cache: Any, states: tuple[Tensor, ...], return_dict: bool | None
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        out = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=states or None, **{CACHE_NAME: cache})  # type: ignore[arg-type]
        return out if return_dict is None or return_dict else out.to_tuple()

    def _run_plain(self, x: Tensor, padding: Padding | None, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Whole rows without a cache; meta tokens stand in front of each."""
        ctx = MixerContext(torch.empty(1, 0), num_meta=self.model.spec.num_meta_tokens)
        return self._run(x, ctx, None, padding, keep)[:2]

    def _run(
        self, x: Tensor, ctx: MixerContext, states: list[State] | None, padding: Padding | None, keep: bool
    ) -> tuple[Tensor, list[Tensor], list[State]]:
        """Sort padding, put meta tokens in front where nothing has been seen, run, and put everything back."""
        meta = self.model.meta_tokens if ctx.fresh else None
        in_front = 0 if meta is None else meta.shape[0]
        if padding is not None:
            x = padding.sort(x)
            front = torch.ones(x.shape[0], in_front, dtype=torch.bool, device=x.device)
            ctx.valid = torch.cat([front, padding.valid], 1)
            ctx.counts = padding.counts + in_front
        if meta is not None:
            x = torch.cat([meta.to(x.dtype).unsqueeze(0).expand(x.shape[0], -1, -1), x], 1)
        ctx.positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0) + ctx.past
        out = self.model.run(x, ctx, states, keep_hidden=keep)

        def restore(h: Tensor) -> Tensor:
            if padding is None:
                return h
            return torch.cat([h[:, :in_front], padding.unsort(h[:, in_front:])], 1)

        hidden = out.hidden[:, in_front:]
        hidden = hidden if padding is None else padding.unsort(hidden)
        return hidden, [restore(h) for h in out.all_hidden], out.states

    def _run_cached(
        self, x: Tensor, mask: Tensor | None, cache: HybridCache, keep: bool, look: bool
    ) -> tuple[Tensor, list[Tensor]]:
        decoder, length = self.model, x.shape[1]
        meta = decoder.spec.num_meta_tokens
        cache.check(decoder.signature, x.shape[0], length, decoder.embed_tokens.weight.dtype)
        padding = padding_of(mask, x.shape[0], length, cache.columns, may_wait=look)
        first = cache.columns == 0
        ctx = MixerContext(torch.empty(1, 0), num_meta=meta, return_state=True, inplace=cache.static, fresh=first)
        states = cache.states
        if first and meta and not (keep or decoder.stretches or torch.is_grad_enabled() or not look):
            states = cache.after_prefix(decoder.prefix(), x.shape[0])
            ctx.past, ctx.seen, ctx.fresh = meta, meta, False
        elif not first:
            ctx.past, ctx.seen = cache.past, meta + cache.columns
            if cache.static and length == 1 and cache.lengths is not None:
                ctx.past = cache.lengths
            ctx.narrow = int(length == 1 and getattr(self.config, "decode_window", "") == "official")
        if look:
            self._warn_long(cache.columns + length)
        hidden, kept, new = self._run(x, ctx, states, padding, keep)
        cache.store(new)
        if padding is None and not first and cache.static and length == 1:
            cache.step()
        elif padding is None and isinstance(cache.past, int):
            cache.advance(length, meta + cache.columns + length if first else cache.past + length)
        else:
            cache.advance(length, ctx.after)
        return hidden, kept

    def _run_packed(self, x: Tensor, packing: Packing, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Documents one after the other in one row; each starts from the state that the meta tokens leave."""
        decoder, (rows, length, width) = self.model, x.shape
        meta, documents = decoder.spec.num_meta_tokens, packing.cu_seqlens.shape[0] - 1
        states = None
        if meta:
            if decoder.stretches:
                raise InputError(
                    "packed documents cannot share meta tokens whose rotation depends on each document's length "
                    "(rope_type='dynamic_ntk'); pad them instead (attention_mask)"
                )
            states = [
                {n: t if n in ("k", "v") else t.expand(documents, *t.shape[1:]) for n, t in state.items()}
                for state in decoder.prefix()
            ]
        ctx = MixerContext(
            packing.offsets + meta,
            cu_seqlens=packing.cu_seqlens.to(torch.int32),
            rows=rows,
            seq_idx=packing.seq_idx,
            num_meta=meta,
            fresh=False,
        )
        out = decoder.run(x.reshape(1, rows * length, width), ctx, states, keep_hidden=keep)
        return out.hidden.view(rows, length, width), [h.view(rows, length, width) for h in out.all_hidden]

    def _loss(
        self, logits: Tensor, labels: Tensor, x: Tensor, packing: Packing | None, items: Tensor | int | None
    ) -> Tensor:
        if labels.shape != x.shape[:2] or logits.shape[1] != labels.shape[1]:
            raise InputError(
                f"labels must be {tuple(x.shape[:2])}, as input_ids, and logits_to_keep 0; they are "
                f"{tuple(labels.shape)} beside logits of {logits.shape[1]} positions"
            )
        if packing is not None:
            labels = labels.masked_fill(packing.starts, -100)  # no document foretells the next one
        targets = F.pad(labels[:, 1:], (0, 1), value=-100).flatten()  # the logits are not cut: that would copy them
        flat = logits.flatten(0, 1)
        total = F.cross_entropy(flat, targets, reduction="sum")
        return total / (items if items is not None else (targets != -100).sum().clamp_min(1))

    def _warn_long(self, length: int) -> None:
        limit = self.model.spec.max_positions
        if length > limit and not self._warned_long and not torch.compiler.is_compiling():
            self._warned_long = True
            warnings.warn(
                f"{length} tokens are more than the {limit} that this model is made for (max_position_embeddings); it "
                "runs, but nothing is known of the quality",
                UserWarning,
                stacklevel=3,
            )

    # Generation ------------------------------------------------------------------------------------------------------

    def new_cache(self, batch_size: int | None = None, max_length: int | None = None) -> HybridCache:
        """An empty cache.

        Args:
            batch_size: rows; needed for a static cache.
            max_length: positions of text; makes the cache static: all memory is taken now and stays in place, and on a
                GPU single-token calls run as one CUDA graph from the third on.

        Raises:
            InputError: max_length without batch_size, or below 1.
        """
        decoder = self.model
        meta = decoder.spec.num_meta_tokens
        states = None
        if max_length is not None:
            if batch_size is None or batch_size < 1 or max_length < 1:
                raise InputError(
                    f"a static cache needs batch_size and max_length >= 1, got {batch_size} and {max_length}"
                )
            states = decoder.static_states(batch_size, max_length)
        return HybridCache(decoder.signature, meta, decoder.croppable(), states, max_length)

    def _replay(self, cache: HybridCache, input_ids: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Logits of one captured step; None while the graph is not captured yet, or where padding comes in."""
        assert input_ids is not None
        if mask is not None and not bool((mask[:, -1] != 0).all()):
            return None
        if not cache.warm:  # the first step runs as usual, and warms everything up
            cache.warm = True
            return None
        cache.check(self.model.signature, input_ids.shape[0], 1, self.model.embed_tokens.weight.dtype)
        if cache.graph is None:
            cache.graph = DecodeGraph(self, cache)
        return cache.graph(input_ids)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        given = model_kwargs.get(CACHE_NAME)
        kind = generation_config.cache_implementation
        if given is not None:
            cache_of(given)
            given._is_user_defined = True  # type: ignore[attr-defined]
            return
        if generation_config.use_cache is False:
            return
        if kind not in (None, "dynamic", "static", "hybrid"):
            raise InputError(
                f"cache_implementation={kind!r} does not exist for hybrid models; use 'dynamic' (the default) or "
                "'static'"
            )
        rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        size = max_cache_length + 1 if kind in ("static", "hybrid") else None
        model_kwargs[CACHE_NAME] = self.new_cache(rows, size)

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]
        """transformers refuses assisted decoding for models whose cache cannot go back."""
        return False in [limit for limit in self.model.croppable() if limit is False]

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise InputError if a tokenizer has ids that the model has no row for."""
        size = len(tokenizer)
        if size > self.model.spec.vocab_size:
            raise InputError(
                f"the tokenizer has {size} tokens and the model {self.model.spec.vocab_size}: they do not belong "
                "together"
            )

    def output_shape(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """(B, T, V)"""
        return (*inputs["input_ids"].shape, self.model.spec.vocab_size)

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded tokens, 48 long or the model's length if that is shorter."""
        steps = min(48, self.model.spec.max_positions)
        generator = torch.Generator().manual_seed(0)
        low = min(3, self.model.spec.vocab_size - 1)
        ids = torch.randint(low, self.model.spec.vocab_size, (batch_size, steps), generator=generator).to(self.device)
        return {"input_ids": ids, **({"labels": ids.clone()} if labels else {})}


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
