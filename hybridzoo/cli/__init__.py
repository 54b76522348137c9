"""The `hybridzoo` command. One file a command; each defines `register(app)`, and imports torch inside its function."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import typer

app = typer.Typer(
    name="hybridzoo",
    help="Hybrid architectures behind one command: list, train, evaluate, compare. "
    "`hybridzoo COMMAND --help` teaches each.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None: ...


for _module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
    if not _module.name.startswith("_"):
        importlib.import_module(f"hybridzoo.cli.{_module.name}").register(app)


def main() -> None:
    """Entry point: a HybridzooError is one line on stderr and exit code 2; HYBRIDZOO_DEBUG=1 shows the traceback."""
    from hybridzoo.errors import HybridzooError

    try:
        app()
    except HybridzooError as error:
        if os.environ.get("HYBRIDZOO_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `hybridzoo list | head`
        sys.stderr.close()
        sys.exit(0)
