"""What happens around the steps: when to evaluate and save, moving average, logs, guards, signals, progress."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hybridzoo._atomic_file import whole_file
from hybridzoo.errors import TrainingError


class Ema:
    """Exponential moving average of a model's floating-point state; other buffers are copied (timm's ModelEmaV3).

    Args:
        model: the plain model; its present values are the first average.
        decay: average = decay * average + (1 - decay) * value, after every update. After n
            updates (1 + n) / (10 + n) is used where that is smaller, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the model's present values into the average; `step` updates were taken before."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.state[k], v.detach()) for k, v in model.state_dict().items()]
        floats = [(e, v) for e, v in pairs if e.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            [e for e, _ in floats], [v for _, v in floats], 1 - decay
        )
        for e, v in pairs:
            if not e.is_floating_point():
                e.copy_(v)

    @contextmanager
    def applied(self, model: nn.Module):
        """The model holds the averaged values inside the block, and afterwards its own ones, bit for bit."""
        own = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            _copy(own, model)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's values with the average."""
        _copy(self.state, model)


@torch.no_grad()
def _copy(state: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    for key, value in model.state_dict().items():
        value.copy_(state[key])


class Flow(TrainerCallback):
    """Evaluates and saves every so many steps and at the end.

    Args:
        eval_steps: 0 = only at the end; None = never.
        save_steps: 0 = only at the end.
    """

    def __init__(self, eval_steps: int | None, save_steps: int):
        self.eval_steps, self.save_steps = eval_steps, save_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        last = state.global_step >= state.max_steps
        if self.eval_steps is not None and (last or (self.eval_steps and state.global_step % self.eval_steps == 0)):
            control.should_evaluate = True
        if last or (self.save_steps and state.global_step % self.save_steps == 0):
            control.should_save = True
        if last:
            control.should_log = True
        return control


class Guard:
    """Notices a loss that is not finite without waiting for the device in every step.

    Args:
        device: of the loss.
        every: steps between two looks at the device's note (1 on a CPU, where looking costs nothing).
    """

    def __init__(self, device: torch.device, every: int):
        self.every = every
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)

    def note(self, loss: torch.Tensor, step: int) -> None:
        """Remember `step` (1 is the first) if the loss is not finite and no earlier one was."""
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad == 0)
        self.first_bad += bad.to(torch.int64) * step

    def check(self, describe: Any) -> None:
        """Raise TrainingError if a bad loss was noted, on any process.

        Args:
            describe: called for the end of the sentence (the last good checkpoint).
        """
        noted = self.first_bad
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            noted = noted.clone()
            torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
        step = int(noted.item())
        if step:
            raise TrainingError(
                f"the loss is not finite (NaN or infinite) at step {step}; the training was stopped. {describe()} "
                "A lower training.learning_rate, training.clip_grad_norm=1.0 or training.precision=fp32 usually helps"
            )


class Signals:
    """SIGTERM and SIGINT ask for a checkpoint and an orderly stop; a second SIGINT interrupts at once.

    Use it as a context manager around the training. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        os.write(2, b"\nstopping: the checkpoint of this step is written first\n")


class JsonLog(TrainerCallback):
    """One JSON object a line in `log.jsonl`, flushed at once. Lines after the resumed step are cut off first.

    Args:
        path: the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.started = time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.path.is_file():
            kept = [r for r in read_log(self.path) if r.get("step", 0) <= state.global_step]
            with whole_file(self.path) as staged:
                staged.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        record = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        record |= {k: v for k, v in logs.items() if k not in ("epoch", "total_flos") and not k.endswith("_per_second")}
        record["time"] = round(time.time() - self.started, 3)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
        except OSError as error:
            raise TrainingError(f"the log {self.path} cannot be written: {error.strerror or error}") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class Progress(TrainerCallback):
    """A tqdm bar on a terminal, else one line per evaluation."""

    def __init__(self, title: str):
        self.title = title
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            from tqdm import tqdm

            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.title, unit="step", disable=None
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n if not self.bar.disable else 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        if "loss" in logs and not self.bar.disable:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", lr=f"{logs.get('learning_rate', 0):.2e}")
        values = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_") and k != "eval_runtime"}
        if values:
            numbers = ", ".join(f"{k} {v:.4f}" for k, v in values.items() if not k.endswith("_per_second"))
            self.bar.write(f"step {state.global_step}/{state.max_steps}: validation {numbers}", file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
