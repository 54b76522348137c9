"""Bad input to MaskMamba: codes, conditions, sampling options and configurations that make no sense are named."""

from __future__ import annotations

import pytest
import torch
from maskmamba_models import lively

from hybridzoo import build_model
from hybridzoo.errors import ConfigError, InputError


@pytest.fixture(scope="module")
def model():
    return lively(build_model("maskmamba_test"))


@pytest.fixture(scope="module")
def text_model():
    return lively(build_model("maskmamba_test", condition="text", text_dim=12, text_length=6))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_labels": [11]}, r"11; this model has classes 0 to 9, and 10 is the null class"),
        ({"class_labels": [-1]}, "classes 0 to 9"),
        ({}, "give class_labels"),
        ({"class_labels": [1], "steps": 0}, "steps=0.*1 or more"),
        ({"class_labels": [1], "steps": 2.5}, "whole number"),
        ({"class_labels": [1], "cfg_scale": -1.0}, "cfg_scale"),
        ({"class_labels": [1], "temperature": -1.0}, "temperature"),
        ({"class_labels": [1], "order": "haltonn"}, "did you mean 'halton'"),
        ({"class_labels": [1], "height": 15}, "height=15 must be a multiple of 2"),
        ({"class_labels": [1], "width": 0}, "width=0"),
        ({"class_labels": [1], "codes": torch.full((1, 5, 5), 99)}, "run from 99 to 99.*another tokenizer"),
        ({"class_labels": [1], "codes": torch.zeros(2, 5, 5).long()}, r"\(1, 5, 5\)"),
        ({"class_labels": [1], "mask": torch.ones(5, 5).bool()}, "codes .* are missing"),
        ({"class_labels": [1], "codes": torch.zeros(1, 5, 5).long(), "mask": torch.ones(5, 4).bool()}, "mask must be"),
        ({"text_embeds": torch.zeros(1, 2, 3)}, "class-conditional: give class_labels"),
    ],
)
def test_bad_generation_options_are_named(model, options, words):
    with pytest.raises(InputError, match=words):
        model.generate(**options)


def test_unknown_schedules_are_named(model):
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        model.generate([1], schedule="cosin")
    with pytest.raises(ConfigError, match="unknown mask schedule 'pow'"):
        model.generate([1], schedule="pow")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"input_ids": torch.zeros(1, 24).long()}, "24 tokens do not fill the configured grid of 5 x 5"),
        ({"input_ids": torch.zeros(1, 16).long()}, r"codes.view\(-1, 4, 4\)"),
        ({"input_ids": torch.zeros(1, 25)}, "must be integers"),
        ({"input_ids": torch.full((1, 25), 65)}, "codes 0 to 63 and 64 for a masked token"),
        ({"input_ids": torch.zeros(1, 25).long(), "class_labels": None}, "class_labels is missing"),
        ({"input_ids": torch.zeros(1, 25).long(), "class_labels": torch.zeros(2).long()}, r"of shape \(1,\)"),
        ({"input_ids": torch.zeros(1, 25).long(), "labels": torch.full((1, 25), 64)}, "codes are 0 to 63"),
        ({"input_ids": torch.zeros(1, 25).long(), "labels": torch.zeros(1, 24).long()}, r"of shape \(1, 25\)"),
    ],
)
def test_bad_inputs_are_named(model, inputs, words):
    with pytest.raises(InputError, match=words):
        model(**{"class_labels": torch.zeros(1).long(), **inputs})


@pytest.mark.parametrize(
    ("embeds", "words"),
    [
        (None, "text_embeds is missing"),
        (torch.zeros(1, 3, 13), "13 wide and this model reads 12: .*another text encoder"),
        (torch.zeros(1, 7, 12), r"up to 6"),
        (torch.zeros(1, 12), "must be floats"),
        (torch.zeros(1, 3, 12).long(), "must be floats"),
    ],
)
def test_bad_texts_are_named(text_model, embeds, words):
    with pytest.raises(InputError, match=words):
        text_model(torch.zeros(1, 25).long(), text_embeds=embeds)
    with pytest.raises(InputError, match="text-conditional"):
        text_model(torch.zeros(1, 25).long(), class_labels=torch.zeros(1).long())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "serial"}, "did you mean 'serial_v"),
        ({"condition": "image"}, "unknown condition"),
        ({"image_size": 11}, "multiple of downsample=2"),
        ({"scheme": "group_v2"}, "4 channel group"),
        ({"hidden_size": 33}, "divisible"),
        ({"group_pattern": "MX", "scheme": "group_v1"}, "one M"),
        ({"group_pattern": "MS"}, "goes with a group scheme"),
        ({"mask_schedule": "cos"}, "mask schedule"),
        ({"dropout": 1.0}, "below 1"),
        ({"dt_rank": 0}, "dt_rank=0"),
        ({"num_layers": 0}, "at least 1"),
        ({"second_branch": "none"}, "second_branch"),
    ],
)
def test_impossible_configurations_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        build_model("maskmamba_test", **values)
