"""ZooModel: a transformers PreTrainedModel that loads strictly, saves atomically and writes a model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from hybridzoo import registry
from hybridzoo.errors import CheckpointError

MAX_NAMED_KEYS = 12


def check_keys(
    where: str,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[tuple[str, Any, Any]] = (),
) -> None:
    """Raise one CheckpointError that names every kind of disagreement between a checkpoint and a model."""
    missing, unexpected, mismatched = sorted(missing), sorted(unexpected), sorted(mismatched)
    parts = []
    for label, keys in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("mis-shaped", [f"{k} (file {tuple(a)}, model {tuple(b)})" for k, a, b in mismatched]),
    ):
        if keys:
            more = f" and {len(keys) - MAX_NAMED_KEYS} more" if len(keys) > MAX_NAMED_KEYS else ""
            parts.append(f"{len(keys)} {label}: {', '.join(keys[:MAX_NAMED_KEYS])}{more}")
    if parts:
        raise CheckpointError(
            f"{where} does not fit the model. {'. '.join(parts)}. Is it a checkpoint of another model or size? "
            "strict=False loads what fits and leaves the rest at its initial values."
        )


class ZooModel(PreTrainedModel):
    """Base of every model of the zoo.

    Subclasses set `config_class`, `family` and `task`, and define `example_inputs`. A new family passes the
    registry-wide suite (`tests/zoo`) without a test file of its own.
    """

    family: ClassVar[str]
    task: ClassVar[str]
    supports_gradient_checkpointing = True
    # Exceptions from the registry-wide suite, {"test name": "reason"}; the suite asserts that each still holds.
    suite_exceptions: ClassVar[Mapping[str, str]] = {}

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Valid keyword inputs for `forward`, seeded, on the model's device: for FLOP counts, export and tests.

        Args:
            batch_size: rows.
            labels: include what `forward` needs to return a loss.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define example_inputs")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for gradient checkpointing; always the non-reentrant form, which DDP needs."""
        if enable:
            self.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.gradient_checkpointing_disable()

    # Loading -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, strict: bool = True, **kwargs: Any
    ) -> Any:
        """As transformers' `from_pretrained`, and strict.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            strict: missing, unexpected or mis-shaped keys raise and name themselves. Keys that
                `ignore_mismatched_sizes=True` was asked to tolerate, and a classification head when `num_labels` was
                passed, are left at their initial values.

        Raises:
            CheckpointError: the weights are damaged or do not fit.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        tolerate = kwargs.pop("ignore_mismatched_sizes", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except (SafetensorError, EOFError) as error:
            raise CheckpointError(
                f"the weights of {pretrained_model_name_or_path} cannot be read ({error}); the file is damaged or not "
                "fully downloaded: fetch it again"
            ) from error
        if strict:
            head = tuple(f"{name}." for name in cls.head_names) if "num_labels" in kwargs else ()
            mismatched = [m for m in info["mismatched_keys"] if not tolerate and not m[0].startswith(head or ("\0",))]
            check_keys(str(pretrained_model_name_or_path), info["missing_keys"], info["unexpected_keys"], mismatched)
        return (model, info) if wants_info else model

    head_names: ClassVar[tuple[str, ...]] = ()  # modules whose last size follows num_labels

    def load_strict(self, state: Mapping[str, torch.Tensor], *, where: str, strict: bool = True) -> Self:
        """Copy a state dict of this layout into the model; disagreements raise by name unless `strict=False`."""
        own = self.state_dict()
        mismatched = [(k, v.shape, own[k].shape) for k, v in state.items() if k in own and v.shape != own[k].shape]
        tied = set(self.all_tied_weights_keys)
        missing = [k for k in own if k not in state and k not in tied]
        if strict:
            check_keys(where, missing, (k for k in state if k not in own), mismatched)
        bad = {m[0] for m in mismatched}
        self.load_state_dict({k: v for k, v in state.items() if k in own and k not in bad}, strict=False)
        self.tie_weights()
        return self

    @classmethod
    def from_original(cls, state: Mapping[str, torch.Tensor], config: Any, *, strict: bool = True) -> Self:
        """A model with weights in the original implementation's layout.

        Args:
            state: key -> tensor, original names.
            config: a config of this class (see the family's `convert.config_from_original`).
        """
        convert = cls._convert_module()
        model = cls(config)
        return model.load_strict(
            convert.from_original(dict(state), config), where="the original weights", strict=strict
        )

    def to_original(self) -> dict[str, torch.Tensor]:
        """The weights in the original implementation's layout."""
        return self._convert_module().to_original(self.state_dict(), self.config)

    @classmethod
    def _convert_module(cls) -> Any:
        target = registry.get_family(cls.family).convert
        if target is None:
            raise CheckpointError(f"family {cls.family!r} has no original implementation to convert from or to")
        return registry.resolve(target)

    # Saving --------------------------------------------------------------------------------------------------------

    def save_pretrained(
        self, save_directory: Any, *args: Any, card: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As transformers' `save_pretrained`, and atomic, with a model card.

        Everything is written to a temporary folder beside the target and renamed, weights first and config last, so that
        an interrupted save never leaves a folder that loads wrong weights.

        Args:
            save_directory: the folder.
            card: facts for the model card (see `hybridzoo.card.write_card`); a card that a person wrote is kept.
        """
        from hybridzoo.card import write_card

        target = Path(save_directory)
        if target.is_file():
            raise CheckpointError(f"cannot save into {target}: it is a file; give a folder")
        push = kwargs.pop("push_to_hub", False)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            super().save_pretrained(staging, *args, **kwargs)
            write_card(self, staging, existing=target / "README.md", facts=card)
            target.mkdir(exist_ok=True)
            for path in sorted(staging.iterdir(), key=lambda p: (p.suffix == ".json", p.name)):
                os.replace(path, target / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if push:
            self.push_to_hub(kwargs.pop("repo_id", target.name), commit_message=kwargs.pop("commit_message", None))
