"""Opening images, and sequences of image files. PIL only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridzoo.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def open_image(source: Any, name: str | None = None) -> Any:
    """A fully decoded PIL image.

    Args:
        source: path, bytes, PIL image, or uint8 array (H, W), (H, W, 3) or (H, W, 4).
        name: how errors call it; the path if left out.

    Raises:
        DataError: missing, damaged, cut off, not an image, or of absurd size; it names the image.
    """
    from PIL import Image, UnidentifiedImageError

    name = name or (str(source) if isinstance(source, (str, Path)) else f"the {type(source).__name__}")
    try:
        if isinstance(source, Image.Image):
            source.load()
            return source
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))):
                raise DataError(
                    f"{name}: expected a uint8 array (H, W), (H, W, 3) or (H, W, 4), got {source.dtype} {source.shape}"
                )
            return Image.fromarray(source)
        if not isinstance(source, (str, Path, bytes)):
            raise DataError(f"{name} is no image: expected a path, bytes, a PIL image or a uint8 array")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return image.copy() if image.format == "GIF" else image
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image that can be read (its content is no known image format)") from error
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: the image is damaged or cut off ({error})") from error


def to_mode(image: Any, channels: int) -> Any:
    """A PIL image with 1 (grey) or 3 (RGB) channels; 16-bit grey is scaled to 8 bits instead of being clipped to
    white.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        array = np.asarray(image).astype(np.int64)
        image = Image.fromarray((array >> 8 if array.max(initial=0) > 255 else array).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


class ImageFiles(Sequence[Any]):
    """Images of files, opened when asked for."""

    def __init__(self, paths: Sequence[Path], hashes: Sequence[bytes] | None = None):
        self.paths = list(paths)
        self.hashes = list(hashes) if hashes is not None else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        try:
            return open_image(self.paths[index])
        except DataError as error:
            raise DataError(
                f"{error}. verify='decode' finds such images while the set is read and leaves them out"
            ) from error

    def select(self, indices: Sequence[int]) -> ImageFiles:
        return ImageFiles([self.paths[i] for i in indices], [self.hashes[i] for i in indices] if self.hashes else None)

    def digests(self) -> list[bytes] | None:
        return self.hashes


def check_image(path: Path, how: str) -> tuple[str | None, bytes | None]:
    """(reason why the image is unusable or None, hash of its bytes or None). `how`: `decode` reads all, `header` the
    start.
    """
    from PIL import Image

    try:
        if how == "decode":
            data = path.read_bytes()
            open_image(data, path.name)
            return None, hashlib.blake2b(data, digest_size=12).digest()
        with Image.open(path):
            return None, None
    except DataError as error:
        return str(error).removeprefix(f"{path.name}: ").removeprefix(f"{path.name} "), None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "is not an image that can be read", None
