"""The page in a browser: what its scripts draw. Runs where chromium is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from board_results import sample

from hybridzoo.eval.leaderboard.build import Outputs, build

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    return build(sample(folder / "results"), Outputs.in_folder(folder / "out")).page


def dom(page: Path, *, fragment: str = "", script: str = "") -> str:
    """The document after its scripts, and then `script`, have run; an uncaught error fails the test."""
    text = page.read_text(encoding="utf-8")
    watch = "<script>window.onerror=(m)=>{document.title='ERROR '+m}</script>"
    text = text.replace("<body>", "<body>" + watch).replace("</body>", f"<script>{script}</script></body>")
    probe = page.with_name("probe.html")
    probe.write_text(text, encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", probe.as_uri() + fragment]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, check=True)
    assert "<title>ERROR" not in done.stdout, re.search(r"<title>(.*?)</title>", done.stdout)
    return done.stdout


def models(document: str) -> list[str]:
    return re.findall(r'<th scope="row" class="name"><span[^>]*></span>([\w.]+)', document)


def test_the_first_task_is_drawn_with_groups_marks_and_front(page):
    document = dom(page)
    assert models(document) == [
        "iformer_mini",
        "iformer_mini_attention",
        "baseline_logistic",
        "iformer_test",
        "papernet",
    ]
    assert document.count('class="group"') == 3
    assert document.count('class="mark"') == 5
    assert document.count('class="front"') == 1
    assert re.search(r'best"><span class="value">93\.80</span>', document)
    assert 'aria-selected="true"' in document


def test_fragment_sort_search_filter_and_details_work_together(page):
    fragment = "#task=fashion_mnist&q=iformer_*&status=measured&sort=metric.top1&order=up"
    open_first = "document.querySelector('tr.entry button').click()"
    document = dom(page, fragment=fragment, script=open_first)
    assert models(document) == ["iformer_mini_attention", "iformer_mini", "iformer_test"]
    assert 'aria-sort="ascending"' in document
    assert document.count('class="detail"') == 1
    assert "hybridzoo eval iformer_mini_attention fashion_mnist --seed 2" in document
    assert "3 of 5 rows" in document


def test_the_other_tab_and_the_keyboard(page):
    arrow = (
        "document.getElementById('tabs').dispatchEvent(new KeyboardEvent('keydown',{key:'ArrowRight',bubbles:true}))"
    )
    document = dom(page, script=arrow)
    assert models(document) == ["roberta_bilstm_mini", "baseline_tfidf"]
    assert "local changes" in document


def test_secondary_metrics_wait_behind_a_button(page):
    assert "Weighted precision" not in re.search(r"<thead>.*?</thead>", dom(page, fragment="#task=vader"), re.S)[0]
    press = "document.getElementById('all-columns').click()"
    assert (
        "Weighted precision"
        in re.search(r"<thead>.*?</thead>", dom(page, fragment="#task=vader", script=press), re.S)[0]
    )
