"""transformers' text-classification pipeline with the cleaning and the length that belong to the model."""

from __future__ import annotations

from typing import Any

from transformers import TextClassificationPipeline, pipeline

from hybridzoo.data.text_cleaning import clean_text


class CleaningTextClassificationPipeline(TextClassificationPipeline):
    """Cleans every text by `model.config.preprocess`, truncates to `max_length`, pads fixed-length models."""

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> Any:
        config = self.model.config
        mode = config.preprocess
        if isinstance(inputs, dict):
            inputs = {k: clean_text(v, mode) if k in ("text", "text_pair") and v else v for k, v in inputs.items()}
        else:
            inputs = clean_text(inputs, mode)
        tokenizer_kwargs.setdefault("truncation", True)
        tokenizer_kwargs.setdefault("max_length", config.max_length)
        if config.fixed_length is not None:
            tokenizer_kwargs.setdefault("padding", "max_length")
        return super().preprocess(inputs, **tokenizer_kwargs)


def text_pipeline(model: Any, tokenizer: Any = None, **kwargs: Any) -> CleaningTextClassificationPipeline:
    """A text-classification pipeline of a zoo text model.

    Args:
        model: folder, hub id or model.
        tokenizer: left out, the one saved beside the model.
        **kwargs: of `transformers.pipeline` (device, batch_size, top_k, dtype).

    Returns:
        The pipeline; call it as transformers' own.
    """
    return pipeline(  # type: ignore[return-value]
        "text-classification",
        model=model,
        tokenizer=tokenizer,
        pipeline_class=CleaningTextClassificationPipeline,
        **kwargs,
    )
