"""Every backend against the reference, in outputs and gradients: what `hybridzoo doctor --selftest` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hybridzoo.errors import BackendError
from hybridzoo.ops.dispatch import REFERENCE, Backend, Example, first_tensor, get_op, machine_obstacle, ops


@dataclass(frozen=True)
class SelftestRow:
    """One comparison of a backend with the reference in fp64: the largest relative error and what it was allowed."""

    op: str
    backend: str
    example: str
    ok: bool
    worst: str  # the output or gradient with the largest error in units of its tolerance
    error: float
    tolerance: float
    detail: str  # why it did not run, or "" if it did


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm of `want`, in fp64; infinite for a wrong shape or a non-finite value."""
    if got.shape != want.shape or not torch.isfinite(got).all():
        return float("inf")
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    return ((got - want).norm() / want.norm().clamp_min(1e-6)).item()


def tolerance(dtype: torch.dtype) -> float:
    """Relative error allowed to a backend whose inputs have this dtype."""
    return {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 4e-3}[dtype]


def run_example(backend: Backend, example: Example, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Outputs `out.0`, ... and gradients `grad.<name>` of one example, from fixed output gradients.

    `dtype` recasts every floating-point argument first (for a reference of higher precision).
    """

    def leaf(value: Any, grad: bool) -> Any:
        if isinstance(value, (list, tuple)):
            return [leaf(v, grad) for v in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(dtype or value.dtype, copy=True).requires_grad_(grad)
        return value

    call = {name: leaf(value, name in example.differentiable) for name, value in example.call.items()}
    result = backend.run(**call)
    outputs = [r for r in (result if isinstance(result, tuple) else (result,)) if r is not None]
    if call.get("return_final_state") is False:  # a backend may give the state all the same: nobody sees it
        outputs = outputs[:1]
    weights = []
    for i, out in enumerate(outputs):
        g = torch.Generator().manual_seed(i)
        weights.append(torch.randn(out.shape, generator=g).to(out.device, out.dtype))
    inputs = {}
    for name in example.differentiable:
        several = isinstance(call[name], list)
        inputs.update({f"{name}.{i}": v for i, v in enumerate(call[name])} if several else {name: call[name]})
    grads = torch.autograd.grad(outputs, list(inputs.values()), weights, allow_unused=True) if inputs else []
    values = {f"out.{i}": out.detach() for i, out in enumerate(outputs)}
    for name, grad in zip(inputs, grads):
        if grad is None:
            raise BackendError(f"no gradient for {name}")
        values[f"grad.{name}"] = grad
    return values


def selftest(device: str | torch.device | None = None, op: str | None = None) -> list[SelftestRow]:
    """Run every backend that this machine has on each op's examples; compare outputs and gradients with the reference.

    The reference runs on the same device with every floating-point input widened to fp64 (MPS has fp32 only).

    Args:
        device: where; the current accelerator if left out.
        op: one op only.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for one in [get_op(op)] if op else ops().values():
        reference = next(b for b in one.backends if b.name == REFERENCE)
        for example in one.examples(where):
            wide = run_example(reference, example, torch.float32 if where.type == "mps" else torch.float64)
            limit = tolerance(first_tensor(example.call).dtype)
            for b in one.backends:
                obstacle = one.obstacle(b, example.call, where.type)
                if obstacle is not None:
                    if machine_obstacle(b.symbol) is None and (b.devices is None or where.type in b.devices):
                        rows.append(SelftestRow(one.name, b.name, example.name, True, "", 0.0, limit, obstacle))
                    continue
                try:
                    got = run_example(b, example)
                except Exception as error:
                    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    rows.append(SelftestRow(one.name, b.name, example.name, False, "", float("inf"), limit, text))
                    continue
                errors = {key: relative_error(got[key], wide[key]) for key in wide}
                worst = max(errors, key=errors.__getitem__)
                ok = errors[worst] <= limit
                rows.append(SelftestRow(one.name, b.name, example.name, ok, worst, errors[worst], limit, ""))
    return rows
