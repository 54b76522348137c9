"""Code blocks of the documents: python runs, `hybridzoo` commands parse and cheap ones run; links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest
import typer
import yaml
from blocks import ROOT, SHELL, Block, blocks, commands, documents, hybridzoo_arguments
from typer.testing import CliRunner

from hybridzoo import is_model
from hybridzoo.cli import app
from hybridzoo.errors import HybridzooError

ALL = [block for path in documents() for block in blocks(path)]
PAGES = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in documents()]
# Cheap, offline, changing nothing outside the folder they run in.
RUN = ("list", "info", "doctor", "leaderboard", "recipes")
# Programs that a document may show; their own arguments are not ours to check, except make targets and scripts.
OTHER = {
    "pip",
    "git",
    "cd",
    "make",
    "python",
    "export",
    "hf",
    "apt-get",
    "dpkg-deb",
    "torchrun",
    "accelerate",
    "source",
    "cat",
    "bash",
}
OTHER |= {"echo", "tensorboard", "printf", "ls", "pytest", "uv", "nvidia-smi", "mkdir", "curl", "wget", "tar", "unset"}


def of(*languages: str) -> list:
    return [pytest.param(b, id=b.where) for b in ALL if b.language in languages]


def test_the_documents_that_must_exist():
    names = {path.relative_to(ROOT).as_posix() for path in documents()}
    wanted = {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/cli.md", "docs/hub.md", "docs/leaderboard.md"}
    assert wanted | {"docs/add_a_model.md"} <= names
    assert len(of("python")) > 5


# Python -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("python", "py"))
def test_python_compiles(block: Block):
    ast.parse(block.code, filename=block.where)


@pytest.mark.parametrize("path", PAGES)
def test_python_blocks_run_in_order(path: Path, tmp_path, monkeypatch):
    """All blocks of a page share one module, as a reader's session would, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    todo = [b for b in blocks(path) if b.language in ("python", "py") and not b.why_not]
    if not todo:
        pytest.skip("no python block of this page is meant to run here")
    # A module of its own: pages register models by "module:Class" strings.
    module = types.ModuleType(f"docs_{path.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    forget = _registry_state()
    try:
        for block in todo:
            code = compile("\n" * block.line + block.code, str(path), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, module.__dict__)
    finally:
        forget()


def _registry_state():
    """What undoes the registrations of a page."""
    from hybridzoo import registry
    from hybridzoo.layers import mixer

    registry.models()
    tables = registry._families, registry._models, mixer._TABLE
    before = [dict(table) for table in tables]

    def restore() -> None:
        for now, then in zip(tables, before):
            now.clear()
            now.update(then)

    return restore


# Commands ---------------------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> list[str]:
    """Walk to the command and parse its options; returns the words of the command. Unknown ones raise."""
    command, names = typer.main.get_command(app), []
    rest = list(arguments)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {' '.join([*names, rest[0]])!r}"
        names.append(rest.pop(0))
        command = command.commands[names[-1]]
    context = command.context_class(command, info_name="hybridzoo")
    command.make_parser(context).parse_args(args=[*rest])
    if hasattr(command, "commands"):
        return names
    wanted = [p for p in command.params if p.param_type_name == "argument" and p.required]
    given, _, _ = command.make_parser(context).parse_args(args=[*rest])
    if "--help" not in rest:
        lacking = [p.name for p in wanted if given.get(p.name) in (None, ())]
        assert not lacking, f"hybridzoo {' '.join(arguments)}: missing {', '.join(lacking)}"
    return names


@pytest.mark.parametrize("block", of(*SHELL))
def test_commands_exist_and_know_their_options(block: Block):
    for words in commands(block):
        arguments = hybridzoo_arguments(words)
        if arguments is not None:
            parse(arguments)
            continue
        program = words[0].rpartition("/")[2]
        assert program in OTHER, f"{block.where}: {program!r} is neither hybridzoo nor a known program"
        if program == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in [w for w in words[1:] if "=" not in w]:
                assert re.search(rf"^{target}:", makefile, re.M), f"{block.where}: make has no target {target!r}"
        if program == "python":
            for script in [w for w in words[1:2] if w.endswith(".py")]:
                assert (ROOT / script).is_file(), f"{block.where}: {script} does not exist"


@pytest.mark.parametrize("block", of(*SHELL))
def test_cheap_commands_run(block: Block, tmp_path, monkeypatch):
    cheap = [a for a in map(hybridzoo_arguments, commands(block)) if a and a[0] in RUN and "<" not in " ".join(a)]
    if block.why_not or not cheap:
        pytest.skip(block.why_not or "no command of this block is cheap")
    monkeypatch.chdir(tmp_path)
    for arguments in cheap:
        if arguments == ["doctor", "--selftest"]:
            continue  # tests/ops runs it
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"hybridzoo {' '.join(arguments)}: {done.output[-500:]}{done.exception or ''}"


@pytest.mark.parametrize("block", of(*SHELL))
def test_tasks_and_recipes_of_commands_exist(block: Block):
    from hybridzoo.eval.tasks import list_tasks

    for arguments in filter(None, map(hybridzoo_arguments, commands(block))):
        if arguments[0] == "eval" and len(arguments) > 2 and not arguments[2].startswith("-"):
            assert arguments[2] in list_tasks() or arguments[2].isupper(), f"{block.where}: no task {arguments[2]!r}"
        if arguments[0] == "info":
            assert is_model(arguments[1]) or arguments[1].isupper(), f"{block.where}: no model {arguments[1]!r}"
        if arguments[0] == "train" and "/" in arguments[1] and not arguments[1].endswith((".yaml", ".yml")):
            file = ROOT / "recipes" / f"{arguments[1]}.yaml"
            assert file.is_file(), f"{block.where}: no recipe {arguments[1]!r}"


# Other languages, links, tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("yaml", "toml", "json"))
def test_data_blocks_parse(block: Block):
    {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}[block.language](block.code)


def test_every_reason_is_written_out():
    assert [b.where for b in ALL if b.not_run and len(b.not_run.split()) < 2] == []


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_to_files(path: Path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text):
        assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target} does not exist"


def test_generated_tables_are_current():
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    for path in documents():
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT).as_posix()
        assert generator.generate(text, where, path.parent) == text, f"{where} is stale: run python docs/generate.py"


def test_an_unknown_option_or_command_in_a_document_would_be_found():
    for arguments in (["list", "--no-such"], ["no-such"], ["leaderboard", "no-such"], ["eval", "iformer_mini"]):
        with pytest.raises(Exception, match=r"no-such|missing task"):
            parse(arguments)
    with pytest.raises(HybridzooError):
        CliRunner().invoke(app, ["info", "no_such_model"], catch_exceptions=False)
