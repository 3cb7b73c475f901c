"""One geometry moves all: where a point goes, its label, its colour and its matte must go too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from everymask.transforms import Geometry, collate, drop_absent, jitter_color, random_geometry
from everymask.types import VOID, Letterbox, Sample, Segments

Array = np.ndarray[Any, Any]
Size = tuple[int, int]


def unscaled(crop: tuple[int, int, int, int], canvas: Size, flip: bool = False) -> Geometry:
    """A window of the photo, pixel for pixel."""
    size = crop[3] - crop[1], crop[2] - crop[0]
    return Geometry(crop, Letterbox(size, size, canvas), flip)


@st.composite
def geometries(draw: st.DrawFn, largest: int = 70) -> tuple[Size, Geometry]:
    """A photo's size and a random view of it."""
    source = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    low = draw(st.floats(0.2, 2.0))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    side = draw(st.sampled_from([32, 64, 96]))
    return source, random_geometry(source, side, rng, scale=(low, low * draw(st.floats(1.0, 3.0))), flip=0.5)


def blobs(size: Size, seed: int, cell: int = 9, segments: int = 4) -> Array:
    """Square blobs of ids -1..segments."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(-1, segments + 1, (math.ceil(size[0] / cell), math.ceil(size[1] / cell)))
    return np.kron(grid, np.ones((cell, cell), int))[: size[0], : size[1]].astype(np.int32)


def content(geometry: Geometry, values: Any) -> Any:
    """The part of canvas maps [..., H, W] that shows the photo."""
    height, width = geometry.letterbox.content
    return values[..., :height, :width]


def original_ids(moved: Segments) -> Array:
    """Ids before renumbering, of segments whose class is their row."""
    lookup = torch.cat([moved.classes + 1, torch.tensor([VOID, 0])])
    return lookup[moved.id_map.long() - 1].numpy()


def pixel_centres(mask: Array) -> torch.Tensor:
    """Points [n, 2] of the True pixels."""
    return torch.from_numpy(np.argwhere(mask)[:, ::-1].astype(np.float64))


def box_of(mask: Array) -> Array:
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max(), ys.max()])


# --- id map and points -----------------------------------------------------------------------------------------------


@given(geometries(), st.integers(0, 99))
def test_the_point_of_an_interior_pixel_lands_on_its_segment(view: tuple[Size, Geometry], seed: int) -> None:
    source, geometry = view
    ids = blobs(source, seed)
    # The canvas pixel next to a moved point lies half a canvas pixel away at most, its photo pixel half a pixel more.
    reach = [2 * math.ceil(0.5 / s + 0.5) + 1 for s in reversed(geometry.letterbox.scale)]
    interior = ndimage.minimum_filter(ids, reach) == ndimage.maximum_filter(ids, reach)
    x0, y0, x1, y1 = geometry.crop
    in_view = np.zeros_like(interior)
    in_view[y0:y1, x0:x1] = True
    points = pixel_centres(interior & in_view)
    moved = original_ids(geometry.segments(Segments.build(ids, range(4))))
    x, y = geometry.points(points).round().long().numpy().T
    assert moved[y, x].tolist() == ids[interior & in_view].tolist()


@given(geometries(), st.integers(0, 99))
def test_every_canvas_pixel_shows_the_nearest_photo_pixel(view: tuple[Size, Geometry], seed: int) -> None:
    source, geometry = view
    ids = blobs(source, seed, cell=1)
    height, width = geometry.letterbox.content
    centres = pixel_centres(np.ones((height, width), bool))
    if geometry.flip:
        centres[:, 0] = width - 1 - centres[:, 0]
    photo = geometry.letterbox.to_source(centres) + torch.tensor(geometry.crop[:2])
    # Between two photo pixels either is nearest.
    untied = ((photo - photo.floor() - 0.5).abs() > 1e-3).all(-1)
    x, y = photo[untied].round().long().numpy().T
    moved = content(geometry, original_ids(geometry.segments(Segments.build(ids, range(4))))).reshape(-1)
    assert moved[untied.numpy()].tolist() == ids[y, x].tolist()


@given(geometries())
def test_beyond_the_content_all_is_void_and_black(view: tuple[Size, Geometry]) -> None:
    source, geometry = view
    truth = Segments.build(np.ones(source), [0], alpha=np.full(source, 255, np.uint8))
    moved = geometry.segments(truth)
    image = geometry.image(np.full((*source, 3), 255, np.uint8))
    inside = torch.zeros(geometry.letterbox.canvas, dtype=torch.bool)
    content(geometry, inside)[:] = True
    assert torch.equal(moved.id_map, torch.where(inside, 1, VOID).int())
    assert moved.alpha is not None
    assert torch.equal(moved.alpha, torch.where(inside, 255, 0).byte())
    assert torch.equal(image, torch.where(inside, 255, 0).byte().expand(3, -1, -1))


@given(geometries(), st.integers(0, 99))
def test_alpha_moves_like_the_image_and_stays_on_its_segments(view: tuple[Size, Geometry], seed: int) -> None:
    source, geometry = view
    ids = blobs(source, seed, cell=5)
    alpha = ((ids + 1) * 50).astype(np.uint8)
    moved = geometry.segments(Segments.build(ids, range(4), alpha=alpha))
    assert moved.alpha is not None
    shown = content(geometry, moved.alpha).int().numpy()
    x0, y0, x1, y1 = geometry.crop
    size = shown.shape[::-1]
    expected = np.asarray(Image.fromarray(alpha[y0:y1, x0:x1]).resize(size, Image.Resampling.BILINEAR)).astype(int)
    np.testing.assert_allclose(shown, expected[:, ::-1] if geometry.flip else expected, atol=2)


def test_an_alpha_that_is_not_resized_is_the_id_map_s_own() -> None:
    ids = blobs((20, 30), 0, cell=5)
    truth = Segments.build(ids, range(4), alpha=((ids + 1) * 50).astype(np.uint8))
    moved = unscaled((3, 2, 28, 19), (32, 32), flip=True).segments(truth)
    assert moved.alpha is not None
    assert moved.alpha[:17, :25].tolist() == ((original_ids(moved) + 1) * 50)[:17, :25].tolist()


@given(geometries(), st.integers(0, 99))
def test_layers_move_as_each_would_alone(view: tuple[Size, Geometry], seed: int) -> None:
    source, geometry = view
    layers = np.stack([blobs(source, seed), blobs(source, seed + 1)])
    moved = original_ids(geometry.segments(Segments.build(layers, range(4))))
    for layer, ids in zip(moved, layers, strict=True):
        assert layer.tolist() == original_ids(geometry.segments(Segments.build(ids, range(4)))).tolist()


@given(geometries(), st.data())
def test_boxes_stay_the_boxes_of_their_masks(view: tuple[Size, Geometry], data: st.DataObject) -> None:
    source, geometry = view
    (y0, y1), (x0, x1) = (sorted(data.draw(st.tuples(*[st.integers(0, n - 1)] * 2))) for n in source)
    mask = np.zeros(source, np.int32)
    mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    moved = geometry.labels(torch.from_numpy(mask), fill=0).numpy()
    assume(moved.any())
    height, width = geometry.letterbox.content
    box = geometry.boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64))[0].numpy()
    seen = box.clip(0, [width - 1, height - 1, width - 1, height - 1])
    np.testing.assert_allclose(seen, box_of(moved), atol=2.0)


def test_whole_numbers_are_points_and_boxes_too() -> None:
    geometry = Geometry((2, 1, 10, 9), Letterbox((8, 8), (4, 4), (4, 4)), flip=True)
    assert geometry.points(torch.tensor([[2, 1], [9, 8]])).tolist() == [[3.25, -0.25], [-0.25, 3.25]]
    assert geometry.boxes(torch.tensor([[2, 1, 9, 8]])).tolist() == [[0.0, 0.0, 3.0, 3.0]]


# --- rows of the table -----------------------------------------------------------------------------------------------


def test_drop_absent_renumbers_in_order() -> None:
    ids = torch.tensor([[4, -1, 2], [0, 2, 6]])
    truth = Segments.build(ids, [10, 11, 12, 13, 14, 15], crowd=[0, 1, 0, 0, 0, 1], scores=torch.arange(6.0))
    kept = drop_absent(truth)
    assert kept.id_map.tolist() == [[2, -1, 1], [0, 1, 3]]
    assert kept.id_map.dtype == torch.int32
    assert kept.classes.tolist() == [11, 13, 15]
    assert kept.is_crowd.tolist() == [True, False, True]
    assert len(kept.is_thing) == 3
    assert kept.scores is not None
    assert kept.scores.tolist() == [1, 3, 5]


@pytest.mark.parametrize("rows", [[], [0, 0]])
def test_drop_absent_of_a_map_without_segments(rows: list[int]) -> None:
    kept = drop_absent(Segments.build(torch.tensor([[0, -1]]), rows))
    assert (len(kept), kept.id_map.tolist()) == (0, [[0, -1]])


def test_a_crop_drops_what_it_leaves_out() -> None:
    truth = Segments.build(np.array([[1, 1, 2, 3]] * 2), [5, 6, 7])
    moved = unscaled((2, 0, 4, 2), (2, 3)).segments(truth)
    assert moved.id_map.tolist() == [[1, 2, -1]] * 2
    assert moved.classes.tolist() == [6, 7]


# --- images ----------------------------------------------------------------------------------------------------------


@given(st.data(), st.booleans(), st.integers(0, 99))
def test_image_and_id_map_move_alike(data: st.DataObject, flip: bool, seed: int) -> None:
    source = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    (y0, y1), (x0, x1) = (sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in source)
    assume(y0 < y1 and x0 < x1)
    geometry = unscaled((x0, y0, x1, y1), (48, 48), flip)
    ids = blobs(source, seed, cell=3)
    image = np.stack([ids + 1, (ids + 1) * 40, 255 - ids - 1], axis=-1).astype(np.uint8)
    seen = content(geometry, geometry.image(image)).int()
    moved = content(geometry, original_ids(geometry.segments(Segments.build(ids, range(4)))))
    assert seen[0].tolist() == (moved + 1).tolist()
    assert seen[1].tolist() == ((moved + 1) * 40).tolist()
    assert seen[2].tolist() == (254 - moved).tolist()


@given(geometries(largest=50))
def test_image_and_points_agree_at_any_scale(view: tuple[Size, Geometry]) -> None:
    """On an image that is brighter to the right and downwards, colours tell where a pixel came from."""
    source, geometry = view
    rows, columns = np.indices(source)
    image = np.stack([columns, rows, rows], axis=-1).astype(np.uint8) * 5
    moved = content(geometry, geometry.image(image)).double() / 5
    # Where the filter does not reach over the border of the view.
    x0, y0, x1, y1 = geometry.crop
    scale_x, scale_y = geometry.letterbox.scale
    far_x, far_y = math.ceil(max(1, 1 / scale_x)), math.ceil(max(1, 1 / scale_y))
    inside = np.zeros(source, bool)
    inside[y0 + far_y : y1 - far_y, x0 + far_x : x1 - far_x] = True
    points = pixel_centres(inside)
    assume(len(points))
    landed = geometry.points(points)
    pixels = landed.round().long()
    # The slope between moved points tells what the pixel next to one should show.
    sign = -1 if geometry.flip else 1
    expected = points + (pixels - landed) * torch.tensor([sign / scale_x, 1 / scale_y])
    shown = moved[:2, pixels[:, 1], pixels[:, 0]].T
    torch.testing.assert_close(shown, expected, atol=0.25, rtol=0)


@pytest.mark.parametrize("size", [(40, 60), (7, 200), (33, 31)])
@pytest.mark.parametrize("target", [(20, 30), (13, 11), (64, 80)])
def test_resizing_is_the_antialiased_one_of_pillow(size: Size, target: Size) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    x0, y0, x1, y1 = crop = (1, 2, size[1] - 1, size[0] - 2)
    moved = Geometry(crop, Letterbox((y1 - y0, x1 - x0), target, (80, 80))).image(image)
    cut = Image.fromarray(image[y0:y1, x0:x1])
    expected = np.asarray(cut.resize(target[::-1], Image.Resampling.BILINEAR)).astype(int)
    shown = moved[:, : target[0], : target[1]].permute(1, 2, 0).int().numpy()
    np.testing.assert_allclose(shown, expected, atol=2)


def test_photos_that_may_not_be_written_to_are_read_all_the_same() -> None:
    image = np.full((8, 8, 3), 9, np.uint8)
    image.flags.writeable = False
    assert (Geometry.fit((8, 8), 16, 16).image(image) == 9).all()


def test_fine_stripes_turn_grey_instead_of_vanishing() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = Geometry.fit((64, 64), 16, 16).image(stripes)[:, :, 1:-1].int()
    assert (small - 127.5).abs().max() <= 2


# --- flips and identity ----------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_flip_is_exact(height: int, width: int, seed: int) -> None:
    plain, flipped = (unscaled((0, 0, width, height), (64, 64), flip) for flip in (False, True))
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    ids = torch.from_numpy(blobs((height, width), seed, cell=2))
    assert torch.equal(content(flipped, flipped.image(image)), content(plain, plain.image(image)).flip(-1))
    assert torch.equal(content(flipped, flipped.labels(ids, VOID)), content(plain, plain.labels(ids, VOID)).flip(-1))
    points = torch.tensor([[0.0, 0.0], [width - 1, height - 1], [3.25, 7.5]])
    expected = [[width - 1 - x, y] for x, y in points.tolist()]
    assert flipped.points(points).tolist() == expected


@given(geometries(), st.integers(0, 99))
def test_a_flip_mirrors_within_the_content(view: tuple[Size, Geometry], seed: int) -> None:
    source, geometry = view
    plain, flipped = (Geometry(geometry.crop, geometry.letterbox, flip) for flip in (False, True))
    image = np.random.default_rng(seed).integers(0, 256, (*source, 3)).astype(np.uint8)
    assert torch.equal(content(flipped, flipped.image(image)), content(plain, plain.image(image)).flip(-1))
    points = pixel_centres(np.ones((2, 3), bool))
    mirrored = plain.points(points)
    mirrored[:, 0] = geometry.letterbox.content[1] - 1 - mirrored[:, 0]
    assert torch.equal(flipped.points(points), mirrored)


def test_identity() -> None:
    geometry = Geometry.fit((32, 64), 64)
    assert geometry.letterbox == Letterbox((32, 64), (32, 64), (32, 64))
    rng = np.random.default_rng(0)
    image, points = rng.integers(0, 256, (32, 64, 3)).astype(np.uint8), torch.rand(9, 2) * 30
    truth = Segments.build(blobs((32, 64), 0), range(4), alpha=rng.integers(0, 256, (32, 64)).astype(np.uint8))
    moved = geometry.segments(truth)
    assert torch.equal(geometry.image(image).permute(1, 2, 0), torch.from_numpy(image))
    assert torch.equal(moved.id_map, truth.id_map)
    assert torch.equal(moved.classes, truth.classes)
    assert truth.alpha is not None
    assert moved.alpha is not None
    assert torch.equal(moved.alpha, truth.alpha)
    torch.testing.assert_close(geometry.points(points), points)
    torch.testing.assert_close(geometry.boxes(torch.tensor([[1.0, 2, 3, 4]])), torch.tensor([[1.0, 2, 3, 4]]))


# --- random views ----------------------------------------------------------------------------------------------------


@given(geometries(largest=3000))
def test_a_random_view_is_a_window_of_the_photo_on_a_square(view: tuple[Size, Geometry]) -> None:
    source, geometry = view
    x0, y0, x1, y1 = geometry.crop
    assert 0 <= x0 < x1 <= source[1]
    assert 0 <= y0 < y1 <= source[0]
    box = geometry.letterbox
    assert box.source == (y1 - y0, x1 - x0)
    assert box.canvas[0] == box.canvas[1]
    assert all(1 <= inner <= outer for inner, outer in zip(box.content, box.canvas, strict=True))


def test_random_views_follow_their_generator() -> None:
    def views(seed: int) -> list[Geometry]:
        rng = np.random.default_rng(seed)
        return [random_geometry((300, 400), 64, rng, scale=(0.5, 2.0), flip=0.5) for _ in range(20)]

    assert views(1) == views(1)
    assert views(1) != views(2)
    assert len({str(v) for v in views(1)}) == 20


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flips_come_as_often_as_asked(flip: float) -> None:
    rng = np.random.default_rng(0)
    flips = [random_geometry((30, 40), 64, rng, flip=flip).flip for _ in range(2000)]
    assert np.mean(flips) == pytest.approx(flip, abs=0.04)


def test_scale_and_stretch_keep_to_their_ranges() -> None:
    rng = np.random.default_rng(0)
    views = [random_geometry((600, 800), 400, rng, scale=(0.5, 3.0), stretch=0.2) for _ in range(2000)]
    x, y = np.array([v.letterbox.scale for v in views]).T
    size = np.sqrt(x * y) / (400 / 800)
    ratio = np.log(y / x)
    # A pixel of rounding on a side of 200 or more.
    assert 0.49 < size.min() < 0.55
    assert 2.8 < size.max() < 3.05
    assert -0.21 < ratio.min() < -0.18
    assert 0.18 < ratio.max() < 0.21
    # Sizes are even in the logarithm: as many below the geometric mean as above.
    assert np.mean(np.log(size)) == pytest.approx(np.log(1.5) / 2, abs=0.04)


def test_windows_reach_every_part_of_the_photo() -> None:
    rng = np.random.default_rng(0)
    views = [random_geometry((90, 90), 64, rng, scale=(3.0, 3.0), stretch=0.0) for _ in range(300)]
    starts = np.array([v.crop[:2] for v in views])
    assert (starts.min(0) == 0).all()
    assert (np.array([v.crop[2:] for v in views]).max(0) == 90).all()
    np.testing.assert_allclose(starts.mean(0), 30, atol=3)


EXTREME = [(1, 1), (1, 50), (50, 1), (5000, 3), (3, 5000), (2, 2)]


@pytest.mark.parametrize("source", EXTREME)
@pytest.mark.parametrize("fitted", [True, False])
def test_extreme_shapes(source: Size, fitted: bool) -> None:
    rng = np.random.default_rng(0)
    image, ids = np.full((*source, 3), 9, np.uint8), np.ones(source, np.int32)
    for _ in range(10):
        geometry = Geometry.fit(source, 64) if fitted else random_geometry(source, 64, rng, scale=(0.1, 8.0), flip=0.5)
        moved = geometry.segments(Segments.build(ids, [0]))
        assert (content(geometry, geometry.image(image)) == 9).all()
        assert (content(geometry, moved.id_map) == 1).all()
        assert min(geometry.letterbox.content) >= 1


# --- batches ---------------------------------------------------------------------------------------------------------


def test_collate_pads_right_and_bottom() -> None:
    sizes, rng = [(32, 64), (64, 32)], np.random.default_rng(0)
    images = [rng.integers(1, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    samples = [Sample(i, Segments.build(np.ones(i.shape[:2]), [k]), f"n{k}") for k, i in enumerate(images)]
    batch = collate(samples, [Geometry.fit(size, 64) for size in sizes])
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.names == ("n0", "n1")
    for b, (image, truth) in enumerate(zip(images, batch.truth(), strict=True)):
        height, width = image.shape[:2]
        assert batch.letterboxes[b] == Letterbox((height, width), (height, width), (64, 64))
        assert torch.equal(batch.images[b, :, :height, :width].permute(1, 2, 0), torch.from_numpy(image))
        assert batch.images[b].sum() == image.sum()
        assert (truth.id_map[:height, :width] == 1).all()
        assert (truth.id_map == VOID).sum() == 64 * 64 - height * width
        assert truth.classes.tolist() == [b]


# --- colour ----------------------------------------------------------------------------------------------------------


def jittered(strength: float, seed: int, count: int = 6) -> torch.Tensor:
    images = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return jitter_color(images.expand(count, -1, -1, -1), strength, torch.Generator().manual_seed(seed))


def test_jitter_of_no_strength_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    result = jitter_color(images, 0.0, torch.Generator().manual_seed(0))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, images.float(), atol=2e-3, rtol=0)


def test_jitter_follows_its_generator() -> None:
    assert torch.equal(jittered(0.4, 1), jittered(0.4, 1))
    assert not torch.equal(jittered(0.4, 1), jittered(0.4, 2))


def test_jitter_draws_for_each_image_and_stays_in_range() -> None:
    result = jittered(1.0, 0, count=60)
    assert result.min() >= 0
    assert result.max() <= 255
    assert len(torch.unique(result.mean((1, 2, 3)))) == 60


def test_one_image_in_ten_turns_grey() -> None:
    # Brightness 0..2 can also turn an image black, which is grey as well.
    result = jittered(0.3, 0, count=600)
    grey = (result.amax(1) - result.amin(1)).amax((1, 2)) < 1e-2
    assert grey.float().mean() == pytest.approx(0.1, abs=0.04)
