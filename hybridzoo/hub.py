"""The Hugging Face Hub: ids, downloads, uploads and errors that teach. `HF_ENDPOINT` and `HF_HUB_OFFLINE` are honoured.

A model is fetched as one snapshot of one commit, and every new file whose hash the hub states is checked against it
(the client itself compares sizes only).
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hybridzoo._atomic_file import whole_file
from hybridzoo.checkpoint_io import sha256_file
from hybridzoo.errors import ConfigError, HybridzooError, SourceError

# What a model needs; a repository may hold gigabytes of other files.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "README.md")
RETRY_AFTER_S = (1.0, 3.0)


def split_revision(repo: str, revision: str | None = None) -> tuple[str, str | None]:
    """`"org/name@rev"` -> `("org/name", "rev")`.

    Args:
        repo: hub id, with or without a revision.
        revision: one given elsewhere; must not contradict.

    Raises:
        ConfigError: two different revisions.
    """
    repo, _, in_name = repo.partition("@")
    if in_name and revision and in_name != revision:
        raise ConfigError(f"two revisions for {repo}: @{in_name} in the name and revision={revision!r}; give one")
    return repo, revision or in_name or None


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn the hub client's errors, also those that transformers wrapped, into one SourceError each."""
    try:
        yield
    except HybridzooError:
        raise
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SourceError(_explain(repo, error)) from error
    except json.JSONDecodeError as error:
        text = f"{repo} at {constants.ENDPOINT}: the server's answer is no JSON ({error})"
        raise SourceError(f"{text}; it is no hub, or the answer was damaged on the way: try again") from error
    except Exception as error:
        if not _is_transport(error):
            raise
        raise SourceError(_explain(repo, error)) from error


def _is_transport(error: BaseException) -> bool:
    """Errors of the HTTP library (httpx in client 1.x, httpx2 in 2.x), named by module so that neither is imported."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(repo: str, error: BaseException) -> str:
    where = f"{repo} at {constants.ENDPOINT}"
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, HFValidationError):
            return f"{repo!r} is not a hub id ({cause}); expected 'org/name' or 'org/name@revision'"
        if isinstance(cause, LocalTokenNotFoundError):
            return f"{where} needs a login, and no token is stored here; run `hf auth login` or set HF_TOKEN"
        if isinstance(cause, RevisionNotFoundError):
            return f"{where}: no such branch, tag or commit; its page lists those that exist"
        if isinstance(cause, GatedRepoError):
            return f"{where} is gated: accept its terms on its page, then `hf auth login` (or set HF_TOKEN)"
        if isinstance(cause, RepositoryNotFoundError):
            return (
                f"{where}: no such repository, or it is private and you are not logged in (`hf auth login`, or set "
                "HF_TOKEN). No local folder of that name exists either."
            )
        if _status(cause) in (401, 403):
            return f"{where}: access refused (HTTP {_status(cause)}); log in with a token that may (`hf auth login`)"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{repo} is not complete in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE=1 forbids "
            "downloading; unset it once to fetch it"
        )
    for cause in chain:
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return f"{where}: a file is missing there ({_first_line(cause)})"
        if isinstance(cause, HfHubHTTPError):
            return f"{where}: the server answered with HTTP {_status(cause)}; try again later ({_first_line(cause)})"
    for cause in chain:
        if _is_transport(cause) or isinstance(cause, (ConnectionError, TimeoutError)):
            kind = type(cause).__name__
            return (
                f"{where}: cannot be reached or broke off ({kind}: {_first_line(cause)}), and the model is not "
                "complete in the local cache; check the network and HF_ENDPOINT, and try again"
            )
    return f"{where}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def download(repo: str, filename: str, *, revision: str | None = None) -> Path:
    """Fetch one file of a hub repository into the cache and return its path.

    Args:
        repo: `"org/name"` or `"org/name@rev"`.
        filename: path inside the repository.
        revision: branch, tag or commit.

    Raises:
        SourceError: unreachable, private, missing, damaged on the way, or offline and not cached.
    """
    repo, revision = split_revision(repo, revision)
    with hub_errors(repo), _verified(repo):
        return Path(_retried(lambda: hf_hub_download(repo, filename, revision=revision)))


def snapshot(repo: str, *, revision: str | None = None) -> Path:
    """Fetch the model files of one commit of a hub repository into the cache and return the folder.

    Args:
        repo: `"org/name"` or `"org/name@rev"`.
        revision: branch, tag or commit.

    Raises:
        SourceError: unreachable, private, missing, damaged on the way, or offline and not cached.
    """
    repo, revision = split_revision(repo, revision)
    with hub_errors(repo), _verified(repo):
        return Path(_retried(lambda: _fetch_snapshot(repo, revision)))


def _fetch_snapshot(repo: str, revision: str | None) -> str:
    """As `snapshot_download`, which asks for the list of files without a timeout, so that a hub could hold it for ever.

    A hub that cannot be reached is no problem where the cache holds the model.
    """
    wanted: list[str] = list(MODEL_FILES)
    if constants.HF_HUB_OFFLINE:
        return snapshot_download(repo, revision=revision, allow_patterns=wanted)
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=constants.DEFAULT_REQUEST_TIMEOUT)
    except Exception as error:
        server = isinstance(error, HfHubHTTPError) and (_status(error) or 500) >= 500
        if not (server or _is_transport(error) or isinstance(error, (ConnectionError, TimeoutError))):
            raise
        try:
            return snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
    assert info.sha is not None
    names = [s.rfilename for s in info.siblings or () if any(fnmatch.fnmatch(s.rfilename, p) for p in wanted)]
    with ThreadPoolExecutor(min(8, len(names) or 1)) as pool:
        list(pool.map(lambda name: hf_hub_download(repo, name, revision=info.sha), names))
    storage = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    _write_ref(storage / "refs" / (revision or constants.DEFAULT_REVISION), info.sha)
    return str(storage / "snapshots" / info.sha)


def _write_ref(path: Path, sha: str) -> None:
    """What a branch or tag points at, as the client's cache keeps it for offline use."""
    if path.name == sha or (path.is_file() and path.read_text() == sha):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as staged:
        staged.write_text(sha)


def _retried(fetch: Callable[[], str]) -> str:
    """Call again after a server error (5xx, 429) or a broken connection, which the client repeats for files only."""
    for wait in RETRY_AFTER_S:
        try:
            return fetch()
        except Exception as error:
            if not any(map(_is_passing, _chain(error))):
                raise
            time.sleep(wait)
    return fetch()


def _is_passing(error: BaseException) -> bool:
    """Whether the next try may well succeed; a server that is not there at all is none."""
    if _is_transport(error):
        return type(error).__name__ in ("RemoteProtocolError", "ReadError")
    status = _status(error)
    return isinstance(error, HfHubHTTPError) and status is not None and (status == 429 or status >= 500)


@contextmanager
def _verified(repo: str) -> Iterator[None]:
    """Check what the block downloads: a blob that the cache names by its hash (sha256, git's for small files) must have
    it.
    """
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    before, damaged = _names(blobs), []
    try:
        yield
    finally:  # also where another file failed: nothing damaged may stay in the cache, where it would be believed
        for name in sorted(_names(blobs) - before):
            if _hash_as(name, blobs / name) != name:
                (blobs / name).unlink()
                damaged.append(name)
    if damaged:
        raise SourceError(
            f"{repo} at {constants.ENDPOINT}: a downloaded file does not have the hash that the server states "
            f"({damaged[0][:12]}…); it was damaged on the way and has been deleted: try again"
        )


def _hash_as(name: str, path: Path) -> str:
    """The hash of a file of the same kind as `name`: sha256, git's of a blob, or `name` itself where it is none."""
    if len(name) == 64:
        return sha256_file(path)
    if len(name) == 40:
        data = path.read_bytes()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    return name


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if "." not in p.name} if folder.is_dir() else set()


def upload_folder(
    repo: str,
    folder: Path,
    *,
    message: str,
    description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder in one commit, making the repository and the branch where they do not exist.

    A README.md on the hub that a person wrote (one without the zoo's mark) is kept.

    Returns:
        The address of the commit.

    Raises:
        SourceError: not logged in, refused, or unreachable.
    """
    api = HfApi(token=token)
    with hub_errors(repo):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        ignore = ["README.md"] if _has_own_card(api, repo, revision) else None
        commit: Any = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=message,
            commit_description=description,
            ignore_patterns=ignore,
        )
    return str(commit)


def _has_own_card(api: HfApi, repo: str, revision: str | None) -> bool:
    from hybridzoo.card import MARK

    try:
        card = api.hf_hub_download(repo, "README.md", revision=revision)
    except EntryNotFoundError:
        return False
    return MARK.encode() not in Path(card).read_bytes()
