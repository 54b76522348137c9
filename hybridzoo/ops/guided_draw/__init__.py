"""A code for every token from logits with and without its condition, and how likely the code was. Without gradients.

A step of masked image generation at 2048 pixels draws 16,384 tokens of 16,384 codes. Guidance, noise, argmax and
log-softmax in torch pass over those 268 million numbers nine times, most of them in fp32; the kernel reads the
logits and the noise once, 8 bytes each number where the logits are half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridzoo.errors import InputError
from hybridzoo.ops.dispatch import AUTO, Call, Example, register_kernel_op
from hybridzoo.ops.guided_draw.reference import guided_draw_reference

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def guided_draw(
    logits: Tensor,
    without: Tensor | None = None,
    noise: Tensor | None = None,
    *,
    scale: float = 1.0,
    temperature: float = 1.0,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """One code of softmax(g / temperature) for every row, g = without + scale (logits - without); in fp32 at least.

    Args:
        logits: (..., K), with the condition.
        without: (..., K), without it; None: g is `logits`.
        noise: (..., K) standard exponential variables in fp32; None takes the most likely code.
        scale: of the guidance.
        temperature: above 0.

    Returns:
        Codes (...) int64, argmax of g / temperature - log(noise), and the log-probabilities (...) of these codes.

    Raises:
        InputError: shapes do not fit, or the temperature is not above 0.
    """
    for name, x in (("without", without), ("noise", noise)):
        if x is not None and x.shape != logits.shape:
            raise InputError(f"{name} must have the shape of logits {tuple(logits.shape)}, it is {tuple(x.shape)}")
    if not temperature > 0:
        raise InputError(f"temperature={temperature} must be above 0; for the most likely code leave out the noise")
    call = {"logits": logits, "without": without, "noise": noise, "scale": scale, "temperature": temperature}
    return _OP(call, backend)


def _run_triton(
    logits: Tensor, without: Tensor | None, noise: Tensor | None, scale: float, temperature: float
) -> tuple[Tensor, Tensor]:
    from hybridzoo.ops.guided_draw.triton import guided_draw_kernel

    return guided_draw_kernel(logits, without, noise, scale, temperature)


def _supports_triton(call: Call) -> str | None:
    logits, without, noise = call["logits"], call["without"], call["noise"]
    if logits.dtype not in KERNEL_DTYPES or (without is not None and without.dtype != logits.dtype):
        return f"its dtypes are bfloat16, float16 and float32, one for all logits, not {logits.dtype}"
    if noise is not None and (noise.dtype != torch.float32 or noise.device != logits.device):
        return f"the noise must be float32 on the logits' device, it is {noise.dtype} on {noise.device}"
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (logits, without)):
        return "it has no gradients"
    return "the input is empty" if logits.numel() == 0 else None


def _examples(device: torch.device) -> list[Example]:
    def example(name: str, *shape: int, guided: bool, noisy: bool, dtype: torch.dtype = torch.float32) -> Example:
        g = torch.Generator().manual_seed(0)
        logits, without = (3 * torch.randn(shape, generator=g) for _ in range(2))
        noise = torch.empty(shape).exponential_(generator=g)
        call = {
            "logits": logits.to(device, dtype),
            "without": without.to(device, dtype) if guided else None,
            "noise": noise.to(device) if noisy else None,
            "scale": 2.5,
            "temperature": 0.8,
        }
        return Example(name, call, ())

    return [
        example("B2-N5-K70-fp32", 2, 5, 70, guided=True, noisy=True),
        example("B1-N3-K5000-fp32", 1, 3, 5000, guided=False, noisy=True),
        example("B2-N7-K64-likely-fp32", 2, 7, 64, guided=True, noisy=False),
        example("B2-N4-K2100-bf16", 2, 4, 2100, guided=True, noisy=True, dtype=torch.bfloat16),
    ]


_OP = register_kernel_op(
    "guided_draw",
    triton=_run_triton,
    supports=_supports_triton,
    reference=guided_draw_reference,
    examples=_examples,
    traceable=False,
)
