"""Hard use: every drill, counted. CI runs it at small scale, by hand it writes docs/reliability.md.

    python tests/drills/run.py                          small scale, a minute or two
    python tests/drills/run.py --scale full --write     full scale, and the page
    python tests/drills/run.py --only hub --only configs --count 500

Exit code 1 if anything ended in a way that it must not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import broken_checkpoints
import fuzzed_configs
import hostile_files
import hub_faults
import interrupted_runs
from tally import Tally

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "build" / "drills"  # the counts of each drill's last run, so that drills may run one by one


@dataclass(frozen=True)
class Drill:
    """A drill, and how often it is done at each scale."""

    run: Callable[[int, Path, int], Tally]
    small: int
    full: int


DRILLS = {
    "hostile": Drill(hostile_files.drill, 1000, 1000),
    "configs": Drill(fuzzed_configs.drill, 200, 10_000),
    "checkpoints": Drill(broken_checkpoints.drill, 72, 1000),
    "hub": Drill(hub_faults.drill, 15, 500),
    "two-downloads": Drill(hub_faults.two_processes, 1, 10),
    "kills": Drill(interrupted_runs.kills, 3, 100),
    "shared-folder": Drill(interrupted_runs.shared_folder, 1, 10),
    "full-disk": Drill(interrupted_runs.full_disk, 2, 24),
}


def perform(name: str, count: int, seed: int) -> Tally:
    """One drill in a folder of its own."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"hybridzoo-drill-{name}-") as folder:
        tally = DRILLS[name].run(count, Path(folder), seed)
    tally.seconds = time.perf_counter() - begin
    return tally


def keep(name: str, tally: Tally) -> None:
    """Write the counts of a drill to KEPT."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(vars(tally), indent=1), encoding="utf-8")


def kept() -> list[Tally]:
    """The counts of every drill that has run, in the order of DRILLS."""
    found = []
    for name in DRILLS:
        if (KEPT / f"{name}.json").is_file():
            values = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
            found.append(Tally(**{**values, "ends": Counter(values["ends"])}))
    return found


def page(tallies: list[Tally], seed: int) -> str:
    """docs/reliability.md."""
    import torch
    import transformers

    machine = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    lines = [
        "# Reliability",
        "",
        "What happens when things go wrong, tried and counted. `tests/drills/run.py --write` wrote this page "
        f"(seed {seed}; {machine}, transformers {transformers.__version__}).",
        "CI repeats every drill at small scale.",
        "",
        "| drill | tried | how it ended | ended wrongly |",
        "|---|--:|---|--:|",
    ]
    for tally in tallies:
        ends = ", ".join(f"{count:,} {end}" for end, count in tally.ends.most_common())
        lines.append(f"| {tally.name} | {tally.tried:,} | {ends} | {tally.bad} |")
    for tally in tallies:
        lines += ["", f"## {tally.name}", "", f"{tally.about[0].upper()}{tally.about[1:]}.", ""]
        lines += [f"- *{end}*: {meaning}." for end, meaning in tally.allowed.items()]
        lines += [f"- **{end}**: wrong." for end in tally.ends if end not in tally.allowed]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--only", action="append", choices=list(DRILLS), help="repeatable")
    parser.add_argument("--count", type=int, help="instead of the scale's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} from all drills that ran")
    parser.add_argument("--nothing", action="store_true", help="run no drill; with --write")
    given = parser.parse_args(arguments)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tallies = []
    for name in () if given.nothing else given.only or DRILLS:
        count = given.count or getattr(DRILLS[name], given.scale)
        print(f"{name}: {count} …", flush=True)
        tally = perform(name, count, given.seed)
        tallies.append(tally)
        keep(name, tally)
        print(f"  {tally.tried} tried, {dict(tally.ends)}, {tally.seconds:.0f} s", flush=True)
        for example in tally.examples:
            print(f"  WRONG {example}", flush=True)
    if given.write:
        PAGE.write_text(page(kept(), given.seed), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 1 if any(tally.bad for tally in tallies) else 0


if __name__ == "__main__":
    raise SystemExit(main())
