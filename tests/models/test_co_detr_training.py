"""Co-DETR in training: first values, parts left out, images without boxes, mixed precision, layer-wise rates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridzoo import build_model


def tiny(**values: Any) -> Any:
    torch.manual_seed(0)
    return build_model("co_detr_test", **values)


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_initialisation_is_sense_xs(variant: str) -> None:
    model = tiny(variant=variant, d_model=64, ffn_dim=256)
    focal = -math.log(99)
    for part in (model.encoder, model.decoder, model.two_stage):
        for key, value in part.named_parameters():
            if value.ndim == 2 and not key.endswith(
                ("sampling_offsets.weight", "attention_weights.weight", "level_embed")
            ):
                bound = math.sqrt(6 / sum(value.shape))  # in_proj counts as one (3 C, C) matrix
                assert 0.9 * bound < value.abs().max() <= bound, key
    assert 0.7 < model.encoder.level_embed.std() < 1.3
    assert 0.9 < model.query_embedding.weight.std() < 1.1
    for layer in (*model.encoder.layers, *model.decoder.layers):
        attention = layer.attention if hasattr(layer, "attention") else layer.cross_attention
        assert not attention.sampling_offsets.weight.any()
        assert not attention.attention_weights.weight.any()
        bias = attention.sampling_offsets.bias.view(4, 5, 2, 2)  # heads, levels, points, (x, y)
        first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        torch.testing.assert_close(bias[:, 0, 0], first, atol=1e-6, rtol=0)
        torch.testing.assert_close(bias[:, 4, 1], 2 * first, atol=1e-6, rtol=0)
        assert layer.ffn.fc1.bias.any()  # biases stay torch's default
    for classify, regress in zip(model.heads.classify, model.heads.regress):
        torch.testing.assert_close(classify.bias, torch.full_like(classify.bias, focal))
        assert not regress[-1].weight.any()
        assert not regress[-1].bias.any()
    aux = model.collaborative
    for weight, std in ((aux.rpn.rpn_conv.weight, 0.01), (aux.roi.fc_cls.weight, 0.01), (aux.roi.fc_reg.weight, 0.001)):
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    torch.testing.assert_close(aux.atss.atss_cls.bias, torch.full_like(aux.atss.atss_cls.bias, focal))
    bound = math.sqrt(6 / (model.neck.extra[0].conv.weight[0].numel() + 9 * 64))
    assert 0.95 * bound < model.neck.extra[0].conv.weight.abs().max() <= bound
    if variant == "dino":
        assert 0.8 < model.denoising.label_embedding.weight.std() < 1.2


# Training leaves no trace at inference -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"use_aux_queries": False}, {"use_roi_head": False}, {"use_atss_head": False}])
@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_every_part_can_be_left_out(variant: str, change: dict[str, Any]) -> None:
    model = tiny(variant=variant, **change).train()
    output = model(**model.example_inputs(2, labels=True))
    output.loss.backward()
    names = set(output.loss_dict)
    assert ("loss_cls0" in names) == ("use_roi_head" not in change)
    assert ("loss_centerness1" in names) == ("use_atss_head" not in change)
    assert ("loss_cls_aux0" in names) == ("use_roi_head" not in change and "use_aux_queries" not in change)
    assert ("dn_loss_cls" in names) == (variant == "dino")
    unused = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []  # what distributed training needs


@pytest.mark.parametrize("counts", [(0, 2), (0, 0), (1, 0)])
@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_images_without_boxes_train(variant: str, counts: tuple[int, int]) -> None:
    model = tiny(variant=variant).train()
    inputs = model.example_inputs(2, labels=True)
    inputs["labels"] = [{k: v[:n] for k, v in one.items()} for one, n in zip(inputs["labels"], counts)]
    output = model(**inputs)
    output.loss.backward()
    assert all(v.isfinite() for v in output.loss_dict.values())
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_box_smaller_than_a_pixel_and_one_as_large_as_the_image_train() -> None:
    model = tiny().train()
    inputs = model.example_inputs(1)
    boxes = torch.tensor([[0.5, 0.5, 0.004, 0.004], [0.5, 0.5, 1.0, 1.0]])
    output = model(**inputs, labels=[{"class_labels": torch.tensor([0, 4]), "boxes": boxes}])
    output.loss.backward()
    assert output.loss.isfinite()


def test_too_little_background_makes_fewer_queries() -> None:
    from hybridzoo.models.co_detr.collaborative import select_queries

    labels = torch.tensor([[0, 1, 5, 5], [5, 5, 5, 5]])
    assert select_queries(labels, 5, 300)[0].shape == (2, 4)
    many = torch.zeros(1, 400, dtype=torch.long)
    assert select_queries(many, 5, 300)[0].shape == (1, 300)
    mixed = torch.tensor([[5] * 20 + [1] * 3])
    chosen, positives = select_queries(mixed, 5, 300)
    assert chosen.shape == (1, 9)
    assert positives == [3]
    assert chosen[0, :3].tolist() == [20, 21, 22]


def test_evaluation_with_labels_draws_nothing() -> None:
    model = tiny().eval()
    inputs = model.example_inputs(2, labels=True)
    state = torch.get_rng_state()
    with torch.no_grad():
        one, two = model(**inputs), model(**inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.loss, two.loss)
    assert set(one.loss_dict) == {p + n for p in ("", "d0.", "enc_") for n in ("loss_cls", "loss_bbox", "loss_iou")}


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for enable in (False, True):
        model = tiny(use_denoising=False, use_aux_queries=False).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(**model.example_inputs(1, labels=True)).loss.backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-4, atol=1e-6)


def test_layers_of_a_vit_get_falling_rates() -> None:
    from hybridzoo.training.param_groups import param_groups

    sizes = {
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "mlp_dim": 16,
        "global_blocks": (2,),
        "window_size": 2,
        "pretrain_grid": 4,
    }
    model = tiny(backbone="vit", backbone_config=sizes)
    groups = param_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5, no_decay_norm_bias=True)
    rates = {}
    names = {id(p): k for k, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
    blocks = [rates[f"backbone.net.blocks.{i}.mlp.w1.weight"] for i in range(3)]
    assert blocks == [0.125, 0.25, 0.5]
    assert rates["backbone.net.patch_embed.weight"] == rates["backbone.net.pos_embed"] == 0.0625
    assert rates["decoder.layers.0.ffn.fc1.weight"] == 1.0


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("variant", ["dino", "deformable_detr"])
def test_every_loss_in_bf16(variant: str, autocast: bool) -> None:
    model = tiny(variant=variant).train()
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(**model.example_inputs(2, labels=True))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(v.isfinite() for v in output.loss_dict.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_from_the_proposals_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which proposals are best is a choice among near ties for random weights; given the choice, bf16 is close."""
    model = tiny().eval()
    inputs = model.example_inputs(2)
    kept: list[Any] = []
    model.two_stage.register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        monkeypatch.setattr(model.two_stage, "forward", lambda *_: kept[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(**inputs, output_hidden_states=True)
    memory = found.encoder_last_hidden_state.float()
    torch.testing.assert_close(memory, expected.encoder_last_hidden_state, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.logits.float(), expected.logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(found.pred_boxes.float(), expected.pred_boxes, rtol=0, atol=0.05)


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
def test_frozen_norms_keep_the_numbers_and_half_the_memory(autocast: bool) -> None:
    from hybridzoo.models.co_detr.resnet import can_run_frozen, frozen_maps

    net = tiny().train().backbone.net
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight.data, 0.5, 2)):
            assert tensor is not None
            tensor.uniform_(low, high)
    assert can_run_frozen(net)
    images, made = torch.randn(2, 3, 64, 96), []
    for run in (lambda x: list(net(x).feature_maps), lambda x: frozen_maps(net, x)):
        net.zero_grad()
        kept: dict[int, int] = {}

        def pack(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.data_ptr()] = x.numel() if x.ndim == 4 else 0
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                maps = run(images)
            sum((m.float() * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in maps).backward()  # type: ignore[union-attr]
        gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        made.append((maps, gradients, sum(kept.values())))
    for one, other in zip(made[0][0], made[1][0], strict=True):
        assert torch.equal(one, other)
    assert made[0][1].keys() == made[1][1].keys()
    for name, gradient in made[0][1].items():
        # under autocast the original's bf16 gradient is rounded once more or less
        torch.testing.assert_close(
            made[1][1][name], gradient, rtol=1e-2 if autocast else 1e-4, atol=1e-5 if not autocast else 5e-2
        )
    assert made[1][2] < 0.75 * made[0][2]


def test_kinds_of_queries_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decoder pass for all of them gives each what a pass of its own gives."""
    model = tiny().train()
    inputs = model.example_inputs(2, labels=True)
    calls: list[Any] = []
    decode = type(model)._decode_queries
    monkeypatch.setattr(
        type(model), "_decode_queries", lambda *a, **k: calls.append((a, k, decode(*a, **k))) or calls[-1][2]
    )
    model(**inputs)
    ((_, memory, proposals, canvas, dn, known), options, together) = calls[0]
    assert len(known) == 2
    count = proposals.references.shape[1]
    alone = decode(model, memory, proposals, canvas, None, [], **options)
    first = dn.content.shape[1]
    for one, other in zip(alone.logits, together.logits):
        torch.testing.assert_close(other[:, first : first + count], one, atol=1e-5, rtol=1e-5)
    start = first + count
    for part in known:
        own = model.decoder(part.content, part.query_pos, part.references, memory, canvas, model.heads)
        end = start + part.content.shape[1]
        for one, other in zip(own.boxes, together.boxes):
            torch.testing.assert_close(other[:, start:end], one, atol=1e-5, rtol=1e-5)
        start = end
    assert start == together.logits[0].shape[1]


def test_an_image_is_assigned_alone_as_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridzoo.models.co_detr import anchors

    generator = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        corner = torch.rand(*shape, 2, generator=generator) * 80
        return torch.cat((corner, corner + 5 + 40 * torch.rand(*shape, 2, generator=generator)), -1)

    some, objects = boxes(300), boxes(4, 6)
    for image, count in enumerate((6, 0, 1, 3)):
        objects[image, count:] = 0
    rule = {"positive": 0.6, "negative": 0.3, "low_quality": 0.3}
    together = anchors.assign_by_iou(some, objects, **rule)
    monkeypatch.setattr(anchors, "LARGEST", 1)  # image by image
    assert torch.equal(anchors.assign_by_iou(some, objects, **rule), together)
    assert (together[1] == -1).all()
    for image, count in enumerate((6, 0, 1, 3)):
        assert torch.equal(anchors.assign_by_iou(some, objects[image : image + 1, :count], **rule)[0], together[image])
    samples = anchors.sample(together, 40, 0.25)
    assert len(samples.index) == sum(p + n for p, n in samples.counts) <= 160
    chosen = together[samples.image, samples.index]
    assert (chosen[samples.positive] >= 0).all()
    assert (chosen >= 0).sum() == len(samples.positive)
    assert all(p <= 10 and p + n <= 40 for p, n in samples.counts)
    assert (samples.image.diff() >= 0).all()


@pytest.mark.parametrize("images", [1, 2])  # of the positions
def test_two_linears_of_a_sum_have_its_gradients(images: int) -> None:
    from hybridzoo.models.co_detr.attention import _LinearsOfSum

    torch.manual_seed(0)
    shapes = [(2, 5, 4), (images, 5, 4), (6, 4), (6,), (3, 4), (3,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(_LinearsOfSum.apply, tensors)
    x, pos, w1, b1, w2, b2 = tensors
    found = _LinearsOfSum.apply(*tensors)
    torch.testing.assert_close(found, (F.linear(x + pos, w1, b1), F.linear(x + pos, w2, b2)))


def test_a_feed_forward_layer_in_parts_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridzoo.models.co_detr import attention

    torch.manual_seed(0)
    layer, x = attention.FeedForward(8, 16).double(), torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    tensors = [x, *layer.parameters()]
    whole = torch.autograd.grad(layer(x).square().sum(), tensors)
    monkeypatch.setattr(attention, "_AT_ONCE", 16 * 8 * 4)  # four rows of 21
    parts = torch.autograd.grad(layer(x).square().sum(), tensors)
    torch.testing.assert_close(parts, whole)
