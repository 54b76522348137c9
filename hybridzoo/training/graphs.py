"""Training steps as CUDA graphs: forward and backward of each shape of batch are recorded once and then replayed.

A small model's step is hundreds of kernels of a few microseconds, which Python launches more slowly than a GPU runs
them. A replayed step is one launch. Clipping, the optimizer and the schedule stay the trainer's.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from hybridzoo.errors import ConfigError
from hybridzoo.training.schema import TrainingSection

MULTIPLE = 64  # lengths of token batches are rounded up to it, so that there are few shapes
_WARMUP = 2  # steps before the recording: plans of Fourier transforms, tuned kernels, workspaces
_PATIENCE = 150.0  # seconds of compiling and recording after which new shapes are recorded without compiling
_TOKENS = {"input_ids": None, "attention_mask": 0, "pair_input_ids": None, "pair_attention_mask": 0}  # None: padding


def check_graphs(t: TrainingSection, world: int) -> None:
    """Raise ConfigError for what a recorded step cannot do."""
    reasons = {
        "gradient_accumulation above 1": t.gradient_accumulation > 1,
        "mixup and cutmix, which draw on the CPU in every step": bool(t.mixup or t.cutmix),
        "precision=fp16, whose loss is scaled anew": t.precision == "fp16",
        "several processes": world > 1,
    }
    for what, given in reasons.items():
        if given:
            raise ConfigError(f"training.cuda_graphs does not go with {what}; leave one of them out")


def padded(inputs: dict[str, Any], pad_token_id: int | None, most: int | None) -> dict[str, Any]:
    """Token batches (B, T) continued by padding to a multiple of MULTIPLE, at most to `most`; others as they are.

    Batches without an attention mask are left alone: their padding could not be told from tokens.
    """
    if "attention_mask" not in inputs:
        return inputs
    found = dict(inputs)
    for name, value in _TOKENS.items():
        x = found.get(name)
        if isinstance(x, Tensor) and x.dim() == 2:
            length = x.shape[1] + -x.shape[1] % MULTIPLE
            length = max(x.shape[1], length if most is None else min(length, most))
            found[name] = F.pad(x, (0, length - x.shape[1]), value=(pad_token_id or 0) if value is None else value)
    return found


class StepGraphs:
    """Runs forward and backward of a model, from the second batch of a shape on as one launch.

    Args:
        model: whose parameters receive gradients.
        loss_of: (inputs) -> loss, a scalar; without waits for the device.
        compiled: record the model's layers compiled.
    """

    def __init__(
        self, model: torch.nn.Module, loss_of: Callable[[dict[str, Any]], Tensor], *, compiled: bool = False
    ) -> None:
        self.layers = CompiledLayers(model) if compiled else None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = list(model.buffers())
        self.loss_of = loss_of
        self.pool: Any = None
        self.recorded: dict[Any, tuple[Any, dict[str, Tensor], Tensor, list[Tensor | None]]] = {}

    def step(self, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of a batch on the GPU; the gradients lie in the parameters, which must have none before."""
        key = tuple((name, tuple(x.shape), x.dtype) for name, x in sorted(inputs.items()))
        if key not in self.recorded:
            self.recorded[key] = self._record(inputs)
        graph, static, loss, gradients = self.recorded[key]
        for name, x in inputs.items():
            static[name].copy_(x, non_blocking=True)
        graph.replay()
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        return loss.detach().clone()

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _record(self, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], Tensor, list[Tensor | None]]:
        if self.layers is not None and self.layers.seconds > _PATIENCE:
            _fall_back(f"compiling took {self.layers.seconds:.0f} s")
            self.layers = None
        if self.layers is not None:
            try:
                with self.layers.in_use():
                    return self._record_now(inputs)
            except Exception as error:  # whatever the compiler raises: the layers run without it
                _fall_back(f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else ''}")
                self.layers = None
        return self._record_now(inputs)

    def _record_now(self, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], Tensor, list[Tensor | None]]:
        static = {name: x.clone() for name, x in inputs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        drawn, kept = torch.cuda.get_rng_state(), [(b, b.detach().clone()) for b in self.buffers]
        with torch.cuda.stream(side):
            for _ in range(_WARMUP):
                self._forget_gradients()
                self.loss_of(static).backward()
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():  # the warm-up leaves no trace: running statistics, random numbers
            for buffer, value in kept:
                if not torch.equal(buffer, value):  # what is made once from frozen buffers is not made anew
                    buffer.copy_(value)
        torch.cuda.set_rng_state(drawn)
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        # graphs run one after the other, so that all may use the same memory
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            loss = self.loss_of(static)
            loss.backward()
        self.pool = graph.pool()
        gradients = [p.grad for p in self.parameters]
        self._forget_gradients()
        return graph, static, loss.detach(), gradients


def _fall_back(why: str) -> None:
    warnings.warn(f"training.compile: steps are recorded without torch.compile from here on ({why})", stacklevel=3)


class CompiledLayers:
    """A model's layers compiled for any length, used only inside `in_use`: evaluation runs them as they are."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = 0.0  # inside `in_use`
        self.calls: list[tuple[Any, Any]] = []
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(dynamic=True)
                self.calls.append((layer, layer._compiled_call_impl))
                layer._compiled_call_impl = None
        if not self.calls:
            warnings.warn("training.compile: this model has no layers that are compiled by themselves", stacklevel=2)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Calls of the layers are compiled ones."""
        begin = time.monotonic()
        try:
            for layer, call in self.calls:
                layer._compiled_call_impl = call
            yield
        finally:
            self.seconds += time.monotonic() - begin
            for layer, _ in self.calls:
                layer._compiled_call_impl = None
