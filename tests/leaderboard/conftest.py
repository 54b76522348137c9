"""The helpers of this folder are importable by name (pytest runs with import-mode=importlib); a headless browser."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

HOW = "Debian: apt-get install chromium; elsewhere put chromium on PATH or its path into HYBRIDZOO_CHROMIUM"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium, driven by Playwright. Without it the test is skipped on a developer's machine and fails in CI."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = os.environ.get("HYBRIDZOO_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    lacking = "Chromium is not installed" if program is None else ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking = "playwright is not installed (pip install playwright)"
    if lacking:
        text = f"{lacking}, so the page cannot be tested. {HOW}"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
