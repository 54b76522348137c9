"""What a kind of model asks of its training: data, tokenizer, datasets, validation, final metrics.

One object a run, found by the task of the recipe's model. A new kind of task adds a line to OBJECTIVES and a subclass
of `Objective`; trainer, checkpoints, schedule and run folder are the same for all. Light to import: no torch.
"""

from __future__ import annotations

from typing import Any, ClassVar

from hybridzoo import registry
from hybridzoo.errors import ConfigError, UnknownNameError, unknown
from hybridzoo.training.schema import Recipe

CLASSIFICATION = ("accuracy", "loss", "f1_macro", "f1_weighted", "balanced_accuracy")
# task of a model -> its objective
OBJECTIVES = {
    "text-classification": "hybridzoo.training.objectives:Classification",
    "text-pair-classification": "hybridzoo.training.objectives:Classification",
    "image-classification": "hybridzoo.training.objectives:Classification",
    "text-generation": "hybridzoo.training.language_modeling:LanguageModeling",
    "image-tokenization": "hybridzoo.training.generation:ImageTokenization",
    "image-generation": "hybridzoo.training.generation:ImageGeneration",
    "object-detection": "hybridzoo.training.detection:Detection",
    "anomaly-detection": "hybridzoo.training.anomaly:AnomalyDetection",
}
# task of a model -> what evaluation.metric may name
METRICS = {
    "text-classification": CLASSIFICATION,
    "text-pair-classification": CLASSIFICATION,
    "image-classification": CLASSIFICATION,
    "text-generation": ("loss", "bits_per_byte", "perplexity", "accuracy"),  # accuracy: of the questions of MQAR
    "image-tokenization": ("loss", "codebook_usage"),
    "image-generation": ("loss", "accuracy"),  # accuracy: of the masked codes
    "object-detection": ("ap", "ap50", "ap75", "loss"),
    "anomaly-detection": ("loss",),
}
LOWER_IS_BETTER = ("loss", "bits_per_byte", "perplexity")
_FOR_CLASSES = ("label_smoothing", "mixup", "cutmix", "calibrate_temperature")


def model_task(recipe: Recipe) -> str | None:
    """The task of the recipe's model, None for an unknown name (building it says so)."""
    try:
        return registry.get_model(recipe.model.name)[0].task
    except UnknownNameError:
        return None


def objective_of(recipe: Recipe) -> Objective:
    """The objective of a recipe's model.

    Raises:
        UnknownNameError: no such model.
        ConfigError: models of its task cannot be trained, or keys of the recipe mean nothing for them.
    """
    task = registry.get_model(recipe.model.name)[0].task
    if task not in OBJECTIVES:
        raise ConfigError(f"{recipe.model.name} does {task}; training is for {', '.join(OBJECTIVES)}")
    if recipe.training.objective == "dpo":
        if task != "text-generation":
            raise ConfigError(f"training.objective: dpo is for language models, and {recipe.model.name} does {task}")
        return registry.resolve("hybridzoo.training.preference:Preference")(recipe)
    return registry.resolve(OBJECTIVES[task])(recipe)


def check_metric(recipe: Recipe, where: str) -> None:
    """Raise ConfigError when `evaluation.metric` is none of the model's task."""
    known = METRICS.get(model_task(recipe) or "")
    if known is not None and recipe.evaluation.metric not in known:
        raise ConfigError(f"{where}: evaluation.metric: {unknown('metric', recipe.evaluation.metric, known)}")


class Objective:
    """The parts of a run that depend on the task.

    Args:
        recipe: of the run.
    """

    classes: ClassVar[bool] = False  # the data has classes, whose names go into the model's config

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        if not self.classes:
            self.refuse_class_keys()

    def refuse_class_keys(self) -> None:
        """Raise ConfigError for keys that only mean something where there are classes."""
        t = self.recipe.training
        given = [key for key in _FOR_CLASSES if getattr(t, key)]
        given += ["class_weights"] if t.class_weights != "none" else []
        if given:
            raise ConfigError(
                f"training.{given[0]} is for classifiers, and {self.recipe.model.name} does {model_task(self.recipe)}"
            )

    def reader_options(self) -> dict[str, Any]:
        """`data.options` for the data set's reader; keys that the objective uses itself are left out."""
        return dict(self.recipe.data.options)

    def load(self) -> Any:
        """The data, as a DataBundle."""
        from hybridzoo.data import load_data

        d, options = self.recipe.data, self.reader_options()
        try:
            return load_data(d.name, root=d.root, protocol=d.protocol, seed=d.seed, **options)
        except TypeError as error:
            raise ConfigError(f"data.options {options} do not fit the data set {d.name}: {error}") from error

    def tokenizer(self, bundle: Any) -> Any:
        """The tokenizer, or None."""
        return None

    def model(self, bundle: Any) -> Any:
        """The model, in train mode."""
        from hybridzoo.training.build import build_recipe_model

        return build_recipe_model(self.recipe, bundle.info.label_names if self.classes else None)

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Train and validation dataset (None without that split). Both hand out batches by `__getitems__`."""
        raise NotImplementedError

    def loss(self, trainer: Any, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any] | None:
        """(loss, the model's outputs) of a training step; None leaves it to the model and the recipe."""
        return None

    def evaluate(self, trainer: Any, dataset: Any) -> dict[str, float] | None:
        """Metrics of a dataset, on all processes; None leaves it to transformers' loop."""
        return None

    def log_entries(self, trainer: Any, seconds: float, steps: int) -> dict[str, float]:
        """More values for the log, given the time that the last steps took."""
        return {}

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """Metrics of the final model on the validation set, on one process; may calibrate the model."""
        raise NotImplementedError


class Classification(Objective):
    """Texts, pairs of texts or images with one class each."""

    classes = True

    def tokenizer(self, bundle: Any) -> Any:
        """Of texts."""
        from hybridzoo.training.build import build_tokenizer

        texts = bundle.info.task in ("text-classification", "text-pair-classification")
        return build_tokenizer(self.recipe, bundle["train"]) if texts else None

    def datasets(self, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """See `build.build_datasets`."""
        from hybridzoo.training.build import build_datasets

        return build_datasets(self.recipe, bundle, model, tokenizer)

    def final_metrics(self, run: Any, trainer: Any) -> dict[str, float]:
        """Loss and shares; fits the temperature where the recipe asks for it."""
        from hybridzoo.training.finish import classification_metrics

        return classification_metrics(run, trainer)
