"""The end of a run: choose the weights, calibrate, save with a card, evaluate the recipe's tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hybridzoo.checkpoint_io import read_state_dict
from hybridzoo.training.environment import command_line
from hybridzoo.training.objectives import LOWER_IS_BETTER
from hybridzoo.training.schema import Recipe
from hybridzoo.training.trainer import ZooTrainer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def finish(run: Any, recipe: Recipe, bundle: Any, trainer: ZooTrainer, tokenizer: Any) -> None:
    """Save the final model into the run folder and measure it; fills in `run`. Called on one process.

    Args:
        run: a `run.Run`.
        recipe: of the run.
        bundle: its data.
        trainer: after `train()`.
        tokenizer: saved beside the weights; None for images.
    """
    model = trainer.model
    which = final_weights(trainer, recipe)
    model.eval().to(_DTYPES[recipe.training.weights_dtype]).float()  # what is measured is what is saved
    if trainer.eval_dataset is not None:
        run.metrics = trainer.objective.final_metrics(run, trainer)
    if not recipe.training.auxiliary_heads:
        model = model.without_auxiliary_heads()
    save_final(run, recipe, bundle, model, tokenizer, which, results=[])
    if recipe.evaluation.tasks:
        results = evaluate_tasks(run, recipe)
        save_final(run, recipe, bundle, model, tokenizer, which, results=results)


def final_weights(trainer: ZooTrainer, recipe: Recipe) -> str:
    """Put the final weights into the model; says in words which they are."""
    best = trainer.best_folder() if recipe.training.select_best else None
    if best is not None:
        weights = next(p for p in (best / "model.safetensors.index.json", best / "model.safetensors") if p.is_file())
        trainer.model.load_strict(read_state_dict(weights), where=str(best))
        found = trainer.progress["best"]
        averaged = "averaged weights" if trainer.ema is not None else "weights"
        return f"{averaged} of step {found['step']}, the best validation {found['metric']} ({found['value']:.4f})"
    if trainer.ema is not None:
        trainer.ema.copy_to(trainer.model)
        return f"average of the weights (decay {trainer.ema.decay}) at the last step, {trainer.state.global_step}"
    return f"weights of the last step, {trainer.state.global_step}"


def save_final(
    run: Any, recipe: Recipe, bundle: Any, model: Any, tokenizer: Any, which: str, results: list[dict[str, Any]]
) -> None:
    """Write model, tokenizer and card to the root of the run folder."""
    model.to(_DTYPES[recipe.training.weights_dtype])
    model.save_pretrained(run.folder, card=card_facts(run, recipe, bundle, which, results))
    model.float()
    if tokenizer is not None:
        if getattr(model.config, "max_length", None):  # where pipeline(…)(text, truncation=True) cuts
            tokenizer.model_max_length = model.config.max_length
        tokenizer.save_pretrained(run.folder)


def classification_metrics(run: Any, trainer: ZooTrainer) -> dict[str, float]:
    """Loss and shares of the validation split; fits `run.temperature` and the model's, if the recipe asks for it."""
    logits, labels = predict_logits(trainer, trainer.eval_dataset)  # type: ignore[arg-type]
    if trainer.recipe.training.calibrate_temperature:
        from hybridzoo.eval.metrics.calibration import fit_temperature

        config = trainer.model.config
        run.temperature = fit_temperature((logits * config.temperature).numpy(), labels.numpy())
        config.temperature = run.temperature
    return _metrics(logits, labels)


def _metrics(logits: Any, labels: Any) -> dict[str, float]:
    from types import SimpleNamespace

    from hybridzoo.training.losses import classification_loss, validation_metrics

    predicted = SimpleNamespace(predictions=logits.argmax(-1).numpy(), label_ids=labels.numpy())
    return {"loss": float(classification_loss(logits, labels)), **validation_metrics(predicted)}


def card_facts(run: Any, recipe: Recipe, bundle: Any, which: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts for `hybridzoo.card.write_card`."""
    info = bundle.info
    rows = [
        {
            "task_type": info.task,
            "dataset_type": info.name,
            "dataset_name": f"{info.title} (validation)",
            "metric_type": name,
            # shares are per cent, as in result files
            "metric_value": round(value if name in LOWER_IS_BETTER else 100 * value, 4),
        }
        for name, value in run.metrics.items()
    ]
    lines = [
        f"{recipe.title or recipe.model.name}. Hyper-parameters: {recipe.paper}.",
        "",
        f"Trained on {info.title} ({info.source}, licence {info.license}), {info.protocol}: "
        + ", ".join(f"{n} {split}" for split, n in info.sizes.items())
        + f". sha256 of the data: `{info.sha256}`.",
        "",
        f"Weights: {which}. {run.step} steps, {run.epoch:g} epochs, seed {recipe.training.seed}, "
        f"precision {recipe.training.precision}, weights saved in {recipe.training.weights_dtype}.",
    ]
    if run.temperature is not None:
        lines += ["", f"Temperature {run.temperature:.4f}, fitted on the validation split, divides the logits."]
    lines += ["", "The complete recipe is `recipe.yaml`, versions and machine are in `environment.json`."]
    return {
        "name": recipe.model.name,
        "license": "apache-2.0",
        "datasets": [info.name],
        "command": command_line(),
        "text": "\n".join(lines),
        "results": [*rows, *results],
    }


def evaluate_tasks(run: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Run the recipe's tasks on the saved model; result files go to `results/`. Returns rows for the card."""
    from hybridzoo.eval import evaluate, load_task

    rows = []
    for name in recipe.evaluation.tasks:
        task = load_task(name)
        result = evaluate(
            str(run.folder),
            name,
            batch_size=recipe.evaluation.batch_size,
            root=recipe.data.root if task.data == recipe.data.name else None,
            out=run.folder / "results",
            name=recipe.model.name,
            command=command_line(),
        )
        rows += [
            {
                "task_type": task.kind,
                "dataset_type": task.data,
                "dataset_name": task.title,
                "metric_type": metric,
                "metric_value": value.value,
            }
            for metric, value in result.metrics.items()
        ]
    run.results = sorted(p.relative_to(run.folder).as_posix() for p in (run.folder / "results").rglob("*.json"))
    return rows


def predict_logits(trainer: ZooTrainer, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C) and labels (N,) of a split, on the CPU, from the model as it is. One process only."""
    model, size = trainer.model, trainer.recipe.evaluation.batch_size
    model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for start in range(0, len(dataset), size):  # type: ignore[arg-type]
            indices = np.arange(start, min(start + size, len(dataset))).tolist()  # type: ignore[arg-type]
            batch = dataset.__getitems__(indices)  # type: ignore[attr-defined]
            labels.append(batch.pop("labels"))
            batch = {k: v.to(model.device) for k, v in batch.items()}
            logits.append(model(**batch)["logits"].float().cpu())
    return torch.cat(logits), torch.cat(labels)
