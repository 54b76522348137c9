"""MambaAD against numbers made by the authors' code, fp32. Tolerances: SS2D and LSS 1e-5, decoder and model 1e-4."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hybridzoo import build_model, load_original
from hybridzoo.models.mambaad.blocks import SS2D, LSSModule
from hybridzoo.models.mambaad.bottleneck import HalfFPN
from hybridzoo.models.mambaad.convert import load_part
from hybridzoo.models.mambaad.decoder import MambaDecoder
from hybridzoo.models.mambaad.maps import anomaly_map, smooth

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mambaad"
LAYER = {"atol": 1e-5, "rtol": 0}
MODEL = {"atol": 1e-4, "rtol": 0}


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    return load_file(FIXTURES / f"{name}.safetensors"), json.loads((FIXTURES / f"{name}.json").read_text())


def keys(name: str) -> dict[str, dict]:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def state_of(fixture: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state."): v for k, v in fixture.items() if k.startswith("state.")}


def values(shape: tuple[int, ...], key: str) -> torch.Tensor:
    """Numbers in [-1, 1) computed from the key and the position alone: a 32-bit integer hash, in float64."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    h = (i * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()))) & mask
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(2246822519)) & mask
    h = ((h ^ (h >> np.uint64(13))) * np.uint64(3266489917)) & mask
    h = h ^ (h >> np.uint64(16))
    return torch.from_numpy(h.astype(np.float64) / 2**31 - 1).reshape(shape)


def procedural_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of the full-size weights, from its name and shape."""
    v, last = values(shape, key), key.rsplit(".", 1)[-1]
    if last == "running_var":
        v = 1 + 0.25 * v
    elif last in ("running_mean", "bias"):
        v = 0.1 * v
    elif last == "A_logs":
        v = torch.log(1 + (torch.arange(v.numel()) % shape[-1]).double()).reshape(shape) + 0.05 * v
    elif last == "dt_projs_bias":
        v = -4 + v
    elif len(shape) == 1:
        v = 1 + 0.1 * v
    elif last in ("x_proj_weight", "dt_projs_weight"):
        v = v * (3 / shape[-1]) ** 0.5
    else:
        v = v * (3 * shape[0] / v.numel()) ** 0.5
    return v.float()


def procedural_state(layout: str) -> dict[str, torch.Tensor]:
    """A full-size state dict in one of the original's two layouts; the tables are those of the zoo."""
    tables = build_model("mambaad_resnet34", device="meta").to_original()
    state = {}
    for key, entry in keys(layout).items():
        shape = tuple(entry["shape"])
        if "scans.index_flat" in key:
            assert tables[key].shape == shape
            continue
        is_count = key.endswith("num_batches_tracked")
        state[key] = torch.zeros(shape, dtype=torch.int64) if is_count else procedural_tensor(key, shape)
    return state


@pytest.mark.parametrize("name", ["sweep", "scan", "zorder", "zigzag", "hilbert", "hilbert_k2", "hilbert_k4"])
def test_ss2d(name):
    fixture, facts = golden(f"ss2d_{name}")
    c = facts["config"]
    layer = SS2D(
        c["d_model"], c["d_state"], c["expand"], c["dt_rank"], c["scan_type"], num_directions=c["num_direction"]
    )
    with torch.no_grad():
        y = load_part(layer, state_of(fixture))(fixture["input.x"])
    torch.testing.assert_close(y, fixture["output.y"], **LAYER)


def test_lss_and_its_gradients():
    fixture, facts = golden("lss")
    c = facts["config"]
    layer = LSSModule(
        c["hidden_dim"],
        c["depth"],
        d_state=c["d_state"],
        scan_type=c["scan_type"],
        num_directions=c["num_direction"],
    )
    load_part(layer, state_of(fixture))
    x = fixture["input.x"].requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, fixture["output.y"], **LAYER)
    (y**2).mean().backward()
    grads = {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
    wanted = {k.removeprefix("grad."): v for k, v in fixture.items() if k.startswith("grad.")}
    assert len(wanted) == 5
    for name, want in wanted.items():
        torch.testing.assert_close(grads[name], want, **LAYER)


@pytest.mark.parametrize("given", [True, False])
def test_decoder(given):
    fixture, facts = golden("decoder_tiny")
    decoder = MambaDecoder.from_original(state_of(fixture), facts["config"] if given else {})
    with torch.no_grad():
        maps = decoder(fixture["input.x"])
    for i, got in enumerate(maps):
        torch.testing.assert_close(got, fixture[f"output.{i}"], **MODEL)
    rates = [[m.smm_blocks[0].drop_path.drop_prob for m in stage.blocks] for stage in decoder.layers_up]
    np.testing.assert_allclose(rates, facts["drop_path_per_module"], atol=1e-7)


def test_half_pyramid():
    fixture, facts = golden("mff_oce_tiny")
    state = {k: v.float() if v.dtype == torch.float16 else v for k, v in state_of(fixture).items()}
    pyramid = load_part(HalfFPN(facts["config"]["in_channels"], facts["config"]["out_channels"]), state)
    with torch.no_grad():
        y = pyramid([fixture[f"input.{i}"] for i in range(3)])
    torch.testing.assert_close(y, fixture["output.y"], **LAYER)


@pytest.fixture(scope="module")
def full():
    fixture, facts = golden("full_procedural")
    assert values((4,), "head.weight").tolist() == pytest.approx(
        [-0.45350474305450916, -0.8226712099276483, 0.7159241307526827, -0.6041759247891605], abs=0
    )
    model = load_original("mambaad", procedural_state("keys"), facts["config"])
    model.config.gaussian_sigma = 0.0
    pixels = values((1, 3, 256, 256), "input").float()
    with torch.no_grad():
        return fixture, model, pixels, model(pixels, output_hidden_states=True)


def test_full_model(full):
    fixture, model, _, got = full
    for i in range(3):
        for name, maps in (("ft", got.teacher_features), ("fs", got.student_features)):
            torch.testing.assert_close(maps[i][:, ::16, ::4, ::4], fixture[f"output.{name}{i}_slice"], **MODEL)
    with torch.no_grad():
        fused = model.bottleneck(got.teacher_features)
    torch.testing.assert_close(fused[:, ::32], fixture["output.mff_oce_slice"], **MODEL)
    torch.testing.assert_close(got.loss.view(1), fixture["output.loss"], atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(got.anomaly_map[:, ::4, ::4], fixture["output.amap_nogauss_stride4"], **LAYER)
    assert torch.equal(got.score, got.anomaly_map.flatten(1).max(1).values)


def test_size_and_operations_of_the_full_model(full):
    from torch.utils.flop_counter import FlopCounterMode

    _, model, _, _ = full
    facts = keys("sizes")
    assert sum(p.numel() for p in model.parameters()) == facts["total"]["float_params"]
    for ours, theirs in (("teacher", "net_t"), ("bottleneck", "mff_oce"), ("decoder", "net_s")):
        assert sum(p.numel() for p in getattr(model, ours).parameters()) == facts[theirs]["float_params"]
    meta = build_model("mambaad_resnet34", device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta.decoder(torch.empty(1, 512, 8, 8, device="meta"))
    # the scan itself counts nothing, there and here
    assert counter.get_total_flops() == facts["net_s"]["torch_FlopCounterMode_flops"]


def test_key_lists_of_both_layouts():
    want, published = keys("keys"), keys("published_keys")
    model = build_model("mambaad_resnet34", device="meta")
    original = model.to_original()
    assert {k: tuple(v["shape"]) for k, v in want.items()} == {k: tuple(v.shape) for k, v in original.items()}
    state = {k: torch.empty(v["shape"], device="meta") for k, v in published.items()}
    converted = type(model).convert_original(state, model.config, where="the test")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_maps_of_the_benchmark_framework():
    fixture, _ = golden("ad_metrics")
    teacher = [fixture[f"amap.ft{i}"] for i in range(3)]
    student = [fixture[f"amap.fs{i}"] for i in range(3)]
    got = anomaly_map(teacher, student, (64, 64))
    torch.testing.assert_close(got, fixture["amap.add_g0"].float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(smooth(fixture["amap.add_g0"], 4.0), fixture["amap.add_g4"], atol=1e-14, rtol=0)
