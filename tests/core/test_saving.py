"""save_pretrained: atomic under a kill at any system call, clear on a read-only or full disk, kind to other files."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridzoo import build_model
from hybridzoo._paths import asset_root
from hybridzoo.card import MARK
from hybridzoo.checksums import check_sums
from hybridzoo.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.usefixtures("toy")


def make(seed: int, **values: Any) -> Any:
    torch.manual_seed(seed)
    return build_model("toy_test", **values).eval()


def same(a: Any, b: Any) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(v, y[k]) for k, v in x.items())


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


CASES = {
    "first save": (None, {}, {}),
    "same configuration": ({}, {}, {}),
    "other configuration": ({"num_labels": 5}, {}, {}),
    "shards over a file": ({}, {}, {"max_shard_size": "1KB"}),
    "shards over shards": ({"widths": (8, 8, 8)}, {"max_shard_size": "1KB"}, {"max_shard_size": "1KB"}),
    "a file over shards": ({"widths": (8, 8, 8)}, {"max_shard_size": "1KB"}, {}),
}


def killed_at(step: int, action: Any) -> bool:
    """Run `action` in a forked process that dies at its `step`-th file-system call; whether it died."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if writes or event in (
                "os.rename",
                "os.link",
                "os.remove",
                "os.mkdir",
                "os.rmdir",
                "os.chmod",
                "shutil.rmtree",
            ):
                seen += 1
                if seen == step:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), "the save itself failed"
    return code == 9


@pytest.mark.parametrize("case", CASES)
def test_a_kill_leaves_the_old_or_the_new_model(case: str, tmp_path: Path) -> None:
    old_values, old_options, new_options = CASES[case]
    old = make(1, **old_values) if old_values is not None else None
    new = make(2)
    outcomes, step = set(), 0
    while True:
        step += 1
        target = tmp_path / f"run{step}" / "model"
        if old is not None:
            old.save_pretrained(target, **old_options)
            (target / "tokenizer.json").write_text("{}")
            (target / "checkpoints").mkdir()
            (target / "checkpoints" / "state").write_text("x")
        died = killed_at(step, lambda target=target: new.save_pretrained(target, **new_options))
        if old is None and not target.exists():
            outcomes.add("nothing")
        else:
            found = build_model(target)
            matches = [n for n, m in (("old", old), ("new", new)) if m is not None and same(found, m)]
            assert matches, f"killed at step {step}: neither the old nor the new model"
            outcomes.update(matches)
        if old is not None:
            assert {"tokenizer.json", "checkpoints/state"} <= listing(target)
        if not died:
            break
        assert step < 200
    assert step > 4
    assert matches == ["new"]
    assert len(outcomes) == 2, outcomes
    assert [p.name for p in target.parent.iterdir()] == ["model"]  # nothing left behind


def test_stale_shards_disappear_and_other_files_stay(tmp_path: Path) -> None:
    make(1, widths=(8, 8, 8)).save_pretrained(tmp_path, max_shard_size="1KB")
    (tmp_path / "log.jsonl").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    model = make(2)
    model.save_pretrained(tmp_path)
    written = {"README.md", "SHA256SUMS", "config.json", "model.safetensors"}
    assert listing(tmp_path) == written | {"log.jsonl", "training_args.bin"}
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert "model.safetensors" not in listing(tmp_path)
    assert same(model, build_model(tmp_path))


def test_a_variant_leaves_the_plain_weights(tmp_path: Path) -> None:
    model = make(1)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="fp16")
    assert {"model.safetensors", "model.fp16.safetensors"} <= listing(tmp_path)


@pytest.mark.parametrize("shards", [False, True])
def test_a_flipped_bit_is_refused_by_name(tmp_path: Path, shards: bool) -> None:
    model = make(0)
    model.save_pretrained(tmp_path, **({"max_shard_size": "1KB"} if shards else {}))
    victim = sorted(tmp_path.glob("*.safetensors"))[-1]
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    for load in (build_model, type(model).from_pretrained):
        with pytest.raises(CheckpointError, match=rf"{victim.name} is not the file that was saved.*delete SHA256SUMS"):
            load(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    assert not same(build_model(tmp_path), model)
    model.save_pretrained(tmp_path)
    assert same(build_model(tmp_path), model)


def test_sums_in_the_format_of_sha256sum(tmp_path: Path) -> None:
    make(0).save_pretrained(tmp_path)
    digest, name = (tmp_path / "SHA256SUMS").read_text().removesuffix("\n").split("  ")
    assert name == "model.safetensors"
    assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"# a list of someone else\n{'0' * 64}  gone.safetensors\n\u00ff\n")
    build_model(tmp_path)


SHIPPED = sorted(path.parent for path in asset_root("checkpoints").glob("*/config.json"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_are_the_listed_ones(folder: Path) -> None:
    """After other weights were put there by hand: `python -m hybridzoo.checksums checkpoints/NAME`."""
    assert "model.safetensors" in (folder / "SHA256SUMS").read_text()
    check_sums(folder)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    make(1).save_pretrained(tmp_path / "m")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o777 & ~mask


def test_through_a_link_and_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(1)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    model.save_pretrained(tmp_path / "link")
    make(3, num_labels=4).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(tmp_path / "real")
    model.save_pretrained(".")
    assert same(model, build_model(Path()))
    assert same(model, build_model(tmp_path / "real"))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    model = make(1)
    model.save_pretrained(tmp_path / "m")
    return model, tmp_path / "m"


def test_read_only(saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal of the system is given by hand where the tests run as root."""
    model, target = saved
    if os.geteuid() == 0:

        def refuse(*args: Any, **kwargs: Any) -> str:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target.parent))

        monkeypatch.setattr("tempfile.mkdtemp", refuse)
    else:
        target.parent.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match=r"cannot save the model into .*(Read-only|denied).*untouched"):
            make(2).save_pretrained(target)
    finally:
        target.parent.chmod(0o755)
    assert same(model, build_model(target))


def test_full_disk(saved: tuple[Any, Path]) -> None:
    """A process whose files may not exceed 1 kB: the kernel refuses the write, as on a full disk."""
    model, target = saved
    child = os.fork()
    if child == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        try:
            make(2).save_pretrained(target)
        except CheckpointError as error:
            text = str(error)
            os._exit(0 if "cannot save the model into" in text and "untouched" in text else 2)
        except BaseException:
            os._exit(3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same(model, build_model(target))
    assert [p.name for p in target.parent.iterdir()] == ["m"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    with pytest.raises(CheckpointError, match="it is a file"):
        make(1).save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match="cannot save"):
        make(1).save_pretrained(tmp_path / "m" / "below")


def test_signature_of_trainer_and_accelerate(tmp_path: Path) -> None:
    model = make(1)
    state = {k: v + 1 for k, v in model.state_dict().items()}
    model.save_pretrained(
        str(tmp_path / "m"),
        is_main_process=True,
        state_dict=dict(state),
        save_function=torch.save,
        safe_serialization=True,
    )
    again = build_model(tmp_path / "m")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    model.save_pretrained(tmp_path / "other", is_main_process=False, state_dict=dict(state))
    assert not (tmp_path / "other").exists()


def test_peft_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = make(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["linear"], r=2))
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make(1), tmp_path)
    assert torch.equal(again(**model.example_inputs(1)).logits, adapted.eval()(**model.example_inputs(1)).logits)


def test_card_metadata_is_valid_and_a_persons_card_is_kept(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    model = make(1)
    facts = {
        "name": "toy: a test",
        "license": "mit",
        "datasets": ["org/data"],
        "language": ["en"],
        "tags": ["mine"],
        "command": "hybridzoo train toy",
        "text": "Some *text*.",
        "results": [
            {
                "task_type": "image-classification",
                "dataset_type": "org/data",
                "dataset_name": "Data",
                "metric_type": "accuracy",
                "metric_name": "top-1",
                "metric_value": 91.5,
            }
        ],
    }
    model.save_pretrained(tmp_path, card=facts)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == 91.5
    assert (card.data.license, card.data.datasets, card.data.language) == ("mit", ["org/data"], ["en"])
    assert {"hybridzoo", "toy", "mine"} <= set(card.data.tags)
    assert "| Data | top-1 | 91.5 |" in card.text
    model.save_pretrained(tmp_path)
    assert MARK in (tmp_path / "README.md").read_text()
    own = b"# my own words, not even UTF-8: \xff"
    (tmp_path / "README.md").write_bytes(own)
    make(2, num_labels=4).save_pretrained(tmp_path, card=facts)
    assert (tmp_path / "README.md").read_bytes() == own


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"licence": "mit"}, "did you mean 'license'"), ({"results": [{"task": 1}]}, "EvalResult")],
)
def test_wrong_facts_for_a_card(facts: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make(1).save_pretrained(tmp_path / "m", card=facts)
    assert not (tmp_path / "m").exists()


def test_extras_of_a_family_are_part_of_the_atomic_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(1)
    monkeypatch.setattr(type(model), "save_extras", lambda self, folder: (folder / "extra.json").write_text("1"))
    model.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "extra.json").read_text() == "1"

    def fail(self: Any, folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(model), "save_extras", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        make(2).save_pretrained(tmp_path / "m")
    assert same(model, build_model(tmp_path / "m"))
