"""RoBERTa-BiLSTM: registration only; neither torch nor transformers is imported here."""

from collections.abc import Mapping
from typing import Any

from hybridzoo.registry import Family, Weights, register_family, register_model

register_family(
    Family(
        name="roberta_bilstm",
        title="RoBERTa-BiLSTM",
        model_type="roberta_bilstm",
        config_class="hybridzoo.models.roberta_bilstm.configuration:RobertaBiLSTMConfig",
        model_classes={
            "text-classification": "hybridzoo.models.roberta_bilstm.modeling:RobertaBiLSTMForSequenceClassification"
        },
        auto_classes={"text-classification": "AutoModelForSequenceClassification"},
        convert="hybridzoo.models.roberta_bilstm.convert",
        paper="https://arxiv.org/abs/2406.00367",
        source="no official code; re-implemented from the paper's description "
        "(key names convert to and from https://github.com/tiduswr/RoBERTa-BiLSTM-Replication)",
        license="none stated (no official code)",
    )
)

# Encoders. `hybridzoo.models.roberta_bilstm.configuration` holds roberta-base as the default.
MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
MINI = {
    "model_type": "roberta",
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
TEST = {**MINI, "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}
LINEAR = {"cell": "none", "head_hidden_size": 0}


def _register(name: str, summary: str, tags: Mapping[str, Weights] | None = None, **config: Any) -> None:
    register_model(name, family="roberta_bilstm", config=config, summary=summary, tags=tags)


_register("roberta_bilstm_base", "roberta-base + BiLSTM 256, masked mean, any length up to 512")
_register(
    "roberta_bilstm_base_paper",
    "the paper's Algorithm 1: roberta-base + BiLSTM 256, flatten at 128 tokens, dense 256",
    pooling="flatten",
    max_length=128,
    skip_padding=False,
    head_dropout=0.0,
)
_register("roberta_lstm_base", "baseline: roberta-base + one-directional LSTM 256", bidirectional=False, pooling="last")
_register(
    "roberta_gru_base",
    "baseline: roberta-base + one-directional GRU 256",
    cell="gru",
    bidirectional=False,
    pooling="last",
)
_register("roberta_linear_base", "baseline: roberta-base, masked mean, one linear layer", **LINEAR)
_register("roberta_bilstm_minilm", "MiniLM-L6 (BERT, 384 wide) + BiLSTM 256, masked mean", encoder=MINILM)
_register("roberta_linear_minilm", "baseline: MiniLM-L6, masked mean, one linear layer", encoder=MINILM, **LINEAR)
_register(
    "roberta_bilstm_mini",
    "small RoBERTa (128 wide, 3 layers) + BiLSTM 96, made to be trained from scratch in minutes",
    tags={
        "vader": Weights(
            uri="checkpoints:roberta_bilstm_mini",
            license="Apache-2.0",
            source="checkpoints/roberta_bilstm_mini/README.md",
        )
    },
    encoder={**MINI, "num_hidden_layers": 3},
    lstm_hidden_size=96,
    head_hidden_size=64,
    max_length=128,
    id2label={0: "negative", 1: "neutral", 2: "positive"},
    label2id={"negative": 0, "neutral": 1, "positive": 2},
)
_register(
    "roberta_bilstm_mini_linear",
    "ablation of the mini model: a fourth encoder layer in place of the BiLSTM, equal parameters within 1 %",
    encoder=MINI,
    max_length=128,
    id2label={0: "negative", 1: "neutral", 2: "positive"},
    label2id={"negative": 0, "neutral": 1, "positive": 2},
    **LINEAR,
)
_register(
    "roberta_bilstm_test",
    "tiny and random, for tests",
    encoder=TEST,
    lstm_hidden_size=24,
    head_hidden_size=32,
    max_length=64,
)
