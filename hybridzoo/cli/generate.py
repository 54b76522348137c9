"""`hybridzoo generate`: what a generative model makes. What a task does lies in its own module, see GENERATORS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

# task of a model -> "module:function", called with (model, Request)
GENERATORS = {
    "text-generation": "hybridzoo.cli._generate_text:generate",
    "image-generation": "hybridzoo.cli._generate_images:generate",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command line; None where one was not given.

    Attributes:
        name: the model as it was named.
        prompts: texts to go on from, or descriptions.
        labels: names or numbers of classes.
        count: outputs for each prompt or label.
        out: file or folder.
        device, dtype, tokenizer, seed: as in the other commands.
        sampling: further options by name (`temperature`, …), only those that were given.
    """

    name: str
    prompts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    count: int | None = None
    out: Path | None = None
    device: str | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    seed: int = 0
    quiet: bool = False
    sampling: dict[str, Any]

    def refuse(self, task: str, *options: str) -> None:
        """Raise ConfigError for options that were given and mean nothing for this task."""
        from hybridzoo.errors import ConfigError

        for option in options:
            if getattr(self, option, None) or option in self.sampling:
                raise ConfigError(f"{self.name} does {task}; --{option.replace('_', '-').rstrip('s')} is not for it")


def register(app: typer.Typer) -> None:
    app.command(name="generate")(generate_command)


def generate_command(
    model: Annotated[str, typer.Argument(help="Registered name, name.tag, folder or hub id.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Text to go on from; '-' reads stdin. Repeatable.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="Class to make images of. Repeatable.")] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="Outputs for each.", min=1)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Text: tokens at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the best token always.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among so many; 0 is all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the most probable that sum to this.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search, with temperature 0.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    steps: Annotated[int | None, typer.Option(help="Images: decoding steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Images: classifier-free guidance.")] = None,
    height: Annotated[int | None, typer.Option(help="Images: pixels, if not the model's own size.")] = None,
    width: Annotated[int | None, typer.Option(help="Images: pixels, if not the model's own size.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; a GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; as saved if left out.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id, if not beside the model.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write here (images: folder or file).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.")] = False,
) -> None:
    """Generate: text that goes on from a prompt, written as it is made; or images of a class.

    \b
    hybridzoo generate hymba_mini --prompt "It is a truth universally acknowledged"
    echo "She was" | hybridzoo generate deltanet_mini -p - --temperature 0 --max-new-tokens 40
    """
    from hybridzoo import build_model, registry
    from hybridzoo.cli._warnings import plain_warnings
    from hybridzoo.errors import ConfigError

    plain_warnings()
    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "num_beams": num_beams,
        "repetition_penalty": repetition_penalty,
        "steps": steps,
        "guidance": guidance,
        "height": height,
        "width": width,
    }
    request = Request(
        name=model,
        prompts=tuple(_read(p) for p in prompt or ()),
        labels=tuple(label or ()),
        count=count,
        out=out,
        device=device,
        dtype=dtype,
        tokenizer=tokenizer,
        seed=seed,
        quiet=quiet,
        sampling={name: value for name, value in options.items() if value is not None},
    )
    task = registry.get_model(model)[0].task if registry.is_model(model) else None
    if task is not None and task not in GENERATORS:
        raise ConfigError(f"{model} does {task}; generate is for {', '.join(GENERATORS)}: `hybridzoo list` shows more")
    built = build_model(model, pretrained=True) if registry.is_model(model) else build_model(model)
    if built.task not in GENERATORS:
        raise ConfigError(f"{model} does {built.task}; generate is for {', '.join(GENERATORS)}")
    registry.resolve(GENERATORS[built.task])(built, request)


def _read(prompt: str) -> str:
    import sys

    return sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
