"""Configuration of MaskMamba. The defaults are MaskMamba-B, class-conditional, at 256 pixels."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from hybridzoo.configuration import ZooConfig
from hybridzoo.errors import ConfigError, unknown

SCHEMES = ("serial_v1", "serial_v2", "group_v1", "group_v2", "pure_mamba", "pure_transformer")
CONDITIONS = ("class", "text")
POSITIONS = ("head", "middle", "tail")
MAMBA_LAYERS = ("bi_mamba_v2", "vim_v1", "vim_v2", "vim_none")
SECOND_BRANCHES = ("ssm_flip", "conv_only", "both")
NORMS = ("layer_norm", "rms_norm")
NUM_CLASSES = 1000


@strict
class MaskMambaConfig(ZooConfig):
    """Sizes of the network, its open choices, and the loss.

    Args:
        codebook_size: K, codes of the tokenizer; index K is the mask token.
        image_size: side of the images that the position table is made for.
        downsample: pixels per token along one side.
        tokenizer: registered model, folder or hub id of the tokenizer that turns codes into images; not part of the
            network.
        text_encoder: hub id of the T5 encoder that texts are read with; not part of the network.
        condition: "class" (one token, `num_labels` classes) or "text" (`text_length` tokens).
        text_dim: width of the text encoder's features.
        text_length: tokens of a text.
        condition_position: "head", "middle" or "tail" of the tokens.
        hidden_size, num_layers, num_heads: D, layers, heads of D.
        scheme: "serial_v1" (Mamba and attention layers alternate), "serial_v2" (the first half Mamba), "group_v1" and
            "group_v2" (channels in two or four groups per layer), "pure_mamba", "pure_transformer".
        group_pattern: mixers of the groups, e.g. "MS" or "MMSS"; None: that of the scheme.
        group_projection: a linear layer after the groups' concatenation.
        mlp_ratio: width of the MLP / D; 0 leaves it out.
        norm: "layer_norm" or "rms_norm".
        norm_eps: of the norms.
        mamba_layer: "bi_mamba_v2", or Vim's layers "vim_v1", "vim_v2", "vim_none" (unidirectional).
        expand, d_state, d_conv, dt_rank, conv_bias: of the Mamba layer; dt_rank None is ceil(D / 16).
        second_branch: of Bi-Mamba-v2: "ssm_flip" (scan from the end), "conv_only" (as MambaVision), "both" (three).
        flip_before_conv: of Bi-Mamba-v2: flip the second branch before its convolution.
        vim_divide: of Vim's layer: half the sum of both directions.
        layer_scale_init_value: of Vim's layer: learned scale of its output; None leaves it out.
        qkv_bias: of the attention.
        tie_head: logits from the token embedding; False: a linear layer of its own.
        dropout: of the embedded sequence, after each mixer and in the MLP.
        drop_path_rate: stochastic depth of the last layer.
        label_smoothing: of the loss.
        unmasked_loss_weight: weight of tokens that were not masked (masked ones have 1).
        condition_drop_rate: share of conditions replaced by the null condition in training.
        mask_schedule: of the share of masked tokens in training; see `decoding.mask_ratio`.
        sampling_steps, sampling_temperature, sampling_cfg_scale: what `generate` takes where it is told nothing else.

    Raises:
        ConfigError: values that do not fit together.
    """

    model_type = "maskmamba"

    codebook_size: int = 16384
    image_size: int = 256
    downsample: int = 16
    tokenizer: str | None = "vq16_llamagen"
    text_encoder: str | None = "google/flan-t5-xl"
    condition: str = "class"
    text_dim: int = 2048
    text_length: int = 120
    condition_position: str = "middle"
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    scheme: str = "serial_v2"
    group_pattern: str | None = None
    group_projection: bool = False
    mlp_ratio: float | int = 4.0
    norm: str = "layer_norm"
    norm_eps: float = 1e-6
    mamba_layer: str = "bi_mamba_v2"
    expand: int = 2
    d_state: int = 16
    d_conv: int = 3
    dt_rank: int | None = None
    conv_bias: bool = True
    second_branch: str = "ssm_flip"
    flip_before_conv: bool = False
    vim_divide: bool = True
    layer_scale_init_value: float | None = None
    qkv_bias: bool = True
    tie_head: bool = True
    dropout: float | int = 0.1
    drop_path_rate: float | int = 0.0
    label_smoothing: float | int = 0.1
    unmasked_loss_weight: float | int = 0.0
    condition_drop_rate: float | int = 0.1
    mask_schedule: str = "cosine"
    sampling_steps: int = 20
    sampling_temperature: float | int = 4.5
    sampling_cfg_scale: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            given = kwargs.pop("num_classes", None)
            kwargs.setdefault("num_labels", NUM_CLASSES if given is None else given)
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the configured image."""
        return self.image_size // self.downsample

    @property
    def num_condition_tokens(self) -> int:
        """Tokens that the condition takes in the sequence."""
        return self.text_length if self.condition == "text" else 1

    @property
    def mask_token_id(self) -> int:
        """Index of the mask token: one past the codes."""
        return self.codebook_size

    def groups(self) -> str | None:
        """Mixers of the channel groups, one letter each, or None for a serial scheme."""
        return self.group_pattern or {"group_v1": "MS", "group_v2": "MMSS"}.get(self.scheme)

    def layers(self) -> list[str]:
        """Per layer the mixers of its channel groups: "M" Mamba, "S" self-attention."""
        n, groups = self.num_layers, self.groups()
        if groups is not None:
            return [groups] * n
        return {
            "serial_v1": ["MS"[i % 2] for i in range(n)],
            "serial_v2": ["M" if i < (n + 1) // 2 else "S" for i in range(n)],
            "pure_mamba": ["M"] * n,
            "pure_transformer": ["S"] * n,
        }[self.scheme]

    def validate_values(self) -> None:
        from hybridzoo.models.maskmamba.decoding import check_schedule

        choices = {
            "scheme": SCHEMES,
            "condition": CONDITIONS,
            "condition_position": POSITIONS,
            "mamba_layer": MAMBA_LAYERS,
            "second_branch": SECOND_BRANCHES,
            "norm": NORMS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(unknown(name, str(getattr(self, name)), allowed))
        check_schedule(self.mask_schedule)
        positive = ("codebook_size", "downsample", "text_dim", "text_length", "hidden_size", "num_layers", "num_heads")
        for name in (*positive, "expand", "d_state", "d_conv"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise ConfigError(f"dt_rank={self.dt_rank} must be at least 1, or None for ceil(width / 16)")
        if self.image_size < self.downsample or self.image_size % self.downsample:
            raise ConfigError(f"image_size={self.image_size} must be a multiple of downsample={self.downsample}")
        self._check_widths()
        for name in ("dropout", "drop_path_rate", "label_smoothing", "condition_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a share, 0 or more and below 1")
        if self.sampling_steps < 1:
            raise ConfigError(f"sampling_steps={self.sampling_steps} must be at least 1")
        for name in ("mlp_ratio", "unmasked_loss_weight", "sampling_temperature", "sampling_cfg_scale"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")

    def _check_widths(self) -> None:
        if self.group_pattern is not None and (not self.group_pattern or set(self.group_pattern) - set("MS")):
            raise ConfigError(f"group_pattern={self.group_pattern!r}: one M (Mamba) or S (attention) per group")
        if self.group_pattern is not None and not self.scheme.startswith("group"):
            raise ConfigError(f"group_pattern={self.group_pattern!r} goes with a group scheme, not {self.scheme!r}")
        groups = len(self.groups() or "M")
        if self.hidden_size % groups or self.num_heads % groups or self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} and num_heads={self.num_heads} must be divisible by the {groups} "
                "channel group(s), and hidden_size by num_heads"
            )
        if self.mamba_layer == "bi_mamba_v2" and (self.expand * self.hidden_size // groups) % 2:
            raise ConfigError(f"expand * width = {self.expand * self.hidden_size // groups} must be even: two branches")
