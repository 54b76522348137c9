"""From a recipe and its data to a model, a tokenizer and datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridzoo import registry
from hybridzoo._paths import asset_root
from hybridzoo.errors import ConfigError
from hybridzoo.training.schema import Recipe


def build_recipe_model(recipe: Recipe, label_names: tuple[str, ...] | None = None, *, device: Any = None) -> Any:
    """The model of a recipe, in train mode, with its first weights and the names of its classes.

    Args:
        recipe: its `model` section is used.
        label_names: of the data; None leaves the number of classes to the recipe and the model.
        device: e.g. `"meta"` to look at the architecture alone.

    Raises:
        ConfigError: the recipe's number of classes is not the data's, or `weights` hold another family.
        UnknownNameError, CheckpointError: from `build_model`.
    """
    from hybridzoo.loading import build_model

    section, values = recipe.model, dict(recipe.model.config)
    entry, _ = registry.get_model(section.name)
    if label_names is not None:
        count = values.setdefault("num_labels", len(label_names))
        if count != len(label_names):
            raise ConfigError(
                f"model.config.num_labels={count}, but {recipe.data.name} has {len(label_names)} classes "
                f"({', '.join(label_names[:8])}); leave num_labels out"
            )
    if device is not None and str(device) == "meta":
        model = build_model(section.name, device="meta", **values)
    elif section.backbone:
        from hybridzoo.loading import build_from_backbone

        model = build_from_backbone(section.name, section.backbone, **values)
    elif section.weights:
        is_file = Path(section.weights).expanduser().is_file()
        model = build_model(section.weights, name=section.name if is_file else None, **values)
        if model.family != entry.family:
            raise ConfigError(
                f"model.weights={section.weights} holds a model of family {model.family!r}, "
                f"but model.name={section.name} is of family {entry.family!r}"
            )
    else:
        model = build_model(section.name, pretrained=section.pretrained, **values)
    if label_names is not None:
        model.config.id2label = dict(enumerate(label_names))
        model.config.label2id = {name: i for i, name in enumerate(label_names)}
    if not recipe.training.auxiliary_heads and not hasattr(model, "without_auxiliary_heads"):
        raise ConfigError(f"training.auxiliary_heads=false: {type(model).__name__} has no auxiliary heads")
    if recipe.training.freeze_backbone:
        if not hasattr(model, "freeze_backbone"):
            raise ConfigError(f"training.freeze_backbone: {type(model).__name__} has no backbone to freeze")
        model.freeze_backbone()
    return model.train()


def build_tokenizer(recipe: Recipe, train_split: Any) -> Any:
    """The tokenizer of a text recipe: named, trained on the train split, one of the Long Range Arena's vocabularies, or
    the one beside the first weights.

    Raises:
        ConfigError: none is named and the weights bring none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    from hybridzoo.data.lra.tokenizers import is_lra_tokenizer, lra_tokenizer

    given = recipe.data.tokenizer
    if given is not None and given.startswith("train:"):
        from hybridzoo.data.tokenizers import train_bpe_tokenizer

        texts = (train_split[i]["text"] for i in range(len(train_split)))
        return train_bpe_tokenizer(texts, int(given.removeprefix("train:")))
    if given is not None and is_lra_tokenizer(given):
        return lra_tokenizer(given, _texts_of(train_split))
    source = given or recipe.model.weights or recipe.model.backbone or _registered_folder(recipe)
    if source is None:
        raise ConfigError(
            "data.tokenizer is missing: give a folder or hub id with a tokenizer, train:8000 to train a byte-level "
            "BPE of that size on the train split, or bytes, characters:15 or listops (docs/lra.md)"
        )
    try:
        return AutoTokenizer.from_pretrained(
            str(Path(source).expanduser()) if Path(source).expanduser().exists() else source
        )
    except (OSError, ValueError, KeyError) as error:
        key = "data.tokenizer" if given else "data.tokenizer is not set, and the tokenizer beside the model's weights"
        raise ConfigError(f"{key}: {source} holds no readable tokenizer ({str(error).splitlines()[0]})") from error


def _texts_of(split: Any) -> Iterator[str]:
    """All texts of a split, of pairs both."""
    for content in split.content:
        if isinstance(content, str):
            yield content
        else:
            yield from content


def _registered_folder(recipe: Recipe) -> str | None:
    """Where a registered model's own weights lie, if the recipe starts from them."""
    entry, tag = registry.get_model(recipe.model.name)
    tag = tag or entry.default_tag
    if not recipe.model.pretrained or tag is None:
        return None
    scheme, _, rest = entry.tags[tag].uri.partition(":")
    return str(asset_root("checkpoints") / rest) if scheme == "checkpoints" else rest.partition(":")[0]


def build_datasets(recipe: Recipe, bundle: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Train and validation dataset (None without that split) for a model.

    Raises:
        ConfigError: the model's task is not the data's, or the tokenizer does not fit the model.
    """
    task = getattr(type(model), "task", None)
    if task is not None and task != bundle.info.task:
        raise ConfigError(f"{recipe.model.name} does {task}, but {bundle.info.name} is data for {bundle.info.task}")
    train, validation = bundle["train"], bundle.splits.get("validation")
    if bundle.info.task in ("text-classification", "text-pair-classification"):
        return _text_datasets(train, validation, model, tokenizer)
    from hybridzoo.data.transforms import build_transform
    from hybridzoo.training.datasets import ImageDataset, train_images

    augment = {k: v for k, v in dataclasses.asdict(recipe.training.augment).items() if v not in (None, 0, 0.0)}
    transform = build_transform(model.config, train=True, augment=augment)
    train_set = train_images(train, model.config, recipe.training.augment, transform, recipe.training.seed)
    plain = build_transform(model.config, train=False)
    return train_set, None if validation is None else ImageDataset(validation, plain, cache=True)


def _text_datasets(train: Any, validation: Any, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    from hybridzoo.data.collate import TextCollator
    from hybridzoo.training.datasets import PairDataset, SortedTextDataset, TextDataset

    config = model.config
    embeddings = model.get_input_embeddings()
    rows = getattr(embeddings, "num_embeddings", None)
    if rows is not None and len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer knows {len(tokenizer)} tokens, but the model has embeddings for {rows}; use the tokenizer "
            "that belongs to the weights, or raise the model's vocab_size"
        )
    fixed = getattr(config, "fixed_length", None)
    collator = TextCollator(
        tokenizer,
        max_length=config.max_length,
        preprocess=getattr(config, "preprocess", "none"),
        padding="max_length" if fixed else "longest",
    )
    dataset = PairDataset if train.kind == "text_pair" else TextDataset
    train_set = dataset(train, collator)
    return train_set, None if validation is None else SortedTextDataset(dataset(validation, collator))
