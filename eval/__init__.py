"""The evaluation harness: tasks, metrics, result files and the leaderboard. Import it as ``hybridzoo.eval``.

Importing it is cheap; torch comes with the first call of ``evaluate``.
"""

if __name__ != "hybridzoo.eval":  # the repository root on sys.path would load the same modules twice
    raise ModuleNotFoundError("import this package as hybridzoo.eval (the repository's eval/ folder is mapped there)")

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "evaluate": "hybridzoo.eval.harness",
    "run_task": "hybridzoo.eval.harness",
    "rescore": "hybridzoo.eval.harness",
    "Evaluation": "hybridzoo.eval.harness",
    "score": "hybridzoo.eval.predictions",
    "PredictionFile": "hybridzoo.eval.predictions",
    "Predictions": "hybridzoo.eval.predictions",
    "list_tasks": "hybridzoo.eval.tasks",
    "load_task": "hybridzoo.eval.tasks",
    "Task": "hybridzoo.eval.tasks",
    "Result": "hybridzoo.eval.schema",
    "ResultError": "hybridzoo.eval.schema",
    "read_results": "hybridzoo.eval.schema",
}
__all__ = list(_EXPORTS)

if TYPE_CHECKING:
    from hybridzoo.eval.harness import Evaluation as Evaluation
    from hybridzoo.eval.harness import evaluate as evaluate
    from hybridzoo.eval.harness import rescore as rescore
    from hybridzoo.eval.harness import run_task as run_task
    from hybridzoo.eval.predictions import PredictionFile as PredictionFile
    from hybridzoo.eval.predictions import Predictions as Predictions
    from hybridzoo.eval.predictions import score as score
    from hybridzoo.eval.schema import Result as Result
    from hybridzoo.eval.schema import ResultError as ResultError
    from hybridzoo.eval.schema import read_results as read_results
    from hybridzoo.eval.tasks import Task as Task
    from hybridzoo.eval.tasks import list_tasks as list_tasks
    from hybridzoo.eval.tasks import load_task as load_task


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'hybridzoo.eval' has no attribute {name!r}")
