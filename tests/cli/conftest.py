"""In-process CLI: importing torch once is enough."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from hybridzoo.cli import app


@pytest.fixture
def cli():
    """`cli("list", "--json")` runs the command; its exit code must be the one that is expected."""

    def run(*arguments: object, code: int = 0):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=code == 0)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done

    return run
