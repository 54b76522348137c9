"""Prompts in, text out: checks, streaming, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hybridzoo import build_model
from hybridzoo.cli import app
from hybridzoo.data.text_stream_tokenizers import byte_tokenizer
from hybridzoo.errors import ConfigError, InputError
from hybridzoo.inference.generation import Sampling, TextGenerator

GREEDY = Sampling(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its tokenizer."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    build_model("hybrid_lm_test", vocab_size=259, bos_token_id=1, eos_token_id=2).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> TextGenerator:
    return TextGenerator(build_model(folder))


def test_greedy_text_is_the_argmax_of_the_model(generator: TextGenerator):
    ids = generator.encode(["Hello"])["input_ids"]
    assert ids[0, 0] == 1
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, generator.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    expected = generator.tokenizer.decode(ids[0, 6:], skip_special_tokens=True)
    assert generator(["Hello"], GREEDY) == [expected]


def test_a_prompt_gives_the_same_text_alone_and_beside_a_longer_one(generator: TextGenerator):
    both = generator(["Hi", "A much longer prompt"], GREEDY)
    assert both == [generator(["Hi"], GREEDY)[0], generator(["A much longer prompt"], GREEDY)[0]]


def test_streamed_pieces_are_the_text(generator: TextGenerator):
    pieces: list[str] = []
    text = generator(["Hi"], Sampling(max_new_tokens=30, seed=3), on_text=pieces.append)
    assert "".join(pieces) == text[0]
    assert len(pieces) > 1
    assert text == generator(["Hi"], Sampling(max_new_tokens=30, seed=3))
    assert text != generator(["Hi"], Sampling(max_new_tokens=30, seed=4))


def test_a_character_of_several_bytes_is_streamed_whole():
    from hybridzoo.inference.generation import _Streamer

    tokenizer, pieces = byte_tokenizer(), []
    ids = tokenizer("é☃a", add_special_tokens=False)["input_ids"]
    streamer = _Streamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2]]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert pieces == ["é", "☃", "a"]


@pytest.mark.parametrize("prompts", [[""], ["fine", ""]])
def test_empty_prompts_are_refused(generator: TextGenerator, prompts: list[str]):
    with pytest.raises(InputError, match=r"prompt \d is empty"):
        generator(prompts)


def test_prompts_of_other_types_are_refused(generator: TextGenerator):
    with pytest.raises(InputError, match="list"):
        generator("one text")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NoneType"):
        generator([None])  # type: ignore[list-item]


def test_a_prompt_beyond_the_trained_length_warns(generator: TextGenerator):
    with pytest.warns(UserWarning, match=r"more than the 256"):
        generator.encode(["x" * 250], room=12)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"259 tokens.*vocabulary of 101"):
        TextGenerator(build_model("hybrid_lm_test"), byte_tokenizer())
    with pytest.raises(ConfigError, match="without a tokenizer"):
        TextGenerator(build_model("hybrid_lm_test"))
    with pytest.raises(ConfigError, match="not text"):
        TextGenerator(torch.nn.Linear(2, 2), byte_tokenizer())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"max_new_tokens": 0},
        {"num_beams": 2},
        {"top_k": -1},
        {"repetition_penalty": 0},
    ],
)
def test_impossible_sampling_is_refused(options: dict):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Sampling(**options)


def test_beams_do_not_stream(generator: TextGenerator):
    beams = Sampling(num_beams=2, temperature=0, max_new_tokens=5)
    assert len(generator(["ab", "c"], beams)) == 2
    with pytest.raises(ConfigError, match="streamed"):
        generator(["ab"], beams, on_text=print)


def test_the_command_writes_prompt_and_text(folder: Path, tmp_path: Path, generator: TextGenerator):
    words = ["generate", str(folder), "--temperature", "0", "--max-new-tokens", "12"]
    run = CliRunner().invoke(app, [*words, "-p", "Hello", "-p", "-"], input="Hi\n")
    assert run.exit_code == 0, run.output
    assert run.stdout == f"Hello{generator(['Hello'], GREEDY)[0]}\n\nHi{generator(['Hi'], GREEDY)[0]}\n"
    out = tmp_path / "text.txt"
    run = CliRunner().invoke(app, [*words, "-p", "Hello", "-n", "2", "--out", str(out)])
    assert run.exit_code == 0
    assert out.read_text().count("Hello") >= 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["FOLDER"], "give --prompt"),
        (["FOLDER", "-p", ""], "prompt 0 is empty"),
        (["FOLDER", "-p", "x", "--label", "3"], "--label is not for it"),
        (["FOLDER", "-p", "x", "--guidance", "3"], "--guidance is not for it"),
        (["FOLDER", "-p", "x", "--tokenizer", "/nowhere"], "no tokenizer in /nowhere"),
        (["iformer_mini", "-p", "x"], "iformer_mini does image-classification"),
    ],
)
def test_the_command_says_what_is_wrong(folder: Path, words: list[str], text: str):
    run = CliRunner().invoke(app, ["generate", *(str(folder) if w == "FOLDER" else w for w in words)])
    assert run.exit_code != 0
    assert text in str(run.exception)
