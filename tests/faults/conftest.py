"""The helpers of this folder are importable by name (pytest runs with import-mode=importlib)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fault_case import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)
