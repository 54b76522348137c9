"""The decoder that all hybrid language models of the zoo share: embedding, meta tokens, pre-norm layers, norm.

Hymba, DeltaNet and any pattern of mixers are configurations of it. Meta tokens stand in front of every sequence. They
see nothing but each other, so in a cached run (or with packed documents) they go through the layers once, in a batch of
one, and every sequence starts from the state that they leave.

Legend: B batch, T positions, D model width, M meta tokens, S packed documents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridzoo.layers.decoder_spec import DecoderSpec
from hybridzoo.layers.fused import added_and_normalised, fused
from hybridzoo.layers.gated_mlp import GatedMLP
from hybridzoo.layers.mixer import KV, SLOT_DIMS, Mixer, MixerContext, MixerInfo, MixerOutput, State, mixer_class
from hybridzoo.layers.norms import RMSNorm


class DecoderLayer(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: DecoderSpec, index: int) -> None:
        super().__init__()
        layer = spec.layers[index]
        info = MixerInfo(
            layer_index=index,
            norm_eps=spec.norm_eps,
            num_meta_tokens=spec.num_meta_tokens,
            owns_kv=layer.kv_from is None,
            max_positions=spec.max_positions,
            round_first=spec.round_first,
        )
        width = spec.hidden_size
        self.mixer_norm = RMSNorm(width, spec.norm_eps, round_first=spec.round_first)
        self.mixer: Mixer = mixer_class(layer.kind)(width, layer.options, info)  # type: ignore[call-arg]
        self.mlp_norm = self.mlp = None
        if spec.intermediate_size:
            self.mlp_norm = RMSNorm(width, spec.norm_eps, round_first=spec.round_first)
            self.mlp = GatedMLP(width, spec.intermediate_size, spec.mlp_activation)

    def forward(self, x: Tensor, ctx: MixerContext, state: State | None, kv: KV | None) -> MixerOutput:
        """(B, T, D) -> (B, T, D), with the mixer's state and keys and values."""
        if self.mixer.reads_residual:
            ctx.memo["residual"] = x
        out = self.mixer(self.mixer_norm(x), ctx, state, kv)
        if self.mlp is None or self.mlp_norm is None:
            x = x + out.y
        elif self.mlp_norm.round_first and not torch.is_grad_enabled():
            x, normed = fused(added_and_normalised, x, out.y, self.mlp_norm.weight, self.mlp_norm.eps)
            x = x + self.mlp(normed)
        else:
            x = x + out.y
            x = x + self.mlp(self.mlp_norm(x))
        return MixerOutput(x, out.state, out.kv)


class DecoderOutput(NamedTuple):
    """Normalised (B, T, D); states, one a layer; hidden states of all layers, if asked for."""

    hidden: Tensor
    states: list[State]
    all_hidden: list[Tensor]


class HybridDecoder(nn.Module):
    """See the module's text.

    Args:
        spec: the layers.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size, padding_idx=spec.padding_idx)
        shape = (spec.num_meta_tokens, spec.hidden_size)
        self.meta_tokens = nn.Parameter(torch.randn(shape)) if spec.num_meta_tokens else None
        self.layers = nn.ModuleList(DecoderLayer(spec, i) for i in range(len(spec.layers)))
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps, round_first=spec.round_first)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None  # transformers puts its own here
        self._prefix: tuple[Any, list[State]] | None = None
        limits = [limit for limit in (mixer.position_limit() for mixer in self.mixers()) if limit is not None]
        self._limit = min(limits) - spec.num_meta_tokens if limits else None

    @property
    def signature(self) -> str:
        """What a cache must agree on with the model."""
        spec = self.spec
        return f"{spec.hidden_size} wide, {spec.num_meta_tokens} meta tokens, layers {_signature(spec)}"

    @property
    def stretches(self) -> bool:
        """Some layer's rotary base depends on the length, so that meta tokens have no state of their own."""
        return any(getattr(layer.options, "rope_type", "") == "dynamic_ntk" for layer in self.spec.layers)

    def mixers(self) -> list[Mixer]:
        """Of all layers, bottom up."""
        return [layer.mixer for layer in self.layers]  # type: ignore[misc]

    def position_limit(self) -> int | None:
        """Positions of the text beyond which some layer cannot run; None: any number."""
        return self._limit

    def croppable(self) -> list[bool | int]:
        """Per layer, whether a cache can take tokens back; a number: as long as no more positions were seen."""
        limits: list[bool | int] = []
        for mixer, spec in zip(self.mixers(), self.spec.layers):
            kept = mixer.slots()
            recurrent = spec.kind not in ("attention", "swa")
            limits.append(False if recurrent else True if kept in (None, 0) else self.spec.num_meta_tokens + kept)
        return limits

    def run(
        self, x: Tensor, ctx: MixerContext, states: list[State] | None = None, *, keep_hidden: bool = False
    ) -> DecoderOutput:
        """Embedded rows through all layers.

        Args:
            x: (B, T, D).
            ctx: of the call.
            states: one a layer, or None at the start.
            keep_hidden: also return the input of every layer and the normalised output.
        """
        kvs: dict[int, KV | None] = {}
        after: list[State] = []
        hidden: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if keep_hidden:
                hidden.append(x)
            source = self.spec.layers[i].kv_from
            given = None if source is None else kvs[source]
            run: Callable[..., MixerOutput] = layer
            if self.gradient_checkpointing and self.training:
                recompute = self._gradient_checkpointing_func or partial(checkpoint, use_reentrant=False)
                run = partial(recompute, layer.__call__)
            x, state, kvs[i] = run(x, ctx, None if states is None else states[i], given)
            after.append(state or {})
        x = self.norm(x)
        if keep_hidden:
            hidden.append(x)
        return DecoderOutput(x, after, hidden)

    def prefix(self) -> list[State]:
        """States, of a batch of one, after the meta tokens. Kept while no weight changes, unless gradients are on."""
        assert self.meta_tokens is not None
        key = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else _versions(self)
        if key is not None and self._prefix is not None and self._prefix[0] == key:
            return self._prefix[1]
        positions = torch.arange(self.spec.num_meta_tokens, device=self.meta_tokens.device).unsqueeze(0)
        ctx = MixerContext(positions, num_meta=self.spec.num_meta_tokens, return_state=True)
        states = self.run(self.meta_tokens.unsqueeze(0).to(self.embed_tokens.weight.dtype), ctx).states
        if key is not None:
            self._prefix = key, states
        return states

    def static_states(self, batch: int, max_length: int) -> list[State]:
        """Zero states with room for max_length text positions, as a static cache needs."""
        meta, weight = self.spec.num_meta_tokens, self.embed_tokens.weight
        with torch.no_grad():
            ctx = MixerContext(torch.zeros(1, 1, dtype=torch.long, device=weight.device), num_meta=0, return_state=True)
            shapes = self.run(weight.new_zeros(1, 1, weight.shape[1]), ctx).states
        states = []
        for mixer, state in zip(self.mixers(), shapes):
            kept = mixer.slots()
            slots = meta + (max_length if kept is None else min(kept, max_length))
            made = {}
            for name, tensor in state.items():
                shape = [batch, *tensor.shape[1:]]
                if name in SLOT_DIMS:
                    shape[SLOT_DIMS[name]] = slots
                made[name] = tensor.new_zeros(shape)
            states.append(made)
        return states


def _signature(spec: DecoderSpec) -> str:
    return " ".join(f"{layer.kind}{layer.options}<{layer.kv_from}" for layer in spec.layers)


def _versions(module: nn.Module) -> Any:
    """Changes whenever a parameter is written or replaced; None where torch does not count (inference tensors)."""
    try:
        return tuple((p.data_ptr(), p._version) for p in module.parameters())
    except RuntimeError:
        return None
