"""`hybridzoo leaderboard`: build the tables and the page, and check them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ResultsOption = Annotated[
    Path | None, typer.Option("--results", help="Folder of result files; eval/results if left out.", show_default=False)
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the three files; the repository's places if left out.", show_default=False),
]
RepositoryOption = Annotated[
    str | None, typer.Option("--repository", help="Web address of the repository, for links to commits.")
]


def register(app: typer.Typer) -> None:
    board = typer.Typer(
        no_args_is_help=True,
        help="Rank the results in eval/results: Markdown, CSV and one self-contained page.",
    )
    board.command(name="build")(build_command)
    board.command(name="check")(check_command)
    app.add_typer(board, name="leaderboard")


def build_command(results: ResultsOption = None, out: OutOption = None, repository: RepositoryOption = None) -> None:
    """Write LEADERBOARD.md, leaderboard.csv and the page from the result files.

    The same results give the same bytes. The page is one file: open it in a browser, no server is needed.

    \b
    hybridzoo leaderboard build
    hybridzoo leaderboard build --results runs/results --out /tmp/board
    """
    from hybridzoo.eval.leaderboard.build import Outputs, build

    outputs = build(results, Outputs.in_folder(out) if out else None, repository=repository)
    for path in (outputs.markdown, outputs.csv, outputs.page):
        typer.echo(f"wrote {path}")


def check_command(
    results: ResultsOption = None,
    out: OutOption = None,
    repository: RepositoryOption = None,
    rescore: Annotated[
        bool, typer.Option("--rescore/--no-rescore", help="Compute every metric again from the stored predictions.")
    ] = True,
) -> None:
    """Fail when a result is invalid or doubled, a metric does not follow from its predictions, or a file is stale.

    All problems are printed, one a line; the exit code is 1 if there are any.

    \b
    hybridzoo leaderboard check
    hybridzoo leaderboard check --results runs/results --out /tmp/board --no-rescore
    """
    from hybridzoo.eval.leaderboard.build import Outputs
    from hybridzoo.eval.leaderboard.check import check

    problems = check(results, Outputs.in_folder(out) if out else None, repository=repository, rescore=rescore)
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        typer.echo(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", err=True)
        raise typer.Exit(1)
    typer.echo("the leaderboard is valid and up to date")
