"""`model_info`: what is known of a model, without downloading anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hybridzoo import registry
from hybridzoo.registry import Weights


@dataclass(frozen=True)
class ModelInfo:
    """Facts of one registered model. `parameters` and `flops` build it on the meta device at first use."""

    name: str
    family: str
    title: str
    task: str
    summary: str
    config: Mapping[str, Any]
    paper: str
    source: str
    license: str
    tags: Mapping[str, Weights]

    @cached_property
    def _meta(self) -> Any:
        from hybridzoo.loading import build_model

        return build_model(self.name, device="meta").eval()

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, buffers not counted."""
        return sum(p.numel() for p in self._meta.parameters())

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one forward of one sample (`example_inputs`), a multiply-add counted as two.

        Counted on the meta device, without computing; a model whose forward reads values (masks) runs on the CPU.
        """
        try:
            return _count_flops(self._meta)
        except (RuntimeError, NotImplementedError):  # .item() or a missing meta kernel
            from hybridzoo.loading import build_model

            return _count_flops(build_model(self.name).eval())

    def to_dict(self, *, measure: bool = True) -> dict[str, Any]:
        """A plain dictionary; `measure=False` leaves out what needs the model to be built."""
        facts = {
            k: v for k, v in self.__dict__.items() if not k.startswith("_") and k not in ("parameters", "flops", "tags")
        }
        facts["config"] = dict(self.config)
        facts["tags"] = {
            tag: dict(w.__dict__, config=dict(w.config), metrics=dict(w.metrics)) for tag, w in self.tags.items()
        }
        if measure:
            facts |= {"parameters": self.parameters, "flops": self.flops}
        return facts


def _count_flops(model: Any) -> int:
    import math
    import warnings

    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def transform(shape: Any, dims: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        """Of a real Fourier transform of n values: 5/2 n log2 n."""
        real = max(shape, out_shape, key=math.prod)  # the other one is its half spectrum
        n = max(shape[dims[-1]], out_shape[dims[-1]])
        return int(2.5 * math.prod(real) * math.log2(max(n, 2)))

    fourier = {torch.ops.aten._fft_r2c: transform, torch.ops.aten._fft_c2r: transform}
    # Fused attention and fused LSTM layers on the CPU are not in torch's table; their parts are.
    plain = sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False)
    with (
        warnings.catch_warnings(action="ignore"),
        plain[0],
        plain[1],
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=fourier) as counter,
    ):
        model(**model.example_inputs(batch_size=1))
    return counter.get_total_flops()


def model_info(name: str) -> ModelInfo:
    """Facts of the model `name` (a tag is accepted and ignored).

    Raises:
        UnknownNameError: no such model; the nearest names are given.
    """
    model, _ = registry.get_model(name)
    family = registry.get_family(model.family)
    return ModelInfo(
        name=model.name,
        family=family.name,
        title=family.title,
        task=model.task,
        summary=model.summary,
        config=model.config,
        paper=family.paper,
        source=family.source,
        license=family.license,
        tags=model.tags,
    )
