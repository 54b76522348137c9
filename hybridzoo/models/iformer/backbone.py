"""iFormer, the Inception Transformer, as a plain module that follows timm's conventions.

Paper: "Inception Transformer", Si, Yu, Zhou, Zhou, Wang and Yan, NeurIPS 2022, https://arxiv.org/abs/2205.12956
Original code: https://github.com/sail-sg/iFormer (Apache-2.0). Parameter names and shapes are the original's.

How this differs from the original, at equal weights and equal output: any height and width (the original needs square
maps that are even in stages 1 and 2); fused attention; `forward_features` returns the map and `forward_head` pools it,
as timm expects; `reset_classifier` works. It is not timm's own `iformer_*`, which is a mobile network of 2025.

Shape legend: B batch, H W feature map, C_k width of stage k, stride s = 4, 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybridzoo.errors import ConfigError, InputError
from hybridzoo.models.iformer.blocks import Downsample, InceptionBlock, Stem, resize_table, table_sides
from hybridzoo.models.iformer.sizes import GLOBAL_POOLS, NUM_STAGES, check_sizes, take_indices
from hybridzoo.ops.scaled_residual import scaled_residual

POOL_SIZES = (2, 2, 1, 1)  # average pooling before the attention, by stage
LAYER_SCALE_STAGES = (3, 4)  # stages 1 and 2 have none


def init_weights(module: nn.Module) -> None:
    """The original's initialisation: weights and tables truncated normal 0.02 (cut at +-2), biases 0, norms 1 and 0."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            for statistic, fill in (
                (module.running_mean, nn.init.zeros_),
                (module.running_var, nn.init.ones_),
                (module.num_batches_tracked, nn.init.zeros_),
            ):
                assert statistic is not None  # no batch norm of this network goes without
                fill(statistic)
    elif isinstance(module, InceptionBlock):
        for scale in (module.layer_scale_1, module.layer_scale_2):
            if scale is not None:
                assert module.layer_scale_init_value is not None
                nn.init.constant_(scale, module.layer_scale_init_value)
    elif isinstance(module, InceptionTransformer):
        for k in range(1, module.num_stages + 1):
            nn.init.trunc_normal_(getattr(module, f"pos_embed{k}"), std=0.02)


class InceptionTransformer(nn.Module):
    """iFormer: a convolutional stem and four stages of Inception blocks, stride 4 to 32.

    Args:
        img_size: image side, or (height, width), that the position tables are made for. Images of any other size work:
            the tables are resized to the map.
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 for none.
        global_pool: "avg", "max", or "" (then `num_classes` must be 0: the map is returned).
        depths: blocks per stage.
        embed_dims: C_k per stage.
        num_heads: heads that C_k divides into, per stage.
        attention_heads: of these, how many do attention, one entry per block of the whole network. The paper's
            "frequency ramp": few early, many late.
        mlp_ratio: hidden width of the MLP over C_k.
        qkv_bias: bias of the attention's projections.
        norm_eps: of the layer norms.
        layer_scale_init_value: start of the layer scales in stages 3 and 4; None leaves them out.
        stem_stride: 4 as in the paper; 2 or 1 for small images.
        high_mixer: "inception", or "attention" for the ablation (see InceptionMixer).
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout in the MLPs and after the mixers (the original's `drop_rate`).
        drop_path_rate: stochastic depth, rising linearly from 0 to this over all blocks.
        weight_init: "" initialises; "skip" leaves torch's defaults for a caller that initialises or loads.

    Raises:
        ConfigError: the sizes do not fit together.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 9, 3),
        embed_dims: Sequence[int] = (96, 192, 320, 384),
        num_heads: Sequence[int] = (3, 6, 10, 12),
        attention_heads: Sequence[int] = (1, 1, 1, 3, 3, 3, 7, 7, 7, 7, 9, 9, 9, 9, 9, 11, 11, 11),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        layer_scale_init_value: float | None = 1e-6,
        stem_stride: int = 4,
        high_mixer: str = "inception",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        weight_init: str = "",
    ) -> None:
        super().__init__()
        check_sizes(depths, embed_dims, num_heads, attention_heads, stem_stride, high_mixer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.num_stages = NUM_STAGES
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None  # transformers puts its own here
        self.feature_info = [
            {"num_chs": dim, "reduction": stem_stride * 2**k, "module": f"blocks{k + 1}"}
            for k, dim in enumerate(embed_dims)
        ]
        total, first = sum(depths), 0
        sides = table_sides(img_size, stem_stride)
        for k in range(1, NUM_STAGES + 1):
            depth, dim = depths[k - 1], embed_dims[k - 1]
            if k == 1:
                self.patch_embed = Stem(in_chans, dim, stem_stride)
            else:
                setattr(self, f"patch_embed{k}", Downsample(embed_dims[k - 2], dim))
            setattr(self, f"pos_embed{k}", nn.Parameter(torch.zeros(1, *sides[k - 1], dim)))
            blocks = [
                InceptionBlock(
                    dim,
                    num_heads=num_heads[k - 1],
                    attention_heads=attention_heads[j],
                    pool_size=POOL_SIZES[k - 1],
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    high_mixer=high_mixer,
                    norm_eps=norm_eps,
                    layer_scale_init_value=layer_scale_init_value if k in LAYER_SCALE_STAGES else None,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_path_rate * j / max(1, total - 1),
                )
                for j in range(first, first + depth)
            ]
            setattr(self, f"blocks{k}", nn.ModuleList(blocks))
            first += depth
        self.norm = nn.LayerNorm(embed_dims[-1], eps=norm_eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        if weight_init != "skip":
            self.apply(init_weights)

    # timm's conventions ----------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or Identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of `num_classes` outputs; 0 removes it.

        Raises:
            ConfigError: an unknown pooling, or a classifier without pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in GLOBAL_POOLS or (pool == "" and num_classes > 0):
            raise ConfigError(
                f"global_pool={pool!r} with num_classes={num_classes}: give 'avg' or 'max', or '' with num_classes=0"
            )
        self.global_pool, self.num_classes = pool, num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        like = self.patch_embed.proj1.weight
        self.head.to(device=like.device, dtype=like.dtype).apply(init_weights)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = enable
        self._gradient_checkpointing_func = None

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from input to output, for layer-wise learning rates: stem, then stages or single blocks."""
        stages = r"^(?:patch_embed|pos_embed|blocks)([1-4])\b"
        blocks = [
            (r"^(?:patch_embed|pos_embed)([2-4])\b", (-1,)),  # before the stage's first block
            (r"^blocks([1-4])\.(\d+)", None),
            (r"^norm\.", (99999,)),
        ]
        return {"stem": r"^patch_embed\.|^pos_embed1$", "blocks": stages if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """Empty. The original names `pos_embed`, which is none of its parameters, so its position tables do decay."""
        return set()

    # Forward ---------------------------------------------------------------------------------------------------------

    def _stage(self, k: int, x: Tensor) -> Tensor:
        """Stage k = 1..4 on (B, H, W, C_{k-1}), the image for k = 1 -> (B, H', W', C_k)."""
        x = getattr(self, "patch_embed" if k == 1 else f"patch_embed{k}")(x)
        table, size = getattr(self, f"pos_embed{k}"), (x.shape[1], x.shape[2])
        dtype = x.dtype  # what matrix products compute in; the stream is the table's, fp32 under autocast
        x = scaled_residual(x, table if (table.shape[1], table.shape[2]) == size else resize_table(table, size))
        # Of the block before: MLP output, its bias, scale, per-sample factors.
        branch: tuple[Tensor | None, ...] = (None,) * 4
        for block in getattr(self, f"blocks{k}"):
            if self.gradient_checkpointing and self.training:
                recompute = self._gradient_checkpointing_func
                run = recompute if recompute else partial(checkpoint, use_reentrant=False)
                x, y, y_bias = run(block, x, *branch, dtype)
            else:
                x, y, y_bias = block(x, *branch, dtype)
            branch = (y, y_bias, block.layer_scale_2, block.drop_path(x))
        y, y_bias, scale, factors = branch
        assert y is not None  # only the bias, the scale and the factors are optional
        last = k == self.num_stages  # a norm reads it, else a convolution
        return scaled_residual(
            x, y, y_bias=y_bias, scale=scale, row_scale=factors, out_dtype=x.dtype if last else dtype
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> the last map after the final norm, (B, C_4, H / 32, W / 32), channels_last."""
        check_images(x, self.in_chans, self.feature_info[1]["reduction"])
        for k in range(1, self.num_stages + 1):
            x = self._stage(k, x)
        return self.norm(x).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C_4, h, w) -> (B, num_classes), or (B, C_4) with `pre_logits` or without a classifier."""
        if self.global_pool:
            x = x.mean((2, 3)) if self.global_pool == "avg" else x.amax((2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W), normalised -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs, and the final map.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages 0 to 3 (negative from the end), an int for the last n, None for all.
            norm: apply the final norm to the last stage's output.
            stop_early: do not run stages after the last one asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return only the list.

        Returns:
            `(forward_features(x), [map, ...])`, or the list.
        """
        if str(getattr(output_fmt, "value", output_fmt)) not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt={output_fmt!r}: give 'NCHW' or 'NHWC'")
        nchw = str(getattr(output_fmt, "value", output_fmt)) == "NCHW"
        check_images(x, self.in_chans, self.feature_info[1]["reduction"])
        take = take_indices(self.num_stages, indices)
        last = max(take) + 1 if stop_early else self.num_stages
        maps = []
        for k in range(1, last + 1):
            x = self._stage(k, x)
            if k - 1 in take:
                y = self.norm(x) if norm and k == NUM_STAGES else x
                maps.append(y.permute(0, 3, 1, 2) if nchw else y)
        if intermediates_only:
            return maps
        if last == NUM_STAGES:
            x = self.norm(x)
        return (x.permute(0, 3, 1, 2) if nchw else x), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one in `indices`, and the norm and the classifier if asked; returns the
        indices counted from the front."""
        take = take_indices(self.num_stages, indices)
        for k in range(max(take) + 2, self.num_stages + 1):
            for part in ("patch_embed", "pos_embed", "blocks"):
                delattr(self, f"{part}{k}")
        self.num_stages = max(take) + 1
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.head, self.num_classes = nn.Identity(), 0
        return take


def check_images(x: Tensor, in_chans: int, stride: int) -> None:
    """Refuse what is not a batch of normalised images of at least `stride` + 1 pixels a side.

    Raises:
        InputError: names what was given and what is expected.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != in_chans:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"expected images (batch, {in_chans}, height, width), got {got}; convert the images to {in_chans} "
            f"channel{'s' * (in_chans > 1)}, channels first"
        )
    if not x.is_floating_point():
        raise InputError(f"expected floating-point images, got {x.dtype}: scale to [0, 1] and normalise them first")
    if min(x.shape[2], x.shape[3]) <= stride:  # the stage-2 map must be at least 2x2 for its pooling
        raise InputError(f"images of {x.shape[2]}x{x.shape[3]} are too small: at least {stride + 1} pixels a side")
