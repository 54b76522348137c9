"""The networks below the neck: transformers' ResNet and Swin (exactly the original's), our windowed ViT, any of timm's.

timm's own Swin is not used: it rolls before it pads, so that it differs from the original on maps that are no multiple
of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hybridzoo.errors import ConfigError, unknown
from hybridzoo.models.co_detr.configuration import CoDetrConfig
from hybridzoo.models.co_detr.resnet import can_run_frozen, frozen_maps
from hybridzoo.models.co_detr.vit import RotaryVisionTransformer


class Backbone(nn.Module):
    """Any of the backbones behind one call: images to a list of maps, fine to coarse.

    Args:
        config: its `backbone`, `backbone_config`, `num_channels` and `freeze_batch_norm` are read.
    """

    def __init__(self, config: CoDetrConfig) -> None:
        super().__init__()
        values = dict(config.backbone_config or {})
        self.kind = config.backbone
        self.name = str(values.get("name", config.backbone))
        self.multiple = 1  # images are padded to multiples of it
        self.frozen_batch_norm = config.freeze_batch_norm
        if self.kind == "resnet":
            self.net: Any = _resnet(values, config.num_channels)
            freeze_resnet_stages(self.net, values["frozen_stages"])
        elif self.kind == "swin":
            self.net = _swin(values, config.num_channels)
        elif self.kind == "vit":
            self.net = RotaryVisionTransformer(in_chans=config.num_channels, **values)
            self.multiple = values["patch_size"]
        else:
            self.net = _timm(values, config.num_channels)
        if self.frozen_batch_norm:
            for module in _batch_norms(self.net):
                for parameter in module.parameters():
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """As of any module, except that frozen batch norms stay in eval mode."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in _batch_norms(self.net):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps (B, C_i, H_i, W_i)."""
        if self.kind == "vit":
            return [self.net(pixel_values)]
        if self.kind == "timm":
            return self.net(pixel_values)
        if self.kind == "resnet" and self.frozen_batch_norm and can_run_frozen(self.net):
            return frozen_maps(self.net, pixel_values)
        return list(self.net(pixel_values).feature_maps)


def _batch_norms(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _resnet(values: Mapping[str, Any], channels: int) -> nn.Module:
    from transformers import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetBackbone

    stages: dict[str, Any] = {"out_features": [f"stage{i}" for i in values["out_stages"]]}
    return ResNetBackbone(
        ResNetConfig(
            num_channels=channels,
            embedding_size=values["stem_channels"],
            hidden_sizes=values["channels"],
            depths=values["depths"],
            layer_type="bottleneck",
            **stages,
        )
    )


def freeze_resnet_stages(net: Any, stages: int) -> None:
    """Take the stem and the first `stages` stages out of the training; -1 takes nothing out."""
    frozen = [] if stages < 0 else [net.embedder, *net.encoder.stages[:stages]]
    for part in frozen:
        for parameter in part.parameters():
            parameter.requires_grad_(False)


def _swin(values: Mapping[str, Any], channels: int) -> nn.Module:
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinBackbone

    stages: dict[str, Any] = {"out_features": [f"stage{i}" for i in values["out_stages"]]}
    net: Any = SwinBackbone(
        SwinConfig(
            num_channels=channels,
            embed_dim=values["embed_dim"],
            depths=values["depths"],
            num_heads=values["num_heads"],
            window_size=values["window_size"],
            mlp_ratio=values["mlp_ratio"],
            drop_path_rate=values["drop_path_rate"],
            **stages,
        )
    )
    net.swin.layernorm = nn.Identity()  # of the classifier; the stages have norms of their own
    return net


def _timm(values: Mapping[str, Any], channels: int) -> nn.Module:
    import timm

    name = values["name"]
    if name not in timm.list_models():
        raise ConfigError(unknown("timm model", name, timm.list_models(), "(timm.list_models() lists them)"))
    options = {"drop_path_rate": values["drop_path_rate"]} if values["drop_path_rate"] else {}
    indices = tuple(values["out_indices"])
    try:
        net: Any = timm.create_model(name, features_only=True, out_indices=indices, in_chans=channels, **options)
    except (RuntimeError, AssertionError, NotImplementedError, IndexError, TypeError) as error:
        raise ConfigError(f"backbone_config: {name} gives no maps at out_indices={list(indices)}: {error}") from error
    found = net.feature_info.channels(), net.feature_info.reduction()
    if found != (values["channels"], values["strides"]):
        raise ConfigError(
            f"backbone_config: {name} at out_indices={values['out_indices']} has channels {found[0]} and strides "
            f"{found[1]}, not {values['channels']} and {values['strides']}; write those"
        )
    # EfficientNets keep the blocks behind the last map.
    parent, _, last = net.feature_info.module_name()[-1].partition(".")
    if parent == "blocks" and last.isdigit() and isinstance(net.blocks, nn.Sequential):
        net.blocks = net.blocks[: int(last) + 1]
    return net
