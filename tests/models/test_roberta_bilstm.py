"""RoBERTa-BiLSTM: what the network computes, for every cell, pooling and kind of padding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hybridzoo import build_model, list_models, model_info
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.models.roberta_bilstm.configuration import POOLINGS
from hybridzoo.models.roberta_bilstm.recurrent import MaskedRNN, tokens_first_order

BERT = {
    "model_type": "bert",
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VARIANTS = {
    "BiLSTM": {"cell": "lstm"},
    "LSTM": {"cell": "lstm", "bidirectional": False},
    "BiLSTM-2-layers": {"cell": "lstm", "lstm_num_layers": 2},
    "BiGRU": {"cell": "gru"},
    "GRU": {"cell": "gru", "bidirectional": False},
    "no cell": {"cell": "none"},
}
LENGTHS = (7, 16, 2, 11)
STEPS = 16


def tiny(**config):
    torch.manual_seed(0)
    return build_model("roberta_bilstm_test", **config).eval()


def rows(pad: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens of LENGTHS, padded to STEPS on one side."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(LENGTHS), STEPS), pad)
    mask = torch.zeros(len(LENGTHS), STEPS, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        at = slice(0, length) if side == "right" else slice(STEPS - length, STEPS)
        ids[row, at] = torch.randint(5, 512, (length,), generator=generator)
        mask[row, at] = 1
    return ids, mask


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_packed_and_exportable_forms_are_torch_rnn(cell: str, layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    ours = MaskedRNN(cell, 8, 6, num_layers=layers, bidirectional=bidirectional)
    theirs = (nn.LSTM if cell == "lstm" else nn.GRU)(8, 6, layers, batch_first=True, bidirectional=bidirectional)
    theirs.load_state_dict(ours.state_dict())  # the same key names and shapes
    x, lengths = torch.randn(4, 9, 8), torch.tensor([9, 1, 5, 3])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]
    torch.testing.assert_close(ours(x, lengths, exportable=False), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours(x, lengths, exportable=True), expected, atol=1e-6, rtol=0)
    for form in (False, True):
        torch.testing.assert_close(ours(x, None, exportable=form), theirs(x)[0], atol=1e-6, rtol=0)
    grads = []
    for form in (False, True):
        ours.zero_grad()
        ours(x, lengths, exportable=form).square().sum().backward()
        grads.append([p.grad.clone() for p in ours.parameters()])
    for packed_grad, exportable_grad in zip(*grads):
        torch.testing.assert_close(packed_grad, exportable_grad, atol=1e-5, rtol=1e-5)


def test_order_moves_tokens_first_and_keeps_their_order() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    order, lengths = tokens_first_order(mask)
    assert order.tolist() == [[2, 3, 0, 1], [0, 3, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert lengths.tolist() == [2, 2, 1, 4]  # a row without tokens counts one, so that nothing divides by zero


@pytest.mark.parametrize("encoder", ["roberta", "bert"])
@pytest.mark.parametrize("pooling", [p for p in POOLINGS if p != "flatten"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_alone_equals_in_a_padded_batch(variant: str, pooling: str, encoder: str) -> None:
    config = {"encoder": BERT} if encoder == "bert" else {}
    model = tiny(pooling=pooling, **VARIANTS[variant], **config)
    pad = model.config.encoder.pad_token_id
    ids, mask = rows(pad)
    left_ids, left_mask = rows(pad, "left")
    with torch.no_grad():
        alone = torch.cat([model(ids[i : i + 1, :n]).logits for i, n in enumerate(LENGTHS)])
        right = model(ids, mask).logits
        torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(left_ids, left_mask).logits, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(ids).logits, alone, atol=1e-5, rtol=0)  # the mask from the pad id
        other = torch.where(mask == 1, ids, 77)  # what stands in the padding does not matter
        torch.testing.assert_close(model(other, mask).logits, alone, atol=1e-5, rtol=0)
    assert not torch.allclose(right[0], right[1], atol=1e-4), "rows give the same logits: the test would see nothing"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("config", [{"pooling": "flatten"}, {"pooling": "mean", "skip_padding": False}])
def test_fixed_length_models_are_batch_independent_and_refuse_other_lengths(variant: str, config: dict) -> None:
    model = tiny(max_length=STEPS, **config, **VARIANTS[variant])
    assert model.config.fixed_length == STEPS
    ids, mask = rows(1)
    left_ids, left_mask = rows(1, "left")
    with torch.no_grad():
        alone = torch.cat([model(ids[i : i + 1], mask[i : i + 1]).logits for i in range(len(LENGTHS))])
        torch.testing.assert_close(model(ids, mask).logits, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(model(left_ids, left_mask).logits, alone, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match=r"exactly 16 tokens.*padding='max_length'.*max_length=16"):
        model(ids[:, :9])


def test_skip_padding_is_what_keeps_the_backward_direction_clean() -> None:
    """Without it, padding does change the score: the switch is real."""
    ids, mask = rows(1)
    kept, run = tiny(max_length=STEPS, pooling="mean"), tiny(max_length=STEPS, pooling="mean", skip_padding=False)
    with torch.no_grad():
        difference = (kept(ids, mask).logits - run(ids, mask).logits).abs().amax(1)
    assert difference[1] < 1e-6  # the row without padding
    assert (difference[[0, 2, 3]] > 1e-5).all()


def test_mask_with_holes_hides_the_tokens() -> None:
    model = tiny()
    ids, mask = rows(1)
    mask[0, 3] = 0
    without = torch.cat([ids[0, :3], ids[0, 4:7]])[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask).logits[:1], model(without).logits, atol=1e-5, rtol=0)


def test_row_without_tokens_is_finite() -> None:
    model = tiny()
    ids, mask = rows(1)
    mask[2] = 0
    for pooling in POOLINGS:
        model = tiny(pooling=pooling, max_length=STEPS)
        assert torch.isfinite(model(ids, mask).logits).all(), pooling


@pytest.mark.parametrize("pooling", [p for p in POOLINGS if p != "cls"])
def test_poolings_by_hand(pooling: str) -> None:
    model = tiny(pooling=pooling, max_length=STEPS)
    torch.manual_seed(3)
    states, lengths = torch.randn(2, STEPS, 48), torch.tensor([5, STEPS])
    pooled = model.pooling(states, lengths)
    for row, n in enumerate(lengths.tolist()):
        real = states[row, :n]
        if pooling == "mean":
            expected = real.mean(0)
        elif pooling == "max":
            expected = real.max(0).values
        elif pooling == "last":  # forward ends at the last token, backward at the first
            expected = torch.cat([real[-1, :24], real[0, 24:]])
        elif pooling == "attention":
            expected = (real * (real @ model.pooling.score.weight[0]).softmax(0)[:, None]).sum(0)
        else:
            expected = torch.cat([real.flatten(), torch.zeros((STEPS - n) * 48)])
        torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=1e-5)


def test_temperature_divides_logits_in_eval_mode_only() -> None:
    plain, cooled = (
        tiny(input_dropout=0.0, head_dropout=0.0),
        tiny(temperature=2.5, input_dropout=0.0, head_dropout=0.0),
    )
    ids, mask = rows(1)
    labels = torch.tensor([0, 1, 0, 1])
    a, b = plain(ids, mask, labels=labels), cooled(ids, mask, labels=labels)
    torch.testing.assert_close(b.logits, a.logits / 2.5)
    torch.testing.assert_close(b.loss, a.loss)  # the loss is that of the training
    for model in (plain, cooled):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    torch.testing.assert_close(cooled(ids, mask).logits, plain(ids, mask).logits)


def test_losses_by_problem_type() -> None:
    ids, mask = rows(1)
    model = tiny(num_labels=3)
    several = model(ids, mask, labels=torch.tensor([[1.0, 0, 1]] * 4))
    expected = nn.functional.binary_cross_entropy_with_logits(several.logits, torch.tensor([[1.0, 0, 1]] * 4))
    torch.testing.assert_close(several.loss, expected)
    one = tiny(num_labels=1)
    number = one(ids, mask, labels=torch.tensor([0.5, 1.0, -1.0, 2.0]))
    expected = nn.functional.mse_loss(number.logits[:, 0], torch.tensor([0.5, 1.0, -1.0, 2.0]))
    torch.testing.assert_close(number.loss, expected)
    ignored = model(ids, mask, labels=torch.tensor([0, -100, 2, -100]))
    picked = model(ids[[0, 2]], mask[[0, 2]], labels=torch.tensor([0, 2]))
    torch.testing.assert_close(ignored.loss, picked.loss)


def test_embeddings_in_place_of_ids() -> None:
    model = tiny(encoder=BERT)  # RoBERTa counts positions from the ids
    ids, mask = rows(0)
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).logits, model(ids, mask).logits)


def test_sizes_of_the_registered_models() -> None:
    """The counts of the paper's parts: encoder without pooler, BiLSTM, and the flatten head at 128 tokens."""
    encoder, bilstm = 124_055_040, 2_101_248
    head = 512 * 256 + 256 + 256 * 2 + 2
    assert model_info("roberta_bilstm_base").parameters == encoder + bilstm + head
    flat = 16_777_472 + 256 * 2 + 2
    assert model_info("roberta_bilstm_base_paper").parameters == encoder + bilstm + flat
    assert model_info("roberta_linear_base").parameters == encoder + 768 * 2 + 2
    mini, linear = (model_info(f"roberta_bilstm_mini{x}").parameters for x in ("", "_linear"))
    assert mini * 4 < 8e6
    assert abs(mini - linear) / linear < 0.01
    assert model_info("roberta_bilstm_test").parameters < 1e6
    assert len(list_models(family="roberta_bilstm")) >= 10


BAD_CONFIGS = {
    "unknown cell": ({"cell": "rnn"}, "cell"),
    "unknown pooling": ({"pooling": "avg"}, "pooling"),
    "misspelt key": ({"lstm_hiden_size": 3}, "lstm_hidden_size"),
    "misspelt encoder key": ({"encoder": {"hiden_size": 32}}, "hidden_size"),
    "unknown encoder": ({"encoder": {"model_type": "robrta"}}, "roberta"),
    "encoder-decoder": ({"encoder": {"model_type": "t5"}}, "not a text encoder"),
    "too long": ({"max_length": 4096}, "128 tokens"),
    "zero width": ({"lstm_hidden_size": 0}, "at least 1"),
    "dropout of 1": ({"head_dropout": 1.0}, "below 1"),
    "temperature 0": ({"temperature": 0.0}, "positive"),
    "unknown cleaning": ({"preprocess": "twitter"}, "preprocess"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config(case: str) -> None:
    values, says = BAD_CONFIGS[case]
    with pytest.raises(ConfigError, match=says):
        build_model("roberta_bilstm_test", **values)


IDS = torch.full((2, 8), 9)
BAD_INPUTS = {
    "nothing": ({}, "either input_ids"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 8, 32)}, "either input_ids"),
    "one row without batch": ({"input_ids": IDS[0]}, "batch, tokens"),
    "floats": ({"input_ids": IDS.float()}, "integers"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "no tokens"),
    "no rows": ({"input_ids": IDS[:0]}, "no tokens"),
    "id outside the vocabulary": ({"input_ids": IDS + 600}, "vocabulary of 512"),
    "negative id": ({"input_ids": IDS - 10}, "vocabulary of 512"),
    "mask of another length": ({"input_ids": IDS, "attention_mask": torch.ones(2, 7)}, "attention_mask"),
    "more tokens than positions": ({"input_ids": torch.full((1, 200), 9)}, "truncation=True, max_length=64"),
    "label outside": ({"input_ids": IDS, "labels": torch.tensor([0, 2])}, "num_labels=2"),
    "too few labels": ({"input_ids": IDS, "labels": torch.tensor([0])}, "labels must be"),
    "embeddings of another width": ({"inputs_embeds": torch.zeros(2, 8, 31)}, "32"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input(case: str) -> None:
    inputs, says = BAD_INPUTS[case]
    with pytest.raises(InputError, match=says):
        tiny()(**inputs)
