"""Code sets, emoji, and the training sets made of codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hybridzoo import build_model
from hybridzoo.data import load_data
from hybridzoo.data.readers.codes import write_class_codes
from hybridzoo.errors import ConfigError, DataError
from hybridzoo.models.maskmamba.masking import Masking
from hybridzoo.training.generation import CodeDataset, build_datasets, encode_split, load_tokenizer
from hybridzoo.training.recipe import recipe_from_dict
from hybridzoo.training.sampling import Key

GRID = 25


@pytest.fixture
def class_codes(tmp_path):
    """LlamaGen's layout: 12 images, two versions each."""
    rng = np.random.default_rng(0)
    for folder in ("toy10_codes", "toy10_labels"):
        (tmp_path / folder).mkdir()
    for i in range(12):
        np.save(tmp_path / "toy10_codes" / f"{i}.npy", rng.integers(0, 64, (1, 2, GRID)))
        np.save(tmp_path / "toy10_labels" / f"{i}.npy", np.array([i % 3]))
    return tmp_path


@pytest.fixture
def text_codes(tmp_path):
    for folder in ("codes", "texts"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        np.save(tmp_path / "codes" / f"im{i}.npy", rng.integers(0, 64, (1, GRID)))
        np.save(tmp_path / "texts" / f"im{i}.npy", rng.normal(size=(1, 2 + i, 12)).astype(np.float16))
    return tmp_path


def recipe(name="maskmamba_test", **training):
    values = {"model": {"name": name}, "data": {"name": "fashion_mnist_mini"}, "evaluation": {"metric": "loss"}}
    return recipe_from_dict({**values, "training": training})


# Reading -------------------------------------------------------------------------------------------------------------


def test_class_codes_in_order(class_codes):
    bundle = load_data("llamagen_codes", root=class_codes, num_classes=3)
    train = bundle["train"]
    assert train.ids == [str(i) for i in range(12)]  # 10 comes after 9
    assert train.labels == [i % 3 for i in range(12)]
    assert train[4]["codes"].shape == (2, GRID)
    held = load_data("llamagen_codes", root=class_codes, num_classes=3, hold_out=4)
    assert (len(held["train"]), len(held["validation"])) == (8, 4)
    assert not set(held["train"].ids) & set(held["validation"].ids)
    assert len(load_data("llamagen_codes", root=class_codes, num_classes=3, limit=5)["train"]) == 5


def test_written_codes_are_read_again(tmp_path):
    codes = torch.randint(64, (11, 2, GRID), generator=torch.Generator().manual_seed(0))
    write_class_codes(tmp_path, codes, [i % 3 for i in range(11)], name="mine40")
    train = load_data("llamagen_codes", root=tmp_path, num_classes=3)["train"]
    assert np.array_equal(np.stack([train[i]["codes"] for i in range(11)]), codes)
    assert train.labels == [i % 3 for i in range(11)]
    with pytest.raises(DataError, match="ends in a number"):
        write_class_codes(tmp_path, codes, [0] * 11, name="mine")


def test_broken_codes_are_named(class_codes):
    with pytest.raises(DataError, match=r"labels from 0 to 2, and there are 2"):
        load_data("llamagen_codes", root=class_codes, num_classes=2)
    (class_codes / "toy10_codes" / "3.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"3\.npy is no readable"):
        load_data("llamagen_codes", root=class_codes, num_classes=3)["train"][3]
    np.save(class_codes / "toy10_codes" / "3.npy", np.zeros((1, GRID)))
    with pytest.raises(DataError, match="integers, got float64"):
        load_data("llamagen_codes", root=class_codes, num_classes=3)["train"][3]
    with pytest.raises(DataError, match="one folder SET256_codes"):
        load_data("llamagen_codes", root=class_codes / "toy10_codes")
    with pytest.raises(DataError, match="hold_out=12"):
        load_data("llamagen_codes", root=class_codes, num_classes=3, hold_out=12)


def test_text_codes(text_codes):
    train = load_data("text_codes", root=text_codes)["train"]
    assert train.content.text_features(3).shape == (5, 12)
    (text_codes / "texts" / "im2.npy").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 6 files: im2\.npy"):
        load_data("text_codes", root=text_codes)


def test_emoji(tmp_path):
    (tmp_path / "img" / "google" / "64").mkdir(parents=True)
    entries = []
    for i in range(60):
        name = f"{i:04x}.png"
        image = np.zeros((64, 64, 4), np.uint8)
        image[:32] = (i, 0, 0, 255)  # the lower half is transparent
        Image.fromarray(image).save(tmp_path / "img" / "google" / "64" / name)
        toned = {"1F3FB": {"image": name}}
        entries.append({"unified": f"{i:04X}", "category": "AB"[i % 2], "image": name, "skin_variations": toned})
    entries.append({"unified": "FFFF", "category": "A", "image": "missing.png"})
    entries.append({"unified": "1F3FB", "category": "Component", "image": "0000.png"})
    (tmp_path / "emoji.json").write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match="1"):
        bundle = load_data("emoji", root=tmp_path)
    assert bundle.info.label_names == ("A", "B")
    assert sum(map(len, bundle.splits.values())) == 60
    pixels = np.asarray(bundle["train"][0]["image"])
    assert (pixels[40] == 255).all()
    assert (pixels[0, 0, 1:] == 0).all()
    with pytest.warns(UserWarning, match="1"):
        toned = load_data("emoji", root=tmp_path, skin_tones=True)
    for a in toned.splits.values():  # an emoji and its tones are in one split
        assert len(a) % 2 == 0
    with pytest.raises(DataError, match=r"must hold emoji\.json"):
        load_data("emoji", root=tmp_path / "img")


# Masking -------------------------------------------------------------------------------------------------------------


def test_masks_follow_the_schedule():
    masking = Masking(64, "cosine", 0.25)
    codes = torch.randint(64, (4000, 16))
    u = torch.rand(4000, masking.draws(16), generator=torch.Generator().manual_seed(0))
    batch = masking(codes, u)
    masked = batch["input_ids"] == 64
    want = torch.ceil(torch.cos(u[:, 0].double() * torch.pi / 2) * 16)
    assert (masked.sum(1) != want).float().mean() < 0.001  # float32 rounds a cosine across a whole number
    assert (masked.sum(1) - want).abs().max() <= 1
    assert torch.equal(batch["labels"], codes)
    assert torch.equal(batch["input_ids"][~masked], codes[~masked])
    places = masked.float().mean(0)  # every place alike
    assert places.max() - places.min() < 0.06
    assert abs(batch["condition_drop"].float().mean() - 0.25) < 0.03
    assert abs(masked.float().mean() - 2 / torch.pi) < 0.05


def test_drawings_depend_on_seed_epoch_and_image_alone():
    codes = torch.arange(6 * 2 * GRID).reshape(6, 2, GRID) % 64
    data = CodeDataset(codes, range(6), Masking(64, "cosine", 0.5), seed=3)
    whole = data.__getitems__([Key(1, i, 0) for i in range(6)])
    for i in (0, 3, 5):
        alone = data.__getitems__([Key(1, i, 0)])
        assert all(torch.equal(alone[k][0], whole[k][i]) for k in whole)
    other_epoch = data.__getitems__([Key(2, i, 0) for i in range(6)])
    assert not torch.equal(other_epoch["input_ids"], whole["input_ids"])
    other_seed = CodeDataset(codes, range(6), Masking(64, "cosine", 0.5), seed=4)
    assert not torch.equal(other_seed.__getitems__([Key(1, i, 0) for i in range(6)])["input_ids"], whole["input_ids"])
    fixed = CodeDataset(codes, range(6), Masking(64, "cosine", 0.0), seed=3, fixed=True)
    a, b = fixed.__getitems__(range(6)), fixed.__getitems__([Key(9, i, 0) for i in range(6)])
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(a["labels"], codes[:, 0])
    seen = {int(data.__getitems__([Key(e, 0, 0)])["labels"][0, 0]) for e in range(20)}
    assert seen == {int(codes[0, 0, 0]), int(codes[0, 1, 0])}  # both versions are drawn


def test_training_set_of_stored_codes(class_codes):
    bundle = load_data("llamagen_codes", root=class_codes, num_classes=3, hold_out=4)
    model = build_model("maskmamba_test", num_labels=3)
    train, validation = build_datasets(recipe(), bundle, model)
    batch = train.__getitems__([Key(0, i, 0) for i in range(8)])
    assert model(**batch).loss.isfinite()
    assert train.codes.shape == (8, 2, GRID)
    assert torch.equal(validation.labels, torch.tensor(bundle["validation"].labels))
    with pytest.raises(ConfigError, match="codebook_size is 8: they come from another tokenizer"):
        build_datasets(recipe(), bundle, build_model("maskmamba_test", num_labels=3, codebook_size=8))
    with pytest.raises(ConfigError, match="the model has 16 tokens"):
        build_datasets(recipe(), bundle, build_model("maskmamba_test", num_labels=3, image_size=8))


def test_training_set_of_texts(text_codes):
    bundle = load_data("text_codes", root=text_codes)
    model = build_model("maskmamba_test", condition="text", text_dim=12, text_length=5)
    train, _ = build_datasets(recipe(), bundle, model)
    batch = train.__getitems__([Key(0, i, 0) for i in (0, 5)])
    assert batch["text_embeds"].shape == (2, 5, 12)
    assert (batch["text_embeds"][0, :3] == 0).all()
    full = bundle["train"].content.text_features(5)
    np.testing.assert_allclose(batch["text_embeds"][1], full[:5])
    assert model(**batch).loss.isfinite()


def test_training_set_of_images(tmp_path):
    torch.manual_seed(0)
    small = {"base_channels": 32, "z_channels": 8, "codebook_size": 16}
    build_model("llamagen_vq_mini", **small).save_pretrained(tmp_path / "vq")
    bundle = load_data("fashion_mnist_mini", limit=12)
    model = build_model("maskmamba_mini", tokenizer=str(tmp_path / "vq"), codebook_size=16, num_layers=1)
    train, validation = build_datasets(recipe("maskmamba_mini", augment={"hflip": 0.5}), bundle, model)
    assert train.codes.shape == (12, 2, 49)
    assert validation.codes.shape[1] == 1
    tokenizer = load_tokenizer(model.config)
    pixels = np.stack([np.asarray(bundle["train"][i]["image"]) for i in range(12)])
    x = torch.from_numpy(pixels)[:, None].float() / 127.5 - 1
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(x).indices.flatten(1), train.codes[:, 0].long())
        assert torch.equal(tokenizer.encode(x.flip(-1)).indices.flatten(1), train.codes[:, 1].long())
    assert torch.equal(encode_split(tokenizer, bundle["train"], batch_size=5), train.codes[:, :1])
    with pytest.raises(ConfigError, match="codebook_size=256 and the tokenizer has codebook_size=16"):
        load_tokenizer(build_model("maskmamba_mini", tokenizer=str(tmp_path / "vq"), device="meta").config)
    with pytest.raises(ConfigError, match="name a tokenizer"):
        load_tokenizer(build_model("maskmamba_mini", tokenizer=None, device="meta").config)
