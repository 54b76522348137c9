"""`hybridzoo doctor`: what this machine offers, and why something is off."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

# module to import -> (distribution, extra of hybridzoo, what it gives)
OPTIONAL = {
    "accelerate": ("accelerate", "train", "training, several devices"),
    "matplotlib": ("matplotlib", "train", "loss curves, confusion matrices"),
    "sklearn": ("scikit-learn", "eval", "F1 and AUROC, the TF-IDF baseline"),
    "datasets": ("datasets", "eval", "data sets from the Hugging Face Hub"),
    "onnx": ("onnx", "export", "ONNX export"),
    "onnxscript": ("onnxscript", "export", "ONNX export"),
    "onnxruntime": ("onnxruntime", "export", "checking ONNX files"),
    "tensorboard": ("tensorboard", "log", "report_to: tensorboard"),
    "trackio": ("trackio", "log", "report_to: trackio"),
    "wandb": ("wandb", "log", "report_to: wandb"),
    "lm_eval": ("lm-eval", "lm", "language-model harness"),
    "triton": ("triton", "cuda", "Triton kernels"),
    "mamba_ssm": ("mamba-ssm", "cuda", "selective-scan kernels"),
    "causal_conv1d": ("causal-conv1d", "cuda", "causal-convolution kernels"),
    "fla": ("fla-core", "fla", "delta-rule and linear-attention kernels"),
}
REQUIRED = ("torch", "transformers", "timm", "safetensors", "huggingface_hub", "omegaconf", "numpy", "pillow", "jinja2")
# Distributions that no extra of hybridzoo installs.
ALONE = ("trackio", "wandb", "triton")


def register(app: typer.Typer) -> None:
    app.command(name="doctor")(doctor_command)


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Also run every op backend of this machine against the torch reference.")
    ] = False,
) -> None:
    """Show versions, devices, optional packages and why one is off, hub settings, cache paths and op backends.

    Exit code 1 when something that is installed does not work, or when the self-test fails.

    \b
    hybridzoo doctor
    hybridzoo doctor --json
    hybridzoo doctor --selftest
    """
    from hybridzoo.cli._table import echo_json

    report = collect()
    if selftest:
        report["selftest"] = run_selftest()
    if as_json:
        echo_json(report)
    else:
        _print(report)
    broken = [name for name, entry in report["optional"].items() if entry["state"] == "broken"]
    failed = [r for r in report.get("selftest", []) if not r["ok"]]
    if broken or failed:
        raise typer.Exit(1)


def collect() -> dict[str, Any]:
    """Everything that the command prints, as plain values."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "optional": {name: _probe(name) for name in OPTIONAL},
        "hub": _hub(),
        "paths": _paths(),
        "backends": _backends(),
    }


def _versions() -> dict[str, str | None]:
    from hybridzoo import __version__

    versions: dict[str, str | None] = {"hybridzoo": __version__, "python": platform.python_version()}
    for name in REQUIRED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions | {"platform": platform.platform()}


def _devices() -> list[dict[str, Any]]:
    import torch

    threads = torch.get_num_threads()
    found: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "threads": threads}
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append(
                {
                    "device": f"cuda:{index}",
                    "name": facts.name,
                    "memory_gib": round(facts.total_memory / 2**30, 1),
                    "capability": f"{facts.major}.{facts.minor}",
                    "bf16": torch.cuda.is_bf16_supported(),
                    "cuda": torch.version.cuda,
                }
            )
    else:
        why = "torch was built without CUDA" if torch.version.cuda is None else "no CUDA device or driver is visible"
        found.append({"device": "cuda", "off": why})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return found


def _probe(module: str) -> dict[str, Any]:
    """Import it in earnest: a package that is installed may still fail (wrong CUDA, wrong torch)."""
    distribution, extra, use = OPTIONAL[module]
    entry: dict[str, Any] = {"distribution": distribution, "for": use}
    install = distribution if module in ALONE else f"'hybridzoo[{extra}]'"
    if importlib.util.find_spec(module) is None:
        return entry | {"state": "absent", "fix": f"pip install {install}"}
    try:
        importlib.import_module(module)
    except BaseException as error:  # an ABI break raises anything, also SystemExit
        if isinstance(error, KeyboardInterrupt):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        fix = f"pip install --force-reinstall {distribution}"
        return entry | {"state": "broken", "reason": f"{type(error).__name__}: {first}", "fix": fix}
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(sys.modules[module], "__version__", "unknown")
    return entry | {"state": "on", "version": version}


def _hub() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    return {
        "endpoint": constants.ENDPOINT,
        "offline": constants.HF_HUB_OFFLINE,
        "logged_in": get_token() is not None,
    }


def _paths() -> dict[str, str]:
    from huggingface_hub import constants

    from hybridzoo._paths import asset_root

    paths = {
        "package": str(Path(__file__).resolve().parent.parent),
        "hub cache": constants.HF_HUB_CACHE,
        "torch extensions": os.environ.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions")),
    }
    return paths | {kind: str(asset_root(kind)) for kind in ("recipes", "eval", "checkpoints")}


def _backends() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from hybridzoo.ops import report

    return [asdict(row) for row in report()]


def run_selftest() -> list[dict[str, Any]]:
    """Compare every available op backend with its reference, outputs and gradients, on this machine's device."""
    from dataclasses import asdict

    from hybridzoo.ops import selftest

    return [asdict(row) for row in selftest()]


def _print(report: dict[str, Any]) -> None:
    from hybridzoo.cli._table import text_table

    def section(title: str) -> None:
        typer.echo(f"\n{title}\n{'=' * len(title)}")

    section("Versions")
    for name, version in report["versions"].items():
        typer.echo(f"{name:<16} {version or 'missing'}")
    section("Devices")
    for device in report["devices"]:
        facts = ", ".join(f"{k} {v}" for k, v in device.items() if k != "device")
        typer.echo(f"{device['device']:<16} {facts}")
    section("Optional packages")
    rows = []
    for name, entry in report["optional"].items():
        why = entry.get("reason") or entry["for"]
        rows.append([name, entry["state"], entry.get("version"), why, entry.get("fix", "")])
    typer.echo(text_table(["package", "state", "version", "for / why off", "fix"], rows))
    section("Hugging Face Hub")
    for name, value in report["hub"].items():
        typer.echo(f"{name:<16} {value}")
    section("Paths")
    for name, value in report["paths"].items():
        typer.echo(f"{name:<16} {value}")
    section("Op backends")
    if report["backends"]:
        state = {True: "auto", False: "on"}
        rows = [
            [b["op"], b["backend"], state[b["auto"]] if b["available"] else "off", b["reason"], b["fix"]]
            for b in report["backends"]
        ]
        typer.echo(text_table(["op", "backend", "state", "why", "fix"], rows))
    else:
        typer.echo("none registered")
    if "selftest" in report:
        section("Self-test")
        for result in report["selftest"]:
            ran = f"largest error {result['error']:.1e} (allowed {result['tolerance']:.0e})"
            name = f"{result['op']} {result['backend']} {result['example']}"
            typer.echo(f"{'ok  ' if result['ok'] else 'FAIL'} {name}: {result['detail'] or ran}")
