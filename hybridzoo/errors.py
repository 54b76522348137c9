"""Errors of the package. Each names what was given, what was expected, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HybridzooError(Exception):
    """Base of every error that hybridzoo raises on purpose."""


class UnknownNameError(HybridzooError, ValueError):
    """A model, tag, family, task, recipe, data set or backend that does not exist."""


class ConfigError(HybridzooError, ValueError):
    """A configuration or recipe with an unknown key or an impossible value."""


class CheckpointError(HybridzooError, RuntimeError):
    """Weights that are missing, damaged, foreign, unsafe, or that do not fit the model."""


class SourceError(HybridzooError, OSError):
    """A hub repository or file that cannot be reached or may not be read."""


class DataError(HybridzooError, ValueError):
    """A data set that is missing, empty or broken beyond what can be counted and skipped."""


class TrainingError(HybridzooError, RuntimeError):
    """A training that cannot start or go on: a run folder of another run, a loss that is not finite, a full disk."""


class InputError(HybridzooError, ValueError):
    """A model input of the wrong shape, dtype or range."""


class BackendError(HybridzooError, RuntimeError):
    """An op backend that was asked for by name and cannot run the call."""


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` choices that look most like `name`, best first."""
    by_lower = {str(c).lower(): str(c) for c in choices}
    found = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.5)
    if not found:
        found = [c for c in by_lower if name and (name.lower() in c or c in name.lower())][:n]
    return [by_lower[f] for f in found]


def unknown(kind: str, name: str, choices: Iterable[str], hint: str = "") -> str:
    """The text for an unknown name: what was given, the nearest choices (or all of a few), how to list them."""
    choices = list(choices)
    close = nearest(name, choices)
    text = f"unknown {kind} {name!r}"
    if close:
        text += "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    elif 0 < len(choices) <= 12:
        text += f"; choose one of {', '.join(sorted(choices))}"
    return f"{text} {hint}".rstrip()
