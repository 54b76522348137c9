"""Tasks of anomaly detection, as keywords of `Task`. Rows state both evaluators, in the names of their metrics."""

from __future__ import annotations

from typing import Any

# Same in both evaluators; the others carry the evaluator's name (hybridzoo.eval.metrics.anomaly says how they differ).
COMMON = ("i_auroc", "i_ap", "i_f1max", "p_auroc", "p_ap")
METRICS = (
    *COMMON,
    *("p_f1max_ader", "aupro_ader", "mad_ader"),
    *("p_f1max_exact", "aupro_exact", "mad_exact"),
)


def _task(name: str, title: str, protocol: str = "official", primary: str = "mad_ader") -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "data": name,
        "protocol": protocol,
        "metrics": METRICS,
        "primary": primary,
    }


ANOMALY_TASKS: tuple[dict[str, Any], ...] = (
    _task("texture_ad_mini", "TextureAD, three CC0 textures (276 test images)", "embedded"),
    _task("texture_ad", "TextureAD, ten textures with synthetic defects"),
    _task("texture_ad_damage", "TextureAD, four textures drawn damaged by their artists"),
    _task("mvtec_ad", "MVTec-AD, 15 classes"),
    _task("mvtec_3d", "MVTec 3D-AD, colour images of 10 classes"),
    _task("visa", "VisA, 12 classes"),
    _task("real_iad", "Real-IAD, 30 classes, all views"),
    _task("uni_medical", "Uni-Medical, 3 classes"),
    _task("coco_ad", "COCO-AD, split 0"),
    _task("btad", "BTAD, 3 classes"),
    _task("mpdd", "MPDD, 6 classes"),
    _task("anomaly_folder", "A folder of your own", "given", "i_auroc"),
)
