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

from everymask.augment import random_geometry
from everymask.errors import UsageError
from everymask.transforms import Geometry, collate, drop_absent
from everymask.types import VOID, Letterbox, Sample, Segments
from tests.chains import Crop, Flip, Pad, Resize, Step, Turn, Warp, chains, linked, traced

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
    # PyTorch resizes bytes with weights of fewer bits than Pillow has: up to two grey levels between them.
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


# --- chains: one geometry, one resampling ----------------------------------------------------------------------------


@given(chains(straight=True), st.integers(0, 99))
def test_straight_chains_rearrange_pixels(view: tuple[Size, list[Step]], seed: int) -> None:
    source, chain = view
    geometry, rng = linked(source, chain), np.random.default_rng(seed)
    image, alpha = rng.integers(1, 256, (*source, 3)).astype(np.uint8), rng.integers(1, 256, source).astype(np.uint8)
    layers = np.stack([blobs(source, seed, cell=2), blobs(source, seed + 1)])
    ids, pixels, matte = layers, image.transpose(2, 0, 1), alpha
    for step in chain:
        assert not isinstance(step, Resize | Warp)
        ids, pixels, matte = step.pixels(ids, VOID), step.pixels(pixels, 0), step.pixels(matte, 0)
    assert geometry.labels(torch.from_numpy(layers), VOID).tolist() == ids.tolist()
    assert geometry.image(image).tolist() == pixels.tolist()
    assert geometry.alpha(torch.from_numpy(alpha)).tolist() == matte.tolist()


@given(chains(), st.integers(0, 99))
def test_any_chain_shows_the_nearest_photo_pixel(view: tuple[Size, list[Step]], seed: int) -> None:
    source, chain = view
    geometry, ids = linked(source, chain), blobs(source, seed, cell=1)
    x, y, inside = traced(source, chain)
    # Between two pixels, and on the edge of a canvas on the way, rounding decides.
    sure = (np.abs([x - np.floor(x) - 0.5, y - np.floor(y) - 0.5, inside]) > 1e-3).all(0)
    nearest = ids[np.round(y).astype(int).clip(0, source[0] - 1), np.round(x).astype(int).clip(0, source[1] - 1)]
    moved = geometry.labels(torch.from_numpy(ids), VOID).numpy()
    assert moved[sure].tolist() == np.where(inside > 0, nearest, VOID)[sure].tolist()
    white = geometry.image(np.full((*source, 3), 255, np.uint8))[0].numpy()
    assert white[sure].tolist() == np.where(inside > 0, 255, 0)[sure].tolist()
    height, width = geometry.letterbox.content
    assert not white[height:].any()
    assert not white[:, width:].any()


@given(chains())
def test_points_follow_any_chain_and_come_back(view: tuple[Size, list[Step]]) -> None:
    source, chain = view
    geometry = linked(source, chain)
    x, y, inside = traced(source, chain)
    photo, canvas = torch.from_numpy(np.stack([x, y], -1)), torch.from_numpy(np.stack(np.indices(x.shape)[::-1], -1))
    torch.testing.assert_close(geometry.points(photo), canvas.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(geometry.to_source(canvas.double()), photo, atol=1e-6, rtol=0)
    sure = np.abs(inside) > 1e-3
    assert geometry.shows(photo).numpy()[sure].tolist() == (inside > 0)[sure].tolist()


@given(chains(), st.integers(0, 99))
def test_result_maps_come_back_to_the_photo(view: tuple[Size, list[Step]], seed: int) -> None:
    source, chain = view
    geometry = linked(source, chain)
    found = blobs(geometry.letterbox.canvas, seed, cell=1)
    returned = geometry.inverse(source).labels(torch.from_numpy(found), VOID).numpy()
    photo = pixel_centres(np.ones(source, bool))
    moved = geometry.points(photo)
    # Points just within what is shown, or just beyond it, are decided by rounding.
    nudges = torch.tensor([[dx, dy] for dx in (-1e-3, 1e-3) for dy in (-1e-3, 1e-3)], dtype=torch.float64)
    shown = torch.stack([geometry.shows(photo + nudge) for nudge in nudges])
    sure = ((moved - moved.floor() - 0.5).abs() > 1e-3).all(-1) & (shown.all(0) | ~shown.any(0))
    height, width = found.shape
    x, y = moved.round().long().numpy().T
    expected = np.where(shown.all(0).numpy(), found[y.clip(0, height - 1), x.clip(0, width - 1)], VOID)
    assert returned.reshape(-1)[sure.numpy()].tolist() == expected[sure.numpy()].tolist()


@pytest.mark.parametrize("flip", [False, True])
def test_a_chain_of_crop_resize_flip_and_pad_is_the_geometry_of_that_name(flip: bool) -> None:
    """Number for number, so that chains need not be slower or worse than what training and inference use."""
    crop, content, canvas = (7, 3, 57, 41), (61, 33), (64, 64)
    known = Geometry(crop, Letterbox((38, 50), content, canvas), flip)
    chain: list[Step] = [Crop(crop), Resize(content), *([Flip(False)] if flip else []), Pad(0, 0, 31, 3)]
    geometry, rng = linked((60, 80), chain), np.random.default_rng(0)
    image, truth = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8), Segments.build(blobs((60, 80), 0), range(4))
    assert geometry.letterbox == known.letterbox
    assert (geometry.placement, geometry.edges) == (known.placement, ())
    assert torch.equal(geometry.image(image), known.image(image))
    assert torch.equal(geometry.segments(truth).id_map, known.segments(truth).id_map)
    points = torch.from_numpy(rng.uniform(0, 60, (9, 2)))
    torch.testing.assert_close(geometry.points(points), known.points(points))


def test_a_window_of_a_resized_photo_is_cut_from_the_resized_photo() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    whole = linked((50, 70), [Resize((23, 31))])
    assert torch.equal(whole.cropped((5, 4, 20, 22)).image(image), whole.image(image)[:, 4:22, 5:20])


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3])
def test_turned_geometries_resize_before_they_turn(quarters: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    plain, size = linked((50, 70), [Resize((23, 31))]).image(image), (31, 23) if quarters % 2 else (23, 31)
    turned = linked((50, 70), [Turn(quarters), Resize(size)]).image(image)
    assert torch.equal(turned, plain.rot90(quarters, (1, 2)))


@pytest.mark.parametrize(("angle", "scale"), [(10, 1.0), (-33, 1.0), (90, 1.0), (45, 1.7), (180, 1.3)])
def test_warps_that_do_not_shrink_are_pillow_s_bilinear(angle: float, scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    geometry = Geometry.whole((60, 90)).warped(angle, scale=scale)
    a, b, c, d, e, f = geometry.to_canvas.inverse()
    # Pillow counts from outer edges.
    data = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
    expected = np.asarray(
        Image.fromarray(image).transform((90, 60), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    ).astype(int)
    # One pixel of the border apart, which Pillow mixes otherwise.
    x, y = geometry._positions
    inner = ((x > 1) & (x < 88) & (y > 1) & (y < 58)).numpy()
    shown = geometry.image(image).permute(1, 2, 0).int().numpy()
    np.testing.assert_allclose(shown[inner], expected[inner], atol=1)
    assert inner.mean() > 0.3


@pytest.mark.parametrize("shift", [0.25, 0.5, 0.8])
def test_warps_that_shrink_are_filtered_like_pillow_s_resize(shift: float) -> None:
    """Pillow resizes from boxes with fractions of pixels: the same map as a scale with a shift."""
    rng = np.random.default_rng(0)
    large = ndimage.gaussian_filter(rng.normal(128, 60, (96, 96, 3)), (6, 6, 0)) * 8 - 7 * 128
    photo = (large + rng.normal(0, 60, large.shape)).clip(0, 255).astype(np.uint8)
    geometry = Geometry.whole((96, 96)).resized((24, 24)).warped(shift=(shift, shift))
    assert geometry.placement is None
    box = (4 - 4 * shift, 4 - 4 * shift, 92 - 4 * shift, 92 - 4 * shift)
    expected = np.asarray(Image.fromarray(photo).resize((22, 22), Image.Resampling.BILINEAR, box=box)).astype(int)
    data = (4, 0, -4 * shift, 0, 4, -4 * shift)
    unfiltered = Image.fromarray(photo).transform((24, 24), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    shown = geometry.image(photo).permute(1, 2, 0).int().numpy()
    ours, aliased = (np.abs(np.asarray(i).astype(int)[2:22, 2:22] - expected[1:21, 1:21]) for i in (shown, unfiltered))
    # Not the same, for the look-up blurs a little after the filter; but the noise is gone.
    assert ours.mean() < 5
    assert ours.mean() < aliased.mean() / 4


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 130])
def test_fine_stripes_turn_grey_when_turned_and_shrunk(angle: float) -> None:
    stripes = np.zeros((120, 120, 3), np.uint8)
    stripes[:, ::2] = 255
    small = Geometry.whole((120, 120)).warped(angle, scale=0.25, shear=3)
    grey = small.image(stripes)[:, 52:68, 52:68].int()
    assert (grey - 127.5).abs().max() <= 4


@given(chains(straight=True), st.data())
def test_boxes_are_exact_where_edges_stay_upright(view: tuple[Size, list[Step]], data: st.DataObject) -> None:
    source, chain = view
    geometry = linked(source, chain)
    (y0, y1), (x0, x1) = (sorted(data.draw(st.tuples(*[st.integers(0, n - 1)] * 2))) for n in source)
    mask = np.zeros(source, np.int32)
    mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    box = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64)
    assume(bool(geometry.shows(box.view(2, 2)).all()))
    moved = geometry.labels(torch.from_numpy(mask), fill=0).numpy()
    assert geometry.boxes(box)[0].tolist() == box_of(moved).tolist()


def test_a_turned_box_is_the_box_around_it() -> None:
    geometry = Geometry.whole((41, 41)).warped(45)
    box = geometry.boxes(torch.tensor([[10.0, 10, 30, 30]]))[0]
    half = 10.5 * 2**0.5 - 0.5
    torch.testing.assert_close(box, torch.tensor([20 - half, 20 - half, 20 + half, 20 + half]))


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((400, 1000), (533, 1333)), ((1000, 400), (1333, 533))]
)
def test_the_shortest_side_grows_until_the_longest_is_too_long(size: Size, expected: Size) -> None:
    assert Geometry.whole(size).resized_shortest(800, 1333).letterbox.canvas == expected


def test_letterboxed_is_fit() -> None:
    known, geometry = Geometry.fit((50, 70), 96), Geometry.whole((50, 70)).letterboxed(96)
    assert (geometry.letterbox, geometry.placement) == (known.letterbox, known.placement)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Crop((5, 0, 5, 9)), "cannot crop a canvas of 30 x 20 to: Geometry ((5, 0, 5, 9))."),
        (Crop((0, 0, 31, 9)), "cannot crop a canvas of 30 x 20 to: Geometry ((0, 0, 31, 9))."),
        (Resize((0, 9)), "cannot resize to: Geometry ((0, 9))."),
        (Pad(0, -1, 0, 0), "cannot pad by: Geometry ((0, -1, 0, 0))."),
        (Warp(0, 0, 0, (0, 0)), "cannot warp by: Geometry (scale 0, shear 0)."),
        (Warp(0, 90, 1, (0, 0)), "cannot warp by: Geometry (scale 1, shear 90)."),
    ],
)
def test_steps_that_leave_no_canvas_are_refused(step: Step, message: str) -> None:
    with pytest.raises(UsageError) as error:
        step.link(Geometry.whole((20, 30)))
    assert str(error.value) == message


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


def test_collate_puts_turned_and_layered_samples_on_one_canvas() -> None:
    rng = np.random.default_rng(0)
    image, ids = rng.integers(1, 256, (20, 30, 3)).astype(np.uint8), blobs((20, 30), 0, cell=4)
    plain = Sample(image, Segments.build(ids, range(4)), "plain")
    layered = Sample(image, Segments.build(np.stack([ids, blobs((20, 30), 1, cell=4)]), range(4)), "layered")
    geometries = [Geometry.whole((20, 30)).turned(1), Geometry.whole((20, 30)).warped(20)]
    batch = collate([plain, layered], geometries)
    assert batch.size == (30, 30)
    assert torch.equal(batch.images[0, :, :, :20], geometries[0].image(image))
    assert torch.equal(batch.images[1, :, :20], geometries[1].image(image))
    assert not batch.images[0, :, :, 20:].any()
    assert not batch.images[1, :, 20:].any()
    assert [truth.id_map.shape for truth in batch.truth()] == [(30, 30), (2, 30, 30)]
    assert (batch.truth()[1].id_map[:, 20:] == VOID).all()
    assert original_ids(batch.truth()[0])[:, :20].tolist() == np.rot90(ids).tolist()
    assert [box.content for box in batch.letterboxes] == [(30, 20), (20, 30)]
