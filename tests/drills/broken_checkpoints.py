"""Checkpoints that are not what was saved: flipped bits, cut files, headers of other files, lengths that lie."""

from __future__ import annotations

import json
import random
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

from tally import Tally, outcome

MODEL = "llamagen_vq_test"


def drill(count: int, folder: Path, seed: int) -> Tally:
    """Mutate a saved model `count` times and load it."""
    import torch

    from hybridzoo import build_model

    tally = Tally(
        "Mutated checkpoints",
        "a saved model is damaged: bit flips, truncation, appended bytes, swapped headers, wrong lengths, edited JSON",
        {
            "clear error": "refused by the package's own error",
            "identical": "the change touched nothing that is read (a space of the header, say)",
            "other values": "the edited config.json is a possible one, of another model",
        },
    )
    rng = random.Random(seed)
    torch.manual_seed(seed)
    good, other, bad = folder / "good", folder / "other", folder / "bad"
    build_model(MODEL).save_pretrained(good)
    build_model("iformer_test").save_pretrained(other)
    expected = build_model(good).state_dict()
    foreign = (other / "model.safetensors").read_bytes()
    mutations = (_flip_header, _flip_data, _truncate, _append, _swap_header, _length, _offsets, _config, _config_bytes)
    for number in range(count):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        mutate = mutations[number % len(mutations)]
        what = mutate(bad, rng, foreign)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            end, value = outcome(lambda: build_model(bad))
        if end == "made":
            found = value.state_dict()
            same = found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
            end = "identical" if same else "other values"
            if not same and mutate not in (_config, _config_bytes):
                end = "silently other values"
        tally.add(end, f"{mutate.__name__} {what}: {str(value)[:200]}")
    return tally


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def _split(data: bytes) -> tuple[int, bytes, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return size, data[8 : 8 + size], data[8 + size :]


def _flip(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def _flip_header(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = _weights(folder)
    data = path.read_bytes()
    size, _, _ = _split(data)
    at, bit = rng.randrange(8 + size), rng.randrange(8)
    path.write_bytes(_flip(data, at, bit))
    return f"byte {at} bit {bit}"


def _flip_data(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = _weights(folder)
    data = path.read_bytes()
    size, _, _ = _split(data)
    at, bit = rng.randrange(8 + size, len(data)), rng.randrange(8)
    path.write_bytes(_flip(data, at, bit))
    return f"byte {at} bit {bit}"


def _truncate(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = _weights(folder)
    keep = rng.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:keep])
    return f"kept {keep} bytes"


def _append(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = _weights(folder)
    more = rng.randbytes(rng.randrange(1, 64))
    path.write_bytes(path.read_bytes() + more)
    return f"{len(more)} bytes more"


def _swap_header(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = _weights(folder)
    (size, header, data), (size2, header2, data2) = _split(path.read_bytes()), _split(foreign)
    swapped = (size2, header2, data) if rng.random() < 0.5 else (size, header, data2)
    path.write_bytes(struct.pack("<Q", swapped[0]) + swapped[1] + swapped[2])
    return "header of another file"


def _length(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = _weights(folder)
    size = rng.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1, rng.randrange(2**16)])
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    return f"header of {size} bytes"


def _offsets(folder: Path, rng: random.Random, foreign: bytes) -> str:
    """A header that is valid JSON and lies about one tensor."""
    path = _weights(folder)
    _, header, data = _split(path.read_bytes())
    table = json.loads(header)
    name = rng.choice([k for k in table if k != "__metadata__"])
    entry = table[name]
    kind = rng.randrange(6)
    if kind == 0:
        entry["data_offsets"] = [entry["data_offsets"][0], entry["data_offsets"][1] + rng.choice([-4, 4, 10**9])]
    elif kind == 1:
        entry["shape"] = rng.choice([[], [0], [-1, 2], [2**40, 2**40], [*entry["shape"], 1], entry["shape"][::-1]])
    elif kind == 2:
        entry["dtype"] = rng.choice(["F16", "I64", "BOOL", "X99", ""])
    elif kind == 3:
        table[name + "x"] = table.pop(name)
    elif kind == 4:
        del table[name]
    else:
        table[name] = rng.choice([None, [], "x", {"dtype": "F32"}])
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return f"{name} kind {kind}"


def _config(folder: Path, rng: random.Random, foreign: bytes) -> str:
    """One value of config.json replaced by another type, or a key that does not exist."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    key = rng.choice([*sorted(values), "no_such_key"])
    values[key] = rng.choice([None, "x", -1, 0, 10**30, [], {}, [[[]]], {"a": {"b": []}}, True, 1.5])
    path.write_text(json.dumps(values), encoding="utf-8")
    return f"{key} = {values[key]!r}"


def _config_bytes(folder: Path, rng: random.Random, foreign: bytes) -> str:
    path = folder / "config.json"
    data = path.read_bytes()
    at, kind = rng.randrange(len(data)), rng.randrange(3)
    changed: Any = (data[:at], _flip(data, at, rng.randrange(8)), data[:at] + b"\xff\xfe" + data[at:])[kind]
    path.write_bytes(changed)
    return f"byte {at} kind {kind}"
