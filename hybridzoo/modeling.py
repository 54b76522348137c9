"""ZooModel: a transformers PreTrainedModel that loads strictly, saves atomically and writes a model card."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from hybridzoo import registry
from hybridzoo._atomic_folder import staged
from hybridzoo.card import write_card
from hybridzoo.checksums import check_sums, write_sums
from hybridzoo.errors import CheckpointError, HybridzooError

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
    main_output_name: ClassVar[str] = "logits"  # the output that `output_shape` describes
    export_outputs: ClassVar[tuple[str, ...]] = ("logits",)  # what an exported file gives
    loss_needs_labels: ClassVar[bool] = True  # False: `forward` always returns a loss (reconstruction)

    def output_shape(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """Shape of the main output for these inputs of `forward`; of a classifier (B, num_labels)."""
        return (len(inputs[self.main_input_name]), int(self.config.num_labels))  # type: ignore[arg-type]

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
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        strict: bool = True,
        new_head: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `from_pretrained`, and strict.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            strict: missing, unexpected or mis-shaped keys raise and name themselves; `ignore_mismatched_sizes=True`
                tolerates the mis-shaped ones.
            new_head: leave a classification head of another size at its initial values. By default only where
                `num_labels` (or `num_classes`, `id2label`) is passed.

        Raises:
            CheckpointError: the weights are missing, damaged (see `hybridzoo.checksums`), unsafe or do not fit.
            ConfigError: config.json has unknown keys or impossible values.
            SourceError: the hub cannot be reached or refuses.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        tolerate = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs.pop("trust_remote_code", None)  # the zoo's code is in the package
        if new_head is None:
            new_head = bool({"num_labels", "num_classes", "id2label"} & set(kwargs))
        with _loading_errors(str(pretrained_model_name_or_path)), _quiet_report(strict):
            if pretrained_model_name_or_path is not None:  # else the caller brings a state dict
                check_sums(Path(pretrained_model_name_or_path), str(pretrained_model_name_or_path))
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        model, info = loaded
        _align(model)
        if strict:
            mismatched = [
                m for m in info["mismatched_keys"] if not tolerate and not (new_head and cls.is_head_key(m[0]))
            ]
            check_keys(str(pretrained_model_name_or_path), info["missing_keys"], info["unexpected_keys"], mismatched)
        return (model, info) if wants_info else model

    head_names: ClassVar[tuple[str, ...]] = ()  # modules whose last size follows num_labels

    @classmethod
    def is_head_key(cls, key: str) -> bool:
        """Whether a state-dict key belongs to a module of `head_names`."""
        return any(key.startswith(f"{name}.") for name in cls.head_names)

    def load_strict(self, state: Mapping[str, torch.Tensor], *, where: str, strict: bool = True) -> Self:
        """Copy a state dict of this layout into the model; disagreements raise by name unless `strict=False`."""
        own = self.state_dict()
        mismatched = [(k, v.shape, own[k].shape) for k, v in state.items() if k in own and v.shape != own[k].shape]
        tied = set(self.all_tied_weights_keys)
        missing = [k for k in own if k not in state and k not in tied]
        if strict:
            check_keys(where, missing, (k for k in state if k not in own), mismatched)
        bad = {m[0] for m in mismatched}
        try:
            self.load_state_dict({k: v for k, v in state.items() if k in own and k not in bad}, strict=False)
        except RuntimeError as error:  # a tensor of a kind that cannot be copied (quantised, sparse)
            raise CheckpointError(f"{where} does not fit the model: {error}") from error
        self.tie_weights()
        return self

    @classmethod
    def from_original(cls, state: Mapping[str, torch.Tensor], config: Any, *, strict: bool = True) -> Self:
        """A model with weights in the original implementation's layout.

        Args:
            state: key -> tensor, original names.
            config: a config of this class (see the family's `convert.config_from_original`).
        """
        converted = cls.convert_original(state, config, where="the original weights")
        return cls(config).load_strict(converted, where="the original weights", strict=strict)

    @classmethod
    def convert_original(cls, state: Mapping[str, torch.Tensor], config: Any, *, where: str) -> dict[str, torch.Tensor]:
        """A state dict of the original layout in this class' layout; a foreign one raises CheckpointError."""
        try:
            return cls._convert_module().from_original(dict(state), config)
        except (KeyError, IndexError, RuntimeError, ValueError, AttributeError) as error:
            if isinstance(error, HybridzooError):
                raise
            few = ", ".join(list(state)[:4])
            raise CheckpointError(
                f"{where} is not a checkpoint of the original {cls.family!r} ({type(error).__name__}: {error}); "
                f"its first keys: {few or 'none'}. Is it of another model, or is the config of another size?"
            ) from error

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

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, *args: Any, card: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As transformers' `save_pretrained`, and atomic, with a model card and checksums of the weights.

        The files are written beside the target and change places with the old ones in one step, so that a kill at any
        moment leaves the old model or the new one, never a mixture. Other files in the folder stay.

        Args:
            save_directory: the folder.
            card: facts for the model card (see `hybridzoo.card.write_card`); a card that a person wrote is kept.

        Raises:
            CheckpointError: the folder cannot be written (read-only, full disk, a file of that name); what was there
                before is untouched.
        """
        target = Path(save_directory)
        if target.is_file():
            raise CheckpointError(f"cannot save into {target}: it is a file; give a folder")
        push = kwargs.pop("push_to_hub", False)
        hub_options = {k: kwargs.pop(k) for k in _HUB_OPTIONS if k in kwargs}
        kwargs |= {"token": hub_options["token"]} if "token" in hub_options else {}
        if kwargs.get("distributed_checkpoint"):  # every rank writes its part of one folder: nothing to exchange
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        adapters_only = getattr(self, "_hf_peft_config_loaded", False)
        try:
            with staged(target) as staging:
                super().save_pretrained(staging, *args, **kwargs)
                if any(staging.iterdir()) and not adapters_only:  # not the main process: nothing was written
                    write_sums(staging)
                    write_card(self, staging, existing=target / "README.md", facts=card)
                    self.save_extras(staging)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot save the model into {target}: {getattr(error, 'strerror', None) or error}. What was there "
                "before is untouched. Free some space, or give a folder that you may write to."
            ) from error
        if push:
            self.push_to_hub(hub_options.pop("repo_id", target.name), card=card, **hub_options)

    def save_extras(self, folder: Path) -> None:
        """Write what a family keeps beside its weights, such as `preprocessor_config.json`; part of the atomic save.

        Args:
            folder: where the other files have just been written; it becomes the model's folder afterwards.
        """

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        card: Mapping[str, Any] | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
        tags: list[str] | None = None,
    ) -> str:
        """Upload the model with its card in one commit; a card that a person wrote on the hub is kept.

        Args:
            repo_id: `"org/name"`; made if it does not exist.
            card: as in `save_pretrained`; `tags` are added to it.
            commit_message: as in transformers, and so `commit_description`, `private`, `token`, `create_pr` and
                `max_shard_size`.
            revision: branch to push to; made if it does not exist.

        Returns:
            The address of the commit.

        Raises:
            SourceError: not logged in, refused, or unreachable.
        """
        from hybridzoo.hub import upload_folder

        facts = {**(card or {}), **({"tags": tags} if tags else {})}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=facts, max_shard_size=max_shard_size)
            return upload_folder(
                repo_id,
                Path(folder),
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                message=commit_message or f"Upload {type(self).__name__}",
                description=commit_description,
            )


def _align(model: torch.nn.Module) -> None:
    """Copy CPU tensors that start off a 64-byte boundary, as mapped safetensors files leave them.

    Matrix products take another path there and differ in the last bit, and a loaded model must equal the saved one.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is torch.Tensor and tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


_HUB_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr")


@contextmanager
def _loading_errors(source: str) -> Iterator[None]:
    """Turn what transformers and safetensors raise while loading into the zoo's errors."""
    from hybridzoo.hub import hub_errors

    damaged = f"the weights of {source} cannot be read"
    try:
        if Path(source).exists():
            yield
        else:
            with hub_errors(source):
                yield
    except HybridzooError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(
            f"the weights of {source} were refused: they hold pickled Python objects beyond tensors, which could run "
            "code. Ask their author for a safetensors file."
        ) from error
    except (SafetensorError, EOFError) as error:
        raise CheckpointError(
            f"{damaged} ({error}); the file is damaged or not fully copied: fetch it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{damaged}: {error}") from error
    except (RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{damaged} ({type(error).__name__}: {error}); is the file damaged?") from error


@contextmanager
def _quiet_report(active: bool) -> Iterator[None]:
    """Keep transformers' table of wrong keys out of the log where check_keys raises the same as one error."""

    def without_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    if active:
        logger.addFilter(without_report)
    try:
        yield
    finally:
        logger.removeFilter(without_report)
