"""A run of `hybridzoo bench lm` as Markdown: what was measured, then what the first model gains over the others."""

from __future__ import annotations

from typing import Any

from hybridzoo.bench.report import table

_TITLES = {
    "decode": "Decoding with a full cache",
    "prefill": "Reading a prompt",
    "train": "Training steps, bf16 weights, AdamW",
    "scaling": "Training steps on one and on all devices",
}


def render(document: dict[str, Any]) -> list[str]:
    """One table for each kind of measurement, and one of ratios."""
    rows, lines = document["rows"], []
    measured = [row for row in rows if "ratio" not in row]
    for what in dict.fromkeys(row["what"] for row in measured):
        part = [row for row in measured if row["what"] == what]
        lines += _cache(part) if what == "cache" else _speed(_TITLES.get(what, str(what)), part)
    gains = [row for row in rows if "ratio" in row]
    if gains:
        body = [[g["what"], g["ours"], g["other"], f"{g['ratio']:.2f}"] for g in gains]
        lines += [*table(["ratio of", "first", "to", "times"], body), ""]
    return lines


def _speed(title: str, rows: list[dict[str, Any]]) -> list[str]:
    body = []
    for row in rows:
        setting = [row["model"], row.get("mode", "-"), str(row["batch"]), f"{row['context']:,}"]
        if "error" in row:
            body.append([*setting, row["error"], "", "", ""])
            continue
        memory, cache = row.get("peak_memory_mb"), row.get("cache_mb")
        devices = f" on {row['processes']}" if row.get("processes") else ""
        devices += f" ({row['speedup']:.2f} x)" if row.get("speedup") else ""
        body.append(
            [
                *setting,
                f"{row['tokens_per_sec']:,.0f}{devices}",
                f"{row['ms']:.2f}",
                "" if memory is None else f"{memory / 1024:.1f}",
                "" if cache is None else f"{cache:,.0f}",
            ]
        )
    header = ["model", "mode", "batch", "tokens", "tokens/s", "ms", "peak GiB", "cache MB"]
    return [f"**{title}**", "", *table(header, body), ""]


def _cache(rows: list[dict[str, Any]]) -> list[str]:
    body = [
        [r["model"], *(f"{r[k]:.1f}" if r.get(k) is not None else "-" for k in ("paper_mb", "full_mb", "measured_mb"))]
        for r in rows
        if "error" not in r
    ]
    header = ["model", "paper's counting, 8,000 tokens", f"all, {rows[0].get('context', 0):,} tokens", "measured"]
    return ["**Cache of one sequence, MB**", "", *table(header, body), ""]
