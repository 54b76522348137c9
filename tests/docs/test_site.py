"""The documentation as a site: it builds without a warning, and every link leads to a file of the site."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        text = "mkdocs is not installed: pip install 'hybridzoo[docs]'"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Links(HTMLParser):
    """What a page links to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        for name in ("href", "src"):
            if values.get(name):
                self.found.append(values[name])


def links(page: Path) -> list[str]:
    parser = Links()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


@pytest.mark.slow
def test_every_link_leads_to_a_file(site):
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in links(page):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            if not target.exists():
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.slow
def test_there_is_a_page_for_each_model_and_each_op(site):
    from hybridzoo import registry
    from hybridzoo.ops import dispatch

    for name in registry.families():
        text = (site / "models" / f"{name}.html").read_text(encoding="utf-8")
        assert "From the registry and the results" in text
    for name in dispatch.ops():
        text = (site / "ops" / f"{name}.html").read_text(encoding="utf-8")
        assert "bit-reproducible" in text
        assert f"hybridzoo.ops.{name}." in text
    assert "build_model" in (site / "api" / "models.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis.com" not in text
    assert 'src="https://' not in text
    board = (site / "leaderboard" / "index.html").read_text(encoding="utf-8")
    assert "hybridzoo leaderboard" in board
    assert any((site / "leaderboard" / "results").rglob("*.json"))
