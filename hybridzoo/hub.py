"""The Hugging Face Hub: ids, downloads and errors that teach. `HF_ENDPOINT` and `HF_HUB_OFFLINE` are honoured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hybridzoo.errors import SourceError


def split_revision(repo: str) -> tuple[str, str | None]:
    """`"org/name@rev"` -> `("org/name", "rev")`."""
    repo, _, revision = repo.partition("@")
    return repo, revision or None


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn the hub client's errors, also those that transformers wrapped, into one SourceError each."""
    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(_explain(repo, error)) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(repo: str, error: BaseException) -> str:
    where = f"{repo} at {constants.ENDPOINT}"
    for cause in _chain(error):
        if isinstance(cause, HFValidationError):
            return f"{repo!r} is not a hub id ({cause}); expected 'org/name' or 'org/name@revision'"
        if isinstance(cause, RevisionNotFoundError):
            return f"{where}: no such revision ({cause})"
        if isinstance(cause, GatedRepoError):
            return f"{where} is gated: accept its terms on its page, then `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return f"{where}: no such repository, or it is private and you are not logged in (`hf auth login`)"
        if isinstance(cause, LocalEntryNotFoundError):
            if constants.HF_HUB_OFFLINE:
                return (
                    f"{repo} is not in the local cache and HF_HUB_OFFLINE=1 forbids downloading; unset it once to fetch"
                )
            return f"{where}: cannot be reached and is not in the local cache ({cause})"
        if isinstance(cause, EntryNotFoundError):
            return f"{where}: a file is missing ({cause})"
        if isinstance(cause, HfHubHTTPError):
            return f"{where}: the server answered with an error ({cause}); try again later"
    return f"{where}: {error}"


def download(repo: str, filename: str, *, revision: str | None = None) -> Path:
    """Fetch one file of a hub repository into the cache and return its path.

    Args:
        repo: `"org/name"` or `"org/name@rev"`.
        filename: path inside the repository.
        revision: overrides the one in `repo`.

    Raises:
        SourceError: unreachable, private, missing, or offline and not cached.
    """
    repo, in_name = split_revision(repo)
    with hub_errors(repo):
        return Path(hf_hub_download(repo, filename, revision=revision or in_name))
