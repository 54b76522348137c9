"""Tasks of the Long Range Arena, and the rivals' published rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hybridzoo import build_model
from hybridzoo._paths import asset_root
from hybridzoo.cli import app
from hybridzoo.data.lra.tokenizers import lra_tokenizer
from hybridzoo.eval import evaluate, list_tasks, load_task
from hybridzoo.eval.harness import run_task
from hybridzoo.eval.schema import Result, read_results

TASKS = ("lra_listops", "lra_text", "lra_retrieval", "lra_image", "lra_pathfinder", "lra_pathx")
# Section 5 of the specification: accuracies in the order of TASKS, None where the model failed.
ROWS = {
    "transformer_tay": (36.37, 64.27, 57.46, 42.44, 71.40, None),
    "linear_transformer": (16.13, 65.90, 53.09, 42.34, 75.30, None),
    "performer": (18.01, 65.40, 53.82, 42.77, 77.05, None),
    "transformer_mega": (37.11, 65.21, 79.14, 42.94, 71.83, None),
    "luna_256": (37.98, 65.78, 79.56, 47.86, 78.55, None),
    "s4_v1": (58.35, 76.02, 87.09, 87.26, 86.05, 88.10),
    "s4_legs": (59.60, 86.82, 90.90, 88.65, 94.20, 96.35),
    "sgconv": (61.45, 89.20, 91.11, 87.97, 95.46, 97.83),
    "liquid_s4": (62.75, 89.02, 91.20, 89.50, 94.8, 96.66),
    "s5": (62.15, 89.31, 91.40, 88.00, 95.33, 98.58),
    "mega_chunk": (58.76, 90.19, 90.97, 85.80, 94.41, 93.81),
    "mega": (63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
    "megalodon": (63.79, 90.48, 91.76, 89.42, 98.13, 98.17),
    "hgrn": (59.95, 88.14, 94.23, 88.69, 92.92, 97.50),
}
EQUAL_TERMS = ("transformer_tay", "linear_transformer", "performer")


def test_both_protocols_have_all_six_tasks() -> None:
    kinds = []
    for name in TASKS:
        free, same = load_task(name), load_task(f"{name}_apples")
        assert (free.protocol, same.protocol) == ("free-for-all", "apples-to-apples")
        assert load_task(name, "apples-to-apples") == same
        assert (free.primary, free.split) == ("accuracy", "test")
        kinds.append(free.kind.split("-classification")[0])
    assert kinds == ["text", "text", "text-pair", "image", "image", "image"]
    assert {"pixel_fashion_mnist", "listops_short_mini", "lra_text_held_out"} <= set(list_tasks())
    assert load_task("fashion_mnist", "official").name == "fashion_mnist"


@pytest.mark.parametrize("model", ROWS)
def test_paper_rows_are_the_published_ones(model: str) -> None:
    suffix = "_apples" if model in EQUAL_TERMS else ""
    for task, value in zip(TASKS, ROWS[model]):
        folder = asset_root("eval") / "results" / f"{task}{suffix}" / model
        if value is None:
            assert not folder.exists()
            continue
        result = Result.from_json(folder / "paper.json")
        assert result.provenance.status == "paper"
        assert result.metrics["accuracy"].value == value
        assert result.task.protocol == load_task(task + suffix).protocol
        assert result.provenance.source_url is not None


def test_chelas_own_published_row_stays_blank() -> None:
    rows = [r for _, r in read_results(asset_root("eval") / "results") if r.model.family == "chela"]
    assert not [r for r in rows if r.provenance.status == "paper"]


@pytest.fixture(scope="module")
def listops_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_model("chela_test", max_length=256, num_labels=10).save_pretrained(folder)
    lra_tokenizer("listops", []).save_pretrained(folder)
    return folder


def test_a_result_does_not_depend_on_the_batches(listops_model: Path) -> None:
    few = run_task(listops_model, "listops_short_mini", limit=60, batch_size=1)
    many = run_task(listops_model, "listops_short_mini", limit=60, batch_size=60)
    assert few.result.metrics["accuracy"] == many.result.metrics["accuracy"]
    assert few.result.metrics["nll"].value == pytest.approx(many.result.metrics["nll"].value, abs=1e-4)


def test_command_line(listops_model: Path, tmp_path: Path) -> None:
    run = CliRunner()
    out = ["--limit", "40", "--out", str(tmp_path)]
    done = run.invoke(app, ["eval", str(listops_model), "listops_short_mini", *out])
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    (file,) = tmp_path.rglob("*.json")
    assert file.parts[-3] == "listops_short_mini"
    (tmp_path / "in.txt").write_text("[MAX 6 2 X\n( ( ( [MAX 6 ) 2 ) ] )\n")
    done = run.invoke(app, ["predict", str(listops_model), str(tmp_path / "in.txt"), "--format", "csv"])
    assert done.exit_code == 0, done.output


def test_pairs_on_the_command_line(tmp_path: Path) -> None:
    build_model("chela_pair_test", vocab_size=259, num_labels=2).save_pretrained(tmp_path / "model")
    lra_tokenizer("bytes", []).save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.txt").write_text("one\tother\nalone\n")
    done = CliRunner().invoke(app, ["predict", str(tmp_path / "model"), str(tmp_path / "pairs.txt"), "--format", "csv"])
    assert done.exit_code == 0, done.output
    assert "1 of 2 inputs could not be used" in done.output
    assert "one tab between them" in done.output


def test_models_of_another_kind_are_refused(listops_model: Path) -> None:
    from hybridzoo.errors import ConfigError

    with pytest.raises(ConfigError, match="needs a model for text-pair-classification"):
        evaluate(listops_model, "lra_retrieval", root="absent")
