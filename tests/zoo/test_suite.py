"""The registry-wide suite: every `<family>_test` model, and a family that a plug-in brings, passes the same tests.

A new family joins by registering a `_test` variant. What a model cannot do it declares in `suite_exceptions`
(`{"export": "reason"}`, the keys are the test names without `test_`), and the test then asserts that it still cannot.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridzoo import build_model, list_models, registry
from hybridzoo.errors import CheckpointError, ConfigError

MODELS = [*list_models("*_test"), "toy_test"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("toy"):
        request.getfixturevalue("toy")
    return request.param


@pytest.fixture
def model(name: str) -> Any:
    torch.manual_seed(0)
    return build_model(name).eval()


def check(model: Any, test: str, body: Callable[[], None]) -> None:
    """Run the body of a test; of a declared exception assert that it still holds."""
    if test not in model.suite_exceptions:
        body()
        return
    try:
        body()
    except Exception:
        return
    pytest.fail(f"{type(model).__name__} declares an exception from {test!r}, and passes: remove the declaration")


def outputs(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a forward, by name."""
    return {k: v for k, v in model(**inputs).items() if isinstance(v, torch.Tensor)}


def main(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The main output of a forward."""
    return model(**inputs)[model.main_output_name]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


def test_test_variant_is_tiny(model: Any) -> None:
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_every_family_has_a_test_variant() -> None:
    with_variant = {registry.get_model(name)[0].family for name in list_models("*_test")}
    assert with_variant == set(registry.list_families())


def test_declared_exceptions_are_tests(model: Any) -> None:
    known = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(model.suite_exceptions) <= known


def test_an_exception_that_no_longer_holds_fails(toy: str) -> None:
    """The declaration is checked, not believed."""
    model = build_model(toy)
    type(model).suite_exceptions = {"compile": "for this test"}
    try:
        check(model, "compile", lambda: [][0])
        with pytest.raises(pytest.fail.Exception, match="remove the declaration"):
            check(model, "compile", lambda: None)
        with pytest.raises(IndexError):
            check(model, "export", lambda: [][0])
    finally:
        type(model).suite_exceptions = {}


def test_facts(model: Any, name: str) -> None:
    entry, _ = registry.get_model(name)
    family = registry.get_family(entry.family)
    assert (type(model).family, type(model).task) == (entry.family, entry.task)
    assert model.config.model_type == family.model_type
    assert model.head_names or "classification" not in model.task
    assert all(dict(model.named_modules()).get(head) is not None for head in model.head_names)
    inputs = model.example_inputs(2, labels=True)
    assert "labels" in inputs
    assert model.main_input_name in inputs
    assert_equal(inputs, model.example_inputs(2, labels=True), rtol=0, atol=0)  # seeded


def test_forward_and_backward(model: Any) -> None:
    model.train()
    loss = model(**model.example_inputs(2, labels=True)).loss
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not without
    assert not broken


def test_zoo_shapes(model: Any) -> None:
    inputs = model.example_inputs(3)
    assert main(model, inputs).shape == model.output_shape(inputs)
    assert (model(**inputs).loss is None) is model.loss_needs_labels
    if "classification" in model.task:
        assert model.output_shape(inputs) == (3, model.config.num_labels)


def test_alone_equals_row_of_batch(model: Any) -> None:
    def body() -> None:
        batch = model.example_inputs(3)
        together = main(model, batch)
        for row in range(3):
            alone = main(model, {k: v[row : row + 1] if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
            torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)

    check(model, "alone_equals_row_of_batch", body)


def test_deterministic_by_seed(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(name).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_save_and_load_are_bit_identical(model: Any, shard: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m", max_shard_size=shard)
    again = build_model(tmp_path / "m")
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    inputs = model.example_inputs(2, labels=True)
    assert_equal(outputs(model, inputs), outputs(again, inputs), rtol=0, atol=0)


def test_auto_classes(model: Any, name: str, tmp_path: Path) -> None:
    import transformers

    def body() -> None:
        entry, _ = registry.get_model(name)
        auto = getattr(transformers, registry.get_family(entry.family).auto_classes[entry.task])
        if entry.family == "toy":  # its config was told to AutoConfig only if transformers came after it
            registry.register_auto_configs()
        model.save_pretrained(tmp_path)
        again = auto.from_pretrained(tmp_path)
        assert type(again).__name__ == type(model).__name__
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())

    check(model, "auto_classes", body)


def test_config_round_trip(model: Any, tmp_path: Path) -> None:
    config = model.config
    copies = [type(config).from_dict(config.to_dict()), copy.deepcopy(config)]
    config.save_pretrained(tmp_path)
    copies.append(type(config).from_pretrained(tmp_path))
    own = [f for f in type(config).zoo_types if hasattr(config, f)]
    for again in copies:
        assert again.to_dict() == config.to_dict()
        for field in own:
            assert type(getattr(again, field)) is type(getattr(config, field)), field


def test_compile(model: Any) -> None:
    def body() -> None:
        torch._dynamo.reset()
        inputs = model.example_inputs(2)
        with torch.no_grad():
            compiled = torch.compile(model, fullgraph=True, backend="eager")
            assert_equal(outputs(model, inputs), outputs(compiled, inputs), rtol=1e-6, atol=1e-6)

    check(model, "compile", body)


def test_export(model: Any) -> None:
    def body() -> None:
        inputs = model.example_inputs(2)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (), kwargs=inputs)
            exported = program.module()(**inputs)
            torch.testing.assert_close(exported[model.main_output_name], main(model, inputs), rtol=1e-5, atol=1e-5)

    check(model, "export", body)


def test_bf16_autocast(model: Any) -> None:
    def body() -> None:
        inputs = model.example_inputs(2, labels=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(**inputs)
        got.loss.backward()
        found = got[model.main_output_name]
        assert found.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        torch.testing.assert_close(found.float(), main(model, inputs), rtol=0.1, atol=0.1)

    check(model, "bf16_autocast", body)


def test_bf16_weights(model: Any) -> None:
    def body() -> None:
        half = copy.deepcopy(model).to(torch.bfloat16)
        got = half(**half.example_inputs(2, labels=True))
        assert got[model.main_output_name].isfinite().all()
        assert got.loss.isfinite()

    check(model, "bf16_weights", body)


def test_gradient_checkpointing(model: Any) -> None:
    def body() -> None:
        inputs = model.example_inputs(2, labels=True)
        results = []
        for enable in (False, True):
            one = copy.deepcopy(model).train()
            one.set_grad_checkpointing(enable)
            assert one.is_gradient_checkpointing is enable
            torch.manual_seed(0)  # the same dropout
            got = one(**inputs)
            got.loss.backward()
            grads = {n: p.grad for n, p in one.named_parameters() if p.grad is not None}
            results.append(({"loss": got.loss, "main": got[model.main_output_name]}, grads))
        assert_equal(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
        assert_equal(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)

    check(model, "gradient_checkpointing", body)


def test_trainer(model: Any, name: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    batch = model.example_inputs(8, labels=True)
    rows = [{k: v[i] for k, v in batch.items()} for i in range(8)]
    before = copy.deepcopy(model.state_dict())
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_steps=2,
        disable_tqdm=True,
    )

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        columns = {k: [row[k] for row in features] for k in features[0]}
        return {k: torch.stack(v) if isinstance(v[0], torch.Tensor) else v for k, v in columns.items()}

    # transformers' own collator has no rule for a dictionary per image, the labels of every DETR
    collator = None if all(isinstance(v, torch.Tensor) for v in batch.values()) else collate
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)  # type: ignore[arg-type]
    result = trainer.train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    again = build_model(tmp_path / "checkpoint-2")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_card(model: Any, name: str, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    results = [
        {
            "task_type": type(model).task,
            "dataset_type": "org/data",
            "dataset_name": "Data: a set",
            "metric_type": "accuracy",
            "metric_value": 0.5,
        }
    ]
    model.save_pretrained(tmp_path, card={"name": name, "license": "apache-2.0", "results": results})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == type(model).task
    assert card.data.library_name == "hybridzoo"
    assert card.data.eval_results[0].metric_value == 0.5
    assert card.data.model_name == name
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card.text


def test_missing_key_is_named(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    victim = sorted(state)[len(state) // 2]
    save_file({k: v for k, v in state.items() if k != victim}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "SHA256SUMS").unlink()  # changed on purpose
    with pytest.raises(CheckpointError, match="1 missing") as caught:
        build_model(tmp_path)
    assert victim in str(caught.value)
    build_model(tmp_path, strict=False)


def test_new_number_of_labels_changes_only_the_head(model: Any, tmp_path: Path) -> None:
    if not model.head_names:
        pytest.skip("a model without classes")
    model.save_pretrained(tmp_path)
    labels = model.config.num_labels + 3
    again = build_model(tmp_path, num_labels=labels)
    assert again.config.num_labels == labels == len(again.config.id2label)
    old, new = model.state_dict(), again.state_dict()
    assert old.keys() == new.keys()
    for key, value in old.items():
        if model.is_head_key(key) and value.shape != new[key].shape:
            assert new[key].isfinite().all()
        else:
            assert torch.equal(value, new[key]), key
    inputs = again.example_inputs(2)
    assert main(again, inputs).shape == again.output_shape(inputs)
    if "classification" in again.task:
        assert again.output_shape(inputs) == (2, labels)


@pytest.mark.parametrize("name", list_models())
def test_meta_device(name: str) -> None:
    """Every registered model builds without allocating, has a plausible size, and its config round-trips."""
    model = build_model(name, device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    count = sum(p.numel() for p in model.parameters())
    assert 1_000 < count < 20_000_000_000
    assert registry.get_model(name)[0].family == model.family
    assert type(model.config).from_dict(model.config.to_dict()).to_dict() == model.config.to_dict()


@pytest.mark.parametrize("family", [*registry.list_families(), "toy"])
def test_original_layout_round_trip(family: str, request: pytest.FixtureRequest) -> None:
    """Where a family has an original: to_original and back gives the same weights, with no key left over.

    On the family's smallest model that the original can express.
    """
    if family == "toy":
        request.getfixturevalue("toy")
    names = list_models(family=family)
    sizes = {n: sum(p.numel() for p in build_model(n, device="meta").parameters()) for n in names}
    for name in sorted(names, key=sizes.__getitem__):
        large = sizes[name] > 10_000_000  # then keys and shapes only
        model = build_model(name, device="meta" if large else None)
        if registry.get_family(family).convert is None:
            with pytest.raises(CheckpointError, match="no original implementation"):
                model.to_original()
            return
        try:
            original = model.to_original()
        except (ConfigError, CheckpointError):  # a variant of ours, such as a smaller stem
            continue
        own = model.state_dict()
        back = type(model).convert_original(original, model.config, where="the test")
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in own.items()}
        if not large:
            again = type(model).from_original(original, model.config)
            assert all(torch.equal(v, again.state_dict()[k]) for k, v in own.items())
        return
    pytest.fail(f"no model of {family} can be written in the original's layout")
