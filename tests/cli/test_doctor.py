"""`hybridzoo doctor` reports what is there, what is not, and what is broken."""

from __future__ import annotations

import json
import sys

import torch

from hybridzoo.cli import doctor


def test_report_is_complete_json(cli):
    report = json.loads(cli("doctor", "--json").stdout)
    assert set(report) == {"versions", "devices", "optional", "hub", "paths", "backends"}
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["devices"][0]["device"] == "cpu"
    assert any(d["device"].startswith("cuda") for d in report["devices"])
    assert set(report["optional"]) == set(doctor.OPTIONAL)
    assert report["paths"]["package"].endswith("hybridzoo")
    ops = {row["op"] for row in report["backends"]}
    assert ops
    assert all(
        any(r["op"] == op and r["backend"] == "torch" and r["available"] for r in report["backends"]) for op in ops
    )


def test_text_names_each_section(cli):
    text = cli("doctor").stdout
    for title in ("Versions", "Devices", "Optional packages", "Hugging Face Hub", "Paths", "Op backends"):
        assert f"\n{title}\n" in text


def test_an_absent_package_comes_with_its_install_line(monkeypatch):
    monkeypatch.setitem(doctor.OPTIONAL, "no_such_package", ("no-such-package", "cuda", "nothing"))
    entry = doctor._probe("no_such_package")
    assert entry["state"] == "absent"
    assert entry["fix"] == "pip install 'hybridzoo[cuda]'"


def test_a_package_that_fails_to_import_is_broken_with_the_reason(cli, monkeypatch, tmp_path):
    (tmp_path / "broken_kernels.py").write_text("raise OSError('undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.OPTIONAL, "broken_kernels", ("broken-kernels", "cuda", "kernels"))
    done = cli("doctor", "--json", code=1)
    entry = json.loads(done.stdout)["optional"]["broken_kernels"]
    assert entry["state"] == "broken"
    assert entry["reason"] == "OSError: undefined symbol: _ZN3c10"
    assert "broken_kernels" not in sys.modules


def test_a_failed_selftest_is_exit_code_1(cli, monkeypatch):
    row = {"op": "x", "backend": "y", "example": "z", "ok": False, "worst": "out.0", "error": 1.0, "tolerance": 1e-5}
    monkeypatch.setattr(doctor, "run_selftest", lambda: [{**row, "detail": ""}])
    done = cli("doctor", "--selftest", code=1)
    assert "FAIL x y z: largest error 1.0e+00 (allowed 1e-05)" in done.stdout


def test_selftest_compares_backends_with_the_reference():
    results = doctor.run_selftest()
    assert results
    assert all(r["ok"] for r in results)


def test_offline_mode_is_shown(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert doctor._hub()["offline"] is True
