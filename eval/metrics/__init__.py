"""Metrics as pure numpy functions; scikit-learn is only used in the tests that cross-check them."""

from hybridzoo.eval.metrics.bootstrap import bootstrap_errors
from hybridzoo.eval.metrics.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    log_softmax,
    negative_log_likelihood,
    reliability,
)
from hybridzoo.eval.metrics.classification import averages, confusion_matrix, per_class, top_k_hits

__all__ = [
    "averages",
    "bootstrap_errors",
    "brier_score",
    "confusion_matrix",
    "expected_calibration_error",
    "fit_temperature",
    "log_softmax",
    "negative_log_likelihood",
    "per_class",
    "reliability",
    "top_k_hits",
]
