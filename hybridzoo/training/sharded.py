"""Models whose weights FSDP2 has spread over the processes: what a run must do differently.

accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP … -m hybridzoo train …
"""

from __future__ import annotations

from typing import Any

import torch

from hybridzoo.errors import ConfigError
from hybridzoo.training.schema import TrainingSection


def check_sharded(training: TrainingSection) -> None:
    """Raise ConfigError for keys that need all weights in one process while the training runs."""
    for key, wanted in (("ema_decay", training.ema_decay is not None), ("select_best", training.select_best)):
        if wanted:
            raise ConfigError(
                f"training.{key} needs the whole model in every process, and FSDP spreads it over them; leave "
                f"training.{key} out, or start the run without FSDP (torchrun alone: DDP)"
            )


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter; all of it where nothing is sharded."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[attr-defined]


def whole_model(trainer: Any) -> Any:
    """The trained model with all its weights on the first process, None on the others. All processes call it."""
    from torch.distributed.fsdp import FSDPModule

    sharded = trainer.model
    state = trainer.accelerator.get_state_dict(sharded)
    if not trainer.args.should_save:
        return None
    plain = next(c for c in type(sharded).__mro__ if not issubclass(c, FSDPModule) and hasattr(c, "load_strict"))
    model = plain(sharded.config)
    model.load_strict(state, where="the gathered shards")
    return model.to(trainer.args.device)
