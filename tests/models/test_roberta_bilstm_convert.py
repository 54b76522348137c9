"""RoBERTa-BiLSTM against an independent network in the replication's layout, and the converter both ways."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError
from hybridzoo.models.roberta_bilstm.modeling import RobertaBiLSTMForSequenceClassification

STEPS, HIDDEN, CLASSES = 24, 12, 3
ENCODER = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": STEPS + 2,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


class Reference(nn.Module):
    """The paper's steps 16 to 22 with the module names of the replication, built from torch and transformers only.

    Encoder states, dropout, BiLSTM over all padded steps, flatten (or the mean over all steps), two dense layers.
    """

    def __init__(self, flatten: bool = True) -> None:
        super().__init__()
        self.roberta = RobertaModel(RobertaConfig(**ENCODER))  # with its pooler, which nothing reads
        self.dropout = nn.Dropout(0.1)
        self.lstm = nn.LSTM(ENCODER["hidden_size"], HIDDEN, batch_first=True, bidirectional=True)
        self.collect = nn.Flatten() if flatten else lambda states: states.mean(1)
        self.fc1 = nn.Linear(2 * HIDDEN * (STEPS if flatten else 1), HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.roberta(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        states, _ = self.lstm(self.dropout(states))
        return self.fc2(torch.relu(self.fc1(self.collect(states))))


def reference(flatten: bool = True) -> Reference:
    torch.manual_seed(5)
    return Reference(flatten).eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 300, (4, STEPS), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate((STEPS, 9, 17, 2)):
        ids[row, length:], mask[row, length:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("flatten", [True, False])
def test_same_logits_and_gradients_as_the_reference(flatten: bool) -> None:
    theirs = reference(flatten)
    settings = {"MAX_LENGTH": STEPS, "HIDDEN_DIM": HIDDEN, "DROPOUT_PROB": 0.1}
    ours = load_original("roberta_bilstm", theirs.state_dict(), settings)
    inputs, labels = batch(), torch.tensor([0, 2, 1, 1])
    expected = theirs(**inputs)
    out = ours(**inputs, labels=labels)
    torch.testing.assert_close(out.logits, expected, atol=1e-6, rtol=0)
    loss = nn.functional.cross_entropy(expected, labels)
    torch.testing.assert_close(out.loss, loss, atol=1e-6, rtol=0)
    loss.backward()
    out.loss.backward()
    pairs = (
        (theirs.lstm.weight_ih_l0_reverse, ours.rnn.weight_ih_l0_reverse),
        (theirs.fc1.weight, ours.head.dense.weight),
        (theirs.roberta.embeddings.word_embeddings.weight, ours.encoder.embeddings.word_embeddings.weight),
    )
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_config_is_read_from_the_shapes(tmp_path) -> None:
    state = reference().state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
    config = load_original("roberta_bilstm", tmp_path / "model.safetensors").config
    assert (config.pooling, config.max_length, config.skip_padding) == ("flatten", STEPS, False)
    assert (config.lstm_hidden_size, config.head_hidden_size, config.num_labels) == (HIDDEN, HIDDEN, CLASSES)
    assert config.encoder.num_hidden_layers == 2


def test_round_trip_and_strict_load_into_the_reference() -> None:
    theirs = reference()
    ours = load_original("roberta_bilstm", theirs.state_dict())
    back = ours.to_original()
    assert set(back) == set(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        if "pooler" not in key:
            assert torch.equal(back[key], tensor), key
    other = Reference().eval()
    other.load_state_dict(back, strict=True)
    torch.testing.assert_close(other(**batch()), theirs(**batch()))  # the pooler's zeros are never read


def test_registered_paper_model_is_the_replications_network() -> None:
    """Same parameters as the replication's defaults (roberta-base, 128 tokens, hidden 256), pooler apart."""
    with torch.device("meta"):
        paper = build_model("roberta_bilstm_base_paper", device="meta")
        encoder = RobertaModel(
            RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5), add_pooling_layer=False
        )
        lstm = nn.LSTM(768, 256, batch_first=True, bidirectional=True)
    shapes = {k: tuple(v.shape) for k, v in paper.state_dict().items()}
    expected = {f"encoder.{k}": tuple(v.shape) for k, v in encoder.state_dict().items()}
    expected |= {f"rnn.{k}": tuple(v.shape) for k, v in lstm.state_dict().items()}
    expected |= {"head.dense.weight": (256, 128 * 512), "head.dense.bias": (256,)}
    expected |= {"head.out_proj.weight": (2, 256), "head.out_proj.bias": (2,)}
    assert shapes == expected


def test_errors_of_the_converter() -> None:
    state = reference().state_dict()
    with pytest.raises(ConfigError, match="hidden_dim=99 contradicts"):
        load_original("roberta_bilstm", state, {"HIDDEN_DIM": 99})
    with pytest.raises(ConfigError, match="max_length"):
        load_original("roberta_bilstm", state, {"MAX_LENGHT": STEPS})
    with pytest.raises(CheckpointError, match=r"fc1\.weight"):
        load_original("roberta_bilstm", {k: v for k, v in state.items() if k != "fc1.weight"})
    with pytest.raises(CheckpointError, match=r"1 unexpected: extra\.weight"):
        load_original("roberta_bilstm", {**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing: rnn\.bias_hh_l0_reverse"):
        load_original("roberta_bilstm", {k: v for k, v in state.items() if k != "lstm.bias_hh_l0_reverse"})
    with pytest.raises(CheckpointError, match="pooling='mean'"):
        build_model("roberta_bilstm_test").to_original()


@pytest.mark.parametrize("kind", ["RobertaModel with pooler", "RobertaForMaskedLM"])
def test_backbone_weights_load_by_prefix(kind: str, tmp_path) -> None:
    """As in the published roberta-base, whose file is that of a language model."""
    torch.manual_seed(1)
    config = RobertaConfig(**ENCODER)
    source = RobertaForMaskedLM(config) if kind == "RobertaForMaskedLM" else RobertaModel(config)
    source.save_pretrained(tmp_path / "backbone")
    encoder = source.roberta if kind == "RobertaForMaskedLM" else source
    model = RobertaBiLSTMForSequenceClassification.from_backbone(
        tmp_path / "backbone", num_labels=3, lstm_hidden_size=8
    )
    assert model.training
    assert model.config.max_length == STEPS
    for key, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[key]), key
    inputs = batch()
    torch.testing.assert_close(
        model.eval().encoder(**inputs).last_hidden_state, encoder.eval()(**inputs).last_hidden_state
    )


def test_backbone_that_lacks_a_weight_or_contradicts(tmp_path) -> None:
    from hybridzoo.loading import build_from_backbone

    encoder = RobertaModel(RobertaConfig(**ENCODER))
    state = {k: v for k, v in encoder.state_dict().items() if "layer.1.output" not in k}
    encoder.save_pretrained(tmp_path / "backbone", state_dict=state)
    with pytest.raises(CheckpointError, match=r"missing: encoder\.layer\.1\.output"):
        build_from_backbone("roberta_bilstm_base", tmp_path / "backbone")
    with pytest.raises(ConfigError, match="the backbone holds a 'roberta' model"):
        build_from_backbone("roberta_bilstm_minilm", tmp_path / "backbone")
    with pytest.raises(ConfigError, match="hidden_dropout_prob"):
        build_from_backbone("roberta_bilstm_base", tmp_path / "backbone", encoder={"hidden_dropout": 0.2})
