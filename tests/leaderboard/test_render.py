"""LEADERBOARD.md, leaderboard.csv and the page: contents, safety, determinism."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from board_results import make_result, sample, write

from hybridzoo.errors import SourceError
from hybridzoo.eval.leaderboard.build import Outputs, build, default_outputs, default_results
from hybridzoo.eval.leaderboard.webpage import recipe_files, script_json


@pytest.fixture
def built(tmp_path) -> Outputs:
    return build(sample(tmp_path / "results"), Outputs.in_folder(tmp_path / "out"))


def page_json(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="board-data">(.*?)</script>', text, re.S)[1])


class Structure(HTMLParser):
    """Tags, attributes and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def ids(self) -> list[str]:
        return [a["id"] for _, a in self.tags if "id" in a]


def parse(page: Path) -> Structure:
    structure = Structure()
    structure.feed(page.read_text(encoding="utf-8"))
    return structure


def test_same_results_give_the_same_bytes(tmp_path, built):
    first = {p.name: p.read_bytes() for p in (built.markdown, built.csv, built.page)}
    again = build(tmp_path / "results", built)
    assert {p.name: p.read_bytes() for p in (again.markdown, again.csv, again.page)} == first


def test_the_page_is_one_file_without_outside_resources(built):
    structure = parse(built.page)
    assert not [a for tag, a in structure.tags if tag in ("script", "img", "iframe") and "src" in a]
    links = [a["href"] for tag, a in structure.tags if tag == "link"]
    assert links == ["data:,"]
    text = built.page.read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_every_element_that_the_script_asks_for_exists_once(built):
    ids = parse(built.page).ids()
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'byId\("([\w-]+)"\)', built.page.read_text(encoding="utf-8")))
    assert asked - set(ids) == set()
    assert {"tabs", "board", "search", "csv", "chart", "theme"} <= asked


def test_the_page_can_be_used_without_a_mouse(built):
    structure = parse(built.page)
    by_id = {a["id"]: (tag, a) for tag, a in structure.tags if "id" in a}
    assert by_id["tabs"][1]["role"] == "tablist"
    assert by_id["results"][1]["role"] == "tabpanel"
    assert by_id["count"][1]["role"] == "status"  # changes are announced
    assert any(tag == "a" and a.get("class") == "skip" for tag, a in structure.tags)
    assert ("html", {"lang": "en"}) in structure.tags
    assert all("aria-label" in a for _, a in structure.tags if a.get("role") in ("region", "search", "tablist"))
    script = built.page.read_text(encoding="utf-8")
    for needed in ("aria-sort", "aria-selected", "aria-expanded", "ArrowRight", 'scope: "col"', 'scope: "row"'):
        assert needed in script


def test_the_data_of_the_page(built):
    data = page_json(built.page)
    assert [t["name"] for t in data["tasks"]] == ["vader", "fashion_mnist"]  # texts come before images
    task = data["tasks"][1]
    assert [g["kind"] for g in task["groups"]] == ["measured-full", "measured-subset", "paper"]
    best = next(r for r in task["rows"] if r["label"] == "iformer_mini")
    assert best["rank"] == 1
    assert best["seeds"] == 3
    assert best["metrics"]["top1"] == {"value": pytest.approx(93.8), "error": pytest.approx(0.2), "kind": "sd"}
    assert best["costs"] == {
        "params": 1_900_000, "throughput": 900.0, "latency_ms": None, "gmacs": None, "peak_memory_mb": None
    }  # fmt: skip
    assert [c["key"] for c in task["costs"]] == ["params", "throughput"]  # only what some row states
    assert [b["text"] for b in best["badges"]] == ["3 seeds"]
    assert {r["id"] for r in task["rows"]}.__len__() == len(task["rows"])
    assert all(r["group"] in {g["key"] for g in task["groups"]} for r in task["rows"])
    families = {f["name"] for f in data["families"]}
    assert families == {"iformer", "roberta_bilstm", "baseline"}


def test_every_link_of_a_row_leads_to_a_file(built):
    data = page_json(built.page)
    hrefs = [run["json"] for t in data["tasks"] for r in t["rows"] for run in r["runs"]]
    assert len(hrefs) == 11
    assert all((built.page.parent / href).is_file() for href in hrefs)
    text = built.markdown.read_text(encoding="utf-8")
    for href in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        assert (built.markdown.parent / href).is_file()


def test_commit_links_need_the_repositorys_address(tmp_path, built):
    runs = [run for t in page_json(built.page)["tasks"] for r in t["rows"] for run in r["runs"]]
    assert not any(run["commit_href"] for run in runs)
    build(tmp_path / "results", built, repository="https://example.org/zoo/")
    runs = [run for t in page_json(built.page)["tasks"] for r in t["rows"] for run in r["runs"] if run["commit"]]
    assert {run["commit_href"] for run in runs} == {f"https://example.org/zoo/commit/{'1a2b3c4d' * 5}"}


def test_text_from_result_files_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script><!-- \u2028"
    write(make_result(notes=evil), tmp_path / "results")
    outputs = build(tmp_path / "results", Outputs.in_folder(tmp_path / "out"))
    text = outputs.page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert "<!--" not in text
    facts = dict(page_json(outputs.page)["tasks"][0]["rows"][0]["facts"])
    assert facts["Notes"] == evil
    assert "<" not in script_json({"a": "<b>&"})


def test_a_source_that_is_no_web_address_is_not_linked(tmp_path):
    from dataclasses import replace

    made = make_result("papernet", {"top1": 96.0}, status="paper")
    bad = replace(made, provenance=replace(made.provenance, source_url="javascript:alert(1)"))
    write(bad, tmp_path / "results")
    outputs = build(tmp_path / "results", Outputs.in_folder(tmp_path / "out"))
    assert page_json(outputs.page)["tasks"][0]["rows"][0]["source_url"] is None
    assert "javascript:" not in outputs.markdown.read_text(encoding="utf-8")


def test_csv_has_one_line_per_row_and_metric(built):
    with open(built.csv, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = [x for x in lines if x["model"] == "iformer_mini" and x["metric"] == "top1"]
    assert len(found) == 1
    assert (found[0]["value"], found[0]["error"], found[0]["error_kind"], found[0]["best"]) == (
        "93.8",
        "0.2",
        "sd",
        "1",
    )
    assert len(lines) == 2 * 3 + 2 + 1 + 2 * 2 + 1


def test_markdown_marks_the_best_and_keeps_groups_apart(built):
    text = built.markdown.read_text(encoding="utf-8")
    assert "**93.80** ± 0.20" in text
    assert text.count("**Measured, full test set**") == 1
    assert "| 96.00 |" in text
    assert "**96.00**" not in text


def test_an_empty_board_is_still_a_page(tmp_path):
    outputs = build(tmp_path / "none", Outputs.in_folder(tmp_path / "out"))
    assert page_json(outputs.page)["tasks"] == []
    assert "No results yet" in outputs.markdown.read_text(encoding="utf-8")


def test_recipes_are_found_by_their_title():
    for title, file in recipe_files().items():
        assert title in file.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="--out"):
        build(tmp_path / "none", Outputs.in_folder(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"


def test_defaults_are_the_repositorys_places():
    outputs = default_outputs()
    assert outputs.markdown.name == "LEADERBOARD.md"
    assert outputs.page.parts[-3:] == ("docs", "leaderboard", "index.html")
    assert default_results().parts[-2:] == ("eval", "results")
