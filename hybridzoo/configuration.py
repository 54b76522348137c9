"""ZooConfig: a transformers config that refuses unknown keys."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from hybridzoo import registry
from hybridzoo.errors import ConfigError, unknown

# Keys that transformers itself writes into config.json or accepts as keywords beside the fields of the class.
_TRANSFORMERS_KEYS = frozenset(
    "model_type transformers_version _name_or_path name_or_path _commit_hash torch_dtype num_labels auto_map "
    "attn_implementation output_attentions quantization_config tie_word_embeddings "
    "bos_token_id eos_token_id pad_token_id "
    "_attn_implementation_internal _experts_implementation_internal experts_implementation".split()
)


class ZooConfig(PretrainedConfig):
    """Base of every family's configuration.

    A subclass is written like a dataclass, decorated with `huggingface_hub.dataclasses.strict` (which checks the types),
    and checks its values in a method `validate_values(self)` that raises ConfigError.

    Raises:
        ConfigError: an unknown key (with the nearest names) or an impossible value.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        known = {f.name for f in fields(self)}  # type: ignore[arg-type]
        for key in kwargs:
            if key not in known | _TRANSFORMERS_KEYS | set(self.attribute_map):
                choices = sorted(known | {"num_labels"})
                raise ConfigError(unknown(f"key of {type(self).__name__}", key, choices))
        registry.register_auto_models(self.model_type)
        super().__post_init__(**kwargs)
        self.validate_values()

    def validate_values(self) -> None:
        """Check values that a type cannot express; a subclass raises ConfigError naming the field and the fix."""
