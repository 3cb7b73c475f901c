"""Cost aggregation and views: the plain implementation of the same maths, chunks, windows and their blend."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.catseg import DenseAggregator
from everymask.encoders.published_catseg import aggregator_from_published
from everymask.layers import aggregation, views
from everymask.layers.aggregation import Aggregator, DenseFeatures
from everymask.layers.views import Mosaic, View, plan
from everymask.models.catseg import PRESETS, Config, aggregator_of

TINY = PRESETS["tiny"]

# --- aggregation -----------------------------------------------------------------------------------------------------

SMALL = Config(**vars(TINY) | {"dim": 16, "space": 12, "width": 10, "decoder": (8, 8), "window": 4, "layers": 2})


def aggregators(config: Config) -> tuple[Aggregator, DenseAggregator]:
    """Ours and the plain one, with the same weights."""
    torch.manual_seed(0)
    dense = DenseAggregator(config).eval()
    for parameter in dense.parameters():
        if parameter.ndim < 4:
            nn.init.normal_(parameter, std=0.3)
    own = aggregator_of(config)
    own.load_state_dict(aggregator_from_published(dense.state_dict()))
    return own.eval(), dense


def dense_features(count: int, grid: tuple[int, int], config: Config = SMALL) -> DenseFeatures:
    torch.manual_seed(1)
    return DenseFeatures(*(torch.randn(count, c, *grid) for c in (config.space, config.width, config.width)))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (4, 12), (16, 8)])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_aggregation_is_that_of_the_plain_implementation(grid: tuple[int, int], count: int) -> None:
    """Fewer words than padding, and more."""
    own, dense = aggregators(SMALL)
    features, text = dense_features(2, grid), torch.randn(count, 1, SMALL.space)
    found = own(features, text)
    assert found.shape == (2, count, 4 * grid[0], 4 * grid[1])
    for b in range(2):
        maps = (maps[b : b + 1] for maps in (features.aligned, features.early, features.middle))
        torch.testing.assert_close(found[b], dense(*maps, text[:, 0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize("kept", [1 << 30, 1])
def test_chunks_of_words_are_exact(monkeypatch: pytest.MonkeyPatch, kept: int, pooling: int) -> None:
    """With the states between layers kept, and computed anew."""
    own, _ = aggregators(SMALL)
    features, text = dense_features(1, (8, 5)), torch.randn(7, 1, SMALL.space)
    expected = own(features, text, pooling)
    monkeypatch.setattr(aggregation, "CHUNK_BYTES", 3 * 8 * 5 * SMALL.dim * 4)
    monkeypatch.setattr(aggregation, "KEPT_BYTES", kept)
    walk = aggregation._Walk(own, features, text, pooling)
    assert walk.parts == [slice(0, 3), slice(3, 6), slice(6, 9)]
    assert len(walk.kept) == (3 if kept > 1 else 1)
    torch.testing.assert_close(own(features, text, pooling), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_words_means_nothing() -> None:
    own, _ = aggregators(SMALL)
    features, text, order = dense_features(1, (8, 8)), torch.randn(6, 1, SMALL.space), torch.randperm(6)
    torch.testing.assert_close(own(features, text[order]), own(features, text)[:, order], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_words_see_one_another() -> None:
    own, _ = aggregators(SMALL)
    features, text = dense_features(1, (8, 8)), torch.randn(2, 1, SMALL.space)
    alone = own(features, text[:1])
    assert (own(features, text)[:, :1] - alone).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 6), (5, 7), (9, 3)])
def test_places_beyond_the_map_take_no_part(grid: tuple[int, int]) -> None:
    """Windows that are not full give what attention over their own places alone gives."""
    own, _ = aggregators(SMALL)
    block = own.layers[0].spatial.blocks[0]
    x, guidance = torch.randn(1, 2, grid[0] * grid[1], 16), torch.randn(1, grid[0] * grid[1], 16)
    windows = aggregation.token_windows(grid, 4, 0, x.device)
    found = block(x, block.prepared(guidance, windows), windows).unflatten(2, grid)
    cell = x.unflatten(2, grid)[:, :, :4, :4].flatten(2, 3), guidance.unflatten(1, grid)[:, :4, :4].flatten(1, 2)
    size = min(grid[0], 4), min(grid[1], 4)
    qkv = block.qkv(block.norm1(cell[0]))
    qkv[..., :32] += block.guide(cell[1])[:, None]
    q, k, v = qkv.unflatten(-1, (3, 2, 8)).permute(3, 0, 1, 4, 2, 5)
    attended = ((q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v).transpose(2, 3).flatten(-2)
    expected = cell[0] + block.proj(attended)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(found[:, :, :4, :4], expected.unflatten(2, size), rtol=1e-4, atol=1e-5)


# --- views -----------------------------------------------------------------------------------------------------------


def test_a_photo_that_fits_is_seen_once() -> None:
    assert plan(0, (24, 13), 24, 16) == [View(0, (0, 0), (24, 13), whole=True)]


def test_windows_are_those_of_the_published_inference() -> None:
    """640 pixels are 40 patches: windows of 24 at 0 and 16, that is 384 pixels at 0 and 256."""
    *windows, whole = plan(0, (40, 40), 24, 16)
    assert [view.offset for view in windows] == [(0, 0), (0, 16), (16, 0), (16, 16)]
    assert {view.grid for view in windows} == {(24, 24)}
    assert whole == View(0, (0, 0), (24, 24), whole=True)


@pytest.mark.parametrize("grid", [(40, 27), (25, 24), (100, 7), (1, 125), (61, 61)])
def test_windows_cover_everything_and_the_whole_keeps_its_aspect(grid: tuple[int, int]) -> None:
    *windows, whole = plan(3, grid, 24, 16)
    seen = torch.zeros(grid, dtype=torch.int)
    for view in windows:
        (y, x), (height, width) = view.offset, view.grid
        assert 0 <= y <= grid[0] - height
        assert 0 <= x <= grid[1] - width
        seen[y : y + height, x : x + width] += 1
    assert seen.min() >= 1
    starts = sorted({view.offset[0] for view in windows}), sorted({view.offset[1] for view in windows})
    assert all(b - a <= 16 for axis in starts for a, b in pairwise(axis))
    assert max(whole.grid) == 24
    assert abs(whole.grid[0] / whole.grid[1] - grid[0] / grid[1]) < max(1.0, grid[0] / grid[1]) * 0.2


@pytest.mark.parametrize("blend", ["logits", "probabilities"])
def test_views_that_agree_blend_to_what_they_say(blend: views.Blend) -> None:
    own = plan(0, (10, 7), 6, 4)
    mosaic = Mosaic(2, (10, 7), own, 4, blend, torch.zeros(()))
    for view in own:
        mosaic.add(slice(0, 1), torch.full((1, 4 * view.grid[0], 4 * view.grid[1]), 0.7), view)
        mosaic.add(slice(1, 2), torch.full((1, 4 * view.grid[0], 4 * view.grid[1]), -2.0), view)
    found = mosaic.finish()
    assert found.shape == (2, 40, 28)
    torch.testing.assert_close(found[0], torch.full((40, 28), 0.7), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], torch.full((40, 28), -2.0), rtol=0, atol=1e-5)


def test_the_published_blend() -> None:
    """Windows folded into one another, their mean, and the mean of that and the whole, all of probabilities."""
    own, patch = plan(0, (10, 10), 6, 4), 4
    maps = torch.randn(len(own), 3, 24, 24)
    mosaic = Mosaic(3, (10, 10), own, patch, "probabilities", torch.zeros(()))
    for view, answer in zip(own, maps, strict=True):
        mosaic.add(slice(0, 3), answer, view)
    probability = maps.sigmoid()
    fold = nn.Fold((40, 40), kernel_size=24, stride=16)
    unfold = nn.Unfold(kernel_size=24, stride=16)
    folded = fold(probability[:-1].permute(1, 2, 3, 0).flatten(0, 2)[None])
    windows = folded / fold(unfold(torch.ones(1, 3, 40, 40)))
    whole = F.interpolate(probability[-1:], (40, 40), mode="bilinear")
    torch.testing.assert_close(mosaic.finish().sigmoid(), ((windows + whole) / 2)[0], rtol=1e-4, atol=1e-5)
