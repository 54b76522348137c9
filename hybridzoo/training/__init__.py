"""Training: recipes (YAML) -> runs.

    from hybridzoo.training import load_recipe, train
    run = train(load_recipe("iformer/fashion_mnist_mini"), "runs/iformer_mini")

Importing this package is cheap; torch and transformers are imported by `train`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Recipe": "hybridzoo.training.schema",
    "load_recipe": "hybridzoo.training.recipe",
    "recipe_from_dict": "hybridzoo.training.recipe",
    "recipe_to_dict": "hybridzoo.training.recipe",
    "save_recipe": "hybridzoo.training.recipe",
    "find_recipe": "hybridzoo.training.recipe",
    "list_recipes": "hybridzoo.training.recipe",
    "train": "hybridzoo.training.run",
    "Run": "hybridzoo.training.run",
}
__all__ = [*_EXPORTS]

if TYPE_CHECKING:
    from hybridzoo.training.recipe import find_recipe as find_recipe
    from hybridzoo.training.recipe import list_recipes as list_recipes
    from hybridzoo.training.recipe import load_recipe as load_recipe
    from hybridzoo.training.recipe import recipe_from_dict as recipe_from_dict
    from hybridzoo.training.recipe import recipe_to_dict as recipe_to_dict
    from hybridzoo.training.recipe import save_recipe as save_recipe
    from hybridzoo.training.run import Run as Run
    from hybridzoo.training.run import train as train
    from hybridzoo.training.schema import Recipe as Recipe


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridzoo.training' has no attribute {name!r}")
