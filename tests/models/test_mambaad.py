"""MambaAD beyond parity: any image size, the loss with known anomalies, the frozen teacher, both layouts, bad input."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from scipy.ndimage import gaussian_filter

from hybridzoo import build_model, load_original
from hybridzoo.errors import CheckpointError, ConfigError, InputError
from hybridzoo.export import export_model
from hybridzoo.loading import build_from_backbone
from hybridzoo.models.mambaad import blocks, step_sizes
from hybridzoo.models.mambaad.folded import foldable, folded_maps
from hybridzoo.models.mambaad.maps import smooth
from hybridzoo.models.mambaad.teacher import build_teacher
from hybridzoo.ops.rank_product.reference import by_pairs, weight_gradient


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("mambaad_test").eval()


def images(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (70, 101), (33, 40), (224, 32)])
def test_any_image_size(model, size):
    with torch.no_grad():
        got = model(images(*size), output_hidden_states=True)
    assert got.anomaly_map.shape == (2, *size)
    assert [t.shape for t in got.teacher_features] == [s.shape for s in got.student_features]
    assert got.anomaly_map.isfinite().all()
    assert torch.equal(got.score, got.anomaly_map.amax((1, 2)))


def test_a_size_without_its_own_tables_gives_the_same(model):
    """Tables made when the image comes equal those made with the model."""
    other = build_model("mambaad_test", image_size=96).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images(96, 96)).anomaly_map, other(images(96, 96)).anomaly_map)


@pytest.mark.parametrize("compiled", [True, False])
def test_another_size_compiles_and_exports(model, compiled):
    x = images(80, 96)
    with torch.no_grad():
        want = model(x).anomaly_map
        if compiled:
            torch._dynamo.reset()
            got = torch.compile(model, fullgraph=True, backend="eager")(x).anomaly_map
        else:
            got = torch.export.export(model, (x,)).module()(x)["anomaly_map"]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


class _Keeps(torch.autograd.Function):
    """Three times the step sizes' square; keeps a view of them, as the scans' kernels do."""

    @staticmethod
    def forward(ctx, dt):
        ctx.save_for_backward(dt.flatten(1))
        return 3 * dt**2

    @staticmethod
    def backward(ctx, grad):
        (dt,) = ctx.saved_tensors
        return 6 * dt.view_as(grad) * grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_step_sizes_are_remade_for_the_backward(dtype, monkeypatch):
    g = torch.Generator().manual_seed(0)
    projected = torch.randn(10, 4, 7, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(4, 6, 3, generator=g).to(dtype).requires_grad_()
    other = torch.randn(10, 4, 6, generator=g).to(dtype)
    made = []
    real = step_sizes.rank_product
    monkeypatch.setattr(step_sizes, "rank_product", lambda *a: made.append(1) or real(*a))

    rank = projected[..., :3]  # no block of memory of its own
    dt = step_sizes.project(rank, weight)
    assert dt.is_contiguous()
    with step_sizes.remade(dt, rank, weight):
        y = _Keeps.apply(dt) * other
    assert len(made) == 1
    got = torch.autograd.grad(y.sum(), (projected, weight))
    assert len(made) == 2  # in place of what was not kept

    want_dt = torch.einsum("mkr,kdr->mkd", projected[..., :3].double(), weight.double())
    want = torch.autograd.grad((3 * want_dt**2 * other).sum(), (projected, weight))
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    for a, b in zip(got, want):
        assert (a - b).norm() <= tolerance * b.norm()


def test_both_ways_to_the_gradient_of_the_step_sizes_weights():
    grad, projected = torch.randn(48, 4, 6).double(), torch.randn(48, 4, 9).double()
    rank = projected[..., :3]
    want = torch.einsum("mkd,mkr->kdr", grad, rank)
    for got in (weight_gradient(grad, rank), by_pairs(grad, rank, 16)):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_gradient_checkpointing_decides_itself_what_is_kept(monkeypatch):
    entered = []
    real = torch.autograd.graph.saved_tensors_hooks
    rank, weight = torch.randn(5, 2, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    monkeypatch.setattr(
        step_sizes.torch.autograd.graph, "saved_tensors_hooks", lambda *a: entered.append(1) or real(*a)
    )

    def run(rank):
        dt = step_sizes.project(rank, weight)
        with step_sizes.remade(dt, rank, weight):
            return _Keeps.apply(dt).sum()

    (want,) = torch.autograd.grad(run(rank), rank)
    assert len(entered) == 1
    (got,) = torch.autograd.grad(torch.utils.checkpoint.checkpoint(run, rank, use_reentrant=False), rank)
    assert len(entered) == 1
    torch.testing.assert_close(got, want)


def test_an_exported_file_gives_map_and_score(model, tmp_path):
    report = export_model(model, tmp_path / "model.pt2")
    assert report.outputs == ["anomaly_map", "score"]
    assert report.max_abs_error < 1e-5
    assert [c.shapes["pixel_values"][0] for c in report.checks] == [1, 3]


def test_smoothing_is_scipys():
    maps = torch.rand(2, 37, 20, dtype=torch.float64)
    for sigma in (0.7, 4.0):
        want = [gaussian_filter(m.numpy(), sigma) for m in maps]
        torch.testing.assert_close(smooth(maps, sigma), torch.stack([torch.from_numpy(w) for w in want]))
    tiny = torch.rand(1, 3, 5, dtype=torch.float64)  # smaller than the filter's radius
    torch.testing.assert_close(smooth(tiny, 4.0)[0], torch.from_numpy(gaussian_filter(tiny[0].numpy(), 4.0)))


def test_teacher_is_frozen(model):
    net = copy.deepcopy(model).train()
    assert not any(m.training for m in net.teacher.modules())
    assert net.bottleneck.training
    before = copy.deepcopy(net.teacher.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(images(64, 64)).loss.backward()
    optimizer.step()
    assert not any(p.requires_grad or p.grad is not None for p in net.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.teacher.state_dict().items())


def test_loss_is_the_sum_of_mean_squared_errors(model):
    got = model(images(64, 64), output_hidden_states=True)
    pairs = zip(got.teacher_features, got.student_features, strict=True)
    want = 5 * sum(((t - s) ** 2).mean() for t, s in pairs)
    torch.testing.assert_close(got.loss, want)


def test_known_anomalies_do_not_count_in_the_loss(model):
    x = images(64, 64, batch=3)
    alone = model(x[:2]).loss
    torch.testing.assert_close(model(x, labels=torch.tensor([0, 0, 1])).loss, alone)
    masks = torch.zeros(3, 1, 64, 64)
    masks[2] = 1
    torch.testing.assert_close(model(x, masks=masks).loss, alone)
    assert model(x, masks=torch.ones(3, 64, 64)).loss == 0
    half = torch.zeros(3, 64, 64)
    half[:, :, :32] = 255
    parts = model(x, output_hidden_states=True)
    want = 0.0
    for t, s in zip(parts.teacher_features, parts.student_features, strict=True):
        want = want + 5 * ((t - s) ** 2)[..., t.shape[3] // 2 :].mean()
    torch.testing.assert_close(model(x, masks=half).loss, want)


def test_released_layout_gives_the_same_numbers():
    torch.manual_seed(3)
    model = build_model("mambaad_test").eval()
    released = {}
    for key, value in model.to_original().items():
        key = key.replace("conv1b7.", "conv1b3.").replace("conv1a7.", "conv1a3.")
        released[key] = value
        if ".conv77." in key:
            width = value.shape[0]
            released[key.replace("conv77", "conv33")] = torch.randn(width, 1, 3, 3) * (2 / 9) ** 0.5
    config = {"encoder": "timm test_efficientnet features_only out_indices [1,2,3]", "size": 64}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_original("mambaad", {"net": released, "epoch": torch.tensor(3)}, config)
    again.config.gaussian_sigma = model.config.gaussian_sigma
    with torch.no_grad():
        assert torch.equal(model(images(64, 64)).anomaly_map, again(images(64, 64)).anomaly_map)
    trained = {k: v * 0.5 if "conv33" in k else v for k, v in released.items()}
    with pytest.warns(UserWarning, match="conv33 kernels"):
        load_original("mambaad", trained, config)


def test_configuration_is_read_from_the_weights():
    model = build_model("mambaad_test", scan_type="zigzag", num_directions=2, image_size=128)
    config = {"encoder": "timm test_efficientnet"}
    again = load_original("mambaad", model.to_original(), config).config
    for name in ("dims", "depths", "d_state", "num_directions", "scan_type", "bottleneck_width", "teacher_channels"):
        assert list_of(getattr(again, name)) == list_of(getattr(model.config, name)), name
    with pytest.raises(ConfigError, match="tables of these weights are 'zigzag'"):
        load_original("mambaad", model.to_original(), {**config, "scan_type": "scan"})
    with pytest.raises(ConfigError, match="no ResNet-34"):
        load_original("mambaad", model.to_original())


def list_of(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def test_ablations_have_equal_size_and_no_original():
    def decoder(**changes):
        return sum(p.numel() for p in build_model("mambaad_mini", device="meta", **changes).decoder.parameters())

    assert decoder(mixer="conv") == pytest.approx(decoder(), rel=0.005)
    conv = build_model("mambaad_test", mixer="conv").eval()
    assert conv(images(64, 64)).anomaly_map.isfinite().all()
    for changes in ({"mixer": "conv"}, {"num_directions": 1}):
        with pytest.raises(ConfigError, match="the original has only scans"):
            build_model("mambaad_test", **changes).to_original()


def test_teacher_weights(tmp_path):
    import timm

    torch.manual_seed(5)
    whole = timm.create_model("test_efficientnet", num_classes=3)
    torch.save(whole.state_dict(), tmp_path / "teacher.pth")
    model = build_from_backbone("mambaad_test", tmp_path / "teacher.pth")
    assert model.training
    assert not model.teacher.training
    x = images(64, 64)
    want = timm.create_model("test_efficientnet", features_only=True, out_indices=(1, 2, 3)).eval()
    want.load_state_dict({k: v for k, v in whole.state_dict().items() if k in want.state_dict()})
    with torch.no_grad():
        for a, b in zip(model.teacher(x), want(x), strict=True):
            torch.testing.assert_close(a, b)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="missing"):
        build_from_backbone("mambaad_test", tmp_path / "other.pth")


def test_names_of_efficientnet_pytorch(tmp_path):
    """That package's files hold timm's tensors in timm's order, under other names."""
    import timm

    from hybridzoo.models.mambaad.teacher import load_teacher

    whole = timm.create_model("test_efficientnet")
    state = {"_conv_stem.weight" if i == 0 else f"_t{i}": v for i, v in enumerate(whole.state_dict().values())}
    torch.save(state, tmp_path / "lite.pth")
    model = build_model("mambaad_test")
    load_teacher(model.teacher, "test_efficientnet", tmp_path / "lite.pth")
    assert torch.equal(model.teacher.conv_stem.weight, whole.conv_stem.weight)
    with pytest.raises(CheckpointError, match="is not a test_resnet"):
        load_teacher(model.teacher, "test_resnet", tmp_path / "lite.pth")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"teacher": "resnet35"}, "did you mean"),
        ({"teacher_channels": (24, 32, 49), "dims": (64, 49, 32, 24)}, r"maps of \[24, 32, 48\] channels"),
        ({"dims": (64, 48, 32, 25)}, "must end with teacher_channels reversed"),
        ({"depths": (2, 2, 5, 3)}, "depths holds 5"),
        ({"scan_type": "hilbrt"}, "did you mean 'hilbert'"),
        ({"num_directions": 3}, "choose one of 1, 2, 4, 8"),
        ({"mixer": "pool"}, "mixer"),
        ({"image_std": (0.2, 0.2, 0.0)}, "image_std"),
        ({"gaussian_sigma": -1}, "gaussian_sigma"),
        ({"treshold": 0.5}, "threshold"),
    ],
)
def test_configurations_that_cannot_be(change, match):
    with pytest.raises(ConfigError, match=match):
        build_model("mambaad_test", **change)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({"pixel_values": torch.rand(2, 1, 64, 64)}, "make grey images RGB"),
        ({"pixel_values": torch.rand(3, 64, 64)}, r"must be \(B, 3, H, W\)"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "normalised floats"),
        ({"pixel_values": torch.rand(0, 3, 64, 64)}, "not empty"),
        ({"pixel_values": torch.rand(1, 3, 32, 32)}, "one side must exceed 32"),
        ({"pixel_values": torch.rand(1, 3, 64, 64), "masks": torch.zeros(1, 32, 32)}, "masks must be"),
        ({"pixel_values": torch.rand(1, 3, 64, 64), "labels": torch.zeros(2)}, "labels must be"),
    ],
)
def test_inputs_that_cannot_be(model, inputs, match):
    with pytest.raises(InputError, match=match):
        model(**inputs)


def test_foreign_weights_are_refused():
    with pytest.raises(CheckpointError, match="no checkpoint of the original MambaAD"):
        load_original("mambaad", {"head.weight": torch.zeros(2, 2)})


def test_a_folded_teacher_gives_timms_maps_and_follows_its_weights():
    torch.manual_seed(0)
    net = build_teacher("resnet18", (1, 2, 3), (64, 128, 256))
    x = images(40, 51)
    for _ in range(2):
        for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            with torch.no_grad():
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
        with torch.no_grad():
            for got, want in zip(folded_maps(net, x, "torch"), net(x), strict=True):
                assert got.shape == want.shape
                assert (got - want).norm() <= 1e-5 * want.norm()
    assert foldable(net)
    assert not foldable(build_model("mambaad_test").teacher)
    net.layer1[0].se = torch.nn.Identity()
    assert not foldable(net)


def test_inference_scans_a_few_images_at_once(model, monkeypatch):
    x = images(64, 64, batch=3)
    with torch.no_grad():
        want = model(x).anomaly_map
        monkeypatch.setattr(blocks, "STEP_SIZES_AT_ONCE", 1)
        torch.testing.assert_close(model(x).anomaly_map, want, atol=1e-5, rtol=1e-5)
