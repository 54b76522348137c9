"""transformers' TrainingArguments and timm's Mixup from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hybridzoo.errors import ConfigError
from hybridzoo.training.schema import Recipe


def ddp_options(model: Any) -> dict[str, Any]:
    """What DistributedDataParallel is told about a model, beyond its defaults.

    Gradients live in the buffers that are sent, so that none is copied. Language models use every weight in every step;
    looking for unused ones would walk the graph once more on the host. Other models may rest a branch and keep what
    transformers chooses.
    """
    options: dict[str, Any] = {"gradient_as_bucket_view": True}
    return options | ({"find_unused_parameters": False} if model.task == "text-generation" else {})


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """transformers' arguments for a recipe.

    Raises:
        ConfigError: fp16 without a GPU, or a tracker that is not installed.
    """
    t = recipe.training
    cuda = torch.cuda.is_available()
    if t.precision == "fp16" and not cuda:
        raise ConfigError("training.precision=fp16 needs a GPU; use bf16 or fp32 on the CPU")
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=t.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=t.gradient_accumulation,
        max_steps=1,  # the trainer sets it when it knows the length of an epoch
        learning_rate=t.learning_rate,
        max_grad_norm=t.clip_grad_norm or 0.0,
        bf16=t.precision == "bf16",
        fp16=t.precision == "fp16",
        seed=t.seed,
        full_determinism=t.deterministic,
        torch_compile=t.compile and not t.cuda_graphs,  # else the layers are compiled where they are recorded
        use_cpu=not cuda,
        eval_strategy="no",  # callbacks.Flow decides
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=t.log_every,
        logging_nan_inf_filter=False,  # it would wait for the device in every step; Guard does not
        report_to=list(t.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=t.num_workers,
        dataloader_persistent_workers=t.num_workers > 0,
        dataloader_pin_memory=cuda,
        log_level="warning",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would be DataParallel: torchrun instead
    return arguments


def make_mixup(recipe: Recipe, num_labels: int) -> Any:
    """timm's Mixup, or None. It draws from numpy's global generator, whose state is part of a checkpoint.

    Raises:
        ConfigError: an odd batch size, which mixup cannot pair.
    """
    t = recipe.training
    if not (t.mixup or t.cutmix):
        return None
    if t.batch_size % 2:
        raise ConfigError(
            f"training.mixup and cutmix pair the samples of a batch: batch_size={t.batch_size} must be even"
        )
    from timm.data.mixup import Mixup

    return Mixup(
        mixup_alpha=t.mixup,
        cutmix_alpha=t.cutmix,
        prob=t.mixup_prob,
        switch_prob=t.mixup_switch_prob,
        mode="batch",
        label_smoothing=t.label_smoothing,
        num_classes=num_labels,
    )
