"""Images of detection sets: upright, RGB, and of the size that the annotations were made on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.data.images import open_image, to_mode
from hybridzoo.errors import DataError


def open_upright(source: Any, size: tuple[int, int] | None = None, name: str | None = None) -> Any:
    """An RGB PIL image in the orientation that its boxes refer to.

    A camera's rotation mark (EXIF) is applied. Where the annotated size is the one of the pixels as stored and not of
    the rotated image, the boxes were drawn on the stored pixels, and the mark is ignored. 16-bit images are scaled to
    8 bits, CMYK and palettes are converted, transparency is dropped.

    Args:
        source: path, bytes, PIL image, or uint8 array.
        size: annotated (width, height); None takes what comes.
        name: how errors call it.

    Raises:
        DataError: unreadable, or of another size than annotated.
    """
    from PIL import ImageOps

    image = open_image(source, name)
    name = name or (str(source) if isinstance(source, (str, Path)) else "the image")
    stored = image.size
    upright = ImageOps.exif_transpose(image)
    if size is not None and upright.size != tuple(size):
        if stored != tuple(size):
            raise DataError(
                f"{name} has {upright.size[0]} x {upright.size[1]} pixels, but it was annotated as {size[0]} x "
                f"{size[1]}; these boxes belong to another version of the image"
            )
        upright = image
    if min(upright.size) < 1:
        raise DataError(f"{name} has no pixels (size {upright.size})")
    return to_mode(upright, 3)


class UprightFiles(Sequence[Any]):
    """Images of files, opened when asked for.

    Args:
        paths: of the images.
        sizes: annotated (width, height) of each, or None.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[tuple[int, int] | None]):
        self.paths, self.sizes = list(paths), list(sizes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return open_upright(self.paths[index], self.sizes[index])

    def select(self, indices: Sequence[int]) -> UprightFiles:
        return UprightFiles([self.paths[i] for i in indices], [self.sizes[i] for i in indices])


class RgbArrays(Sequence[Any]):
    """Images of uint8 arrays (H, W, 3) of any sizes, as PIL images."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = list(arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: Any) -> Any:
        from PIL import Image

        return Image.fromarray(self.arrays[index])

    def select(self, indices: Sequence[int]) -> RgbArrays:
        return RgbArrays([self.arrays[i] for i in indices])

    def digests(self) -> list[bytes]:
        import hashlib

        return [hashlib.blake2b(np.ascontiguousarray(a).tobytes(), digest_size=12).digest() for a in self.arrays]


def header_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file after its rotation mark, from its header.

    Raises:
        DataError: missing, or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be read") from error
    return (height, width) if turned else (width, height)
