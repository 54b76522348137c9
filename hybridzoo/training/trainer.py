"""ZooTrainer: transformers' Trainer with timm's recipe parts, exact resumption and checkpoints that are never half.

The loop, mixed precision, DDP, FSDP and DeepSpeed are transformers' and accelerate's. What is replaced: batches (a
sampler that is a function of seed and epoch), optimizer groups, schedule, loss, and how a checkpoint reaches the disk
(`checkpointed.py`).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hybridzoo.training import checkpoints
from hybridzoo.training.arguments import ddp_options, make_mixup, training_arguments
from hybridzoo.training.callbacks import Ema, Guard, Signals
from hybridzoo.training.checkpointed import CheckpointedTrainer
from hybridzoo.training.datasets import as_is
from hybridzoo.training.graphs import StepGraphs, check_graphs, padded
from hybridzoo.training.length_warmup import check_length_warmup, cut, length_at
from hybridzoo.training.losses import balanced_weights, classification_loss, validation_metrics
from hybridzoo.training.objectives import LOWER_IS_BETTER, Objective, objective_of
from hybridzoo.training.param_groups import param_groups
from hybridzoo.training.sampling import EpochBatchSampler, global_rng_kept
from hybridzoo.training.schedule import make_schedule, total_steps
from hybridzoo.training.schema import Recipe
from hybridzoo.training.sharded import check_sharded

_GPU_CHECK_EVERY = 20  # steps between two looks at the loss and at signals of other processes


class ZooTrainer(CheckpointedTrainer):
    """Trains one recipe.

    Args:
        recipe: what to do.
        model: in train mode, on the CPU.
        train_dataset: hands out batches by `sampling.Key` (see `datasets`); has `labels` where there are classes. It
            may bring its own `batch_sampler(batch_size=, seed=, rank=, world=)`, and with `state_dict(index)` and
            `load_state_dict` it becomes a part of the checkpoints (a stream).
        eval_dataset: hands out batches by index, or None.
        folder: where the checkpoints go.
        objective: of the model's task; found by the recipe if left out.
        processing_class: tokenizer, saved with each checkpoint.
        callbacks: further ones.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        folder: Path,
        *,
        objective: Objective | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.recipe, self.folder = recipe, folder
        self.objective = objective_of(recipe) if objective is None else objective
        t = recipe.training
        arguments = training_arguments(recipe, folder)
        place = {"seed": t.seed, "rank": arguments.process_index, "world": arguments.world_size}
        own = getattr(train_dataset, "batch_sampler", None)
        self.batch_sampler: Any = own(batch_size=t.batch_size, **place) if own is not None else None
        if self.batch_sampler is None:
            self.batch_sampler = EpochBatchSampler(
                len(train_dataset),  # type: ignore[arg-type]
                t.batch_size,
                lengths=getattr(train_dataset, "lengths", None),
                repeats=t.augment.repeats,
                **place,
            )
        self.updates_per_epoch = -(-len(self.batch_sampler) // t.gradient_accumulation)
        arguments.max_steps = total_steps(t, self.updates_per_epoch)
        if t.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if t.gradient_checkpointing:
            model.set_grad_checkpointing(True)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=as_is,
            processing_class=processing_class,
            compute_metrics=validation_metrics,
            preprocess_logits_for_metrics=_class_indices,
            callbacks=[_Hooks(self), *(callbacks or [])],
        )
        if self.is_fsdp_enabled:
            check_sharded(t)
        if self.accelerator.ddp_handler is not None:
            for name, value in ddp_options(model).items():
                setattr(self.accelerator.ddp_handler, name, value)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # The loss is a mean over samples: Trainer divides it by the number of micro-batches.
        self.model_accepts_loss_kwargs = False
        self.class_weights = self.mixup = None
        if self.objective.classes:
            labels = train_dataset.labels  # type: ignore[attr-defined]
            if t.class_weights == "balanced":
                weights = balanced_weights(labels.tolist(), model.config.num_labels)
                self.class_weights = weights.to(arguments.device)  # a recorded step cannot copy from the CPU
            self.mixup = make_mixup(recipe, model.config.num_labels)
        self.ema = Ema(self.model, t.ema_decay) if t.ema_decay is not None else None
        on_cpu = arguments.device.type == "cpu"
        self.graphs: StepGraphs | None = None
        if t.cuda_graphs:
            check_graphs(t, arguments.world_size)
        lengths = getattr(train_dataset, "lengths", None)
        check_length_warmup(t, lengths, self.objective.classes)
        self.longest = int(max(lengths)) if t.length_warmup_ratio and lengths is not None else 0
        self.check_every = 1 if on_cpu else _GPU_CHECK_EVERY
        self.guard = Guard(arguments.device, self.check_every)
        self.signals = Signals()
        self._logged: tuple[float, int | None] = (0.0, None)
        self.stopped_by_signal = False
        self.stopped_early = False
        # Kept in checkpoints: what selects the best model and stops early.
        self.progress: dict[str, Any] = {"best": None, "evaluations_without_best": 0}

    # Batches -------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process. Not prepared by accelerate: the sampler knows the processes and the epoch."""
        workers = self.recipe.training.num_workers
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batch_sampler,
            collate_fn=as_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(
                self.recipe.training.seed
            ),  # else the iterator draws from dropout's
        )

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    # Optimizer, schedule, loss -------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over `param_groups`."""
        if self.optimizer is None:
            t = self.recipe.training
            groups = param_groups(
                self.model if model is None else model,
                learning_rate=t.learning_rate,
                weight_decay=t.weight_decay,
                no_decay_norm_bias=t.no_decay_norm_bias,
                layer_decay=t.layer_decay,
                lr_scales=t.lr_scales,
            )
            for group in groups:
                del group["names"]
            betas = (t.optimizer.betas[0], t.optimizer.betas[1])
            fused = self.args.device.type == "cuda"
            self.optimizer = torch.optim.AdamW(groups, t.learning_rate, betas, t.optimizer.eps, fused=fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's schedule, as factors on each group's learning rate."""
        if self.lr_scheduler is None:
            schedule = make_schedule(self.recipe.training, self.updates_per_epoch)
            target = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, schedule.multiplier())
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Also what the objective has to say about the steps since the last entry."""
        if "loss" in logs and "eval_loss" not in logs:
            now, step = time.monotonic(), self.state.global_step
            since, before = self._logged
            self._logged = (now, step)
            if before is not None:
                logs = {**logs, **self.objective.log_entries(self, now - since, step - before)}
        super().log(logs, *args, **kwargs)

    def _get_learning_rate(self) -> float:
        """For the log: of the head, which layer decay leaves at the schedule's value."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The recipe's loss in training; the model's own in evaluation, and where the recipe changes nothing."""
        t, inputs = self.recipe.training, dict(inputs)
        if t.channels_last and "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        own = self.objective.loss(self, model, inputs) if model.training else None
        if own is not None:
            loss, outputs = own
        elif model.training and (t.label_smoothing or self.mixup is not None or self.class_weights is not None):
            target = inputs.pop("labels")
            if self.mixup is not None:
                inputs["pixel_values"], target = self.mixup(inputs["pixel_values"], target)
            outputs = model(**inputs)
            loss = classification_loss(
                outputs["logits"], target, smoothing=t.label_smoothing, weights=self.class_weights
            )
        else:
            outputs = model(**inputs)
            loss = outputs["loss"]
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward; a loss that is not finite is noted."""
        if self.longest:
            step, total = self.state.global_step, self.state.max_steps
            inputs = cut(inputs, length_at(step, total, self.longest, self.recipe.training))
        if (
            self.recipe.training.cuda_graphs and self.args.device.type == "cuda"
        ):  # a CPU takes the same steps, unrecorded
            loss = self._recorded_step(model, inputs)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.note(loss, self.state.global_step + 1)
        return loss

    def _recorded_step(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not model.training:
            model.train()
        if self.graphs is None:
            compiled = self.recipe.training.compile
            self.graphs = StepGraphs(self.model, lambda batch: self.compute_loss(model, batch), compiled=compiled)
        config = self.model.config
        pad, most = getattr(config, "pad_token_id", None), getattr(config, "max_length", None)
        return self.graphs.step(self._prepare_inputs(padded(inputs, pad, most)))

    def after_step(self) -> None:
        """Look at the guard and at signals, every `check_every` steps, on all processes at the same step."""
        if self.state.global_step % self.check_every and self.state.global_step < self.state.max_steps:
            return
        self.guard.check(self.last_good)
        received = self.signals.received is not None
        if self.args.world_size > 1:
            flag = torch.tensor(int(received), device=self.args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            received = bool(flag.item())
        if received and self.state.global_step < self.state.max_steps:
            self.stopped_by_signal = True
            self.control.should_save = True
            self.control.should_training_stop = True
            self.control.should_evaluate = False

    # Evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """With the averaged weights where there are some. Draws nothing from the training's random numbers."""
        averaged = self.ema.applied(self.model) if self.ema is not None else contextlib.nullcontext()
        with global_rng_kept(), averaged:
            found = self.objective.evaluate(self, self.eval_dataset)
            if found is None:
                metrics = super().evaluate(*args, **kwargs)
            else:
                metrics = {f"eval_{name}": value for name, value in found.items()}
                self.log(metrics)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            if self.is_in_train:
                self._track_best(metrics)
        self._logged = (time.monotonic(), self.state.global_step)
        patience = self.recipe.training.early_stopping_patience
        if self.is_in_train and patience and self.progress["evaluations_without_best"] >= patience:
            self.stopped_early = True
            self.control.should_training_stop = self.control.should_save = True
        return metrics

    def _track_best(self, metrics: Mapping[str, float]) -> None:
        name = self.recipe.evaluation.metric
        value, best = float(metrics[f"eval_{name}"]), self.progress["best"]
        better = best is None or (value < best["value"] if name in LOWER_IS_BETTER else value > best["value"])
        if not better:
            self.progress["evaluations_without_best"] += 1
            return
        self.progress = {
            "best": {"metric": name, "value": value, "step": self.state.global_step},
            "evaluations_without_best": 0,
        }
        if self.recipe.training.select_best and self.args.should_save:
            final = self.folder / f"best-{self.state.global_step}"
            staging = self.folder / f".writing-{final.name}"
            with self.writing(staging, final):
                shutil.rmtree(staging, ignore_errors=True)
                self.model.save_pretrained(staging)
                checkpoints.publish(staging, final)


class _Hooks(TrainerCallback):
    """Calls of the loop that the trainer itself needs."""

    def __init__(self, trainer: ZooTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batch_sampler.epoch = state.global_step // self.trainer.updates_per_epoch

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ema is not None:
            self.trainer.ema.update(self.trainer.model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.after_step()


def _class_indices(logits: Any, labels: Any) -> torch.Tensor:
    """Keep the predicted class only: the logits of a large validation split need not be gathered."""
    return (logits[0] if isinstance(logits, (tuple, list)) else logits).argmax(-1)
