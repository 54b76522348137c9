"""A hub that fails in every way it can, and two processes that fetch the same weights at once."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tally import Tally, outcome

TESTS = Path(__file__).resolve().parent.parent
STATUSES = (400, 401, 403, 404, 408, 410, 416, 429, 500, 502, 503, 504)


def drill(count: int, folder: Path, seed: int) -> Tally:
    """`count` pulls from a hub with one to three random faults each: the true model, or a clear error."""
    sys.path.insert(0, str(TESTS / "hub"))
    import torch
    from server import Fault, Hub, Repo

    from hybridzoo import build_model

    tally = Tally(
        "Hub faults",
        "a model is pulled from a hub that refuses, cuts, delays, damages or lies about random answers",
        {
            "the true model": "every value is the one that was pushed",
            "clear error": "the package's own error; once the hub is well, the second try at the latest is right",
        },
    )
    rng = random.Random(seed)
    torch.manual_seed(seed)
    build_model("llamagen_vq_test").save_pretrained(folder / "saved")
    expected = build_model(folder / "saved").state_dict()

    def same(model: Any) -> bool:
        found = model.state_dict()
        return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)

    with Hub() as hub, _client(hub.url, folder / "cache") as cache:
        hub.repos["org/model"] = Repo()
        hub.repos["org/model"].commit({p.name: p.read_bytes() for p in (folder / "saved").iterdir()})
        for _ in range(count):
            shutil.rmtree(cache, ignore_errors=True)
            hub.faults = [_fault(Fault, rng) for _ in range(rng.randint(1, 3))]
            shown = [vars(f).copy() for f in hub.faults]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                end, value = outcome(lambda: build_model("hf-hub:org/model"))
                if end == "made":
                    end = "the true model" if same(value) else "ANOTHER MODEL"
                hub.faults = []
                if end == "clear error":
                    for _ in range(2):  # a download that was cut inside a damaged part needs a second try
                        again, value = outcome(lambda: build_model("hf-hub:org/model"))
                        if again == "made":
                            break
                    if again != "made" or not same(value):
                        end = f"the cache stays broken ({again})"
            tally.add(end, f"{shown}: {str(value)[:300]}")
    return tally


def _fault(kind: Any, rng: random.Random) -> Any:
    where = rng.choice([r"GET", r"HEAD", r"/api/", r"/resolve/", r"config\.json", r"model\.safetensors"])
    times = rng.choice([1, 1, 2, 99])
    what = rng.randrange(5)
    if what == 0:
        return kind(where, status=rng.choice(STATUSES), times=times)
    if what == 1:
        return kind(where, cut=rng.choice([0, 1, 100, 5000]), times=times)
    if what == 2:
        return kind(where, corrupt=True, times=times)
    if what == 3:
        return kind(where, length=rng.choice([0, 1, 10**9]), times=times)
    return kind(where, delay=0.8, times=min(times, 2))


@contextmanager
def _client(url: str, cache: Path) -> Any:
    """The hub client of this process, pointed at a server and an empty cache, with its waits cut short."""
    import huggingface_hub.file_download as client
    from huggingface_hub import constants

    import hybridzoo.hub

    values = {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_ETAG_TIMEOUT": 0.5,
        "HF_HUB_DOWNLOAD_TIMEOUT": 0.5,
        "DEFAULT_REQUEST_TIMEOUT": 0.5,
        "DOWNLOAD_CHUNK_SIZE": 4096,
    }
    before = {name: getattr(constants, name) for name in values}
    sleep, waits = client.time.sleep, hybridzoo.hub.RETRY_AFTER_S
    try:
        for name, value in values.items():
            setattr(constants, name, value)
        client.time.sleep, hybridzoo.hub.RETRY_AFTER_S = (lambda _: None), (0.01, 0.01)
        yield cache
    finally:
        for name, value in before.items():
            setattr(constants, name, value)
        client.time.sleep, hybridzoo.hub.RETRY_AFTER_S = sleep, waits


def two_processes(count: int, folder: Path, seed: int) -> Tally:
    """`count` times, two processes fetch the same weights into one empty cache at once."""
    sys.path.insert(0, str(TESTS / "hub"))
    import torch
    from server import Hub, Repo

    from hybridzoo import build_model
    from hybridzoo.eval.record import weights_sha256

    tally = Tally(
        "Two processes, one download",
        "two processes fetch the same weights into one empty cache at the same moment",
        {"both have the true model": "each process printed the hash of what was pushed"},
    )
    torch.manual_seed(seed)
    build_model("llamagen_vq_test").save_pretrained(folder / "saved")
    wanted = weights_sha256(build_model(folder / "saved").state_dict())
    code = (
        "from hybridzoo import build_model; from hybridzoo.eval.record import weights_sha256;"
        "print('sha', weights_sha256(build_model('hf-hub:org/model').state_dict()))"
    )
    with Hub() as hub:
        hub.repos["org/model"] = Repo()
        hub.repos["org/model"].commit({p.name: p.read_bytes() for p in (folder / "saved").iterdir()})
        for number in range(count):
            cache = folder / f"cache-{number}"
            env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache)}
            options = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            running = [subprocess.Popen([sys.executable, "-c", code], **options) for _ in range(2)]
            said = [process.communicate(timeout=600) for process in running]
            right = [f"sha {wanted}" in out for out, _ in said]
            tally.add(
                "both have the true model" if all(right) else f"{sum(right)} of 2",
                said[0][1][-300:] + said[1][1][-300:],
            )
    return tally
