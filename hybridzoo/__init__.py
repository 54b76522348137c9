"""hybridzoo: hybrid architectures behind one `build_model`.

    from hybridzoo import build_model, list_models
    model = build_model("iformer_small")

Importing this package is cheap: torch, transformers and timm are imported at first use. transformers' Auto classes and
`timm.create_model` know the zoo's models as soon as both packages are imported, in either order.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "build_model": "hybridzoo.loading",
    "load_original": "hybridzoo.loading",
    "model_info": "hybridzoo.info",
    "ModelInfo": "hybridzoo.info",
    "list_models": "hybridzoo.registry",
    "list_families": "hybridzoo.registry",
    "is_model": "hybridzoo.registry",
    "register_model": "hybridzoo.registry",
    "register_family": "hybridzoo.registry",
    "Family": "hybridzoo.registry",
    "Weights": "hybridzoo.registry",
    "ZooModel": "hybridzoo.modeling",
    "ZooConfig": "hybridzoo.configuration",
    "HybridzooError": "hybridzoo.errors",
}
__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from hybridzoo.configuration import ZooConfig as ZooConfig
    from hybridzoo.errors import HybridzooError as HybridzooError
    from hybridzoo.info import ModelInfo as ModelInfo
    from hybridzoo.info import model_info as model_info
    from hybridzoo.loading import build_model as build_model
    from hybridzoo.loading import load_original as load_original
    from hybridzoo.modeling import ZooModel as ZooModel
    from hybridzoo.registry import Family as Family
    from hybridzoo.registry import Weights as Weights
    from hybridzoo.registry import is_model as is_model
    from hybridzoo.registry import list_families as list_families
    from hybridzoo.registry import list_models as list_models
    from hybridzoo.registry import register_family as register_family
    from hybridzoo.registry import register_model as register_model

# A bare clone (no install) has eval/, recipes/ and checkpoints/ beside the package, not in it.
_ROOT = Path(__file__).resolve().parent.parent
if not (Path(__file__).resolve().parent / "eval").exists() and (_ROOT / "setup.py").exists():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))


def _install_hooks() -> None:
    from hybridzoo import registry
    from hybridzoo._import_hooks import when_imported

    when_imported("transformers.models.auto.configuration_auto", registry.register_auto_configs)
    when_imported("timm.models", registry.register_timm_models)


_install_hooks()
