"""The half of `ZooTrainer` that writes checkpoints, all or nothing, and takes a training up from one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_callback import TrainerState

from hybridzoo.errors import TrainingError
from hybridzoo.training import checkpoints
from hybridzoo.training.callbacks import Ema, Guard
from hybridzoo.training.schema import Recipe
from hybridzoo.training.sharded import local

EMA_FILE, PROGRESS_FILE, STREAM_FILE = "ema.safetensors", "progress.json", "stream-{rank}.json"


class CheckpointedTrainer(Trainer):
    """A Trainer whose checkpoints appear whole or not at all, and hold everything that the next step depends on.

    Attributes:
        folder: of the checkpoints, and of the best model (`best-STEP`).
        progress: what selects the best model and stops early; a part of the checkpoints.
        ema: averaged weights, a part of them, or None.
        guard: asked before a checkpoint is written.
        batch_sampler, updates_per_epoch: tell how far a stream has been read.
    """

    model: Any  # a ZooModel; Trainer declares every wrapper that it may become
    recipe: Recipe
    folder: Path
    progress: dict[str, Any]
    ema: Ema | None
    guard: Guard
    batch_sampler: Any
    updates_per_epoch: int

    def best_folder(self) -> Path | None:
        """The saved best model, if one was selected."""
        best = self.progress["best"]
        folder = self.folder / f"best-{best['step']}" if best else None
        return folder if folder is not None and folder.is_dir() else None

    def last_good(self) -> str:
        """A sentence that names the newest checkpoint."""
        found = checkpoints.list_checkpoints(self.folder)
        return f"Last good checkpoint: {found[-1]}." if found else "There is no checkpoint yet."

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.guard.check(self.last_good)
        self._check_weights()
        final = self.folder / f"checkpoint-{self.state.global_step}"
        staging = checkpoints.staging_folder(self.folder, self.state.global_step)
        with self.writing(staging, final):
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.store_flos()
            self.save_model(str(staging), _internal_call=True)
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            self._save_stream(staging)
            if self.args.should_save:
                if self.ema is not None:
                    save_file({k: v.contiguous() for k, v in self.ema.state.items()}, staging / EMA_FILE)
                (staging / PROGRESS_FILE).write_text(json.dumps(self.progress), encoding="utf-8")
                self.state.save_to_json(str(staging / "trainer_state.json"))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(staging, final)
                checkpoints.rotate(self.folder, self.recipe.training.save_total_limit)
                for old in self.folder.glob("best-*"):
                    if old != self.best_folder():
                        checkpoints.remove(old)
            self.accelerator.wait_for_everyone()

    def _stream_index(self) -> int:
        """Sequences that this process has trained on."""
        steps, t = self.state.global_step, self.recipe.training
        epoch, rest = divmod(steps, self.updates_per_epoch)
        batches = epoch * len(self.batch_sampler) + min(rest * t.gradient_accumulation, len(self.batch_sampler))
        return batches * t.batch_size

    def _save_stream(self, folder: Path) -> None:
        if hasattr(self.train_dataset, "state_dict"):
            state = self.train_dataset.state_dict(self._stream_index())  # type: ignore[union-attr]
            path = folder / STREAM_FILE.format(rank=self.args.process_index)
            path.write_text(json.dumps(state), encoding="utf-8")

    def _check_weights(self) -> None:
        """A checkpoint with NaN in it is worse than none."""
        norms = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
            [local(p.detach()).float() for p in self.model.parameters()]
        )
        if not torch.isfinite(torch.stack(list(norms)).sum()).item():
            raise TrainingError(
                f"the weights are not finite (NaN or infinite) at step {self.state.global_step}; the training was "
                f"stopped. {self.last_good()} A lower training.learning_rate or clip_grad_norm=1.0 usually helps"
            )

    @contextlib.contextmanager
    def writing(self, staging: Path, final: Path) -> Iterator[None]:
        """Turn a failed write into one error and leave nothing half-written."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            text = str(error)
            # torch.save reports a failed write as a RuntimeError of its C++ archive writer.
            is_write = not isinstance(error, RuntimeError) or re.search("write|writer|iostream|unexpected pos", text)
            if isinstance(error, TrainingError) or not is_write:
                raise
            shutil.rmtree(staging, ignore_errors=True)
            first, free = text.splitlines()[0] if text else repr(error), ""
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(self.folder).free / 2**20:.0f} MiB free)"
            raise TrainingError(
                f"{final.name} could not be written to {self.folder}: {first}{free}. "
                f"Earlier checkpoints are intact. {self.last_good()} Make room or give write access, then start the "
                "same command again: it goes on from there"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if self.ema is not None:
            averaged = load_file(folder / EMA_FILE)
            for key, value in self.ema.state.items():
                value.copy_(averaged[key])
        self.progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        if hasattr(self.train_dataset, "load_state_dict"):
            place = (folder / STREAM_FILE.format(rank=self.args.process_index)).read_text(encoding="utf-8")
            self.train_dataset.load_state_dict(json.loads(place))  # type: ignore[union-attr]
        if self.args.should_save:
            for old in self.folder.glob("best-*"):  # of steps that are done again
                if int(old.name.removeprefix("best-")) > checkpoints.step_of(folder):
                    checkpoints.remove(old)
        self.accelerator.wait_for_everyone()
        best = self.progress["best"]
        if best and self.recipe.training.select_best and not (self.folder / f"best-{best['step']}").is_dir():
            self.progress["best"] = None  # gone with a later checkpoint: the next evaluation is the best again

    def restore(self, checkpoint: Path) -> None:
        """Take weights, average and state from a checkpoint, without training."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
