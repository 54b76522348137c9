"""Checks of what goes into the classifier, and its loss. Checks of values are left out while compiling or exporting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridzoo.errors import InputError
from hybridzoo.models.roberta_bilstm.configuration import RobertaBiLSTMConfig
from hybridzoo.models.roberta_bilstm.recurrent import is_tracing


def check_tokens(
    config: RobertaBiLSTMConfig, input_ids: Tensor | None, attention_mask: Tensor | None, embeds: Tensor | None
) -> None:
    """Refuse inputs that the model cannot take.

    Raises:
        InputError: says what was given, what was expected and what to do.
    """
    if (input_ids is None) == (embeds is None):
        raise InputError("give either input_ids (B, T) or inputs_embeds (B, T, D), not both and not neither")
    if input_ids is not None:
        if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise InputError(
                f"input_ids must be (batch, tokens) integers, got {tuple(input_ids.shape)} {input_ids.dtype}; one "
                "text is tokenizer(text, return_tensors='pt')"
            )
        rows, steps = input_ids.shape
    else:
        assert embeds is not None
        if embeds.dim() != 3 or embeds.shape[-1] != config.hidden_size:
            raise InputError(f"inputs_embeds must be (batch, tokens, {config.hidden_size}), got {tuple(embeds.shape)}")
        rows, steps = embeds.shape[:2]
    if attention_mask is not None and tuple(attention_mask.shape) != (rows, steps):
        raise InputError(f"attention_mask must be {(rows, steps)} like the tokens, got {tuple(attention_mask.shape)}")
    if rows == 0 or steps == 0:
        raise InputError(f"no tokens: the inputs are ({rows}, {steps}); an empty text still has its special tokens")
    if config.fixed_length is not None and steps != config.fixed_length:
        why = "pooling='flatten'" if config.pooling == "flatten" else "skip_padding=False"
        raise InputError(
            f"this model takes exactly {config.fixed_length} tokens per row ({why}), got {steps}; tokenise with "
            f"padding='max_length', truncation=True, max_length={config.fixed_length} (the same keywords go into "
            "pipeline(...)(texts, ...))"
        )
    if config.max_tokens is not None and steps > config.max_tokens:
        raise InputError(
            f"{steps} tokens are more than the {config.max_tokens} that the encoder holds; tokenise with "
            f"truncation=True, max_length={config.max_length}"
        )
    if input_ids is not None and not is_tracing() and not input_ids.is_meta:
        low, high = (int(v) for v in input_ids.aminmax())
        vocabulary = config.encoder_config.vocab_size
        if low < 0 or high >= vocabulary:
            raise InputError(
                f"input_ids hold {low if low < 0 else high}, outside the vocabulary of {vocabulary}; "
                "the tokenizer is not the one that belongs to this model"
            )


def problem_type(config: RobertaBiLSTMConfig, labels: Tensor) -> str:
    """`config.problem_type`, or what the labels' dtype and the number of classes say."""
    if config.problem_type:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def check_labels(config: RobertaBiLSTMConfig, logits: Tensor, labels: Tensor) -> None:
    """Refuse labels of a wrong shape, dtype or range.

    Raises:
        InputError: says what was given and what was expected.
    """
    kind, (rows, classes) = problem_type(config, labels), logits.shape
    if kind == "single_label_classification":
        if labels.numel() != rows or labels.is_floating_point():
            raise InputError(f"labels must be ({rows},) class ids, got {tuple(labels.shape)} {labels.dtype}")
        if not is_tracing() and not labels.is_meta:
            known = labels[labels != -100]
            if known.numel() and not (int(known.min()) >= 0 and int(known.max()) < classes):
                bad = sorted({int(v) for v in known} - set(range(classes)))
                raise InputError(f"labels {bad[:5]} are outside 0 … {classes - 1}; the model has num_labels={classes}")
    elif labels.numel() != logits.numel() or not labels.is_floating_point():
        raise InputError(
            f"labels for {kind} must be floats of {(rows, classes)}, got {tuple(labels.shape)} {labels.dtype}"
        )


def classification_loss(config: RobertaBiLSTMConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (Eq. 9 of the paper), binary cross-entropy for several labels, squared error for regression."""
    kind, logits = problem_type(config, labels), logits.float()
    if kind == "regression":
        return F.mse_loss(logits.view(-1), labels.to(logits.dtype).view(-1))
    if kind == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels.view(-1).long())
