"""Files made to do harm: pickles that run code, YAML and JSON that run code, explode or recurse, names that climb."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tally import Tally, outcome


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def drill(count: int, folder: Path, seed: int) -> Tally:
    """Offer every hostile file to every reader that a user would give it to; `count` limits the number."""
    import torch

    from hybridzoo import build_model, load_original
    from hybridzoo.data import load_data
    from hybridzoo.eval.leaderboard.build import Outputs, build
    from hybridzoo.eval.leaderboard.verify import parse_command
    from hybridzoo.eval.schema import Result
    from hybridzoo.training.recipe import load_recipe

    tally = Tally(
        "Hostile files",
        "pickles, YAML, JSON, archives and commands that run code, explode or recurse are given to their readers",
        {"clear error": "refused by the package's own error, and nothing ran"},
    )
    marker = folder / "it-ran"
    torch.manual_seed(seed)
    cases: list[tuple[str, Callable[[], Any]]] = []

    def file(name: str, content: bytes | str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    for protocol in range(2, 6):
        data = pickle.dumps({"state_dict": Evil(marker)}, protocol=protocol)
        path = file(f"evil{protocol}.pth", data)
        cases.append((f"pickle protocol {protocol}", lambda p=path: build_model(p, name="iformer_test")))
        cases.append((f"original, protocol {protocol}", lambda p=path: load_original("iformer", p)))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(marker)))
        archive.writestr("archive/version", "3")
    path = file("zipped.pth", zipped.getvalue())
    cases.append(("torch archive with a pickle", lambda p=path: build_model(p, name="iformer_test")))
    for name in ("pytorch_model.bin", "model.safetensors"):
        build_model("iformer_test").save_pretrained(folder / f"with-{name}")
        (folder / f"with-{name}" / "model.safetensors").unlink()
        file(f"with-{name}/{name}", pickle.dumps(Evil(marker)))
        cases.append((f"a folder with a pickle as {name}", lambda n=name: build_model(folder / f"with-{n}")))

    touch = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
    )
    recipes = {
        "object": f"title: {touch}\n",
        "os": f"model: !!python/object/apply:os.system ['touch {marker}']\n",
        "resolver": f"title: ${{oc.create:{marker}}}\nmodel: {{name: ${{oc.env:HOME}}}}\n",
        "bomb": bomb,
        "deep": "[" * 3000 + "]" * 3000,
        "deep map": "{a: " * 900 + "1" + "}" * 900,
        "merge": "<<: [1, 2]\nmodel: {name: iformer_test}\n",
        "itself": "&x [*x]",
        "binary": b"\x80\x05\x95" + bytes(range(256)),
        "many documents": "---\na: 1\n---\nb: 2\n",
        "climbs": "base: ../../../../etc/passwd\n",
        "list": "- 1\n- 2\n",
        "no": "",
        "huge number": "training: {epochs: 1" + "0" * 5000 + "}\nmodel: {name: iformer_test}\n",
    }
    for name, text in recipes.items():
        path = file(f"recipes/{name}.yaml", text)
        cases.append((f"recipe: {name}", lambda p=path: load_recipe(str(p), [])))

    jsons = {
        "deep": "[" * 100_000,
        "deep object": '{"a":' * 50_000,
        "number": '{"schema": 1, "x": ' + "9" * 5000 + "}",
        "NaN": '{"schema": 1, "model": NaN}',
        "list": "[]",
        "surrogate": '{"schema": "\ud800"}',
        "nul": "\x00",
        "double": '{"schema": 1, "schema": 1}',
    }
    for name, text in jsons.items():
        path = file(f"results/vader/x/{name}.json", text)
        cases.append((f"result: {name}", lambda p=path: Result.from_json(p)))
        config = folder / f"config-{name}"
        config.mkdir()
        (config / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        cases.append((f"config.json: {name}", lambda c=config: build_model(c)))
    cases.append(("a board of hostile results", lambda: build(folder / "results", Outputs.in_folder(folder / "out"))))
    remote = json.dumps({"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}, "architectures": ["Evil"]})
    file("remote/config.json", remote)
    file("remote/evil.py", f"from pathlib import Path; Path({str(marker)!r}).touch()")
    cases.append(("code of a repository", lambda: build_model(folder / "remote")))
    for command in (f"touch {marker}", f"bash -c 'touch {marker}'", f"$(touch {marker})", f"hybridzoo; touch {marker}"):
        cases.append((f"command: {command[:20]}", lambda c=command: parse_command(c)))
    for name, data in (
        ("evil.csv", b"\x00" * 5000),
        ("evil.jsonl", b'{"text": ' * 20_000),
        ("zip.csv", zipped.getvalue()),
    ):
        path = file(name, data)
        kind = "text_jsonl" if name.endswith("jsonl") else "text_csv"
        cases.append((f"data: {name}", lambda p=path, k=kind: load_data(k, root=p)))
    for name in ("../../../etc/passwd", "a\x00b", "~root/x", "https://example.org/x", "x" * 5000, "$(id)", "CON"):
        cases.append((f"model name {name[:20]!r}", lambda n=name: build_model(n)))

    for name, call in cases[:count] if count < len(cases) else cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            end, value = outcome(call)
        if marker.exists():
            marker.unlink()
            end = "code of the file ran"
        tally.add(end, f"{name}: {str(value)[:200]}")
    return tally
