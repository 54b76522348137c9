"""Tasks of the Long Range Arena, as keywords of `Task`, and some that stand beside it.

Two protocols, two tasks each: `free-for-all` (any model; the splits of S4, Mega and their successors) and
`apples-to-apples` (the benchmark's own splits; at most 10 % more parameters than its Transformer).
"""

from __future__ import annotations

from typing import Any

TEXT_METRICS = ("accuracy", "f1_macro", "nll", "ece")
FREE, SAME = "free-for-all", "apples-to-apples"
_TITLES = {
    "lra_listops": "ListOps",
    "lra_text": "Text (IMDb byte by byte)",
    "lra_retrieval": "Retrieval (pairs of papers, AAN)",
    "lra_image": "Image (grey CIFAR-10, pixel by pixel)",
    "lra_pathfinder": "Pathfinder (32 x 32)",
    "lra_pathx": "Path-X (128 x 128)",
}
# ListOps has none: its ten results are not equally frequent.
_CHANCE = {
    "lra_text": 50.0,
    "lra_retrieval": 50.0,
    "lra_image": 10.0,
    "lra_pathfinder": 50.0,
    "lra_pathfinder_easy": 50.0,
    "lra_pathfinder_intermediate": 50.0,
    "lra_pathx": 50.0,
    "fashion_mnist": 10.0,
}


def _task(name: str, title: str, data: str, protocol: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "data": data,
        "protocol": protocol,
        "metrics": TEXT_METRICS,
        "primary": "accuracy",
        "chance": _CHANCE.get(data),
    }


LRA_TASKS: tuple[dict[str, Any], ...] = (
    *(_task(name, f"Long Range Arena: {title}", name, FREE) for name, title in _TITLES.items()),
    *(
        _task(f"{name}_apples", f"Long Range Arena, equal terms: {title}", name, SAME)
        for name, title in _TITLES.items()
    ),
    _task("lra_listops_curriculum", "ListOps of full size, after short expressions", "lra_listops", "curriculum"),
    # levels that the benchmark does not score: tables of their own
    _task("lra_pathfinder_easy", "Pathfinder (32 x 32), easy: paths of 6 dashes", "lra_pathfinder_easy", FREE),
    _task(
        "lra_pathfinder_intermediate",
        "Pathfinder (32 x 32), intermediate: paths of 9 dashes",
        "lra_pathfinder_intermediate",
        FREE,
    ),
    _task("lra_text_held_out", "IMDb byte by byte, selected on a tenth of the train half", "lra_text", "held-out"),
    _task("pixel_fashion_mnist", "Fashion-MNIST test set, read pixel by pixel", "fashion_mnist", "official"),
    _task("listops_short_mini", "ListOps, short expressions (2,000 embedded)", "listops_short_mini", "embedded"),
)
