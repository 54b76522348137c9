"""A frozen ResNet of basic blocks as folded convolutions: batch norm in the weights, sum and ReLU in the convolution.

Taken only where `conv2d_relu` has a kernel; any other teacher, and every other device, runs timm's modules. The weights
are folded once and anew when the network's have changed.

Legend: B batch, C_i H_i W_i maps.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo.ops.conv2d_relu import accelerated, conv2d_relu


class Layer(NamedTuple):
    """A convolution with its batch norm folded in; the weight channels-last."""

    weight: Tensor
    bias: Tensor
    stride: int


class Folded(NamedTuple):
    """The layers by name, and what they were made from."""

    made_from: tuple[tuple[int, int], ...]
    layers: dict[str, Layer]


_FOLDED: WeakKeyDictionary[nn.Module, Folded] = WeakKeyDictionary()


def foldable(net: Any) -> bool:
    """Whether a timm feature network is a ResNet of basic blocks with nothing but norms and ReLU between."""
    children = dict(net.named_children())
    if list(children)[:4] != ["conv1", "bn1", "act1", "maxpool"] or not hasattr(net, "return_layers"):
        return False
    if not (_plain(net.conv1, net.bn1, net.act1) and isinstance(net.maxpool, nn.MaxPool2d)):
        return False
    stages = [children[name] for name in list(children)[4:]]
    return all(isinstance(stage, nn.Sequential) and all(_basic(block) for block in stage) for stage in stages)


def _plain(conv: Any, norm: Any, act: Any = None) -> bool:
    k = getattr(conv, "kernel_size", (0, 1))
    square = isinstance(conv, nn.Conv2d) and k[0] == k[1] and conv.padding == (k[0] // 2,) * 2
    simple = square and conv.groups == 1 and conv.dilation == (1, 1) and conv.stride[0] == conv.stride[1]
    norms = isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats
    return bool(simple and conv.padding_mode == "zeros" and norms and (act is None or isinstance(act, nn.ReLU)))


def _basic(block: Any) -> bool:
    if type(block).__name__ != "BasicBlock" or block.se is not None or block.drop_path is not None:
        return False
    between = [m for name in ("drop_block", "aa") for m in [getattr(block, name, None)] if m is not None]
    down = block.downsample
    return (
        all(isinstance(m, nn.Identity) for m in between)
        and _plain(block.conv1, block.bn1, block.act1)
        and _plain(block.conv2, block.bn2, block.act2)
        and (down is None or (len(down) == 2 and _plain(down[0], down[1])))
    )


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Layer:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    weight = (conv.weight.double() * scale[:, None, None, None]).float()
    bias = (norm.bias.double() + shift * scale).float()
    return Layer(weight.contiguous(memory_format=torch.channels_last), bias, conv.stride[0])


def _pairs(net: Any) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    found = [("conv1", net.conv1, net.bn1)]
    for name, stage in list(net.named_children())[4:]:
        for i, block in enumerate(stage):
            found += [(f"{name}.{i}.{n}", getattr(block, f"conv{n}"), getattr(block, f"bn{n}")) for n in (1, 2)]
            if block.downsample is not None:
                found.append((f"{name}.{i}.down", block.downsample[0], block.downsample[1]))
    return found


def _layers(net: Any) -> dict[str, Layer]:
    pairs = _pairs(net)
    tensors = [t for _, *modules in pairs for m in modules for t in (m.weight, *m.buffers(), m.bias) if t is not None]
    made_from = tuple((t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors)
    known = _FOLDED.get(net)
    if known is not None and known.made_from == made_from:
        return known.layers
    with torch.inference_mode(False):
        layers = {name: _fold(conv, norm) for name, conv, norm in pairs}
    capturing = net.conv1.weight.is_cuda and torch.cuda.is_current_stream_capturing()
    if not capturing:  # what a recorded graph makes is there only after it has run
        _FOLDED[net] = Folded(made_from, layers)
    return layers


def teacher_maps(net: Any, x: Tensor) -> list[Tensor]:
    """The maps of a frozen network: (B, C, H, W) -> (B, C_i, H_i, W_i), channels-last in memory where folded."""
    weight = next(net.parameters())
    if torch.compiler.is_compiling() or not x.is_cuda or torch.is_grad_enabled() or not foldable(net):
        return list(net(x))
    if not accelerated(x, weight, weight):
        return list(net(x))
    return folded_maps(net, x)


def folded_maps(net: Any, x: Tensor, backend: str = "auto") -> list[Tensor]:
    """`teacher_maps` by `conv2d_relu`; `net` must be `foldable`."""
    layers, maps = _layers(net), []

    def run(name: str, y: Tensor, residual: Tensor | None = None, relu: bool = True) -> Tensor:
        weight, bias, stride = layers[name]
        return conv2d_relu(y, weight, bias, residual, stride=stride, relu=relu, backend=backend)

    pool = net.maxpool
    y = run("conv1", x.permute(0, 2, 3, 1))
    y = F.max_pool2d(y.permute(0, 3, 1, 2), pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode)
    y = y.permute(0, 2, 3, 1)
    for name, stage in list(net.named_children())[4:]:
        for i in range(len(stage)):
            at = f"{name}.{i}"
            shortcut = run(f"{at}.down", y, relu=False) if f"{at}.down" in layers else y
            y = run(f"{at}.2", run(f"{at}.1", y), shortcut)
        if name in net.return_layers:
            maps.append(y.permute(0, 3, 1, 2))
    return maps
