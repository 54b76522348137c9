"""`hybridzoo list` and `hybridzoo info` say what the registry and the built model say."""

from __future__ import annotations

import json
import sys

import pytest

from hybridzoo import build_model, list_models, model_info
from hybridzoo.cli import main
from hybridzoo.errors import UnknownNameError


def test_list_shows_every_model(cli):
    lines = cli("list").stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list_models()


def test_list_filters_as_list_models_does(cli):
    found = json.loads(cli("list", "iform*", "--task", "image-classification", "--json").stdout)
    assert [row["name"] for row in found] == list_models("iform*", task="image-classification")
    assert {row["family"] for row in found} == {"iformer"}
    tagged = json.loads(cli("list", "--pretrained", "--json").stdout)
    assert [row["name"] for row in tagged] == list_models(pretrained=True)
    assert all(row["license"] for row in tagged)


def test_list_counts_parameters_when_asked(cli):
    (row,) = json.loads(cli("list", "iformer_test", "--parameters", "--json").stdout)
    assert row["parameters"] == sum(p.numel() for p in build_model("iformer_test").parameters())


def test_list_without_a_match_says_so(cli):
    done = cli("list", "no_such_*", code=1)
    assert "no model matches" in done.stderr


def test_list_refuses_an_unknown_family_with_the_nearest_name(cli):
    with pytest.raises(UnknownNameError, match="iformer"):
        cli("list", "--family", "iformr", code=2)


@pytest.mark.parametrize("name", ["iformer_test", "roberta_bilstm_test"])
def test_info_shows_what_the_model_has(cli, name):
    text = cli("info", name).stdout
    info = model_info(name)
    assert f"{info.parameters:,}" in text
    assert f"{info.flops:,}" in text
    assert info.paper in text
    for key, value in info.config.items():
        assert f"{key} = {value!r}" in text


def test_info_as_json_and_without_building(cli):
    whole = json.loads(cli("info", "iformer_test", "--json").stdout)
    fast = json.loads(cli("info", "iformer_test", "--json", "--fast").stdout)
    assert whole["parameters"] > 0
    assert {k: v for k, v in whole.items() if k not in ("parameters", "flops")} == fast


def test_info_names_published_weights_with_their_licence(cli):
    text = cli("info", "iformer_small.sail_in1k", "--fast").stdout
    weights = model_info("iformer_small").tags["sail_in1k"]
    assert weights.uri in text
    assert weights.license in text


def test_an_unknown_name_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hybridzoo", "info", "iformer_smal"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "iformer_small" in error
    assert error.count("\n") == 1


def test_every_command_teaches_with_an_example(cli):
    import typer

    from hybridzoo.cli import app

    def leaves(command, prefix=()):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*prefix, name)) if hasattr(inner, "commands") else [(*prefix, name)]

    own = {"list", "info", "doctor", "convert", "export", "leaderboard", "demo"}
    for words in leaves(typer.main.get_command(app)):
        if words[0] in own:
            assert f"hybridzoo {' '.join(words)}" in cli(*words, "--help").stdout
