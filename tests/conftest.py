"""For all tests: offline, one torch thread, seeded, caches in a temporary folder, and the toy plug-in family."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read by huggingface_hub, matplotlib and torch at import, so set before any of them is imported.
_CACHE = tempfile.mkdtemp(prefix="hybridzoo-tests-")
os.environ.update(
    HF_HOME=f"{_CACHE}/huggingface",
    HF_HUB_CACHE=f"{_CACHE}/huggingface/hub",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_XET="1",
    HF_TOKEN="",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=f"{_CACHE}/matplotlib",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    TORCHINDUCTOR_CACHE_DIR=f"{_CACHE}/inductor",
)
TESTS = Path(__file__).resolve().parent
PLUGINS = TESTS / "plugins"


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, alone or in the suite."""
    import random

    random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed(0)


@pytest.fixture
def toy() -> Iterator[str]:
    """The plug-in family of tests/plugins, registered for one test as an installed plug-in is; the name of a model.

    Only for the time of the test: other tests compare generated tables with the zoo's own models.
    """
    from importlib.metadata import EntryPoint

    from hybridzoo import registry

    registry.families()
    before = dict(registry._families), dict(registry._models)
    sys.path.insert(0, str(PLUGINS))
    sys.modules.pop("hybridzoo_toy", None)  # its import is what registers it
    try:
        registry._load_plugin(EntryPoint("toy", "hybridzoo_toy", registry.ENTRY_POINT_GROUP))
        assert "toy" in registry.families(), "the plug-in did not load"
        yield "toy_test"
    finally:
        sys.path.remove(str(PLUGINS))
        registry._families.clear()
        registry._families.update(before[0])
        registry._models.clear()
        registry._models.update(before[1])
