"""Runs the Triton kernels of one op in a process of its own (see `_kernels_against_reference.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kernel_errors() -> Callable[[str, str], dict[str, dict[str, float]]]:
    """(op, device) -> case -> output or gradient -> relative error; "cpu" is Triton's interpreter."""
    done: dict[tuple[str, str], dict[str, dict[str, float]]] = {}

    def run(op: str, device: str = "cpu") -> dict[str, dict[str, float]]:
        if (op, device) not in done:
            pytest.importorskip("triton")
            command = [sys.executable, str(Path(__file__).with_name("_kernels_against_reference.py")), op, device]
            process = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
            assert process.returncode == 0, process.stderr[-3000:]
            done[op, device] = json.loads(process.stdout.splitlines()[-1])
        return done[op, device]

    return run
