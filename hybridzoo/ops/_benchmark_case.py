"""What the speed table of the ops is made of: contenders, cases and the device's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from hybridzoo.ops.dispatch import get_op, machine_obstacle

BYTES_PER_SECOND = 3.0e12  # device-to-device copy of an H100, measured
EXPS_PER_SECOND = 3.71e12  # 16 special-function results a clock on each of 132 multiprocessors at 1.755 GHz


@dataclass(frozen=True)
class Contender:
    """One way to compute a case: `call()` gives the output, `leaves` are what gradients are taken of."""

    name: str
    call: Callable[[], Tensor]
    leaves: list[Tensor]
    peer: bool
    to_common: Callable[[Tensor], Tensor] = field(default=lambda y: y)  # to our layout, for the comparison


@dataclass(frozen=True)
class Case:
    """One line group of the table."""

    op: str
    name: str
    device: str
    build: Callable[[], Iterator[Contender]]
    floor_ms: float | None  # of the forward: device-memory traffic or exponentials, whichever takes longer
    backward: bool = True


def ours(op: str, run: Callable[[str], Tensor], leaves: list[Tensor], device: str) -> Iterator[Contender]:
    """Our backends of an op that run on a kind of device."""
    for b in get_op(op).backends:
        runs_here = b.devices is None or device in b.devices
        mine = b.name == "triton" or (b.name == "torch" and device == "cpu")
        if mine and runs_here and machine_obstacle(b.symbol) is None:
            yield Contender(f"hybridzoo {b.name}", lambda name=b.name: run(name), leaves, peer=False)
