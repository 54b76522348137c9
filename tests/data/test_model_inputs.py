"""Transforms, collators, length buckets and the trained tokenizer."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridzoo.data.batching import LengthBucketSampler, length_batches, restore_order
from hybridzoo.data.collate import ImageCollator, TextCollator
from hybridzoo.data.images import open_image, to_mode
from hybridzoo.data.tokenizers import train_bpe_tokenizer
from hybridzoo.data.transforms import build_transform
from hybridzoo.errors import ConfigError, DataError, InputError

TEXTS = ["a small good thing", "the weather is fine today", "nothing works", "good good good", "Ünïcödé 😀 too"] * 20


def config(channels: int = 3, **values: Any) -> SimpleNamespace:
    base = {
        "image_size": 16,
        "num_channels": channels,
        "image_mean": [0.5] * channels,
        "image_std": [0.25] * channels,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    return SimpleNamespace(**{**base, **values})


def photo(width: int = 20, height: int = 16, mode: str = "RGB") -> Image.Image:
    array = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(array).convert(mode)


# Images ---------------------------------------------------------------------------------------------------------------


def test_evaluation_transform_by_hand() -> None:
    image = photo(16, 16)
    tensor = build_transform(config(), train=False)(image)
    by_hand = (np.asarray(image, np.float32) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(tensor.numpy(), by_hand.transpose(2, 0, 1), atol=1e-6)


def test_crop_takes_the_centre() -> None:
    image = photo(32, 16)
    tensor = build_transform(config(), train=False)(image)
    centre = build_transform(config(), train=False)(image.crop((8, 0, 24, 16)))
    torch.testing.assert_close(tensor, centre)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_the_models_channels(mode: str, channels: int) -> None:
    image = photo(mode="L" if mode == "LA" else mode).convert(mode)
    assert build_transform(config(channels), train=False)(image).shape == (channels, 16, 16)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(to_mode(image, 1)).tolist() == [[0, 128, 255]]


AUGMENTATIONS = {
    "crop": {"scale": [0.3, 1.0], "ratio": [0.75, 1.3333], "hflip": 0.5, "interpolation": "random"},
    "padding": {"padding_crop": 2, "hflip": 0.5},
    "full": {"scale": [0.08, 1], "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "random_erasing": 0.25},
    "flip": {"hflip": 1.0},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_training_transforms(name: str, channels: int) -> None:
    transform = build_transform(config(channels), train=True, augment=AUGMENTATIONS[name])
    transform = pickle.loads(pickle.dumps(transform))  # workers of a DataLoader need that
    tensors = [transform(photo()) for _ in range(4)]
    assert {tuple(t.shape) for t in tensors} == {(channels, 16, 16)}
    assert all(t.isfinite().all() for t in tensors)
    if name == "flip":
        plain = build_transform(config(channels), train=False)(photo())
        torch.testing.assert_close(tensors[0], plain.flip(-1))
    else:
        assert any(not torch.equal(tensors[0], t) for t in tensors[1:])


@pytest.mark.parametrize("augment", [None, {}, {"repeats": 3}, {"hflip": None}])
def test_what_is_not_named_is_off(augment: dict[str, Any] | None) -> None:
    image = photo()
    torch.testing.assert_close(
        build_transform(config(), train=True, augment=augment)(image), build_transform(config(), train=False)(image)
    )


@pytest.mark.parametrize(
    ("values", "augment", "message"),
    [
        ({}, {"hfilp": 0.5}, "did you mean 'hflip'"),
        ({"num_channels": 4}, {}, "1 or 3 channels"),
        ({"image_mean": [0.5]}, {}, "need 3 values each"),
    ],
)
def test_wrong_transform_values(values: dict[str, Any], augment: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_transform(config(**values), train=True, augment=augment)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.png", "none.png: no such file"),
        (lambda p: p / "text.png", "not an image"),
        (lambda p: p / "cut.png", "damaged or cut off"),
        (lambda p: np.zeros((4, 4)), "expected a uint8 array"),
        (lambda p: 3, "the int is no image"),
    ],
)
def test_images_that_cannot_be_opened(tmp_path: Path, make: Any, message: str) -> None:
    (tmp_path / "text.png").write_text("hello")
    photo(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    with pytest.raises(DataError, match=message):
        open_image(make(tmp_path))


def test_auto_augment_runs_at_its_strongest() -> None:
    """timm's posterize may keep 0 bits, which Pillow 13 refuses; 60 draws meet that operation many times."""
    transform = build_transform(config(), train=True, augment={"auto_augment": "rand-m10-n4-mstd0"})
    assert all(transform(photo()).isfinite().all() for _ in range(60))


def test_image_collator_names_the_sample() -> None:
    collate = ImageCollator(build_transform(config(), train=False))
    batch = collate([{"id": "a", "label": 2, "image": photo()}, {"id": "b", "label": 0, "image": photo()}])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].tolist() == [2, 0]
    assert "labels" not in collate([{"id": "a", "image": photo()}])
    with pytest.raises(DataError, match=r"sample b: .*no such file"):
        collate([{"id": "b", "image": Path("none.png")}])


def test_tensors_must_be_preprocessed() -> None:
    transform = build_transform(config(), train=False)
    ready = torch.randn(3, 16, 16)
    assert torch.equal(transform(ready), ready)
    with pytest.raises(InputError, match="must be preprocessed"):
        transform(torch.zeros(3, 20, 20))


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_bpe_tokenizer(TEXTS, 300)


def test_trained_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    ids = tokenizer("good thing 😀")["input_ids"]
    assert (ids[0], ids[-1], tokenizer.pad_token_id) == (0, 2, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "good thing 😀"
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)("good thing 😀")["input_ids"] == ids
    with pytest.raises(ConfigError, match="at least 261"):
        train_bpe_tokenizer(TEXTS, 100)


def test_text_collator_pads_to_eights_but_not_beyond(tokenizer: Any) -> None:
    samples = [{"text": t, "label": i} for i, t in enumerate(TEXTS[:5])]
    lengths = [len(tokenizer(t)["input_ids"]) for t in TEXTS[:5]]
    batch = TextCollator(tokenizer, 64)(samples)
    assert batch["input_ids"].shape == (5, -(-max(lengths) // 8) * 8)
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"][2][: lengths[2]].tolist() == tokenizer(TEXTS[2])["input_ids"]
    assert set(batch["input_ids"][2][lengths[2] :].tolist()) == {tokenizer.pad_token_id}
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4]
    assert TextCollator(tokenizer, 13)(samples)["input_ids"].shape == (5, 13)
    assert TextCollator(tokenizer, 50, padding="max_length")(samples[:1])["input_ids"].shape == (1, 50)


def test_text_collator_refusals(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="must be a string, got NoneType"):
        TextCollator(tokenizer, 8)([{"text": None}])
    with pytest.raises(ConfigError, match="unknown padding"):
        TextCollator(tokenizer, 8, padding="longst")
    with pytest.raises(ConfigError, match="unknown preprocess"):
        TextCollator(tokenizer, 8, preprocess="htm")
    html = TextCollator(tokenizer, 32, preprocess="html")([{"text": "good<br />thing"}])
    assert tokenizer.decode(html["input_ids"][0], skip_special_tokens=True).split() == ["good", "thing"]
    odd = TextCollator(tokenizer, 32)([{"text": "broken \udcff byte"}, {"text": ""}])
    assert odd["attention_mask"].sum(1).tolist()[1] == 2  # <s></s>


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "max_tokens"), [(1, None), (7, None), (16, 100), (1000, None), (8, 1)])
def test_length_batches_hold_everything_once(batch_size: int, max_tokens: int | None) -> None:
    lengths = np.random.RandomState(0).randint(1, 60, 123).tolist()
    batches = length_batches(lengths, batch_size, max_tokens)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(123))
    assert max(map(len, batches)) <= batch_size
    if max_tokens:
        assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= max_tokens for b in batches)
    np.testing.assert_array_equal(order[restore_order(batches)], np.arange(123))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)


def test_bucket_sampler_is_seeded_and_buckets() -> None:
    lengths = np.random.RandomState(0).randint(1, 500, 1000)
    sampler = LengthBucketSampler(lengths, 16, seed=3, window=10)
    first, again = list(sampler), list(LengthBucketSampler(lengths, 16, seed=3, window=10))
    assert first == again
    assert len(first) == len(sampler) == 63
    assert sorted(i for b in first for i in b) == list(range(1000))
    spread = np.mean([np.ptp(lengths[b]) for b in first])
    assert spread < 0.3 * np.mean([np.ptp(lengths[i : i + 16]) for i in range(0, 992, 16)])
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(list(LengthBucketSampler(lengths, 16, drop_last=True))) == 62
