"""What the fault tables share: a workplace with things to break, and the check that every case goes through.

A fault is a row of a table: what is done, which error it must be, and what its message must say.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hybridzoo.errors import HybridzooError


@dataclass
class Work:
    """A temporary folder, and makers of files and models in it."""

    path: Path

    def file(self, name: str, content: bytes | str = b"") -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def model(self, name: str = "iformer_test", **values: Any) -> Any:
        from hybridzoo import build_model

        return build_model(name, **values).eval()

    def saved(self, name: str = "iformer_test", **options: Any) -> Path:
        self.model(name).save_pretrained(self.path / "saved", **options)
        return self.path / "saved"

    def image(self, name: str = "a.png", size: tuple[int, int] = (8, 8)) -> Path:
        from PIL import Image

        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(target)
        return target

    def idx(self, name: str, shape: tuple[int, ...], count: int | None = None, kind: int = 8) -> Path:
        size = count if count is not None else math.prod(shape)
        head = bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
        return self.file(name, head + bytes(size))


@dataclass
class Case:
    """One bad input: what is done, the class of the error, and patterns that its message must hold.

    One pattern is what was given, one is the fix or what is expected.
    """

    name: str
    error: type[HybridzooError]
    patterns: tuple[str, ...]
    act: Callable[[Work], Any]

    def check(self, work: Work) -> None:
        with pytest.raises(HybridzooError) as caught:
            self.act(work)
        text = str(caught.value)
        assert isinstance(caught.value, self.error), f"{type(caught.value).__name__}: {text}"
        for pattern in self.patterns:
            assert re.search(pattern, text), f"{pattern!r} not in: {text}"
        assert len(text) < 2000, "an error is read by a person"
        assert "Traceback" not in text
