"""RoBERTa-BiLSTM for sequence classification.

Paper: Rahman, Shiplu, Watanobe, Alam, "RoBERTa-BiLSTM: A Context-Aware Hybrid Model for Sentiment Analysis",
arXiv 2406.00367, IEEE TETCI 2025. There is no official code; this is a re-implementation from the paper's description,
and every point that the description leaves open is a switch of the config (docs/models/roberta_bilstm.md lists them).

    input_ids -> encoder -> dropout -> LSTM in both directions -> pooling -> dense -> activation -> dropout -> dense
    (B, T)       (B, T, D)             (B, T, 2H)                  (B, P)    (B, head)                          (B, C)

How ours differs from the re-implementations that exist: padding is skipped by default, so that the score of a text
does not depend on the texts beside it; any encoder of transformers' AutoModel fits; the baselines (LSTM, GRU, no
recurrent layer) are configs of the same class; it exports and compiles.

Legend: B rows, T positions, D encoder width, H units per direction, P pooled width, C classes.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from hybridzoo.errors import ConfigError
from hybridzoo.modeling import ZooModel, check_keys
from hybridzoo.models.roberta_bilstm.configuration import RobertaBiLSTMConfig, as_encoder_config
from hybridzoo.models.roberta_bilstm.inputs import check_labels, check_tokens, classification_loss
from hybridzoo.models.roberta_bilstm.recurrent import MaskedRNN, tokens_first_order

ACTIVATION = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "none": nn.Identity}


class Pooling(nn.Module):
    """States of all positions -> one vector per row. Rows are right-padded.

    Args:
        kind: see `RobertaBiLSTMConfig.pooling`.
        width: of one state, P.
        directions: of the cell that made the states (1 for the encoder's own): `last` reads the end of each.
    """

    def __init__(self, kind: str, width: int, directions: int) -> None:
        super().__init__()
        self.kind, self.directions = kind, directions
        self.score = nn.Linear(width, 1) if kind == "attention" else None

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """states (B, T, P), lengths (B,) -> (B, P), or (B, T * P) for flatten."""
        real = (torch.arange(states.shape[1], device=states.device)[None, :] < lengths[:, None])[
            :, :, None
        ]  # (B, T, 1)
        if self.kind == "cls":
            return states[:, 0]
        if self.kind == "flatten":
            return (states * real.to(states.dtype)).flatten(1)
        if self.kind == "max":
            return states.masked_fill(~real, torch.finfo(states.dtype).min).amax(1)
        if self.kind == "last":
            last = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[2])
            ends = states.gather(1, last).squeeze(1)
            if self.directions == 1:
                return ends
            half = states.shape[2] // 2  # the backward direction ends at the first token
            return torch.cat([ends[:, :half], states[:, 0, half:]], dim=-1)
        if self.score is not None:
            score = self.score(states).float().masked_fill(~real, float("-inf"))
            return (states * score.softmax(1).to(states.dtype)).sum(1)
        # mean, summed in fp32: 512 half-precision terms would lose digits
        total = (states * real.to(states.dtype)).sum(1, dtype=torch.float32)
        return (total / lengths[:, None]).to(states.dtype)


class ClassificationHead(nn.Module):
    """dense -> activation -> dropout -> out_proj; only dropout and out_proj where `head_hidden_size` is 0."""

    def __init__(self, config: RobertaBiLSTMConfig, in_features: int) -> None:
        super().__init__()
        width = config.head_hidden_size or in_features
        self.dense = nn.Linear(in_features, width) if config.head_hidden_size else None
        self.activation = ACTIVATION[config.head_activation]() if config.head_hidden_size else nn.Identity()
        self.dropout = nn.Dropout(config.head_dropout)
        assert config.num_labels is not None  # the config always has labels, two if none were given
        self.out_proj = nn.Linear(width, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, C)."""
        if self.dense is not None:
            x = self.activation(self.dense(x))
        return self.out_proj(self.dropout(x))


class RobertaBiLSTMForSequenceClassification(ZooModel):
    """Text classifier: encoder, optional LSTM or GRU, pooling, head. See `RobertaBiLSTMConfig` for every switch."""

    config_class = RobertaBiLSTMConfig
    config: RobertaBiLSTMConfig
    family = "roberta_bilstm"
    task = "text-classification"
    base_model_prefix = "encoder"
    head_names = ("head.out_proj",)
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Tables and poolers that other heads of the same encoder bring; the zoo has no use for them.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"encoder\.pooler\."]

    def __init__(self, config: RobertaBiLSTMConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config)
        self._no_split_modules = list(self.encoder._no_split_modules or [])
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.rnn = None
        if config.cell != "none":
            self.rnn = MaskedRNN(
                config.cell,
                config.hidden_size,
                config.lstm_hidden_size,
                num_layers=config.lstm_num_layers,
                dropout=config.lstm_dropout,
                bidirectional=config.bidirectional,
            )
        directions = 1 if config.cell == "none" else 1 + config.bidirectional
        self.pooling = Pooling(config.pooling, config.pooled_size, directions)
        flat = config.max_length if config.pooling == "flatten" else 1
        self.head = ClassificationHead(config, config.pooled_size * flat)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own starts for the layers on top of the encoder (which initialises itself)."""
        if isinstance(module, MaskedRNN):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits, and the loss where labels are given.

        Left-padded rows, and masks with holes, are brought into right-padded form first: the result is that of the
        tokens alone, in their order.

        Args:
            input_ids: (B, T) integer token ids.
            attention_mask: (B, T), 1 at tokens and 0 at padding. Left out: every position that is not the encoder's
                `pad_token_id` (every position, where inputs_embeds is given).
            token_type_ids: (B, T), passed to encoders that take them.
            inputs_embeds: (B, T, D) in place of input_ids.
            labels: (B,) int64 class ids, (B, C) floats for several labels, (B,) floats for regression
                (`config.problem_type` says which, else the dtype and the number of classes).
            **kwargs: `output_hidden_states`, `output_attentions` and what else the encoder takes.

        Returns:
            `logits` (B, C), divided by `config.temperature` in eval mode and only there; `loss` from the undivided
            logits; the encoder's `hidden_states` and `attentions` where asked for, in the right-padded order.

        Raises:
            InputError: shapes, dtypes, ids, lengths or labels that do not fit.
        """
        check_tokens(self.config, input_ids, attention_mask, inputs_embeds)
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None  # check_tokens has refused it
        mask = self._mask(input_ids, attention_mask, given)
        order, lengths = tokens_first_order(mask)
        inputs: dict[str, Any] = {"input_ids": input_ids, "token_type_ids": token_type_ids}
        inputs = {name: value.gather(1, order) for name, value in inputs.items() if value is not None}
        if inputs_embeds is not None:
            inputs["inputs_embeds"] = inputs_embeds.gather(1, order[:, :, None].expand_as(inputs_embeds))
        steps = mask.shape[1]
        inputs["attention_mask"] = (torch.arange(steps, device=mask.device)[None, :] < lengths[:, None]).long()
        kwargs = {k: v for k, v in kwargs.items() if k not in ("return_dict", "num_items_in_batch", "position_ids")}
        encoded = self.encoder(**inputs, **kwargs, return_dict=True)

        states = self.input_dropout(encoded.last_hidden_state)  # (B, T, D)
        counted = lengths if self.config.skip_padding else torch.full_like(lengths, steps)
        if self.rnn is not None:
            states = self.rnn(states, counted)  # (B, T, 2H)
        logits = self.head(self.pooling(states, counted))  # (B, C)

        loss = None
        if labels is not None:
            check_labels(self.config, logits, labels)
            loss = classification_loss(self.config, logits, labels)
        if not self.training and self.config.temperature != 1.0:
            logits = logits / self.config.temperature
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=getattr(encoded, "hidden_states", None),
            attentions=getattr(encoded, "attentions", None),
        )

    def _mask(self, input_ids: Tensor | None, attention_mask: Tensor | None, given: Tensor) -> Tensor:
        """(B, T) bool, True at tokens."""
        if attention_mask is not None:
            return attention_mask.to(device=given.device) != 0
        pad = self.config.encoder_config.pad_token_id
        if input_ids is None or pad is None:
            return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        return input_ids != pad

    def example_inputs(self, batch_size: int = 1, *, labels: bool = False) -> dict[str, Any]:
        """Seeded tokens of full and shorter rows, at most 64 long (or the model's fixed length)."""
        steps = self.config.fixed_length or min(64, self.config.max_length)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self.config.encoder_config.vocab_size, (batch_size, steps), generator=generator)
        lengths = torch.tensor([steps - (row * 7) % max(steps // 2, 1) for row in range(batch_size)])
        mask = torch.arange(steps)[None, :] < lengths[:, None]
        ids = ids.masked_fill(~mask, self.config.encoder_config.pad_token_id or 0)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        if labels:
            inputs["labels"] = torch.randint(0, self.head.out_proj.out_features, (batch_size,), generator=generator)
        return {name: value.to(self.device) for name, value in inputs.items()}

    # Fine-tuning ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(cls, source: Any, *, strict: bool = True, **config_values: Any) -> Self:
        """A classifier whose encoder is pretrained, and whose upper layers are at their random start.

        Args:
            source: folder or hub id that `AutoModel` reads (`"roberta-base"`, a MiniLM folder); heads and poolers in it
                are left behind.
            strict: an encoder weight that is missing or mis-shaped in the source raises.
            **config_values: values of `RobertaBiLSTMConfig`; `encoder` values are merged into the source's own
                config (dropout, for example). `max_length` defaults to what the encoder holds, at most 512.

        Returns:
            The model, in train mode, fp32.

        Raises:
            CheckpointError: the weights do not fit the encoder.
            ConfigError: an unknown value, or one that contradicts the weights.
        """
        from hybridzoo.loading import make_config

        encoder = AutoConfig.from_pretrained(source, trust_remote_code=False)
        overrides = config_values.pop("encoder", None)
        encoder = merge_encoder(encoder, overrides)
        config_values.setdefault(
            "max_length", min(512, RobertaBiLSTMConfig(encoder=encoder, max_length=1).max_tokens or 512)
        )
        config = make_config(cls.family, {**config_values, "encoder": encoder})
        model = cls(config)
        pretrained, info = AutoModel.from_pretrained(
            source,
            config=config.encoder,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            **encoder_options(type(model.encoder)),
        )
        if strict:
            check_keys(f"the backbone {source}", info["missing_keys"], (), info["mismatched_keys"])
        model.encoder.load_state_dict(pretrained.state_dict())
        return model.train()

    def freeze_backbone(self, freeze: bool = True) -> None:
        """Train only what stands on top of the encoder (or, with False, everything again)."""
        self.encoder.requires_grad_(not freeze)

    def layer_groups(self) -> list[list[str]]:
        """Parameter-name prefixes from input to output, for layer-wise learning-rate decay.

        A parameter belongs to the longest prefix that covers it: the first group holds the embeddings and whatever else
        stands beside the encoder's layers, then comes one group for each layer, and last what is new on top.
        """
        layers = next((n for n, m in self.encoder.named_modules() if isinstance(m, nn.ModuleList)), None)
        if layers is None:
            return [["encoder."], ["rnn.", "pooling.", "head."]]
        count = len(self.encoder.get_submodule(layers))
        groups = [[f"encoder.{layers}.{i}."] for i in range(count)]
        return [["encoder."], *groups, ["rnn.", "pooling.", "head."]]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters besides norms and biases that take no weight decay: none."""
        return set()


def encoder_options(encoder_class: type) -> dict[str, Any]:
    """Keywords that spare an encoder a pooler which would stay untrained."""
    takes = inspect.signature(encoder_class.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}


def build_encoder(config: PretrainedConfig) -> Any:
    """The AutoModel of a config, random, without a pooler."""
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise ConfigError(f"transformers has no AutoModel for encoder.model_type={config.model_type!r}")
    found: Any = MODEL_MAPPING[type(config)]
    return AutoModel.from_config(config, **encoder_options(found[0] if isinstance(found, tuple) else found))


def merge_encoder(encoder: PretrainedConfig, overrides: Any) -> PretrainedConfig:
    """The config of a pretrained encoder with a few values replaced."""
    if overrides is None:
        return encoder
    if isinstance(overrides, PretrainedConfig):
        overrides = overrides.to_diff_dict()
    if overrides.get("model_type", encoder.model_type) != encoder.model_type:
        raise ConfigError(
            f"encoder.model_type={overrides['model_type']!r}, but the backbone holds a {encoder.model_type!r} model; "
            "leave it out"
        )
    as_encoder_config({**overrides, "model_type": encoder.model_type})  # unknown keys raise here
    for key, value in overrides.items():
        if key != "model_type":
            setattr(encoder, key, value)
    return encoder
