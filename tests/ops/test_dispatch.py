"""Choosing a backend: order of precedence, errors that teach, one warning, isolation between threads and tasks."""

from __future__ import annotations

import asyncio
import threading
import warnings

import pytest
import torch

from hybridzoo.errors import BackendError, UnknownNameError
from hybridzoo.ops import dispatch
from hybridzoo.ops.dispatch import Backend, BackendWarning, Example, Op, use_backend


def _scaled(by: float):
    def run(x: torch.Tensor) -> torch.Tensor:
        return x * by

    return run


@pytest.fixture
def toy(monkeypatch):
    """An op whose backends differ in what they return, so that a result tells which one ran."""
    monkeypatch.setattr(dispatch, "_ops", dict(dispatch.ops()))
    monkeypatch.setattr(dispatch, "_warned", set())
    monkeypatch.setattr(dispatch, "_env_cache", {})
    monkeypatch.delenv(dispatch.ENV, raising=False)

    def no_odd(call):
        return "the length is odd" if call["x"].shape[0] % 2 else None

    def broken(x):
        return torch.where(x > 0, x, x.detach())

    return dispatch.register_op(
        Op(
            name="toy",
            backends=(
                Backend(name="torch", priority=0, run=_scaled(1.0), exportable=True),
                Backend(name="fast", priority=20, run=_scaled(2.0), supports=no_odd),
                Backend(name="absent", priority=30, run=_scaled(3.0), symbol="no_such_package:f", fix="pip install it"),
                Backend(name="eager", priority=25, run=_scaled(4.0), supports=no_odd, traceable=False),
                Backend(name="fresh", priority=40, run=_scaled(5.0), auto_veto="not checked"),
                Backend(name="gpu", priority=50, run=_scaled(6.0), devices=("cuda",)),
                Backend(name="broken", priority=-1, run=broken),
            ),
            examples=lambda device: [Example("pair", {"x": torch.tensor([1.0, -1.0], device=device)}, ("x",))],
        )
    )


EVEN, ODD = torch.ones(4), torch.ones(3)


def _factor(op: Op, x: torch.Tensor = EVEN, backend: str = "auto") -> float:
    return op({"x": x}, backend)[0].item()


def test_auto_takes_the_best_that_fits(toy):
    assert _factor(toy) == 4.0
    assert _factor(toy, ODD) == 1.0


def test_the_report_says_what_a_backend_is_for(toy, monkeypatch):
    monkeypatch.setattr(
        toy, "backends", (*toy.backends, Backend(name="long", priority=0, run=_scaled(7.0), note="long"))
    )
    row = next(r for r in dispatch.report("cpu") if r.backend == "long")
    assert (row.auto, row.reason) == (False, "long")


def test_argument_beats_context_beats_environment(toy, monkeypatch):
    monkeypatch.setenv(dispatch.ENV, "toy=fast")
    assert _factor(toy) == 2.0
    with use_backend("torch"):
        assert _factor(toy) == 1.0
        assert _factor(toy, backend="eager") == 4.0
        with use_backend(toy="fresh"):
            assert _factor(toy) == 5.0
        with use_backend("auto"):
            assert _factor(toy) == 4.0
    assert _factor(toy) == 2.0


def test_default_name_leaves_ops_without_it_on_auto(toy, monkeypatch):
    monkeypatch.setenv(dispatch.ENV, "mamba_ssm")
    assert _factor(toy) == 4.0


@pytest.mark.parametrize(
    ("name", "x", "words"),
    [
        ("fast", ODD, "the length is odd"),
        ("absent", EVEN, "no_such_package is not installed (pip install it)"),
        ("gpu", EVEN, "it runs on cuda, the inputs are on cpu"),
    ],
)
def test_a_backend_asked_for_that_cannot_run_says_why(toy, name, x, words):
    with pytest.raises(BackendError) as caught:
        toy({"x": x}, name)
    assert words in str(caught.value)
    assert 'backend="torch" always runs' in str(caught.value)
    with use_backend(toy=name), pytest.raises(BackendError):
        toy({"x": x})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("toy=fsat", "did you mean 'fast'"),
        ("tyo=fast", "did you mean 'toy'"),
        ("trch", "did you mean 'torch'"),
        ("torch,fast", "names two defaults"),
    ],
)
def test_typos_in_the_environment_are_errors(toy, monkeypatch, text, words):
    monkeypatch.setenv(dispatch.ENV, text)
    with pytest.raises(UnknownNameError) as caught:
        _factor(toy)
    assert words in str(caught.value)


def test_typos_in_code_are_errors(toy):
    with pytest.raises(UnknownNameError, match="'fast'"):
        _factor(toy, backend="fsat")
    with pytest.raises(UnknownNameError, match="did you mean 'torch'"), use_backend("trch"):
        pass
    with pytest.raises(ValueError, match="already registered"):
        dispatch.register_op(toy)


def test_context_is_private_to_thread_and_task(toy):
    inside, outside, seen = threading.Event(), threading.Event(), []

    def worker():
        inside.wait(5)
        seen.append(_factor(toy))
        outside.set()

    thread = threading.Thread(target=worker)
    thread.start()
    with use_backend("torch"):
        inside.set()
        outside.wait(5)
        assert _factor(toy) == 1.0
    thread.join()
    assert seen == [4.0]

    async def task(name: str) -> float:
        with use_backend(toy=name):
            await asyncio.sleep(0.01)
            return _factor(toy)

    async def both() -> list[float]:
        return await asyncio.gather(task("torch"), task("fast"))

    found: list[float] = []  # a thread of its own: another test's browser may keep a loop in this one
    runner = threading.Thread(target=lambda: found.extend(asyncio.run(both())))
    runner.start()
    runner.join()
    assert found == [1.0, 2.0]


def test_context_ends_on_an_exception(toy):
    with pytest.raises(RuntimeError), use_backend("torch"):
        raise RuntimeError
    assert _factor(toy) == 4.0


def test_one_warning_per_op_names_the_fix_on_a_gpu_only(toy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _factor(toy)  # on the CPU: silent
    call = {"x": EVEN}
    with pytest.warns(BackendWarning, match="pip install it"):
        toy._warn(toy.backends[toy.names.index("fast")], call)
    assert "toy" in dispatch._warned  # select() asks before it warns


def test_no_warning_when_the_absent_backend_is_slower(toy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toy._warn(toy.backends[toy.names.index("gpu")], {"x": EVEN})


def test_a_probe_records_any_exception(tmp_path, monkeypatch):
    (tmp_path / "hz_exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "hz_empty.py").write_text("")
    (tmp_path / "hz_needs.py").write_text("import hz_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(dispatch, "_probed", {})
    assert "SystemExit" in dispatch.machine_obstacle("hz_exits:f")
    assert "has no attribute 'f'" in dispatch.machine_obstacle("hz_empty:f")
    assert dispatch.machine_obstacle("hz_needs:f") == "importing hz_needs needs hz_not_there"
    assert dispatch.machine_obstacle("hz_missing.sub:f") == "hz_missing.sub is not installed"
    assert dispatch.machine_obstacle("math:sin") is None


def test_tracing_skips_what_cannot_be_traced(toy):
    def f(x):
        return toy({"x": x}) + 0

    assert torch.compile(f, fullgraph=True, backend="eager")(EVEN)[0].item() == 2.0

    class Wrapper(torch.nn.Module):
        def forward(self, x):
            return f(x)

    assert torch.export.export(Wrapper(), (EVEN,)).module()(EVEN)[0].item() == 1.0


def test_report_tells_what_auto_does(toy):
    rows = {r.backend: r for r in dispatch.report("cpu") if r.op == "toy"}
    assert [r for r in rows if rows[r].auto] == ["eager"]
    assert rows["absent"].fix == "pip install it"
    assert not rows["absent"].available
    assert not rows["gpu"].available
    assert rows["fresh"].reason == "not taken by auto: not checked"
    assert {"selective_scan", "toy"} <= {r.op for r in dispatch.report("cpu")}


def test_selftest_finds_wrong_outputs_and_wrong_gradients(toy):
    rows = {r.backend: r for r in dispatch.selftest("cpu", "toy")}
    assert rows["torch"].ok
    assert not rows["fast"].ok
    assert rows["fast"].worst == "out.0"
    assert not rows["broken"].ok
    assert rows["broken"].worst == "grad.x"
    assert "absent" not in rows
    with pytest.raises(UnknownNameError, match="did you mean 'toy'"):
        dispatch.selftest("cpu", "tooy")
