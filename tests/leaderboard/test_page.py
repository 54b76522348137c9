"""The page in a headless browser, as a reader uses it: offline, from file://, without a single console message."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from board_results import with_pictures

from hybridzoo.eval.leaderboard.build import Outputs, build

PHONE, DESKTOP = (390, 844), (1440, 900)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    return build(with_pictures(folder / "results"), Outputs.in_folder(folder / "out")).page


@pytest.fixture
def visit(chromium, file) -> Iterator[Callable[..., Any]]:
    """Opens the page; fails the test for console messages, errors, and anything asked of a network."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(fragment: str = "", size: tuple[int, int] = DESKTOP, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or complaints.append(r.url))
        page.goto(file.as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def models(page: Any) -> list[str]:
    return page.locator("#board th.name .title > span:nth-child(2)").all_inner_texts()


def fragment(page: Any) -> str:
    return unquote(urlparse(page.url).fragment)


# Tabs and the table -----------------------------------------------------------------------------------------------


def test_the_overview_leads_to_a_task(visit):
    page = visit()
    assert page.locator("#cards .card").count() == 3
    assert "3 tasks" in page.locator("#overview .facts").inner_text()
    page.get_by_role("link", name="Fashion-MNIST test set").click()
    assert fragment(page).startswith("task=fashion_mnist")
    assert page.get_by_role("tab", selected=True).inner_text().startswith("fashion_mnist")
    assert models(page) == [
        "iformer_mini",
        "iformer_mini_attention",
        "baseline_logistic",
        "iformer_test",
        "papernet",
    ]


def test_groups_ranks_bold_and_marks_of_papers(visit):
    page = visit("#task=fashion_mnist")
    assert page.locator("th.group").count() == 3  # full, subset, paper
    first = page.locator("tr.entry").nth(0)
    assert first.locator("td.best.primary .value").inner_text() == "93.80"
    assert first.locator("td.primary .error").inner_text() == "±0.20"
    assert page.locator("tr.entry td.rank").all_inner_texts() == ["1", "2", "3", "1", "–"]
    paper = page.locator("tr.entry", has_text="papernet")
    assert paper.locator(".badge.paper").count() == 1
    assert paper.locator("td.best").count() == 0


def test_sorting_stays_inside_groups_and_the_third_press_gives_the_ranking_back(visit):
    page = visit("#task=fashion_mnist")
    ranking = models(page)
    head = page.get_by_role("columnheader", name="Parameters")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert models(page)[:3] == ["baseline_logistic", "iformer_mini_attention", "iformer_mini"]
    assert models(page)[3:] == ["iformer_test", "papernet"]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert models(page)[:3] == ["iformer_mini", "iformer_mini_attention", "baseline_logistic"]
    head.get_by_role("button").click()
    assert (head.get_attribute("aria-sort"), models(page)) == ("none", ranking)


def test_search_takes_wildcards_and_several_words(visit):
    page = visit("#task=fashion_mnist")
    page.get_by_role("searchbox").fill("ifor*mini measured")
    assert models(page) == ["iformer_mini", "iformer_mini_attention"]
    assert page.locator("#count").inner_text() == "2 of 5 rows"
    page.get_by_role("searchbox").fill("(")
    assert "No row matches" in page.locator("#board").inner_text()
    page.get_by_role("button", name="Reset").click()
    assert len(models(page)) == 5


def test_filters_combine_and_show_as_chips(visit):
    page = visit("#task=fashion_mnist")
    page.locator("#filter-panel summary").click()
    for title in ("Family", "Status", "Track", "Parameters", "Licence of the weights", "Device", "Backend"):
        assert page.locator("#filter-sets legend", has_text=title).count() == 1, title
    page.get_by_role("checkbox", name="measured 4").check(force=True)
    page.get_by_role("checkbox", name="1M to 10M").check(force=True)
    assert models(page) == ["iformer_mini", "iformer_mini_attention"]
    assert page.locator("#filter-count").inner_text() == "2"
    page.keyboard.press("Escape")
    assert page.locator("#filter-panel").get_attribute("open") is None
    page.get_by_role("button", name="Status: measured").click()
    assert page.locator("#chips button").count() == 1


def test_columns_are_chosen(visit):
    page = visit("#task=vader")
    assert page.get_by_role("columnheader", name="Weighted precision").count() == 0
    page.locator("#column-panel summary").click()
    page.get_by_role("checkbox", name="Weighted precision").check()
    assert page.get_by_role("columnheader", name="Weighted precision").count() == 1
    page.reload()
    assert page.get_by_role("columnheader", name="Weighted precision").count() == 1
    page.locator("#column-panel summary").click()
    page.get_by_role("button", name="Usual").click()
    assert page.get_by_role("columnheader", name="Weighted precision").count() == 0


def test_details_hold_command_commit_runs_classes_and_links_that_lead_to_files(visit, file):
    page = visit("#task=fashion_mnist")
    page.get_by_role("button", name="Details of iformer_mini", exact=True).click()
    detail = page.locator("tr.detail")
    assert "hybridzoo eval iformer_mini fashion_mnist --seed 2" in detail.locator("pre").inner_text()
    assert "git show 1a2b3c4d" in detail.inner_text()
    assert detail.locator("table tbody tr").count() == 3
    links = page.locator("#board a").evaluate_all("all => all.map((a) => a.href)")
    local = [Path(unquote(urlparse(link).path)) for link in links if link.startswith("file:")]
    assert len(local) >= 8
    assert [path for path in local if not path.is_file()] == []
    assert any(link.startswith("https://arxiv.org") for link in links)
    page.goto(file.as_uri() + "#task=texture_ad_mini")
    page.get_by_role("button", name="Details of mambaad_mini").click()
    assert "98.25" in page.locator("tr.detail").inner_text()


def test_the_command_is_copied(visit):
    page = visit("#task=fashion_mnist", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the command of iformer_test").click()
    page.get_by_text("copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "hybridzoo eval iformer_test fashion_mnist --seed 0"


def test_the_address_keeps_the_view(visit, file):
    page = visit(
        "#task=fashion_mnist&q=iformer_*&status=measured&sort=metric.top1&order=up&cost=throughput&axis=linear"
    )
    assert models(page) == ["iformer_mini_attention", "iformer_mini", "iformer_test"]
    page.get_by_role("button", name="Details of iformer_mini_attention").click()
    address = page.url
    again = visit()
    again.goto(address)
    assert models(again) == models(page)
    assert again.locator("tr.detail").count() == 1
    assert again.locator("#plot-cost").input_value() == "throughput"
    assert again.locator("#plot-linear").is_checked()
    again.goto(file.as_uri() + "#task=no_such_task&q=x")
    assert again.locator("#overview").is_visible()


def test_the_csv_holds_the_rows_in_view(visit):
    page = visit("#task=fashion_mnist&q=iformer_mini*")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    assert waiting.value.suggested_filename == "leaderboard-fashion_mnist.csv"
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
    assert [row["model"] for row in rows] == ["iformer_mini", "iformer_mini_attention"]
    assert float(rows[0]["top1"]) == pytest.approx(93.8)
    assert float(rows[0]["throughput"]) == 900


# Plot and pictures ------------------------------------------------------------------------------------------------


def test_the_plot_has_points_fronts_hover_and_opens_rows(visit):
    page = visit("#task=fashion_mnist")
    assert page.locator("#chart .mark").count() == 5
    assert page.locator("#chart path.front").count() == 1  # the two others have one row each
    assert page.locator("#chart .whisker").count() == 4
    assert "logarithmic" in page.locator("#chart").inner_text()
    point = page.get_by_role("button", name="iformer_mini: Top-1")
    point.hover()
    hover = page.locator("#hover")
    assert hover.is_visible()
    assert "93.80 % ± 0.20" in hover.inner_text()
    point.click()
    assert page.locator("tr.detail").count() == 1
    page.locator("#plot-cost").select_option("throughput")
    assert page.locator("#chart .mark").count() == 2
    page.locator("#plot-linear").check()
    assert "logarithmic" not in page.locator("#chart").inner_text()


def test_pictures_texts_and_matrices_are_shown(visit):
    page = visit("#task=texture_ad_mini")
    pictures = page.locator("#samples img")
    assert pictures.count() == 3  # the heat map and two worst images; what is no picture is left out
    assert pictures.first.evaluate("image => image.complete && image.naturalWidth") == 800
    page.get_by_role("button", name="Enlarge: Heat maps of mambaad_mini").click()
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("ArrowRight")
    assert "2 of 3" in page.locator("#viewer-caption").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    page = visit("#task=vader")
    assert "<b>universally</b>" in page.locator("#samples pre").inner_text()
    page.get_by_role("button", name="Details of roberta_bilstm_test").click()
    matrix = page.locator("tr.detail svg.confusion")
    assert matrix.get_attribute("aria-label") == "Confusion matrix: bad: 30 of 40 right; good: 55 of 60 right"


# Everybody --------------------------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(visit):
    page = visit()
    page.locator("#tab-overview").focus()
    page.keyboard.press("ArrowDown")
    assert fragment(page) == "task=vader"
    page.keyboard.press("End")
    assert fragment(page) == "task=texture_ad_mini"
    page.keyboard.press("ArrowRight")
    assert fragment(page) == ""
    page.keyboard.press("ArrowUp")
    page.locator("#sort-label").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "sort-label"
    page.locator("#chart .mark").first.focus()
    assert page.locator("#hover").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 1


def test_what_a_screen_reader_is_told(visit):
    page = visit("#task=fashion_mnist")
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("tablist", name="Tasks").count() == 1
    assert page.get_by_role("rowheader", name="iformer_mini", exact=True).count() == 1
    assert "5 rows" in page.locator("#board caption").inner_text()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, summary, [role=button]")].filter((e) =>
             !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    page.goto(page.url.replace("fashion_mnist", "texture_ad_mini"))
    assert page.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize("size", [PHONE, (768, 1024), DESKTOP], ids=["phone", "tablet", "desktop"])
@pytest.mark.parametrize("task", ["", "#task=fashion_mnist", "#task=texture_ad_mini", "#task=vader"])
def test_no_width_scrolls_sideways(visit, size, task):
    page = visit(task, size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_a_phone_shows_cards_that_sort(visit):
    page = visit("#task=fashion_mnist", PHONE)
    card = page.locator("tr.entry").first
    assert card.evaluate("e => getComputedStyle(e).display") == "grid"
    assert card.locator("td.primary").evaluate("e => getComputedStyle(e, '::before').content") == '"Top-1"'
    page.locator("#sort-by").select_option("params")
    assert models(page)[0] == "baseline_logistic"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_and_pictures_of_the_page(visit, scheme, tmp_path):
    page = visit("#task=fashion_mnist", color_scheme=scheme)
    dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every((v) => v < 90)"
    assert page.evaluate(dark) is (scheme == "dark")
    shot = tmp_path / "page.png"
    page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 30_000
    contrast = page.evaluate(CONTRAST)
    assert len(contrast) > 60
    assert [found for found in contrast if found["ratio"] < 4.4] == []
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(dark) is False


# Contrast of texts with the first opaque background behind them (WCAG 2).
CONTRAST = """() => {
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const f = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => {
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const behind = (node) => { for (let e = node; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
  const found = [];
  const texts = "h1, h2, p, th, td, td .error, small, .badge, .links a, button, figcaption";
  for (const e of document.querySelectorAll(texts)) {
    if (!e.textContent.trim() || !e.offsetParent) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    found.push({ text: e.textContent.slice(0, 40), ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) });
  }
  return found;
}"""


def test_without_results_the_page_says_what_to_do(chromium, tmp_path):
    page = chromium.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(build(tmp_path / "none", Outputs.in_folder(tmp_path / "out")).page.as_uri())
    assert "hybridzoo eval MODEL TASK" in page.locator("main").inner_text()
    assert errors == []
    page.close()
