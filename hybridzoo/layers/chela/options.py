"""Every open choice of the CHELA layer, with the choice made here; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hybridzoo.errors import ConfigError, unknown

QK_PROJ = ("shared", "separate")
VALUE_SOURCES = ("input", "conv")
GATE_ACTS = ("silu", "sigmoid")
GATE_RESIDUALS = ("add", "update")
FEATURE_MAPS = ("identity", "elu1", "relu", "silu", "softmax")
ATTN_NORMS = ("none", "rms", "layer", "denominator")
CONV_ORDERS = ("short_long", "long_short")
POSITIONS = ("none", "rotary")


@dataclass(frozen=True)
class ChelaOptions:
    """Choices of the layer; the defaults are the block of the reconstruction.

    Args:
        z_width, value_width: Z and V; None: half of D, and twice D.
        num_heads: H; both widths are divided among the heads.
        use_short, use_long, use_attention: parts to keep (False: for ablations).
        short_width, short_branches, short_identity, branch_norm: see `ShortConv`.
        long_short_parallel: taps of a short convolution beside the long one, merged into its kernel for deployment.
        kernel_dim, n_scales, init_scale, long_mode, interpolation, decay, decay_min, decay_max: see `MultiScaleConv`.
        conv_order: which of the two convolutions comes first.
        qk_proj: "shared": q and k are scaled and shifted copies of one SiLU projection; "separate": two projections.
        value_source: values from the layer's input or from the convolutions.
        gate_act: of the output gate.
        gate_residual: "add", or "update": x + u * (h - x) with a learned u as in Mega.
        feature_map: of q and k.
        attn_norm: what keeps the attention's scale: a norm over each head's values, the sum of weights, or nothing.
        positions: "rotary" turns q and k by their position; the convolutions of the full layer make it needless.
        kernel_length: taps of the long kernel. None: as many as the model is made for, and longer inputs are an error;
            a number: positions further away are not seen by the convolution, inputs may be of any length, and the state
            of a causal layer stays bounded.
        merged: parallel convolutions are one from the start; set by `reparameterize`.
    """

    z_width: int | None = None
    value_width: int | None = None
    num_heads: int = 1
    use_short: bool = True
    use_long: bool = True
    use_attention: bool = True
    short_width: int = 3
    short_branches: tuple | list = ((3, 1), (1, 1))
    short_identity: bool = True
    branch_norm: str = "none"
    long_short_parallel: int = 0
    kernel_dim: int = 32
    n_scales: int | None = None
    init_scale: int = 0
    long_mode: str = "cat"
    interpolation: str = "linear"
    decay: str = "scale"
    decay_min: float = 2.0
    decay_max: float = 2.0
    conv_order: str = "short_long"
    qk_proj: str = "shared"
    value_source: str = "input"
    gate_act: str = "silu"
    gate_residual: str = "add"
    feature_map: str = "identity"
    attn_norm: str = "rms"
    positions: str = "none"
    kernel_length: int | None = None
    merged: bool = False

    def check(self, width: int) -> tuple[int, int]:
        """Z and V for a layer of this width; raises ConfigError for values that do not fit."""
        for name, choices in (
            ("qk_proj", QK_PROJ),
            ("value_source", VALUE_SOURCES),
            ("gate_act", GATE_ACTS),
            ("gate_residual", GATE_RESIDUALS),
            ("feature_map", FEATURE_MAPS),
            ("attn_norm", ATTN_NORMS),
            ("conv_order", CONV_ORDERS),
            ("branch_norm", ("none", "batch")),
            ("positions", POSITIONS),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(unknown(name, getattr(self, name), choices))
        if self.attn_norm == "denominator" and self.feature_map in ("identity", "silu"):
            raise ConfigError(
                f"attn_norm='denominator' divides by a sum of weights, which feature_map={self.feature_map!r} lets be "
                "zero or negative; use feature_map 'elu1', 'relu' or 'softmax', or attn_norm 'rms'"
            )
        if self.kernel_length is not None and self.kernel_length < 1:
            raise ConfigError(f"kernel_length={self.kernel_length} must be at least 1, or None")
        z, v = self.z_width or max(1, width // 2), self.value_width or 2 * width
        if self.positions == "rotary" and (z // self.num_heads) % 2:
            raise ConfigError(
                f"positions='rotary' turns pairs of channels: z_width={z} over num_heads={self.num_heads} must be even"
            )
        if self.num_heads < 1 or z % self.num_heads or v % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide z_width={z} and value_width={v}")
        return z, v


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "literal": {
        "qk_proj": "separate",
        "value_source": "conv",
        "gate_act": "sigmoid",
        "gate_residual": "add",
    },
    # With the default's signed weights the sum of thousands of values points the same way everywhere, whatever the
    # query, and the norm after it makes that one vector as large as the states: see docs/models/chela.md.
    "averaged": {"feature_map": "elu1", "attn_norm": "denominator"},
}
"""Named sets of choices: the reconstruction, the plainest reading of the summaries, and weights that are a mean's."""
