"""Calls of a model as CUDA graphs: all its kernels launched as one, so that a small batch does not wait for Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hybridzoo.errors import ConfigError, InputError

WARM_UP = 3


class _HostConstants(TorchFunctionMode):
    """Keeps what `torch.tensor` and `torch.as_tensor` make of numbers: a captured graph cannot copy from the host.

    In the order of the calls; the captured call takes what the last warm-up made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor]] = []
        self.at: int | None = None  # place in `made` while it is read

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or not args or isinstance(args[0], Tensor):
            return func(*args, **kwargs)
        key = repr((args, sorted(kwargs.items())))
        if self.at is None:
            self.made.append((key, func(*args, **kwargs)))
            return self.made[-1][1]
        if self.at >= len(self.made) or self.made[self.at][0] != key:
            raise RuntimeError("a call made other constants while it was captured than before")
        self.at += 1
        return self.made[self.at - 1][1]


class GraphedCalls:
    """`model(**inputs)` without gradients, a CUDA graph for each set of input shapes.

    The model must neither read the device nor decide by values (no `.item()`, no `nonzero`). Its weights may change in
    place; what it derived from them and kept, it keeps.

    Args:
        model: in eval mode on a GPU, called with tensors by name; returns a mapping.
        outputs: names of the outputs that are wanted.
        most: graphs that are kept; the one unused for longest goes first. Each holds the memory of a call.

    Raises:
        ConfigError: the model is not on a GPU.
    """

    def __init__(self, model: Callable[..., Any], outputs: tuple[str, ...], *, most: int = 4) -> None:
        parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        if parameter is not None and parameter.device.type != "cuda":
            raise ConfigError(f"a CUDA graph needs a model on a GPU, this one is on {parameter.device}")
        self.model, self.outputs, self.most = model, outputs, most
        self._kept: OrderedDict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], dict[str, Tensor], Any]] = (
            OrderedDict()
        )

    def __call__(self, **inputs: Tensor) -> Mapping[str, Tensor]:
        """The outputs by name. The next call with the same shapes writes over them.

        Raises:
            InputError: an input that is no tensor on a GPU.
        """
        for name, x in inputs.items():
            if not isinstance(x, Tensor) or x.device.type != "cuda":
                raise InputError(f"a CUDA graph is called with tensors on a GPU; {name} is not one")
        key = tuple((name, x.shape, x.dtype, x.stride()) for name, x in sorted(inputs.items()))
        key = (*key, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        if key not in self._kept:
            self._kept[key] = self._capture(inputs)
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        graph, given, made, _ = self._kept[key]
        for name, x in inputs.items():
            given[name].copy_(x)
        graph.replay()
        return made

    def _capture(self, inputs: Mapping[str, Tensor]) -> Any:
        with torch.inference_mode(False), torch.no_grad():  # written to in either mode later; clone keeps the layout
            given = {name: x.clone() for name, x in inputs.items()}
        constants, graph = _HostConstants(), torch.cuda.CUDAGraph()
        # Autocast's copies of weights live as long as its context, a graph longer: it makes its own.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.no_grad(), torch.cuda.stream(stream), constants:
                for _ in range(WARM_UP):
                    constants.made.clear()
                    self.model(**given)
            torch.cuda.current_stream().wait_stream(stream)
            constants.at = 0
            with torch.no_grad(), torch.cuda.graph(graph), constants:
                result = self.model(**given)
                made = {name: result[name] for name in self.outputs}
        finally:
            torch.set_autocast_cache_enabled(cached)
        return graph, given, made, constants.made
