"""Names, listings, plug-ins, and what an import costs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import hybridzoo
from hybridzoo import is_model, list_families, list_models, model_info, registry
from hybridzoo.errors import UnknownNameError

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"


def run(code: str, *paths: Path) -> str:
    """Run code in a fresh interpreter; `paths` come before the others on sys.path."""
    old = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*map(str, paths), *([old] if old else [])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": joined},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_is_light_and_hooks_work_whichever_package_comes_first() -> None:
    """One process for all of it: what `import hybridzoo` loads, then transformers and timm after it."""
    out = run("""
        import sys
        import hybridzoo
        heavy = {"torch", "transformers", "timm", "numpy", "huggingface_hub", "safetensors"} & set(sys.modules)
        assert not heavy, heavy
        names = hybridzoo.list_models()
        assert len(names) > 5
        heavy = {"torch", "transformers", "timm", "numpy"} & set(sys.modules)
        assert not heavy, heavy
        import transformers
        from transformers import AutoConfig
        assert type(AutoConfig.for_model("iformer")).__name__ == "IFormerConfig"
        import timm
        assert timm.is_model("iformer_small"), timm.list_models("iformer*")
        assert set(dir(hybridzoo)) >= set(hybridzoo.__all__)
        for name in hybridzoo.__all__:
            assert getattr(hybridzoo, name) is not None
        print("fine")
    """)
    assert "fine" in out
    out = run("""
        import timm
        import transformers
        from transformers import AutoConfig
        AutoConfig.for_model("bert")
        import hybridzoo
        assert type(AutoConfig.for_model("iformer")).__name__ == "IFormerConfig"
        assert timm.is_model("iformer_small")
        print("fine")
    """)
    assert "fine" in out


def test_an_installed_plugin_is_found_and_a_broken_one_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken_plugin-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text(
        "[hybridzoo.models]\nhalf = broken_plugin\nabsent = no_such_module\nagain = broken_plugin:register\n"
    )
    (tmp_path / "broken_plugin.py").write_text(
        textwrap.dedent("""
        from hybridzoo.registry import register_model
        register_model("broken_small", family="iformer")
        raise RuntimeError("half way")
        """)
    )
    out = run(
        """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            from hybridzoo import build_model, list_families, list_models
            assert "toy" in list_families()
        assert list_models("toy_*") == ["toy_named", "toy_test", "toy_wide"]
        assert not list_models("broken*"), "a broken plug-in must leave nothing behind"
        texts = [str(w.message) for w in caught if "plug-in" in str(w.message)]
        assert len(texts) == 3, texts
        for text in texts:
            assert "broken-plugin" in text and "left out" in text
        assert any("half way" in text for text in texts)
        assert build_model("toy_test").config.model_type == "hybridzoo_toy"
        from transformers import AutoConfig
        assert type(AutoConfig.for_model("hybridzoo_toy")).__name__ == "ToyConfig"
        print("fine")
        """,
        PLUGINS,
        tmp_path,
    )
    assert "fine" in out


def test_a_failing_hook_does_not_break_the_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridzoo._import_hooks import when_imported

    (tmp_path / "hybridzoo_hooked.py").write_text("value = 3")
    (tmp_path / "hybridzoo_failing.py").write_text("import os\nif os.environ.get('FAIL'): raise OSError('first')\n")
    monkeypatch.syspath_prepend(tmp_path)
    calls = []
    when_imported("hybridzoo_hooked", lambda: 1 / 0)
    when_imported("hybridzoo_hooked", lambda: calls.append("second"))
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        import hybridzoo_hooked  # type: ignore[import-not-found]
    assert hybridzoo_hooked.value == 3
    assert calls == ["second"]
    when_imported("hybridzoo_hooked", lambda: calls.append("at once"))
    assert calls[-1] == "at once"
    when_imported("hybridzoo_failing", lambda: calls.append("retried"))
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(OSError, match="first"):
        import hybridzoo_failing  # type: ignore[import-not-found]
    monkeypatch.delenv("FAIL")
    import hybridzoo_failing

    assert hybridzoo_failing
    assert calls[-1] == "retried"


def test_listing(toy: str) -> None:
    assert list_models("toy_*") == ["toy_named", "toy_test", "toy_wide"]
    assert list_models("toy_*", exclude="*_test") == ["toy_named", "toy_wide"]
    assert list_models(["toy_t*", "toy_w*"]) == ["toy_test", "toy_wide"]
    assert list_models("*", family="toy", task="image-classification") == ["toy_named", "toy_test", "toy_wide"]
    assert list_models(family="toy", pretrained=True) == []
    assert all("." in name for name in list_models(pretrained=True))
    assert list_models("iformer_small.*") == ["iformer_small.sail_in1k"]
    assert is_model("toy_test")
    assert is_model("iformer_small.sail_in1k")
    assert not is_model("toy_test.tag")
    assert "toy" in list_families()


def test_natural_order(toy: str) -> None:
    for size in (10, 2, 1):
        registry.register_model(f"toy_{size}", family="toy")
    assert list_models("toy_[0-9]*") == ["toy_1", "toy_2", "toy_10"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hybridzoo.build_model("iformer_smal"), "did you mean 'iformer_small'"),
        (lambda: hybridzoo.build_model("iformer_small.sail", pretrained=True), "tags: sail_in1k"),
        (lambda: hybridzoo.build_model("iformer_test.x"), "no published weights"),
        (
            lambda: hybridzoo.build_model("iformer_test", pretrained=True),
            "no published weights.*iformer_small.sail_in1k",
        ),
        (lambda: hybridzoo.build_model(""), "empty model name"),
        (lambda: hybridzoo.build_model("hf-hub:"), "empty model name"),
        (lambda: list_models(task="image-clasification"), "did you mean 'image-classification'"),
        (lambda: list_models(family="iforme"), "did you mean 'iformer'"),
        (lambda: model_info("nothing_like_it"), "hybridzoo list"),
        (lambda: registry.register_model("x_new", family="iforme"), "did you mean 'iformer'"),
        (lambda: registry.register_model("x_new", family="iformer", task="detection"), "unknown task"),
    ],
)
def test_unknown_names_teach(call: Any, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        call()


def test_names_cannot_be_taken_twice(toy: str) -> None:
    with pytest.raises(ValueError, match="already registered"):
        registry.register_model("toy_test", family="toy")
    with pytest.raises(ValueError, match="already registered"):
        registry.register_family(registry.get_family("toy"))
    with pytest.raises(ValueError, match="lower-case"):
        registry.register_model("Toy.small", family="toy")


@pytest.mark.parametrize("name", ["iformer_test", "iformer_small", "roberta_bilstm_test"])
def test_model_info(name: str) -> None:
    info = model_info(name)
    facts = info.to_dict()
    assert facts["parameters"] == info.parameters > 1000
    assert facts["flops"] == info.flops > 1e6
    assert "parameters" not in info.to_dict(measure=False)
    assert facts["family"] in list_families()


def test_flops_include_attention_and_recurrent_layers() -> None:
    """Against a count by hand of the parts that torch's table leaves out when they are fused."""
    model = hybridzoo.build_model("roberta_bilstm_test")
    tokens = model.example_inputs(1)["input_ids"].shape[1]
    encoder, units = model.config.encoder, model.config.lstm_hidden_size
    width = encoder.hidden_size
    linear = 2 * tokens * encoder.num_hidden_layers * (4 * width**2 + 2 * width * encoder.intermediate_size)
    attention = 4 * tokens**2 * width * encoder.num_hidden_layers
    recurrent = 2 * tokens * 2 * 4 * units * (width + units)
    head = 2 * (2 * units * model.head.dense.out_features + model.head.dense.out_features * model.config.num_labels)
    assert model_info("roberta_bilstm_test").flops == pytest.approx(linear + attention + recurrent + head, rel=0.02)
