"""`hybridzoo generate` for language models: the text appears as it is made."""

from __future__ import annotations

import sys
import time
from typing import Any

from hybridzoo.cli.generate import Request
from hybridzoo.errors import ConfigError


def generate(model: Any, request: Request) -> None:
    """Go on from each prompt, `count` times, onto stdout or into a file.

    Raises:
        ConfigError: no prompt, or options of image models.
        InputError: an empty prompt.
    """
    from hybridzoo.inference.generation import Sampling, TextGenerator

    request.refuse("text-generation", "labels", "steps", "guidance", "height", "width")
    if not request.prompts:
        raise ConfigError('nothing to go on from: give --prompt "Some text", or --prompt - to read it from stdin')
    tokenizer = _tokenizer(request.tokenizer) if request.tokenizer is not None else None
    generator = TextGenerator(model, tokenizer, device=request.device, dtype=request.dtype)
    parts: list[str] = []

    def show(text: str) -> None:
        parts.append(text)
        if request.out is None:
            sys.stdout.write(text)
            sys.stdout.flush()

    runs = [(prompt, i) for prompt in request.prompts for i in range(request.count or 1)]
    for number, (prompt, again) in enumerate(runs):
        if number:
            show("\n\n")
        show(prompt)
        sampling = Sampling(seed=request.seed + again, **request.sampling)
        before = len(parts)
        started = time.perf_counter()
        generator([prompt], sampling, on_text=show)
        seconds = time.perf_counter() - started
        tokens = len(generator.tokenizer("".join(parts[before:]), add_special_tokens=False, verbose=False)["input_ids"])
        if not request.quiet and sys.stderr.isatty():
            print(f"\n[{tokens} tokens, {tokens / seconds:.0f} tokens/s]", file=sys.stderr)
    show("\n")
    if request.out is not None:
        try:
            request.out.write_text("".join(parts), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {request.out} ({error.strerror}); give another --out") from error


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer in {source} ({str(error).splitlines()[0]})") from error
