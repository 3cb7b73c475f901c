"""The parts of the models against PyTorch's own modules, hand-made formulas and themselves without padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from everymask.encoders.darknet import DarkNet
from everymask.layers.conv import ConvBlock, keep_valid, upsample_to
from everymask.layers.fpn import ConcatFPN
from everymask.layers.masks import QueryPixelMasks
from everymask.layers.normalize import Normalize
from everymask.layers.param_groups import param_groups
from everymask.layers.position import sine_position
from everymask.layers.transformer import MLP, Attention, DecoderLayer
from everymask.types import Batch, Letterbox

Size = tuple[int, int]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def grid(size: Size) -> Tensor:
    """All pixel centres [H * W, 2] in reading order."""
    ys, xs = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([xs, ys], dim=-1).reshape(-1, 2).float()


def masks_of(boxes: Sequence[Letterbox], canvas: Size, stride: int = 4, seed: int = 0) -> QueryPixelMasks:
    """Random embeddings of two queries and a map at `stride`."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(boxes), 5, canvas[0] // stride, canvas[1] // stride, generator=g)
    return QueryPixelMasks(torch.randn(len(boxes), 2, 5, generator=g), pixels, boxes, canvas)


def fill_norms(module: nn.Module) -> nn.Module:
    """Batch norm as after training: statistics and scales that do nothing by accident."""
    g = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.running_var):
                assert values is not None
                values.copy_(torch.rand(values.shape, generator=g) + 0.5)
            for values in (norm.bias.data, norm.running_mean):
                assert values is not None
                values.copy_(torch.randn(values.shape, generator=g) * 0.5)
    return module.eval()


# --- masks -----------------------------------------------------------------------------------------------------------

# Content of one cell, of whole cells, and with a last cell that is cut; on a canvas that may be larger.
CONTENTS = [((32, 32), (32, 64)), ((24, 20), (32, 32)), ((31, 17), (32, 32)), ((5, 30), (32, 32)), ((1, 3), (32, 32))]


@pytest.mark.parametrize(("content", "canvas"), CONTENTS)
@pytest.mark.parametrize("stride", [4, 16])
def test_sampling_gives_what_decoding_gives_at_these_pixels(content: Size, canvas: Size, stride: int) -> None:
    boxes = [Letterbox((77, 50), content, canvas), Letterbox((8, 8), canvas, canvas)]
    masks = masks_of(boxes, canvas, stride)
    sampled = masks.sample(grid(content).expand(2, -1, -1))
    decoded = masks.decode(0, torch.tensor([0, 1]), content)
    assert decoded.shape == (2, *content)
    torch.testing.assert_close(sampled[0].reshape(2, *content), decoded, **TOLERANCE)


def test_decoding_keeps_the_order_of_the_queries() -> None:
    masks = masks_of([Letterbox((32, 32), (32, 32), (32, 32))], (32, 32))
    both = masks.decode(0, torch.tensor([0, 1]), (9, 9))
    assert torch.equal(masks.decode(0, torch.tensor([1, 0]), (9, 9)), both.flip(0))
    assert masks.decode(0, torch.tensor([], dtype=torch.int64), (9, 9)).shape == (0, 9, 9)


@pytest.mark.parametrize(("content", "source"), [((24, 32), (48, 64)), ((16, 32), (16, 32)), ((16, 8), (64, 32))])
def test_decoding_is_upsampling_where_cells_fit(content: Size, source: Size) -> None:
    """Whole cells and scales without rounding: stretching the cells over the photo is exact."""
    masks = masks_of([Letterbox(source, content, (32, 32))], (32, 32))
    height, width = content[0] // 4, content[1] // 4
    cells = torch.einsum("qd,dhw->qhw", masks.queries[0], masks.pixels[0, :, :height, :width])
    expected = F.interpolate(cells[None], source, mode="bilinear")[0]
    torch.testing.assert_close(masks.decode(0, torch.tensor([0, 1]), source), expected, **TOLERANCE)
    torch.testing.assert_close(masks.decode(0, torch.tensor([0, 1])), cells, **TOLERANCE)


@pytest.mark.parametrize("source", [(101, 67), (67, 101), (333, 333), (31, 57), (480, 17)])
@pytest.mark.parametrize("side", [64, 61, 96])
def test_every_pixel_of_the_photo_is_read_at_its_own_place(source: Size, side: int) -> None:
    """On embeddings that grow linearly, bilinear interpolation tells the position that was read."""
    box = Letterbox.fit(source, side)
    rows, columns = (torch.arange(n // 4) * 4.0 + 1.5 for n in box.canvas)  # Canvas pixels at the centres of cells.
    pixels = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))])[None]
    masks = QueryPixelMasks(torch.eye(2)[None], pixels, [box], box.canvas)
    read = masks.decode(0, torch.tensor([0, 1]), source).flatten(1).T
    expected = box.to_canvas(grid(source))
    cells = torch.tensor([math.ceil(n / 4) for n in reversed(box.content)])
    # Beyond the first and last centre there is nothing to read but the border.
    expected = torch.minimum(expected.clamp(min=1.5), cells * 4 - 2.5)
    torch.testing.assert_close(read, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(masks.sample(box.to_canvas(grid(source))[None])[0].T, expected, atol=0.01, rtol=0)


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.sampled_from([32, 64, 100]))
def test_decoding_covers_the_photo_whatever_its_size(source: Size, side: int) -> None:
    box = Letterbox.fit(source, side)
    decoded = masks_of([box], box.canvas).decode(0, torch.tensor([0]), source)
    assert decoded.shape == (1, *source)
    assert torch.isfinite(decoded).all()


def test_what_lies_beyond_the_content_is_never_read() -> None:
    box = Letterbox((30, 40), (30, 18), (64, 32))
    masks = masks_of([box], box.canvas)
    points, queries = grid(box.content)[None], torch.tensor([0, 1])
    sampled, decoded = masks.sample(points), masks.decode(0, queries, box.source)
    masks.pixels[0, :, 8:] = math.nan
    masks.pixels[0, :, :, 5:] = math.nan
    assert torch.equal(masks.sample(points).isnan(), torch.zeros_like(sampled, dtype=torch.bool))
    torch.testing.assert_close(masks.sample(points), sampled)
    torch.testing.assert_close(masks.decode(0, queries, box.source), decoded)


def test_a_batch_decodes_each_image_as_alone() -> None:
    boxes = [Letterbox((50, 90), (20, 36), (64, 64)), Letterbox((80, 33), (64, 27), (64, 64))]
    together = masks_of(boxes, (64, 64))
    queries = torch.tensor([1, 0])
    for b, box in enumerate(boxes):
        height, width = (math.ceil(n / 32) * 8 for n in box.content)
        own = Letterbox(box.source, box.content, (height * 4, width * 4))
        pixels = together.pixels[b : b + 1, :, :height, :width]
        alone = QueryPixelMasks(together.queries[b : b + 1], pixels, [own], own.canvas)
        torch.testing.assert_close(
            together.decode(b, queries, box.source), alone.decode(0, queries, box.source), **TOLERANCE
        )
        points = grid(box.content)
        sampled = together.sample(points.expand(2, -1, -1))[b]
        torch.testing.assert_close(sampled, alone.sample(points[None])[0], **TOLERANCE)


def bilinear(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """By SciPy, at the crossings of rows [H] and columns [W]."""
    grid = np.stack(np.meshgrid(rows.numpy(), columns.numpy(), indexing="ij"))
    return torch.from_numpy(scipy.ndimage.map_coordinates(maps.numpy(), grid, order=1, mode="nearest"))


@pytest.mark.parametrize("source", [(45, 61), (450, 611), (9, 13)])
def test_positions_are_those_that_decoding_interpolates_at(source: tuple[int, int]) -> None:
    box = Letterbox(source, (47, 64), (64, 64))
    masks, queries = masks_of([box], box.canvas), torch.tensor([0, 1])
    rows, columns = masks.positions(0, source)
    decoded = masks.decode(0, queries)
    rows, columns = rows.clamp(0, decoded.shape[1] - 1), columns.clamp(0, decoded.shape[2] - 1)
    halves = torch.stack([bilinear(maps, rows, columns) for maps in decoded])
    torch.testing.assert_close(halves, masks.decode(0, queries, source), atol=1e-5, rtol=1e-5)


# --- positions -------------------------------------------------------------------------------------------------------


def test_sine_position_by_its_formula() -> None:
    position = sine_position(3, 5, 8)
    assert position.shape == (8, 3, 5)
    for i in range(3):
        for j in range(5):
            encoded = [f(n / w) for n in (i, j) for f in (math.sin, math.cos) for w in (1.0, 10000**0.5)]
            np.testing.assert_allclose(position[:, i, j], encoded, atol=1e-6)


def test_a_step_is_the_same_rotation_everywhere() -> None:
    """sin and cos of one wavelength, one cell further, are turned by one fixed angle."""
    sine, cosine = sine_position(4, 30, 16)[8:].double().unflatten(0, (2, 4))[:, :, 0]
    angles = 1 / 10000 ** (torch.arange(4.0, dtype=torch.float64) / 4)[:, None]
    turned = sine[:, :-1] * angles.cos() + cosine[:, :-1] * angles.sin()
    torch.testing.assert_close(sine[:, 1:], turned, atol=1e-6, rtol=0)


def test_position_does_not_depend_on_the_size_of_the_map() -> None:
    assert torch.equal(sine_position(20, 30, 12)[:, :7, :9], sine_position(7, 9, 12))


def test_every_cell_has_its_own_position() -> None:
    cells = sine_position(40, 40, 16).flatten(1).T
    assert torch.cdist(cells, cells).fill_diagonal_(1).min() > 0.1


# --- attention -------------------------------------------------------------------------------------------------------


def copied_from(theirs: nn.MultiheadAttention, dim: int, heads: int) -> Attention:
    ours = Attention(dim, heads)
    weights, biases = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    ours.load_state_dict(
        {f"{name}_proj.weight": w for name, w in zip("qkv", weights, strict=True)}
        | {f"{name}_proj.bias": b for name, b in zip("qkv", biases, strict=True)}
        | {"out_proj.weight": theirs.out_proj.weight, "out_proj.bias": theirs.out_proj.bias}
    )
    return ours


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, heads, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    query, key, value = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    valid = torch.rand(3, 7) < 0.5
    valid[:, 2] = True
    expected, _ = theirs(query, key, value, key_padding_mask=~valid if masked else None)
    ours = copied_from(theirs, 16, heads)(query, key, value, valid if masked else None)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_hidden_keys_have_no_say() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(16, 4, 32).eval()
    x, query_pos, memory, memory_pos = torch.randn(4, 2, 6, 16).unbind()
    valid = torch.tensor([[True] * 4 + [False] * 2] * 2)
    expected = layer(x, query_pos, memory[:, :4], memory_pos[:, :4])
    torch.testing.assert_close(layer(x, query_pos, memory, memory_pos, valid), expected, **TOLERANCE)


def test_decoder_layer_is_that_of_torch_without_positions() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval()
    ours = DecoderLayer(16, 4, 32).eval()
    ours.self_attention = copied_from(theirs.self_attn, 16, 4)
    ours.cross_attention = copied_from(theirs.multihead_attn, 16, 4)
    for part, name in [(ours.mlp[0], "linear1"), (ours.mlp[2], "linear2")]:
        part.load_state_dict(getattr(theirs, name).state_dict())
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    nothing = torch.zeros(())
    torch.testing.assert_close(ours(x, nothing, memory, nothing), theirs(x, memory), **TOLERANCE)


def test_positions_enter_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(8, 2, 16).eval()
    # The same for all keys, so that attention weights cannot change; values would.
    x, query_pos, memory = torch.randn(3, 1, 4, 8).unbind()
    same = torch.randn(1, 1, 8)
    expected = layer(x, query_pos, memory, torch.zeros(1, 1, 8))
    torch.testing.assert_close(layer(x, query_pos, memory, same), expected, **TOLERANCE)


def test_mlp_has_relu_between_layers_only() -> None:
    mlp = MLP(4, 7, 3, layers=3)
    assert [type(m).__name__ for m in mlp] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [tuple(m.weight.shape) for m in mlp if isinstance(m, nn.Linear)] == [(7, 4), (7, 7), (3, 7)]
    assert len(MLP(4, 7, 3, layers=1)) == 1


# --- pyramid and encoder ---------------------------------------------------------------------------------------------


def test_darknet53_at_640() -> None:
    with torch.device("meta"):
        features = DarkNet((32, 64, 128, 256, 512, 1024), (1, 2, 8, 8, 4)).eval()(torch.zeros(1, 3, 640, 640))
    assert [tuple(f.shape) for f in features] == [
        (1, 128, 160, 160),
        (1, 256, 80, 80),
        (1, 512, 40, 40),
        (1, 1024, 20, 20),
    ]


def test_darknet53_has_52_convolutions_and_their_parameters() -> None:
    """Table 1 of the paper without its last, fully connected layer: 40.6 million parameters."""
    with torch.device("meta"):
        model = DarkNet((32, 64, 128, 256, 512, 1024), (1, 2, 8, 8, 4))
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 52
    assert sum(p.numel() for p in model.parameters()) == 40_584_928


def test_light_darknet_has_the_same_strides() -> None:
    with torch.device("meta"):
        model = DarkNet((8, 12, 16, 24, 32), (1, 1, 1, 1), stem_stride=2).eval()
        features = model(torch.zeros(2, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(2, 12, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]
    assert model.channels == (12, 16, 24, 32)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_pyramid_keeps_the_strides(levels: int) -> None:
    widths, out = (6, 8, 10, 12)[:levels], (4, 5, 6, 7)[:levels]
    features = [torch.randn(2, c, 32 >> i, 48 >> i) for i, c in enumerate(widths)]
    pyramid = ConcatFPN(widths, out).eval()(features)
    assert [tuple(f.shape) for f in pyramid] == [(2, c, 32 >> i, 48 >> i) for i, c in enumerate(out)]


def test_coarse_features_reach_the_finest_level_and_not_the_other_way() -> None:
    torch.manual_seed(0)
    fpn = ConcatFPN((4, 4, 4), (4, 4, 4)).eval()
    features = [torch.randn(1, 4, 16 >> i, 16 >> i, requires_grad=True) for i in range(3)]
    fine, _, coarse = fpn(features)
    unreached = torch.autograd.grad(coarse.sum(), features[:2], allow_unused=True, retain_graph=True)
    assert unreached == (None, None)
    assert all((g != 0).any() for g in torch.autograd.grad(fine.sum(), features))


def test_padding_in_a_batch_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder = fill_norms(DarkNet((8, 12, 16, 24, 32), (1, 2, 1, 1), stem_stride=2))
    fpn = fill_norms(ConcatFPN((12, 16, 24, 32), (8, 8, 12, 16)))
    boxes = tuple(Letterbox(size, size, (96, 64)) for size in [(50, 30), (96, 64), (33, 64)])
    images = torch.randn(3, 3, 96, 64)
    valid = Batch(images, boxes).valid()
    assert valid is not None
    images = keep_valid(images, valid)
    together = fpn(encoder(images, valid), valid)
    for b, box in enumerate(boxes):
        height, width = (math.ceil(n / 32) * 32 for n in box.content)
        alone = fpn(encoder(images[b : b + 1, :, :height, :width]))
        for whole, own in zip(together, alone, strict=True):
            cut = whole[b : b + 1, :, : own.shape[2], : own.shape[3]]
            torch.testing.assert_close(cut, own, **TOLERANCE)
            # And nothing at all is left beyond.
            assert whole[b].abs().sum().item() == pytest.approx(cut.abs().sum().item(), rel=1e-4)


def test_without_valid_padding_would_matter() -> None:
    """The test above can fail: normalisation turns black padding into something else."""
    torch.manual_seed(0)
    encoder = fill_norms(DarkNet((8, 12, 16, 24, 32), (1, 2, 1, 1), stem_stride=2))
    image = torch.randn(1, 3, 32, 32)
    padded = encoder(F.pad(image, (0, 32)))[-1][..., :1]
    assert (padded - encoder(image)[-1]).abs().max() > 1e-3


def test_conv_block_halves_by_its_stride() -> None:
    block = ConvBlock(3, 5, stride=2)
    assert block(torch.randn(1, 3, 32, 64)).shape == (1, 5, 16, 32)
    assert [type(m).__name__ for m in block] == ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert block[2].negative_slope == 0.1


def test_upsample_repeats_cells() -> None:
    small = torch.tensor([[[[1.0, 2], [3, 4]]]])
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert upsample_to(small, torch.zeros(1, 9, 4, 4))[0, 0].tolist() == expected


def test_normalize_is_that_of_imagenet() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(Normalize()(images), (images / 255 - mean) / std, atol=1e-5, rtol=0)
    assert set(Normalize().state_dict()) == {"mean", "std"}
    assert Normalize().double()(images).dtype == torch.float64


# --- optimizer groups ------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A little of everything that has parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(ConvBlock(3, 4), nn.Conv2d(4, 4, 1))
        self.encoder_head = nn.Linear(4, 4)
        self.queries = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.tied = self.encoder_head
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


RATES = [{}, {"encoder": 0.1}, {"encoder.": 0.1, "encoder.0": 0.01}, {"": 0.5, "queries": 2.0}]


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_groups_cover_each_trained_parameter_once(rates: dict[str, float]) -> None:
    model = Small()
    grouped = [id(p) for group in param_groups(model, 1.0, 0.1, rates) for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trained)
    torch.optim.AdamW(param_groups(model, 1.0, 0.1, rates))


def settings_of(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_the_longest_prefix_decides_the_rate() -> None:
    model = Small()
    found = settings_of(model, param_groups(model, 1.0, 0.0, {"encoder.": 0.1, "encoder.0": 0.01, "enc": 0.5}))
    rates = {name: lr for name, (lr, _) in found.items()}
    assert rates["encoder.0.0.weight"] == 0.01
    assert rates["encoder.1.weight"] == 0.1
    assert rates["encoder_head.weight"] == 0.5
    assert rates["norm.weight"] == 1.0


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    model = Small()
    decaying = {name for name, (_, decay) in settings_of(model, param_groups(model, 1.0, 0.1)).items() if decay}
    assert decaying == {"encoder.0.0.weight", "encoder.1.weight", "encoder_head.weight"}
