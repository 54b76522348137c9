"""Result files for the leaderboard tests, written through the schema itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hybridzoo.eval.schema import (
    DatasetRef,
    Efficiency,
    Metric,
    ModelRef,
    PredictionsRef,
    Provenance,
    Result,
    Run,
    TaskRef,
    Weights,
)

SOURCE = {"source": "Table 3", "source_url": "https://arxiv.org/abs/0000.00000"}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_result(
    model: str = "iformer_mini",
    values: dict[str, float] | None = None,
    *,
    task: str = "fashion_mnist",
    family: str = "iformer",
    params: int | None = 1_900_000,
    status: str = "measured",
    track: str = "full",
    protocol: str = "official",
    seed: int = 0,
    commit: str = "1a2b3c4d" * 5,
    n: tuple[int, int] = (10_000, 10_000),
    date: str = "2026-01-31T12:00:00Z",
    stderr: float | None = 0.25,
    primary: str = "top1",
    throughput: float | None = None,
    dirty: bool = False,
    data: str = "fashion_mnist",
    **more: Any,
) -> Result:
    values = values or {"top1": 93.5, "ece": 0.021}
    metrics = {
        name: Metric(value=v, stderr=stderr if status == "measured" else None, unit="" if name == "ece" else "%")
        for name, v in values.items()
    }
    run = Run(
        date=date,
        command=f"hybridzoo eval {model} {task} --seed {seed}",
        seed=0,
        training_seed=seed,
        dtype="float32",
        device="CPU",
        git_commit=commit,
        git_dirty=dirty,
        versions={"torch": "2.14.1"},
    )
    measured = status == "measured"
    provenance = Provenance(
        status=status,
        predictions=PredictionsRef(path="x.predictions.jsonl.gz", sha256=sha("x")) if measured else None,
        **({} if measured else SOURCE),
        notes=more.pop("notes", ""),
    )
    return Result(
        model=ModelRef(
            name=model,
            family=family,
            params=params,
            weights=Weights(uri=f"./runs/{model}_{seed}", sha256=sha(f"{model}{seed}")) if measured else None,
        ),
        task=TaskRef(
            name=task,
            version=1,
            protocol=protocol,
            dataset=DatasetRef(
                id=data,
                split="test",
                n_total=n[1],
                n_used=n[0],
                sha256=sha(data) if measured else None,
            ),
            primary=primary,
        ),
        metrics=metrics,
        provenance=provenance,
        track=track,
        run=run if measured else None,
        efficiency=Efficiency(throughput=throughput) if throughput else None,
        **more,
    )


def write(result: Result, results: Path, **options: Any) -> Path:
    path = result.path_in(results, **options)
    result.to_json(path)
    return path


TEXT = {
    "task": "vader",
    "primary": "f1_macro",
    "track": "mini",
    "n": (840, 840),
    "data": "vader",
    "protocol": "80/10/10",
}


def sample(results: Path) -> Path:
    """Two tasks; three seeds, a baseline, every track and status."""
    for seed, value in enumerate((93.6, 94.0, 93.8)):
        more = {"seed": seed, "date": f"2026-01-31T12:00:0{seed}Z"}
        write(make_result(values={"top1": value, "ece": 0.02}, throughput=900, **more), results)
        values = {"top1": value - 0.5, "ece": 0.018}
        write(make_result("iformer_mini_attention", values, params=1_850_000, throughput=400, **more), results)
    write(make_result("baseline_logistic", {"top1": 84.4, "ece": 0.05}, family="baseline", params=7850), results)
    values = {"top1": 70.1, "ece": 0.1}
    write(make_result("iformer_test", values, params=300_000, track="subset", n=(500, 10_000)), results)
    write(make_result("papernet", {"top1": 96.0}, params=25_000_000, status="paper"), results)
    values = {"accuracy": 71.2, "f1_macro": 69.9, "precision_weighted": 72.0}
    write(make_result("roberta_bilstm_mini", values, family="roberta_bilstm", dirty=True, **TEXT), results)
    values = {"accuracy": 68.0, "f1_macro": 66.0}
    write(make_result("baseline_tfidf", values, family="baseline", params=None, **TEXT), results)
    return results


TEXTURES = {
    "task": "texture_ad_mini",
    "family": "mambaad",
    "primary": "mad_ader",
    "track": "mini",
    "n": (276, 276),
    "data": "texture_ad_mini",
    "protocol": "embedded",
}


def with_pictures(results: Path) -> Path:
    """`sample`, and two results with things to look at: a heat map, worst images, a text, a confusion matrix."""
    from PIL import Image

    sample(results)
    values = {"mad_ader": 85.0, "i_auroc": 97.0, "p_auroc": 95.0, "aupro_ader": 90.0}
    classes = {"bark": {"i_auroc": 98.25, "normal": 40}, "sand": {"i_auroc": 95.75, "normal": 52}}
    path = write(make_result("mambaad_mini", values, **TEXTURES, details={"per_class": classes}), results)
    Image.linear_gradient("L").resize((800, 320)).convert("RGB").save(path.with_name(f"{path.stem}.heat.png"))
    worst = path.with_name(f"{path.stem}.errors")
    worst.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 48), (200, 40 * number, 60)).save(worst / f"0{number}.png")
    path.with_name(f"{path.stem}.notes.png").write_bytes(b"no picture at all")
    matrix = {"labels": ["bad", "good"], "counts": [[30, 10], [5, 55]]}
    values = {"accuracy": 85.0, "f1_macro": 84.0}
    more = {**TEXT, "date": "2026-02-01T12:00:00Z", "details": {"confusion_matrix": matrix}}
    path = write(make_result("roberta_bilstm_test", values, family="roberta_bilstm", **more), results)
    path.with_name(f"{path.stem}.text.txt").write_text("It is a truth <b>universally</b> acknowledged", "utf-8")
    return results
