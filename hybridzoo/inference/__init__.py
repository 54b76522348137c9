"""Prediction with a trained model: `TextClassifier` and `ImageClassifier`, as `hybridzoo predict` and the evaluation
use them.
"""

from hybridzoo.inference.classifier import Prediction, load_classifier
from hybridzoo.inference.image import ImageClassifier
from hybridzoo.inference.text import LONG_TEXT, TextClassifier
from hybridzoo.inference.text_pair import TextPairClassifier

__all__ = ["LONG_TEXT", "ImageClassifier", "Prediction", "TextClassifier", "TextPairClassifier", "load_classifier"]
