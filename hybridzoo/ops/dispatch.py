"""Which implementation of an op runs: the torch reference, our Triton kernels, or another package's kernels.

An *op* (`Op`) is one primitive, `selective_scan`. Its *backends* (`Backend`) compute the same thing; the one named
`"torch"` defines it and runs anywhere. A choice is made per call, in this order:

1. the `backend=` argument, if it is not `"auto"`;
2. the innermost `with use_backend(...)`;
3. the environment variable `HYBRIDZOO_BACKEND`: `triton`, or per op `selective_scan=mamba_ssm,causal_conv1d=torch`;
4. auto: the backend of the highest priority that is installed, checked on this kind of device, and supports the call.

A backend asked for by 1-3 that cannot run the call raises BackendError with the reason; a name given for all ops
(2, 3) leaves those ops on auto that have no such backend. While a graph is traced (torch.compile) only traceable
backends count and the choice is frozen into the graph; while exporting, auto takes the torch reference.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hybridzoo.errors import BackendError, UnknownNameError, unknown

if TYPE_CHECKING:
    from hybridzoo.ops._selftest import SelftestRow

ENV = "HYBRIDZOO_BACKEND"
AUTO = "auto"
REFERENCE = "torch"

Call = Mapping[str, Any]  # an op's arguments by name, after validation


class BackendWarning(UserWarning):
    """Auto took a slower backend than this machine could run."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op.

    Args:
        name: `"torch"`, `"triton"`, `"mamba_ssm"`, ...
        priority: auto takes the highest that fits; the reference has 0.
        run: called with the op's arguments by name.
        supports: the reason why a call cannot run here, or None.
        deterministic: equal inputs give bit-equal outputs and gradients.
        devices: device types it runs on; None means any.
        symbol: `"module:attribute"` that must import for the backend to be available; probed at first use.
        fix: what a user does when the probe fails (`pip install ...`).
        traceable: works under torch.compile(fullgraph=True).
        exportable: may be chosen by auto while torch.export traces.
        auto_veto: why auto does not take it although it may be asked for by name; None if auto may.
        note: for which calls it is there, and why; `hybridzoo doctor` shows it.
    """

    name: str
    priority: int
    run: Callable[..., Any]
    supports: Callable[[Call], str | None] = field(default=lambda call: None)
    deterministic: bool = True
    devices: tuple[str, ...] | None = None
    symbol: str | None = None
    fix: str = ""
    traceable: bool = True
    exportable: bool = False
    auto_veto: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Example:
    """One input of the self-test: arguments by name, and which of them get gradients."""

    name: str
    call: Call
    differentiable: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of `report()`."""

    op: str
    backend: str
    priority: int
    available: bool
    reason: str  # why it is not available here, why auto skips it, or which calls it is for; "" if there is none
    fix: str
    deterministic: bool
    auto: bool  # auto takes it for the calls that it supports, ahead of every other backend of this op


_ops: dict[str, Op] = {}
_probed: dict[str, str | None] = {}
_warned: set[str] = set()
_env_cache: dict[str, dict[str, str]] = {}
_context: ContextVar[tuple[dict[str, str], ...]] = ContextVar("hybridzoo_backend", default=())


@dataclass(eq=False)
class Op:
    """A primitive with its backends, best first. Calling it picks one and runs it."""

    name: str
    backends: tuple[Backend, ...]
    examples: Callable[[torch.device], list[Example]]

    def __post_init__(self) -> None:
        self.backends = tuple(sorted(self.backends, key=lambda b: -b.priority))
        if REFERENCE not in [b.name for b in self.backends]:
            raise ValueError(f"op {self.name!r} has no {REFERENCE!r} backend")

    @property
    def names(self) -> list[str]:
        """Backend names, best first."""
        return [b.name for b in self.backends]

    def __call__(self, call: Call, backend: str = AUTO) -> Any:
        return self.select(call, backend).run(**call)

    def select(self, call: Call, backend: str = AUTO) -> Backend:
        """The backend that runs `call`.

        Raises:
            UnknownNameError: no backend of that name.
            BackendError: the backend asked for cannot run this call; the text says why.
        """
        asked = _requested(self.name, backend)
        device = first_tensor(call).device.type
        if asked != AUTO:
            chosen = self.backends[self.names.index(asked)]
            reason = self.obstacle(chosen, call, device)
            if reason is not None:
                fix = f" ({chosen.fix})" if chosen.fix and machine_obstacle(chosen.symbol) else ""
                raise BackendError(
                    f"backend {asked!r} cannot run this {self.name} call: {reason}{fix}; "
                    f'backend="auto" takes the fastest that can, backend="{REFERENCE}" always runs'
                )
            return chosen
        for candidate in self.backends:
            if candidate.auto_veto is None and self.obstacle(candidate, call, device, auto=True) is None:
                if device == "cuda" and not torch.compiler.is_compiling() and self.name not in _warned:
                    self._warn(candidate, call)
                return candidate
        raise BackendError(f"no backend runs this {self.name} call; this is a defect: the reference runs every call")

    def obstacle(self, b: Backend, call: Call, device: str, auto: bool = False) -> str | None:
        """Why `b` cannot run the call now, cheapest reason first; None if it can."""
        if b.devices is not None and device not in b.devices:
            return f"it runs on {' and '.join(b.devices)}, the inputs are on {device}"
        if torch.compiler.is_compiling():
            if not b.traceable:
                return "it cannot be traced by torch.compile or torch.export"
            if auto and not b.exportable and exporting():
                return "an exported program must not depend on its kernels"
        return machine_obstacle(b.symbol) or b.supports(call)

    def _warn(self, chosen: Backend, call: Call) -> None:
        """Once per op: a faster backend would have run this call, had it been installed."""
        for b in self.backends:
            if b.priority <= chosen.priority:
                return
            missing = machine_obstacle(b.symbol) if b.auto_veto is None and b.fix else None
            if missing is not None and b.supports(call) is None:
                _warned.add(self.name)
                warnings.warn(
                    f"{self.name} runs on the {chosen.name!r} backend; {b.name!r} would be faster but is not "
                    f"available: {missing}. Fix: {b.fix}. (`hybridzoo doctor` lists all backends.)",
                    BackendWarning,
                    stacklevel=5,
                )
                return


def register_op(op: Op) -> Op:
    """Add an op; a second one of that name raises ValueError."""
    if op.name in _ops:
        raise ValueError(f"op {op.name!r} is already registered")
    _ops[op.name] = op
    return op


def triton_backend(
    run: Callable[..., Any],
    supports: Callable[[Call], str | None],
    *,
    deterministic: bool = True,
    traceable: bool = True,
    auto_veto: str | None = None,
) -> Backend:
    """Our Triton kernels of an op: on GPUs, and on the CPU where Triton interprets them (TRITON_INTERPRET=1)."""
    return Backend(
        name="triton",
        priority=20,
        run=run,
        supports=supports,
        deterministic=deterministic,
        devices=("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",),
        symbol="triton:jit",
        fix="pip install triton (it comes with torch's CUDA builds on Linux)",
        traceable=traceable,
        auto_veto=auto_veto,
    )


def register_kernel_op(
    name: str,
    *,
    triton: Callable[..., Any],
    supports: Callable[[Call], str | None],
    reference: Callable[..., Any],
    examples: Callable[[torch.device], list[Example]],
    traceable: bool = True,
) -> Op:
    """Add an op of two backends: our Triton kernels and its definition in torch."""
    kernels = triton_backend(triton, supports, traceable=traceable)
    return register_op(Op(name, (kernels, Backend(name="torch", priority=0, run=reference, exportable=True)), examples))


def ops() -> dict[str, Op]:
    """All ops by name. Imports every op package."""
    package = importlib.import_module("hybridzoo.ops")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"hybridzoo.ops.{module.name}")
    return dict(sorted(_ops.items()))


def get_op(name: str) -> Op:
    """The op `name`; raises UnknownNameError with the nearest names."""
    found = ops()
    if name not in found:
        raise UnknownNameError(unknown("op", name, found))
    return found[name]


@contextlib.contextmanager
def use_backend(default: str | None = None, **per_op: str) -> Iterator[None]:
    """Choose backends for the calls inside, in this thread or async task only.

        with use_backend("torch"): ...
        with use_backend(selective_scan="mamba_ssm"): ...

    Args:
        default: for every op that has a backend of this name; `"auto"` lifts an outer choice or HYBRIDZOO_BACKEND.
        per_op: for single ops.

    Raises:
        UnknownNameError: no such backend or op.
    """
    choice = _validated(default, per_op, "use_backend")
    token = _context.set((*_context.get(), choice))
    try:
        yield
    finally:
        _context.reset(token)


def _validated(default: str | None, per_op: Mapping[str, str], where: str) -> dict[str, str]:
    """Check names against the registry; the default is stored under the key ''."""
    known = ops()
    every = {AUTO, *(b.name for op in known.values() for b in op.backends)}
    if default is not None and default not in every:
        raise UnknownNameError(unknown("backend", default, every, f"(in {where})"))
    for op_name, name in per_op.items():
        if op_name not in known:
            raise UnknownNameError(unknown("op", op_name, known, f"(in {where})"))
        if name not in (AUTO, *known[op_name].names):
            raise UnknownNameError(unknown(f"{op_name} backend", name, [AUTO, *known[op_name].names], f"(in {where})"))
    return {**({} if default is None else {"": default}), **per_op}


def _parse_env(text: str) -> dict[str, str]:
    """`triton` or `selective_scan=mamba_ssm,causal_conv1d=torch` or both."""
    if text not in _env_cache:
        default, per_op = None, {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = part.partition("=")
            if equals:
                per_op[key.strip()] = value.strip()
            elif default is None:
                default = part
            else:
                raise UnknownNameError(f"{ENV}={text!r} names two defaults, {default!r} and {part!r}; give one")
        _env_cache[text] = _validated(default, per_op, f"the environment variable {ENV}")
    return _env_cache[text]


@torch._dynamo.assume_constant_result
def exporting() -> bool:
    """`torch.compiler.is_exporting()`, which Dynamo of torch 2.11 takes for true in every compilation."""
    return torch.compiler.is_exporting()


@torch._dynamo.assume_constant_result
def _requested(op_name: str, argument: str) -> str:
    """What was asked for, `"auto"` if nothing: argument, then context, then environment."""
    op = _ops[op_name]
    if argument != AUTO:
        if argument not in op.names:
            raise UnknownNameError(unknown(f"{op_name} backend", argument, [AUTO, *op.names]))
        return argument
    layers = [*reversed(_context.get())]
    text = os.environ.get(ENV, "").strip()
    if text:
        layers.append(_parse_env(text))
    for choice in layers:
        if op_name in choice:
            return choice[op_name]
        if choice.get("") in (AUTO, *op.names):
            return choice[""]
    return AUTO


@torch._dynamo.assume_constant_result
def machine_obstacle(symbol: str | None) -> str | None:
    """Why the optional package behind `"module:attribute"` cannot be used, or None. Probed once."""
    if symbol is None:
        return None
    if symbol not in _probed:
        module, _, attribute = symbol.partition(":")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(importlib.import_module(module), attribute)
            _probed[symbol] = None
        except ModuleNotFoundError as error:
            own = (error.name or "").partition(".")[0] == module.partition(".")[0]
            _probed[symbol] = f"{module} is not installed" if own else f"importing {module} needs {error.name}"
        except BaseException as error:  # a broken extension may raise anything, SystemExit included; record it
            if isinstance(error, KeyboardInterrupt):
                raise
            text = str(error).splitlines()[0] if str(error) else ""
            _probed[symbol] = f"importing {module} failed: {type(error).__name__}: {text}"
    return _probed[symbol]


def first_tensor(call: Call) -> torch.Tensor:
    for value in call.values():
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, torch.Tensor):
            return value
    raise BackendError("the call has no tensor argument")


def report(device: str | torch.device | None = None) -> list[Row]:
    """Every backend of every op on `device` (the current accelerator if left out), best first per op."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    rows = []
    for op in ops().values():
        taken = False
        for b in op.backends:
            missing = machine_obstacle(b.symbol)
            if b.devices is not None and kind not in b.devices:
                missing, fix = f"it runs on {' and '.join(b.devices)}; this is {kind}", ""
            else:
                fix = b.fix if missing else ""
            auto = missing is None and b.auto_veto is None and not taken
            taken = taken or auto
            rows.append(
                Row(
                    op=op.name,
                    backend=b.name,
                    priority=b.priority,
                    available=missing is None,
                    reason=missing or (f"not taken by auto: {b.auto_veto}" if b.auto_veto else b.note),
                    fix=fix,
                    deterministic=b.deterministic,
                    auto=auto,
                )
            )
    return rows


def selftest(device: str | torch.device | None = None, op: str | None = None) -> list[SelftestRow]:
    """Run every backend that this machine has on each op's examples; see `hybridzoo.ops._selftest.selftest`."""
    from hybridzoo.ops._selftest import selftest

    return selftest(device, op)
