"""`hybridzoo leaderboard`: build the tables and the page, check and verify results, submit and export them."""

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
        help="Rank the results in eval/results: Markdown, CSV and one self-contained page; check, verify, submit them.",
    )
    board.command(name="build")(build_command)
    board.command(name="check")(check_command)
    board.command(name="serve")(serve_command)
    board.command(name="verify")(verify_command)
    board.command(name="submit")(submit_command)
    board.command(name="export")(export_command)
    board.command(name="pictures")(pictures_command)
    app.add_typer(board, name="leaderboard")


def build_command(
    results: ResultsOption = None,
    out: OutOption = None,
    repository: RepositoryOption = None,
    bundle: Annotated[
        bool, typer.Option("--bundle", help="Copy results and recipes beside the page, for a static host; needs --out.")
    ] = False,
) -> None:
    """Write LEADERBOARD.md, leaderboard.csv and the page from the result files.

    The same results give the same bytes. The page is one file: open it in a browser, no server is needed.

    \b
    hybridzoo leaderboard build
    hybridzoo leaderboard build --results runs/results --out /tmp/board
    hybridzoo leaderboard build --out public --bundle
    """
    from hybridzoo.errors import ConfigError
    from hybridzoo.eval.leaderboard.build import Outputs, build, bundle_board

    if bundle and out is None:
        raise ConfigError("--bundle copies files beside the page: give --out FOLDER")
    if bundle and out is not None:
        outputs = bundle_board(results, out, repository=repository)
    else:
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


def serve_command(
    results: ResultsOption = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Address; the default is this machine only.")] = "127.0.0.1",
    repository: RepositoryOption = None,
) -> None:
    """Build the page from the results and serve it with the files it links to, until Ctrl-C.

    \b
    hybridzoo leaderboard serve
    hybridzoo leaderboard serve --results runs/results --port 0
    """
    from hybridzoo.eval.leaderboard.serve import serve

    serve(results, host=host, port=port, repository=repository, say=typer.echo)


def verify_command(
    result: Annotated[Path, typer.Argument(help="Result file (.json).")],
    model: Annotated[
        str | None, typer.Option(help="Folder of the weights, if the result names one of another machine.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lie; embedded sets need none.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda …; a GPU if there is one.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train anew by the result's own command (takes as long as it took).")
    ] = False,
) -> None:
    """Run a result again from its own command, and compare every metric; exit code 1 if one differs.

    The same weights may move by a quarter of the standard error (other machines compute in another order), weights
    trained anew by three standard errors.

    \b
    hybridzoo leaderboard verify RESULT.json
    hybridzoo leaderboard verify RESULT.json --model runs/my_model --root data/fashion_mnist
    """
    import sys

    from hybridzoo.cli._table import text_table
    from hybridzoo.cli._warnings import plain_warnings
    from hybridzoo.eval.leaderboard.verify import report, verify

    plain_warnings()
    found = verify(result, model=model, root=root, device=device, train=train, progress=sys.stderr.isatty())
    typer.echo(text_table(("metric", "stated", "again", "allowed", ""), report(found), right=(1, 2, 3)))
    for problem in found.problems:
        typer.echo(problem, err=True)
    if not found.agrees:
        typer.echo("the result is NOT confirmed", err=True)
        raise typer.Exit(1)
    typer.echo(f"the result is confirmed on {found.again.run.device if found.again.run else 'this machine'}")


def submit_command(
    source: Annotated[Path, typer.Argument(help="Result file, folder of results, or run folder.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the submission.")] = Path("submission"),
    results: ResultsOption = None,
    by: Annotated[str | None, typer.Option("--by", help="Your name or address; recorded in the result files.")] = None,
    notes: Annotated[str, typer.Option("--notes", help="Added to the notes; 'explained: …' for a moved score.")] = "",
) -> None:
    """Prepare a pull request from your results: checked files, a patch for `git apply`, and its text with a comparison.

    \b
    hybridzoo leaderboard submit runs/my_model --by "A. Name"
    cd a/clone; git switch -c results; git apply submission/submission.patch
    """
    from hybridzoo.eval.leaderboard.build import default_results
    from hybridzoo.eval.leaderboard.submit import submit

    made = submit(source, out, results=results or default_results(), by=by, notes=notes)
    typer.echo(made.text.read_text(encoding="utf-8"))
    typer.echo(f"{len(made.results)} result(s) in {made.folder}")
    if made.patch:
        typer.echo(f"in a clone: git switch -c results && git apply {made.patch.resolve()}")
    typer.echo(f"then `hybridzoo leaderboard build`, commit, and open a pull request with the text in {made.text}")


def export_command(
    out: Annotated[Path, typer.Option("--out", help="New folder, one folder a model in it.")],
    results: ResultsOption = None,
    repository: RepositoryOption = None,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="TASK=org/name: the Hub's data set of a task. Repeatable.")
    ] = None,
) -> None:
    """Write the results as the Hugging Face Hub reads them: `.eval_results/*.yaml`, and cards with a model-index.

    \b
    hybridzoo leaderboard export --out hub
    hybridzoo leaderboard export --out hub --dataset twitter_airline=org/name
    """
    from hybridzoo.errors import ConfigError
    from hybridzoo.eval.leaderboard.build import default_results
    from hybridzoo.eval.leaderboard.export import export

    pairs = [text.partition("=") for text in dataset or ()]
    for name, equals, repo in pairs:
        if not (name and equals and repo):
            raise ConfigError(f"--dataset {name}{equals}{repo} is not TASK=org/name")
    datasets = {name: repo for name, _, repo in pairs}
    for path in export(results or default_results(), out, repository=repository, datasets=datasets):
        typer.echo(f"wrote {path}")


def pictures_command(
    source: Annotated[Path, typer.Argument(help="Result file, or a folder of results.")],
    root: Annotated[str | None, typer.Option(help="Where the data lie; embedded sets need none.")] = None,
    errors: Annotated[int, typer.Option(help="Detection: also so many images with the most errors.", min=0)] = 0,
) -> None:
    """Draw what the page shows of results (heat maps, boxes, samples, curves) from their stored predictions.

    \b
    hybridzoo leaderboard pictures eval/results/texture_ad_mini
    hybridzoo leaderboard pictures RESULT.json --root data/trees --errors 8
    """
    from hybridzoo.eval.leaderboard.draw import draw_pictures

    written = draw_pictures(source, root=root, errors=errors)
    for path in written:
        typer.echo(f"wrote {path}")
    if not written:
        typer.echo("nothing to draw: classifications need no pictures, and data from disk need --root")
