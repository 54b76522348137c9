"""Bad recipes, run folders, exports and commands; read-only and full disks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_case import Case, Work

from hybridzoo.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HybridzooError,
    SourceError,
    TrainingError,
    UnknownNameError,
)

GOOD = "title: t\npaper: ours\nmodel: {name: iformer_test}\ndata: {name: fashion_mnist_mini, options: {}}\n"
MINI = "roberta_bilstm/vader_mini"


def recipe(work: Work, text: str, *overrides: str) -> Any:
    from hybridzoo.training import load_recipe

    return load_recipe(work.file("my.yaml", text), list(overrides))


def named(name: str, *overrides: str) -> Any:
    from hybridzoo.training import load_recipe

    return load_recipe(name, list(overrides))


def convert(work: Work, source: Any, **options: Any) -> Any:
    from hybridzoo.export import convert_checkpoint

    return convert_checkpoint(source, work.path / "out", **options)


def cli(*words: Any) -> None:
    """The command in this process, its errors as exceptions."""
    from hybridzoo.cli import app

    app([str(w) for w in words], standalone_mode=False)


def trained(work: Work, run: Path, *overrides: str) -> Any:
    from hybridzoo.training import load_recipe, train

    small = ["training.max_steps=2", "training.batch_size=4", "evaluation.tasks=[]", "training.num_workers=0"]
    return train(load_recipe(work.file("my.yaml", GOOD), [*small, *overrides]), run_dir=run)


RECIPES = [
    Case("no such recipe", UnknownNameError, ("vader_mni", "vader_mini"), lambda w: named("roberta_bilstm/vader_mni")),
    Case("no such file", UnknownNameError, (r"x/y\.yaml", "no recipe file"), lambda w: named("x/y.yaml")),
    Case("not YAML", ConfigError, (r"my\.yaml", "not valid YAML"), lambda w: recipe(w, "model: [")),
    Case("a tab", ConfigError, (r"my\.yaml", "not valid YAML"), lambda w: recipe(w, "model:\n\tname: x\n")),
    Case(
        "not text", ConfigError, (r"my\.yaml", "UTF-8|YAML"), lambda w: named(str(w.file("my.yaml", b"\xff\xfe\x00x")))
    ),
    Case("empty recipe", ConfigError, (r"my\.yaml", "model|empty"), lambda w: recipe(w, "")),
    Case("a list", ConfigError, (r"my\.yaml", "list|section|mapping"), lambda w: recipe(w, "- a\n- b\n")),
    Case(
        "section",
        ConfigError,
        ("trainig", "did you mean 'training'"),
        lambda w: recipe(w, GOOD + "trainig: {epochs: 1}\n"),
    ),
    Case(
        "key",
        ConfigError,
        ("learning_rte", "learning_rate"),
        lambda w: recipe(w, GOOD + "training: {learning_rte: 1}\n"),
    ),
    Case("inner key", ConfigError, ("hflp", "hflip"), lambda w: recipe(w, GOOD + "training: {augment: {hflp: 1}}\n")),
    Case("type", ConfigError, ("epochs", "many"), lambda w: recipe(w, GOOD + "training: {epochs: many}\n")),
    Case("choice", ConfigError, ("scheduler", "cosine"), lambda w: recipe(w, GOOD + "training: {scheduler: cosin}\n")),
    Case("no model", ConfigError, (r"model\.name", "missing"), lambda w: recipe(w, "data: {name: vader}\n")),
    Case("negative rate", ConfigError, ("learning_rate", "-1"), lambda w: recipe(w, GOOD, "training.learning_rate=-1")),
    Case("no batch", ConfigError, ("batch_size", "0"), lambda w: recipe(w, GOOD, "training.batch_size=0")),
    Case("override key", ConfigError, ("epoch", "did you mean"), lambda w: named(MINI, "training.epoch=3")),
    Case("override form", ConfigError, ("training.epochs", "key=value"), lambda w: named(MINI, "training.epochs")),
    Case("override YAML", ConfigError, ("override", "YAML"), lambda w: named(MINI, "training.epochs=[")),
    Case("base", UnknownNameError, ("nothere", "base"), lambda w: recipe(w, "base: nothere\n")),
    Case(
        "tracker", ConfigError, ("tensorbord", "tensorboard"), lambda w: named(MINI, "training.report_to=[tensorbord]")
    ),
    Case("metric", ConfigError, ("accurracy", "accuracy"), lambda w: named(MINI, "evaluation.metric=accurracy")),
]

RUNS = [
    Case("run folder is a file", TrainingError, ("run.txt", "--run-dir"), lambda w: trained(w, w.file("run.txt"))),
    Case(
        "model",
        UnknownNameError,
        ("iformer_tst", "iformer_test"),
        lambda w: trained(w, w.path / "r", "model.name=iformer_tst"),
    ),
    Case("config key", ConfigError, ("dpths", "depths"), lambda w: trained(w, w.path / "r", "model.config.dpths=[1]")),
    Case(
        "data set",
        HybridzooError,
        ("fashion_mnst", "fashion_mnist"),
        lambda w: trained(w, w.path / "r", "data.name=fashion_mnst"),
    ),
    Case(
        "text for images",
        ConfigError,
        ("tokenizer is missing", "train:8000"),
        lambda w: trained(w, w.path / "r", "data.name=vader"),
    ),
    Case("option", HybridzooError, ("lmit", "option"), lambda w: trained(w, w.path / "r", "data.options.lmit=3")),
    Case(
        "fp16 on the CPU", ConfigError, ("fp16", "bf16"), lambda w: trained(w, w.path / "r", "training.precision=fp16")
    ),
    Case(
        "weights",
        CheckpointError,
        ("nowhere", "folder"),
        lambda w: trained(w, w.path / "r", f"model.weights={w.path}/nowhere"),
    ),
]

COMMANDS = [
    Case("info", UnknownNameError, ("iformer_smal", "iformer_small"), lambda w: cli("info", "iformer_smal")),
    Case(
        "list", UnknownNameError, ("image-clas", "image-classification"), lambda w: cli("list", "--task", "image-clas")
    ),
    Case(
        "eval model",
        UnknownNameError,
        ("iformer_tst", "iformer_test"),
        lambda w: cli("eval", "iformer_tst", "fashion_mnist_mini", "--limit", 4, "--out", w.path),
    ),
    Case("eval task", UnknownNameError, ("vadr", "vader"), lambda w: cli("eval", "iformer_test", "vadr")),
    Case(
        "predict without a file",
        DataError,
        ("none of the 1 inputs",),
        lambda w: cli("predict", w.saved(), w.path / "no.png"),
    ),
    Case(
        "predict a text as image",
        DataError,
        ("could be used",),
        lambda w: cli("predict", w.saved(), w.file("a.png", "x")),
    ),
    Case(
        "predict format",
        ConfigError,
        ("xml", "jsonl"),
        lambda w: cli("predict", w.saved(), w.image(), "--format", "xml"),
    ),
    Case("train", UnknownNameError, ("vader_mni", "vader_mini"), lambda w: cli("train", "roberta_bilstm/vader_mni")),
    Case("train key", ConfigError, ("training.epoch", "epochs"), lambda w: cli("train", MINI, "training.epoch=1")),
    Case(
        "recipe",
        UnknownNameError,
        ("vader_mni", "vader_mini"),
        lambda w: cli("recipes", "show", "roberta_bilstm/vader_mni"),
    ),
    Case(
        "convert over a folder",
        CheckpointError,
        ("out", "overwrite"),
        lambda w: [w.file("out/x"), convert(w, "a.pth", model="iformer_test")],
    ),
    Case(
        "convert nothing",
        CheckpointError,
        ("a.pth", "no weights file"),
        lambda w: convert(w, w.path / "a.pth", model="iformer_test"),
    ),
    Case("convert without a model", CheckpointError, ("a.pth", "--model"), lambda w: convert(w, "a.pth")),
    Case(
        "convert config",
        ConfigError,
        ("c.json", "JSON"),
        lambda w: convert(w, w.file("a.pth"), model="iformer_test", config=w.file("c.json", "{")),
    ),
    Case(
        "convert foreign weights",
        CheckpointError,
        ("w.pth", "iformer"),
        lambda w: [
            torch.save({"a": torch.ones(1)}, w.path / "w.pth"),
            convert(w, w.path / "w.pth", model="iformer_small"),
        ],
    ),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", RECIPES + RUNS + COMMANDS, ids=lambda case: case.name)
def test_fault(case: Case, work: Work) -> None:
    case.check(work)


# Disks ---------------------------------------------------------------------------------------------------------------


@contextmanager
def broken_disk(monkeypatch: pytest.MonkeyPatch, below: Path, code: int) -> Iterator[None]:
    """Creating or writing a file below `below` fails as the system would fail it (root may write on any real one)."""
    import builtins
    import io
    import tempfile

    real_open, real_mkdir, real_io = builtins.open, os.mkdir, io.open

    def refuse(path: Any) -> None:
        inside = isinstance(path, (str, os.PathLike)) and Path(os.fspath(path)).resolve().is_relative_to(
            below.resolve()
        )
        if inside:
            raise OSError(code, os.strerror(code), str(path))

    def guarded(real: Any) -> Any:
        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                refuse(file)
            return real(file, mode, *args, **kwargs)

        return open_

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        refuse(path)
        real_mkdir(path, *args, **kwargs)

    def mkdtemp(suffix: Any = None, prefix: Any = None, dir: Any = None) -> str:
        refuse(dir)
        return real_mkdtemp(suffix, prefix, dir)

    def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return real_os_open(path, flags, *args, **kwargs)

    real_mkdtemp, real_os_open = tempfile.mkdtemp, os.open
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", guarded(real_open))
        patch.setattr(io, "open", guarded(real_io))
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "open", os_open)
        patch.setattr(tempfile, "mkdtemp", mkdtemp)
        yield


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=["full", "read-only", "denied"])
@pytest.mark.parametrize("what", ["save", "convert", "train", "predict", "recipe"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_disk_that_refuses(what: str, code: int, work: Work, toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that writes says where and why in one line, and leaves nothing half-written."""
    target = work.path / "disk"
    target.mkdir()
    model, picture = work.model(), work.image()
    saved = work.saved()
    work.model("toy_test").save_pretrained(work.path / "toy")
    actions = {
        "save": lambda: model.save_pretrained(target / "m"),
        "convert": lambda: cli("convert", work.path / "toy", target / "m.safetensors", "--to-original"),
        "train": lambda: trained(work, target / "run"),
        "predict": lambda: cli("predict", saved, picture, "--output", target / "out.csv", "--format", "csv"),
        "recipe": lambda: cli("recipes", "copy", MINI, target / "mine.yaml"),
    }
    with broken_disk(monkeypatch, target, code), pytest.raises(HybridzooError) as caught:
        actions[what]()
    assert os.strerror(code) in str(caught.value)
    assert str(target) in str(caught.value)
    assert not [p for p in target.rglob("*") if p.is_file()]


def test_commands_answer_in_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import sys

    from hybridzoo.cli import main

    monkeypatch.setattr(sys, "argv", ["hybridzoo", "info", "iformer_smal"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown model 'iformer_smal'; did you mean 'iformer_small'")
    assert len(error.strip().splitlines()) == 1


def test_hierarchy() -> None:
    """Every error is a HybridzooError, and also what a caller without the zoo in mind would catch."""
    for error, builtin in ((DataError, ValueError), (SourceError, OSError), (CheckpointError, RuntimeError)):
        assert issubclass(error, HybridzooError)
        assert issubclass(error, builtin)
