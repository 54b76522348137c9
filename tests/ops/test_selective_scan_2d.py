"""`selective_scan_2d` inside MambaAD's own layer, and against one plain scan per path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hybridzoo.errors import InputError
from hybridzoo.ops._selftest import relative_error
from hybridzoo.ops.scan_paths import scan_paths
from hybridzoo.ops.selective_scan import selective_scan
from hybridzoo.ops.selective_scan_2d import selective_scan_2d

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "ops"


@pytest.mark.parametrize(
    ("name", "curve", "directions"),
    [("hilbert", "hilbert", 8), ("hilbert_k4", "hilbert", 4), ("hilbert_k2", "hilbert", 2), ("zigzag", "zigzag", 8)],
)
def test_mambaads_own_layer(name, curve, directions):
    x = load_file(FIXTURES / f"mambaad_ss2d_{name}.safetensors")
    w = {k[6:]: v for k, v in x.items() if k.startswith("state.")}
    batch, height, width, _ = x["input.x"].shape
    length, inner = height * width, w["out_norm.weight"].shape[0]
    states, rank = w["A_logs"].shape[1], w["dt_projs_weight"].shape[2]
    u, z = F.linear(x["input.x"], w["in_proj.weight"]).chunk(2, -1)
    u = F.conv2d(u.permute(0, 3, 1, 2), w["conv2d.weight"], w["conv2d.bias"], padding=1, groups=inner)
    u = F.silu(u).flatten(2).transpose(1, 2)
    projected = torch.einsum("bld,krd->blkr", u, w["x_proj_weight"])
    r, B, C = projected.split([rank, states, states], -1)
    y = selective_scan_2d(
        u,
        torch.einsum("blkr,kdr->blkd", r, w["dt_projs_weight"]),
        -w["A_logs"].exp().view(directions, inner, states),
        B,
        C,
        w["Ds"].view(directions, inner),
        w["dt_projs_bias"],
        paths=scan_paths(curve, height, width, directions),
        dt_softplus=True,
    )
    y = F.layer_norm(y, (inner,), w["out_norm.weight"], w["out_norm.bias"], 1e-5)
    y = F.linear(y.view(batch, height, width, inner) * F.silu(z), w["out_proj.weight"])
    assert y.shape[1] * y.shape[2] == length
    torch.testing.assert_close(y, x["output.y"], rtol=1e-4, atol=1e-5)


def _inputs(dtype=torch.float64):
    def rand(*shape):
        return torch.randn(*shape, dtype=dtype)

    return {
        "u": rand(2, 6, 3),
        "dt": rand(2, 6, 4, 3),
        "A": -rand(4, 3, 2).exp(),
        "B": rand(2, 6, 4, 2),
        "C": rand(2, 6, 4, 2),
        "D": rand(4, 3),
        "dt_bias": rand(4, 3),
    }


def test_is_the_sum_of_one_scan_per_path_in_outputs_and_gradients():
    leaves = {k: v.requires_grad_() for k, v in _inputs().items()}
    paths = torch.stack([torch.randperm(6) for _ in range(4)])
    got = selective_scan_2d(**leaves, paths=paths, dt_softplus=True)
    want = torch.zeros_like(got)
    for k, path in enumerate(paths):
        y = selective_scan(
            leaves["u"][:, path],
            leaves["dt"][:, path, k],
            leaves["A"][k],
            leaves["B"][:, path, k],
            leaves["C"][:, path, k],
            leaves["D"][k],
            dt_bias=leaves["dt_bias"][k],
            dt_softplus=True,
        )
        want = want + y[:, path.argsort()]
    weight = torch.randn_like(want)
    grads = [torch.autograd.grad(y, list(leaves.values()), weight) for y in (got, want)]
    for g, w in zip((got, *grads[0]), (want, *grads[1])):
        assert relative_error(g, w) < 1e-12


def test_traces():
    x = _inputs(torch.float32)
    paths = scan_paths("scan", 2, 3, 4)

    def f(u):
        return selective_scan_2d(**{**x, "u": u}, paths=paths, dt_softplus=True)

    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x["u"]), f(x["u"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": torch.zeros(3, 2)}, "A (K, D, N)"),
        ({"dt": torch.zeros(2, 6, 3)}, "dt must be (2, 6, 4, 3), it is (2, 6, 3)"),
        ({"paths": torch.zeros(4, 5)}, "paths must be (4, 6), it is (4, 5)"),
    ],
)
def test_bad_inputs_are_named(change, words):
    with pytest.raises(InputError) as caught:
        selective_scan_2d(**{**_inputs(), "paths": scan_paths("scan", 2, 3, 4), **change})
    assert words in str(caught.value)


@pytest.mark.parametrize("case", ["hilbert-8", "hilbert-8-walked", "sweep-2", "zigzag-4", "bf16", "opcheck"])
def test_triton_kernels_equal_the_reference(kernel_errors, case):
    """Outputs and every gradient, memory poisoned beforehand, in Triton's interpreter; and `torch.library.opcheck`."""
    errors = kernel_errors("selective_scan_2d")[case]
    if case != "opcheck":
        names = ("u", "dt", "A", "B", "C", "D", "dt_bias")
        assert set(errors) == {"out.0", "inference", *(f"grad.{name}" for name in names)}
    limit = 1.5e-2 if case == "bf16" else 5e-6
    assert {k: e for k, e in errors.items() if not e <= limit} == {}
