"""The loss curve of a run."""

from __future__ import annotations

from pathlib import Path

from hybridzoo.training.callbacks import read_log


def plot_loss(log: Path, target: Path, *, metric: str = "accuracy") -> bool:
    """Draw train loss, validation loss and a validation metric over the steps.

    Args:
        log: a `log.jsonl`.
        target: PNG file.
        metric: validation metric on the right-hand axis.

    Returns:
        False where matplotlib is missing or there is nothing to draw; then no file is written.
    """
    records = read_log(log) if log.is_file() else []
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    loss = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    score = [(r["step"], r[f"eval_{metric}"]) for r in records if f"eval_{metric}" in r]
    if not (train or loss):
        return False
    try:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train), label="train loss", linewidth=1.2)
    if loss:
        axes.plot(*zip(*loss), label="validation loss", marker="o", markersize=3, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    if score and metric != "loss":
        right = axes.twinx()
        right.plot(
            *zip(*score), label=f"validation {metric}", color="tab:green", marker="s", markersize=3, linewidth=1.2
        )
        right.set_ylabel(metric)
        right.legend(loc="center right")
    axes.legend(loc="upper right")
    figure.savefig(target, dpi=120)
    return True
