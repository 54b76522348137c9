"""Learning rate as a closed form of the number of updates done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hybridzoo.training.schema import TrainingSection


@dataclass(frozen=True)
class Schedule:
    """Warm-up, decay and cool-down, in updates.

    As timm's `CosineLRScheduler(t_in_epochs=False)` with its default `warmup_prefix=False`: the cosine runs over
    `decay_steps` from the first update and the warm-up covers its beginning. `linear` falls from the warm-up's end;
    `wsd` stays at the peak and falls linearly over the last `falling_steps` of `decay_steps`; `step` is multiplied by
    `gamma` at each milestone.

    Args:
        kind: cosine, linear, constant, wsd or step.
        peak: the recipe's learning_rate.
        floor: min_learning_rate, from `decay_steps` on.
        start: warmup_learning_rate, at update 0.
        warmup_steps: length of the warm-up.
        decay_steps: updates of `epochs`, warm-up included, cool-down not.
        falling_steps: of wsd.
        milestones: of step, in updates.
        gamma: of step.
        warmup_power: exponent of the warm-up; 1 is linear.
    """

    kind: str
    peak: float
    floor: float
    start: float
    warmup_steps: int
    decay_steps: int
    falling_steps: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 1.0
    warmup_power: float = 1.0

    def __call__(self, step: int) -> float:
        """The learning rate of update number `step` (0 is the first)."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * (step / self.warmup_steps) ** self.warmup_power
        if self.kind == "constant":
            return self.peak
        if self.kind == "step":
            return max(self.peak * self.gamma ** sum(step >= m for m in self.milestones), self.floor)
        if step >= self.decay_steps:
            return self.floor
        if self.kind == "cosine":
            return self.floor + 0.5 * (self.peak - self.floor) * (1 + math.cos(math.pi * step / self.decay_steps))
        falling = self.falling_steps if self.kind == "wsd" else self.decay_steps - self.warmup_steps
        rest = min((self.decay_steps - step) / max(falling, 1), 1.0)
        return self.floor + (self.peak - self.floor) * rest

    def multiplier(self) -> Callable[[int], float]:
        """For `LambdaLR`: the learning rate relative to the peak, so that layer-wise decay scales the whole curve."""
        return lambda step: self(step) / self.peak


def total_steps(t: TrainingSection, updates_per_epoch: int) -> int:
    """Updates of a whole run, cool-down included."""
    if t.max_steps is not None:
        return t.max_steps
    return max(round((t.epochs + t.cooldown_epochs) * updates_per_epoch), 1)


def make_schedule(t: TrainingSection, updates_per_epoch: int) -> Schedule:
    """The schedule of a recipe.

    Args:
        t: its training section.
        updates_per_epoch: optimizer steps of one pass over the train split.
    """
    total = total_steps(t, updates_per_epoch)
    cooldown = round(t.cooldown_epochs * updates_per_epoch) if t.max_steps is None else 0
    warmup = round(t.warmup_ratio * total) if t.warmup_ratio else round(t.warmup_epochs * updates_per_epoch)
    return Schedule(
        kind=t.scheduler,
        peak=t.learning_rate,
        floor=t.min_learning_rate,
        start=t.warmup_learning_rate,
        warmup_steps=min(warmup, total),
        decay_steps=max(total - cooldown, 1),
        falling_steps=round(t.decay_ratio * max(total - cooldown, 1)),
        # As shares of the epochs, so that max_steps shrinks the whole schedule.
        milestones=tuple(round(m / t.epochs * (total - cooldown)) for m in t.milestones),
        gamma=t.gamma,
        warmup_power=t.warmup_power,
    )
