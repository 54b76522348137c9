"""Training steps on one device and on all devices of a host: tokens per second, and what the others add.

    torchrun --nproc-per-node 2 -m hybridzoo bench lm deltanet_340m --what scaling --train 8x2048 --out scaling.json

Weights and gradients are bf16, gradients are averaged by DistributedDataParallel while the backward goes on, with the
options of `hybridzoo train`. The first process measures alone, then all of them together, with the same batch on each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hybridzoo.bench.lm_models import LmSettings, build
from hybridzoo.bench.timing import synchronize
from hybridzoo.errors import ConfigError
from hybridzoo.training.arguments import ddp_options

WARMUP = 3


def scaling(name: str, settings: LmSettings) -> Iterator[dict[str, Any]]:
    """Two rows for each of `settings.train`, on the first process; the others take part and give none.

    Raises:
        ConfigError: there is one process only.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        raise ConfigError(
            "scaling needs several processes: torchrun --nproc-per-node 2 -m hybridzoo bench lm MODEL --what scaling"
        )
    rank, on_gpu = int(os.environ["RANK"]), settings.device.startswith("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device(settings.device)
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    settings = replace(settings, device=str(device))
    for batch, length in settings.train:
        model = build(name, settings).train()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        vocabulary = model.get_input_embeddings().num_embeddings
        ids = torch.randint(0, vocabulary, (batch, length), device=device)
        row = {"what": "scaling", "model": name, "mode": "ddp", "batch": batch, "context": length}
        alone = 0.0
        if rank == 0:
            seconds, _ = _timed(train_step(model, ids), device, settings.seconds, None)
            alone = ids.numel() / seconds
            yield {**row, "mode": "alone", "processes": 1, "tokens_per_sec": alone, "ms": seconds * 1e3}
        dist.barrier()
        wrapped = DistributedDataParallel(model, [device.index] if on_gpu else None, **ddp_options(model))
        seconds, steps = _timed(train_step(wrapped, ids), device, settings.seconds, world)
        if rank == 0:
            together = world * ids.numel() / seconds
            found = {"tokens_per_sec": together, "ms": seconds * 1e3, "speedup": together / alone, "steps": steps}
            yield {**row, "processes": world, **found}
        del wrapped, model


def train_step(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW (fused on a GPU) as one call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=ids.is_cuda)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _timed(step: Callable[[], None], device: torch.device, seconds: float, processes: int | None) -> tuple[float, int]:
    """(seconds of a step, timed steps); with several processes all take as many steps, and the slowest counts."""
    for _ in range(WARMUP):
        step()
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)
    count = torch.tensor([max(3, min(100, int(seconds / (time.perf_counter() - began))))], device=device)
    if processes:
        dist.broadcast(count, 0)
        dist.barrier()
    steps = int(count)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    took = torch.tensor([time.perf_counter() - began], dtype=torch.float64, device=device)
    if processes:
        dist.all_reduce(took, dist.ReduceOp.MAX)
    return took.item() / steps, steps
