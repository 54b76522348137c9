"""The cache of a hybrid decoder: one `State` a layer, for transformers' generation and for use by hand.

Attention layers keep slots (see `kv.py`), windowed ones no more than their window; recurrent layers keep a state of
constant size. A static cache has its final size from the start and never moves, as CUDA graphs need.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from hybridzoo.errors import InputError
from hybridzoo.layers.mixer import SLOT_DIMS, State

# transformers 5.17: crop(max_length), negative to remove; 5.23: crop(tokens_to_remove)
_CROP_REMOVES = "tokens_to_remove" in inspect.signature(Cache.crop).parameters
# transformers 5.24 calls the cache `cache` in forward, generate and outputs; before, it was `past_key_values`
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class HybridCache(Cache):
    """States of all layers and how much each row has seen.

    Args:
        signature: of the model that it belongs to; made by `model.new_cache`.
        num_meta: meta tokens of the model.
        croppable: for each layer, whether tokens can be taken back: True, False, or a number of positions within which
            it can (a window that has not been filled yet).
        states: a static cache's tensors, which keep their place; None for a cache that grows.
        max_length: positions of the text that a static cache holds.

    Attributes:
        columns: text positions fed so far, padding included (what transformers calls the sequence length).
        past: positions seen, meta tokens included and padding not: an int, the same for all rows, or (B, 1).
    """

    def __init__(
        self,
        signature: str,
        num_meta: int,
        croppable: list[bool | int],
        states: list[State] | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.signature, self.num_meta, self.croppable = signature, num_meta, croppable
        self.states: list[State] | None = states
        self.max_length = max_length
        self.columns = 0
        self.past: int | Tensor = 0
        self.lengths: Tensor | None = None  # static: (B, 1), the same as past, on the device
        if states is not None:
            first = next(t for state in states for t in state.values())
            self.lengths = torch.zeros(first.shape[0], 1, dtype=torch.long, device=first.device)
        self.capture = True  # on a GPU, run single-token calls of a static cache as one CUDA graph
        self.graph: Any = None  # the captured step
        self.warm = False

    @property
    def static(self) -> bool:
        """Of fixed size and place."""
        return self.max_length is not None

    @property
    def ragged(self) -> bool:
        """Rows have seen different numbers of positions."""
        return isinstance(self.past, Tensor)

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first call."""
        if self.states is None:
            return -1
        return next((t.shape[0] for state in self.states for t in state.values()), -1)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(t.numel() * t.element_size() for state in self.states or [] for t in state.values())

    def __repr__(self) -> str:
        kind = f"static, {self.max_length} positions" if self.static else "growing"
        return f"HybridCache({kind}, batch {self.batch_size}, {self.columns} columns seen, {self.nbytes:,} bytes)"

    def __len__(self) -> int:
        return len(self.states or [])

    def check(self, signature: str, batch: int, length: int, dtype: torch.dtype) -> None:
        """Raise InputError unless the cache fits a call of the model."""
        if self.signature != signature:
            raise InputError(
                "past_key_values is a cache of another model or of another configuration; make one with "
                f"model.new_cache(...).\n  cache: {self.signature}\n  model: {signature}"
            )
        if self.states is not None and self.batch_size not in (-1, batch):
            raise InputError(
                f"past_key_values holds {self.batch_size} rows and the input has {batch}; use one cache per batch, or "
                "cache.batch_select_indices(...) to keep some rows"
            )
        kinds = {t.dtype for state in self.states or [] for n, t in state.items() if n in ("k", "v")}
        if (
            kinds
            and dtype not in kinds
            and not torch.is_autocast_enabled("cuda")
            and not torch.is_autocast_enabled("cpu")
        ):
            raise InputError(f"past_key_values holds keys of {kinds.pop()}, and the model computes in {dtype}")
        if self.max_length is not None and self.columns + length > self.max_length:
            raise InputError(
                f"this static cache holds {self.max_length} positions; {self.columns} are used and {length} more "
                "do not fit: make a larger one with model.new_cache(batch_size, max_length)"
            )

    def after_prefix(self, prefix: list[State], rows: int) -> list[State]:
        """States of `rows` rows that have seen the meta tokens, in this cache's own tensors if it is static.

        Args:
            prefix: states of one row after them.
            rows: B.
        """
        meta = self.num_meta
        if not self.static or self.states is None:  # states are replaced; slots that have room are written in place
            return [
                {
                    n: t.expand(rows, *t.shape[1:]).clone()
                    if n in SLOT_DIMS and t.shape[SLOT_DIMS[n]] > meta
                    else t.expand(rows, *t.shape[1:]).contiguous()
                    for n, t in state.items()
                }
                for state in prefix
            ]
        for own, state in zip(self.states, prefix):
            for name, tensor in state.items():
                if name in ("k", "v"):
                    own[name][:, :, :meta].copy_(tensor[:, :, :meta])
                elif name == "history":  # the latest inputs stand at the end, zeros before them
                    own[name].zero_()[:, own[name].shape[1] - tensor.shape[1] :].copy_(tensor)
                else:
                    own[name].copy_(tensor)
        return self.states

    def store(self, states: list[State]) -> None:
        """Take the states after a call."""
        if not self.static or self.states is None:
            self.states = states
            return
        for old, new in zip(self.states, states):
            for name, tensor in new.items():
                if tensor is not old[name]:
                    old[name].copy_(tensor)

    def advance(self, columns: int, past: int | Tensor) -> None:
        """Note what a call has fed."""
        self.columns += columns
        self.past = past
        if self.lengths is None:
            return
        if isinstance(past, Tensor):
            self.past = self.lengths.copy_(past)
        else:
            self.lengths.fill_(past)

    def step(self) -> None:
        """As `advance` by one token, in a form that a CUDA graph can repeat."""
        self.columns += 1
        if isinstance(self.past, int):
            self.past += 1
        if self.lengths is not None:
            self.lengths.add_(1)

    # transformers' interface -----------------------------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Text positions fed so far, padding included, meta tokens not."""
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Positions that a static cache holds, -1 for a growing one."""
        return -1 if self.max_length is None else self.max_length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """As `get_max_cache_shape`."""
        return self.get_max_cache_shape()

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """The model makes its own masks."""
        raise InputError("a HybridCache belongs to a hybridzoo model, which makes its own masks")

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """The model's layers write their states themselves."""
        raise InputError("a HybridCache belongs to a hybridzoo model; it cannot be used by another attention layer")

    @property
    def is_compileable(self) -> bool:
        """False: transformers would build 4-D masks and compile; a static cache captures its own CUDA graph."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether states exist."""
        return self.states is not None

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back now."""
        return self._obstacle(1) is None

    @property
    def is_sliding(self) -> list[bool]:
        """Per layer; transformers asks before it slices masks, which it need not."""
        return [False] * len(self)

    @property
    def is_linear(self) -> list[bool]:
        """Never: transformers would feed all tokens again to a cache whose layers are all linear."""
        return [False] * max(len(self), 1)

    def reset(self) -> None:
        """Forget everything; a static cache keeps its place."""
        if self.static:
            for state in self.states or []:
                for tensor in state.values():
                    tensor.zero_()
            assert self.lengths is not None
            self.lengths.zero_()
        else:
            self.states = None
        self.columns, self.past = 0, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search)."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        if self.static and indices.numel() != self.batch_size:
            raise InputError("a static cache cannot change its number of rows; use a growing one")
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row."""
        if self.static and repeats != 1:
            raise InputError("a static cache cannot change its number of rows; use a growing one")
        if self.batch_size > 0:
            self._select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def _select(self, indices: Tensor) -> None:
        for state in self.states or []:
            for name, tensor in state.items():
                chosen = tensor.index_select(0, indices.to(tensor.device))
                if self.static:
                    tensor.copy_(chosen)
                else:
                    state[name] = chosen
        if isinstance(self.past, Tensor):
            chosen = self.past.expand(max(self.batch_size, 1), 1).index_select(0, indices.to(self.past.device))
            self.past = chosen if self.lengths is None else self.lengths.copy_(chosen)

    def _obstacle(self, removed: int) -> str | None:
        """Why the last tokens cannot be taken back; None if they can."""
        if self.ragged:
            return "its rows have different lengths"
        for layer, limit in enumerate(self.croppable):
            if limit is False:
                return f"layer {layer} keeps a recurrent state, which cannot go back"
            if limit is not True and isinstance(self.past, int) and self.past > limit:
                return f"layer {layer} has a window, which has already dropped the positions before it"
        return None

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, where every layer can.

        Args:
            tokens_to_remove: as in the installed transformers: how many to remove (5.23), or the length to keep (5.17);
                a negative number is a number to remove in both.

        Raises:
            InputError: a recurrent layer, or a window that has dropped older keys.
        """
        n = int(tokens_to_remove)
        removed = -n if n < 0 else (n if _CROP_REMOVES else max(self.columns - n, 0))
        if removed == 0:
            return
        if removed > self.columns:
            raise InputError(f"cannot remove {removed} tokens from a cache that holds {self.columns}")
        reason = self._obstacle(removed)
        if reason is not None:
            raise InputError(
                f"this cache cannot take back {removed} tokens: {reason}. Assisted and prompt-lookup decoding "
                "need that; use greedy, sampling or beam search, or copy.deepcopy(cache) before you go on"
            )
        assert isinstance(self.past, int)
        self.advance(-removed, self.past - removed)


def cache_of(past_key_values: Any, cache: Any = None) -> HybridCache | None:
    """The one that is given under either name; caches of transformers hold keys and values only.

    Raises:
        InputError: both are given, or a cache of another kind.
    """
    if past_key_values is not None and cache is not None:
        raise InputError("cache and past_key_values are two names of one argument; give one of them")
    given = past_key_values if cache is None else cache
    if given is not None and not isinstance(given, HybridCache):
        raise InputError(
            f"past_key_values must be a HybridCache of this model, got {type(given).__name__}; "
            "model.new_cache() makes one"
        )
    return given
