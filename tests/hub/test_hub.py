"""Pull and push through the real huggingface_hub client against a stand-in server, with everything that goes wrong."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import hybridzoo.hub
from hybridzoo import build_model
from hybridzoo.card import MARK
from hybridzoo.errors import CheckpointError, ConfigError, HybridzooError, SourceError

_spec = importlib.util.spec_from_file_location("hub_stand_in", Path(__file__).with_name("server.py"))
assert _spec is not None
assert _spec.loader is not None
server = importlib.util.module_from_spec(_spec)
sys.modules["hub_stand_in"] = server
_spec.loader.exec_module(server)
Fault, Hub, Repo, TOKEN = server.Fault, server.Hub, server.Repo, server.TOKEN

pytestmark = pytest.mark.usefixtures("toy")
CONFIG = {"widths": (8, 8), "image_size": 8}  # of toy_test
WEIGHTS = r"GET .*model\.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server, and the client of this process pointed at it with an empty cache. Waits are cut short."""
    with Hub() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "DEFAULT_REQUEST_TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)
        monkeypatch.setattr(hybridzoo.hub, "RETRY_AFTER_S", (0.01, 0.01))
        import huggingface_hub.file_download as client

        monkeypatch.setattr(client.time, "sleep", lambda _: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


@pytest.fixture
def model() -> Any:
    return build_model("toy_test").eval()


@pytest.fixture
def repo(hub: Any, model: Any, tmp_path: Path) -> Any:
    """`org/toy` on the hub, one commit on main."""
    model.save_pretrained(tmp_path / "saved")
    hub.repos["org/toy"] = Repo()
    hub.repos["org/toy"].commit({p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()})
    return hub.repos["org/toy"]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def files_of(model: Any, folder: Path, **options: Any) -> dict[str, bytes]:
    model.save_pretrained(folder, **options)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# Pull ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["org/toy", "hf-hub:org/toy", "org/toy@main", "hf-hub:org/toy@main"])
def test_pull(name: str, hub: Any, repo: Any, model: Any) -> None:
    again = build_model(name)
    assert same(model, again)
    assert not again.training
    assert again.config.name_or_path == "org/toy"
    assert again.dtype == torch.float32


def test_branch_tag_and_commit(hub: Any, repo: Any, model: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = build_model("toy_wide")
    sha = repo.commit(files_of(other, tmp_path / "other"), ref="feature/wide", base="main")
    repo.refs["v1.0"] = repo.refs["main"]
    for revision, expected in (("main", model), ("v1.0", model), ("feature/wide", other), (sha, other)):
        assert same(expected, build_model(f"hf-hub:org/toy@{revision}")), revision
        assert same(expected, build_model("org/toy", revision=revision)), revision
    assert same(model, build_model("org/toy"))


def test_a_moved_branch_is_seen_and_a_commit_is_not_fetched_twice(hub: Any, repo: Any, tmp_path: Path) -> None:
    old = repo.refs["main"]
    build_model("org/toy")
    torch.manual_seed(1)
    newer = build_model("toy_test")
    repo.commit(files_of(newer, tmp_path / "newer"))
    assert same(newer, build_model("org/toy"))
    assert hub.count(WEIGHTS) == 2
    build_model("org/toy", revision=old)
    assert hub.count(WEIGHTS) == 2


def test_new_head_from_the_hub(hub: Any, repo: Any) -> None:
    assert build_model("org/toy", num_labels=9).classifier.out_features == 9


def test_only_model_files_are_fetched(hub: Any, repo: Any) -> None:
    repo.commit({"optimizer.pt": b"x" * 1000, "evil.py": b"raise SystemExit", "training.bin": b"x"})
    build_model("org/toy")
    assert hub.count(r"resolve/.*(optimizer|evil|training)") == 0


def test_offline_with_and_without_cache(hub: Any, repo: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build_model("org/toy")
    offline(monkeypatch)
    before = len(hub.log)
    assert same(model, build_model("org/toy"))
    with pytest.raises(SourceError, match=r"org/other is not complete in the local cache .*HF_HUB_OFFLINE=1"):
        build_model("org/other")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE=1"):
        build_model("org/toy@v9")
    assert len(hub.log) == before


def test_a_server_that_is_away_is_no_problem_once_cached(hub: Any, repo: Any, model: Any) -> None:
    build_model("org/toy")
    hub.__exit__()
    assert same(model, build_model("org/toy"))


def test_a_single_file_with_a_wrong_sha256(hub: Any, repo: Any, model: Any) -> None:
    from hybridzoo import registry
    from hybridzoo.registry import Weights

    weights = Weights(uri="hf-hub:org/toy:model.safetensors", license="mit", sha256="0" * 64)
    registry.register_model("toy_tagged", family="toy", config=CONFIG, tags={"w": weights})
    with pytest.raises(CheckpointError, match="not the published file"):
        build_model("toy_tagged", pretrained=True)
    registry._models["toy_tagged"].tags["w"] = Weights(uri="hf-hub:org/toy:model.safetensors", license="mit")  # type: ignore[index]
    assert same(model, build_model("toy_tagged.w", pretrained=True))


# Refusals ------------------------------------------------------------------------------------------------------------


def test_private(hub: Any, repo: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.private = True
    with pytest.raises(SourceError, match=r"org/toy at http.*private and you are not logged in.*hf auth login"):
        build_model("org/toy")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert same(model, build_model("org/toy"))


def test_gated(hub: Any, repo: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated = True
    with pytest.raises(SourceError, match="is gated: accept its terms"):
        build_model("org/toy")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert same(model, build_model("org/toy"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/nothing", r"org/nothing at http.*no such repository.*No local folder"),
        ("org/toy@v7", "no such branch, tag or commit"),
        ("hf-hub:toy--x", "is not a hub id"),
        ("hf-hub:a/b/c", "is not a hub id"),
        ("hf-hub:org/toy@" + "0" * 40, "no such branch, tag or commit|cannot be reached|missing"),
    ],
)
def test_not_found(name: str, message: str, hub: Any, repo: Any) -> None:
    with pytest.raises(SourceError, match=message):
        build_model(name)


def test_foreign_repositories(hub: Any) -> None:
    hub.repos["org/bert"] = Repo()
    hub.repos["org/bert"].commit({"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    with pytest.raises(CheckpointError, match="'bert' model, which is not one of the zoo's"):
        build_model("org/bert")
    hub.repos["org/data"] = Repo()
    hub.repos["org/data"].commit({"README.md": b"# data"})
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        build_model("org/data")
    hub.repos["org/key"] = Repo()
    hub.repos["org/key"].commit({"config.json": b'{"model_type": "hybridzoo_toy", "wdiths": [4]}'})
    with pytest.raises(ConfigError, match=r"org/key/config.json: .*did you mean 'widths'"):
        build_model("org/key")


def test_a_missing_shard(hub: Any, repo: Any, model: Any, tmp_path: Path) -> None:
    files = files_of(model, tmp_path / "sharded", max_shard_size="1KB")
    lost = next(name for name in files if name.startswith("model-00001"))
    hub.repos["org/shards"] = Repo()
    hub.repos["org/shards"].commit(files)
    assert same(model, build_model("org/shards"))
    hub.repos["org/lost"] = Repo()
    hub.repos["org/lost"].commit({k: v for k, v in files.items() if k != lost})
    with pytest.raises(CheckpointError, match=lost):
        build_model("org/lost")


# Faults on the way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [r"GET /api/models/", r"(HEAD|GET) .*config\.json", r"(HEAD|GET) .*\.safetensors"])
@pytest.mark.parametrize("status", [500, 503, 429])
def test_server_errors_are_retried(where: str, status: int, hub: Any, repo: Any, model: Any) -> None:
    hub.faults.append(Fault(where, status=status, times=1))
    assert same(model, build_model("org/toy"))
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("where", [r"GET /api/models/", r"(HEAD|GET) .*\.safetensors"])
def test_lasting_server_errors_are_one_clear_error(where: str, hub: Any, repo: Any) -> None:
    hub.faults.append(Fault(where, status=500, times=999))
    with pytest.raises(SourceError, match=r"org/toy at http.*HTTP 500.*try again later"):
        build_model("org/toy")
    assert hub.count(where) >= 3


def test_a_truncated_download_is_resumed(hub: Any, repo: Any, model: Any) -> None:
    hub.faults.append(Fault(WEIGHTS, cut=1000))
    assert same(model, build_model("org/toy"))
    assert hub.count(WEIGHTS + r".* bytes=768-") == 1  # three whole chunks of 256 had arrived


def test_a_download_that_always_breaks_off(hub: Any, repo: Any, model: Any) -> None:
    hub.faults.append(Fault(WEIGHTS, cut=0, times=999))
    with pytest.raises(SourceError, match="broke off"):
        build_model("org/toy")
    hub.faults.clear()
    assert same(model, build_model("org/toy"))  # nothing half-finished is left in the cache


def test_a_wrong_size(hub: Any, repo: Any, model: Any) -> None:
    content = repo.commits[repo.refs["main"]]["model.safetensors"]
    hub.faults.append(Fault(WEIGHTS, cut=len(content) - 8, length=len(content) - 8, times=999))
    with pytest.raises(SourceError, match=r"org/toy.*size"):
        build_model("org/toy")
    hub.faults.clear()
    assert same(model, build_model("org/toy"))


def test_a_wrong_hash_is_found_and_the_file_deleted(hub: Any, repo: Any, model: Any) -> None:
    hub.faults.append(Fault(WEIGHTS, corrupt=True, times=1))
    with pytest.raises(SourceError, match=r"does not have the hash .*try again"):
        build_model("org/toy")
    assert same(model, build_model("org/toy"))


def test_a_slow_server_times_out(hub: Any, repo: Any) -> None:
    hub.faults.append(Fault(WEIGHTS, delay=30, times=999))
    with pytest.raises(SourceError, match=r"cannot be reached or broke off \(.*Timeout"):
        build_model("org/toy")


def test_a_list_of_files_that_never_ends_times_out(hub: Any, repo: Any) -> None:
    """The hub states more bytes than it sends and keeps the connection: the client must not wait for ever."""
    hub.faults = [Fault(r"GET .*/api/models/org/toy", length=10**6, times=99)]
    with pytest.raises(SourceError):
        build_model("hf-hub:org/toy")
    hub.faults = []
    assert build_model("hf-hub:org/toy") is not None


def test_nobody_listens(hub: Any, repo: Any) -> None:
    hub.__exit__()
    with pytest.raises(SourceError, match=r"cannot be reached.*check the network and HF_ENDPOINT"):
        build_model("org/toy")


# Push ----------------------------------------------------------------------------------------------------------------


def test_push_and_pull(hub: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = {"task_type": "image-classification", "dataset_type": "org/d", "dataset_name": "D"}
    facts = {"license": "mit", "results": [{**result, "metric_type": "accuracy", "metric_value": 0.25}]}
    url = model.push_to_hub("org/pushed", private=True, card=facts, tags=["demo"], commit_message="First")
    assert "/org/pushed/commit/" in url
    repo = hub.repos["org/pushed"]
    assert repo.private
    stored = repo.commits[repo.refs["main"]]
    assert {"config.json", "model.safetensors", "README.md"} <= set(stored)
    from huggingface_hub import ModelCard

    card = ModelCard(stored["README.md"].decode())
    assert card.data.eval_results[0].metric_value == 0.25
    assert "demo" in card.data.tags
    assert same(model, build_model("org/pushed"))


def test_push_to_a_new_branch(hub: Any, repo: Any, model: Any) -> None:
    torch.manual_seed(5)
    other = build_model("toy_test")
    main = repo.refs["main"]
    other.push_to_hub("org/toy", revision="experiment", token=TOKEN)
    assert repo.refs["main"] == main
    assert same(other, build_model("org/toy@experiment"))
    assert same(model, build_model("org/toy"))


def test_push_keeps_a_persons_card(hub: Any, repo: Any, model: Any) -> None:
    repo.commit({"README.md": b"# written by hand"})
    model.push_to_hub("org/toy", token=TOKEN)
    assert repo.commits[repo.refs["main"]]["README.md"] == b"# written by hand"
    repo.commit({"README.md": MARK.encode()})
    model.push_to_hub("org/toy", token=TOKEN)
    assert b"parameters, class" in repo.commits[repo.refs["main"]]["README.md"]


def test_save_pretrained_with_push(hub: Any, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m", push_to_hub=True, repo_id="org/by-save", token=TOKEN)
    assert same(model, build_model("org/by-save")) is True
    assert same(model, build_model(tmp_path / "m"))


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_push_without_rights(hub: Any, model: Any, token: str | None) -> None:
    with pytest.raises(SourceError, match=r"org/denied at http.*(access refused|login|logged in)"):
        model.push_to_hub("org/denied", token=token)


def test_push_to_a_broken_server(hub: Any, model: Any) -> None:
    hub.faults.append(Fault("POST /api/models/.*/commit/", status=500, times=999))
    with pytest.raises(SourceError, match="HTTP 500"):
        model.push_to_hub("org/broken", token=TOKEN)


def test_push_offline(model: Any) -> None:
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        model.push_to_hub("org/name", token=TOKEN)


# The same through the environment, in a fresh process -----------------------------------------------------------------


def test_hf_endpoint_in_a_fresh_process(hub: Any, repo: Any, tmp_path: Path) -> None:
    """HF_ENDPOINT as a user sets it; build_model, the class, and transformers' Auto class read the same weights."""
    code = """
        import torch, transformers
        from hybridzoo import build_model
        from hybridzoo.errors import SourceError
        model = build_model("hf-hub:org/toy@main")
        cls = type(model)
        for other in (cls.from_pretrained("org/toy"),
                      transformers.AutoModelForImageClassification.from_pretrained("org/toy", revision="main")):
            assert type(other) is cls
            assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
        for load in (build_model, cls.from_pretrained):
            try:
                load("org/none")
            except SourceError as error:
                assert "no such repository" in str(error), error
            else:
                raise AssertionError("no error")
        print("fine")
    """
    plugins = Path(__file__).resolve().parent.parent / "plugins"
    paths = os.pathsep.join(p for p in (str(plugins), os.environ.get("PYTHONPATH")) if p)
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "own")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**env, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "fine" in done.stdout, done.stderr


def test_errors_are_ours() -> None:
    assert issubclass(SourceError, HybridzooError)
    assert issubclass(SourceError, OSError)
