"""Photographs the leaderboard's page for README.md: docs/leaderboard/board.png, and board-dark.png beside it.

    python docs/board_picture.py [--task TASK] [--page PAGE]     the overview, or one task's tab

Needs playwright and Chromium (apt-get install chromium).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "leaderboard"
WIDTH, HEIGHT = 1280, 760


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", help="the tab; the overview if left out")
    parser.add_argument("--page", type=Path, default=FOLDER / "index.html")
    given = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("HYBRIDZOO_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        print("Chromium is missing: apt-get install chromium, or set HYBRIDZOO_CHROMIUM", file=sys.stderr)
        return 2
    fragment = f"#task={given.task}" if given.task else ""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme, name in (("light", "board.png"), ("dark", "board-dark.png")):
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page.goto(given.page.resolve().as_uri() + fragment)
            page.screenshot(path=FOLDER / name)
            print(FOLDER / name)
        browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
