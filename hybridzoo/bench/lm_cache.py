"""Bytes of one sequence's cache by formula, from a model's configuration alone.

Two countings. `paper` is the one of Hymba's table 2, as far as it can be told: 2 bytes a number everywhere, windows of
W keys, as many inputs of a convolution as it has taps, and no meta tokens, whose keys and states are constants of the
weights. `full` counts what this package keeps: keys and values in 2 bytes, recurrent states in fp32, one input less
than a convolution has taps, and meta tokens in front of every sequence.
"""

from __future__ import annotations

from typing import Any

from hybridzoo.errors import ConfigError


def counted(config: Any, tokens: int, *, paper: bool) -> int:
    """Bytes for one sequence of `tokens` tokens.

    Args:
        config: of a model of the zoo on the shared decoder, or of a Llama-like model of transformers.
        tokens: positions of text.
        paper: see above.

    Raises:
        ConfigError: a kind of layer without a formula.
    """
    if not hasattr(config, "decoder_spec"):
        if not hasattr(config, "num_key_value_heads"):
            raise ConfigError(f"there is no cache formula for {type(config).__name__}")
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head * tokens
    spec = config.decoder_spec()
    meta = 0 if paper else spec.num_meta_tokens
    return sum(_layer(layer, spec.hidden_size, tokens, meta, paper) for layer in spec.layers)


def _layer(layer: Any, width: int, tokens: int, meta: int, paper: bool) -> int:
    o, state = layer.options, 2 if paper else 4
    if layer.kind == "delta":
        keys, values = int(width * o.expand_k), int(width * o.expand_v)
        taps = (2 * keys + values) * (o.conv_size - 1 + paper) if o.use_short_conv else 0
        return state * (keys // o.num_heads) * values + 2 * taps
    recurrent = 0
    if layer.kind in ("mamba", "hymba"):
        inner = int(width * o.expand)
        recurrent = state * inner * o.d_state + 2 * inner * (o.d_conv - 1 + paper)
    if layer.kind == "mamba":
        return recurrent
    if layer.kind not in ("attention", "swa", "hymba"):
        raise ConfigError(f"there is no cache formula for a {layer.kind!r} layer")
    if layer.kv_from is not None:
        return recurrent
    head = getattr(o, "head_dim", None) or width // o.num_heads
    head_v = int(width * o.expand) // o.num_heads if layer.kind == "hymba" else head
    # Hymba's window of W means W keys before the query; the option counts the query itself, too
    window = None if o.window is None else o.window - (layer.kind == "hymba" and paper)
    slots = meta + (tokens if window is None else min(tokens, window))
    return recurrent + 2 * (o.num_kv_heads or o.num_heads) * (head + head_v) * slots
