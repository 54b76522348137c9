"""Runs the Triton kernels of one op in a process of its own (see `_interpreted.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def interpret() -> Callable[[str], dict[str, dict[str, float]]]:
    """Case -> output or gradient -> relative error of the named op's kernels."""
    done: dict[str, dict[str, dict[str, float]]] = {}

    def run(op: str) -> dict[str, dict[str, float]]:
        if op not in done:
            pytest.importorskip("triton")
            command = [sys.executable, str(Path(__file__).with_name("_interpreted.py")), op]
            process = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
            assert process.returncode == 0, process.stderr[-3000:]
            done[op] = json.loads(process.stdout.splitlines()[-1])
        return done[op]

    return run
