"""Readers of the Long Range Arena's images in miniature copies of the official layouts, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridzoo.data import DataWarning, load_data
from hybridzoo.data.lra import read_images
from hybridzoo.data.lra.pathfinder_files import write_pathfinder
from hybridzoo.errors import DataError


@pytest.fixture
def pathfinder(tmp_path: Path) -> Path:
    return write_pathfinder(tmp_path, 24, contour_length=6, batch=8)


def test_pathfinder_splits_are_those_of_s4(pathfinder: Path) -> None:
    bundle = load_data("lra_pathfinder", root=pathfinder.parent.parent, level="easy")
    order = torch.utils.data.random_split(
        range(24),  # pyright: ignore[reportArgumentType]
        [20, 2, 2],
        generator=torch.Generator().manual_seed(42),
    )
    ids = [f"curv_baseline/imgs/{i // 8}/sample_{i % 8}.png" for i in range(24)]
    for name, part in zip(("train", "validation", "test"), order):
        assert bundle[name].ids == [ids[i] for i in part]
    same = load_data("lra_pathfinder", root=pathfinder.parent, level="easy", protocol="apples-to-apples")
    assert [i for s in same for i in same[s].ids] == ids
    assert same.info.sizes == {"train": 19, "validation": 3, "test": 2}
    assert bundle.info.label_names == ("separate", "connected")
    assert "seed 0" in bundle.info.notes[0]


def test_pathfinder_files_are_read_in_numerical_order(tmp_path: Path) -> None:
    folder = write_pathfinder(tmp_path, 12, contour_length=6, batch=1)
    bundle = load_data("lra_pathfinder", root=folder, level="easy", protocol="apples-to-apples")
    assert bundle["train"].ids[2:4] == ["curv_baseline/imgs/2/sample_0.png", "curv_baseline/imgs/3/sample_0.png"]


def test_missing_images_and_wrong_metadata(pathfinder: Path) -> None:
    (pathfinder / "imgs" / "0" / "sample_3.png").unlink()
    (pathfinder / "imgs" / "1" / "sample_2.png").write_bytes(b"")
    metadata = pathfinder / "metadata" / "2.npy"
    lines = metadata.read_text().splitlines()
    lines[0] = "imgs/2 sample_0.png 0"
    lines[1] = lines[1].replace(" 1 ", " 7 ", 1) if " 1 7" in lines[1] else "imgs/2 sample_1.png 1 yes"
    metadata.write_text("\n".join(lines) + "\n\n")
    with pytest.raises(DataError, match="4 of 24 samples are unusable"):
        load_data("lra_pathfinder", root=pathfinder, level="easy")
    with pytest.warns(DataWarning, match="left out 4 unusable"):
        bundle = load_data("lra_pathfinder", root=pathfinder, level="easy", max_skipped=0.5)
    assert [s.reason for s in bundle.info.skipped] == [
        "there is no such image",
        "the file is empty",
        "3 fields, expected at least folder, file, index, label",
        "label 'yes' is neither 0 nor 1",
    ]
    metadata.write_bytes(b"\xff\xfe\x00not text")
    with pytest.raises(DataError, match="neither text"):
        load_data("lra_pathfinder", root=pathfinder, level="easy")
    np.save(metadata, np.arange(12.0).reshape(3, 4))
    with pytest.raises(DataError, match="an array of strings"):
        load_data("lra_pathfinder", root=pathfinder, level="easy")
    np.save(metadata, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):  # pickles are never opened
        load_data("lra_pathfinder", root=pathfinder, level="easy")
    metadata.write_bytes(b"\x93NUMPY\x01\x00cut")
    with pytest.raises(DataError, match="cannot be read"):
        load_data("lra_pathfinder", root=pathfinder, level="easy")


def test_pathfinder_of_another_size_or_level(pathfinder: Path) -> None:
    with pytest.raises(DataError, match="has no curv_contour_length_14/metadata"):
        load_data("lra_pathfinder", root=pathfinder.parent.parent)
    with pytest.raises(DataError, match="unknown level"):
        load_data("lra_pathfinder", root=pathfinder.parent.parent, level="mean")
    bundle = load_data("lra_pathx", root=pathfinder, level="easy")
    with pytest.raises(DataError, match="has 32 x 32 pixels, expected 128 x 128"):
        bundle["train"][0]["image"]


def test_the_empty_image_of_the_release_is_left_out(pathfinder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_images, "BLACKLIST", frozenset({"pathfinder32/curv_baseline/imgs/0/sample_5.png"}))
    with pytest.warns(DataWarning, match="an empty file of lra_release"):
        bundle = load_data("lra_pathfinder", root=pathfinder, level="easy")
    assert sum(bundle.info.sizes.values()) == 23


def _cifar(folder: Path, per_file: int = 20) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6 * per_file, 3, 32, 32)).astype(np.uint8)
    labels = (np.arange(6 * per_file) % 10).astype(np.uint8)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        rows = slice(i * per_file, (i + 1) * per_file)
        records = np.concatenate([labels[rows, None], images[rows].reshape(per_file, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    return images.transpose(0, 2, 3, 1), labels


def test_grey_cifar(tmp_path: Path) -> None:
    images, labels = _cifar(tmp_path / "cifar-10-batches-bin")
    bundle = load_data("lra_image", root=tmp_path)
    assert bundle.info.sizes == {"train": 90, "validation": 10, "test": 20}
    order = torch.randperm(100, generator=torch.Generator().manual_seed(42)).tolist()
    assert bundle["train"].ids == [f"train-{i}" for i in order[:90]]
    for sample, row in ((bundle["train"][0], order[0]), (bundle["test"][3], 103)):
        assert sample["label"] == labels[row]
        expected = np.asarray(Image.fromarray(images[row]).convert("L"))
        np.testing.assert_array_equal(np.asarray(sample["image"]), expected)
    same = load_data("lra_image", root=tmp_path, protocol="apples-to-apples")
    assert same["validation"].ids == [f"train-{i}" for i in range(90, 100)]
    grey = np.asarray(same["train"][0]["image"]).astype(float)
    assert np.abs(grey - images[0] @ [0.2989, 0.587, 0.114]).max() < 1.01


def test_broken_cifar(tmp_path: Path) -> None:
    _cifar(tmp_path / "a")
    path = tmp_path / "a" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="no multiple of 3073"):
        load_data("lra_image", root=tmp_path / "a")
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "test_batch").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match="pickles are not opened here"):
        load_data("lra_image", root=tmp_path / "py")
    with pytest.raises(DataError, match=r"has no data_batch_1\.bin"):
        load_data("lra_image", root=tmp_path)
