"""P3M-10k, Supervisely Person and headerless files: layouts, pairing, mattes kept as they are, polarity."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from everymask.datasets import find_format, open_dataset
from everymask.datasets.headerless import open_headerless
from everymask.datasets.p3m import P3M
from everymask.datasets.supervisely import Supervisely
from everymask.errors import CheckpointError, DataError, UsageError
from everymask.image import read_image, read_mask, write_jpeg, write_png
from everymask.types import Segments

Pair = tuple[np.ndarray, np.ndarray]  # photo uint8 [H, W, 3], matte uint8 [H, W]


def soft_disc(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A bright disc with a soft edge a few pixels wide, off the centre: upside down or mirrored it is another one."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - height * 0.4, x - width * (0.35 + 0.02 * seed))
    return np.clip((min(height, width) * 0.3 - distance) * 20 + 128, 0, 255).astype(np.uint8)


def alpha_of(segments: Segments) -> np.ndarray:
    assert segments.alpha is not None
    return segments.alpha.numpy()


def made_pair(seed: int, height: int = 60, width: int = 80) -> Pair:
    """A smooth random picture with a soft disc as its matte."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), soft_disc(height, width, seed)


def made_pairs(count: int) -> list[Pair]:
    return [made_pair(seed, 60 + 4 * seed, 80 - 6 * seed) for seed in range(count)]


def real_pairs(root: Path, count: int) -> list[Pair]:
    """Photographs of pets, small, with a blurred version of their hand-drawn masks as mattes."""
    chosen = sorted((root / "images").glob("*.jpg"))[:: 693 // count][:count]
    return [_real_pair(path, root / "trimaps" / f"{path.stem}.png") for path in chosen]


def _real_pair(photo: Path, trimap: Path) -> Pair:
    image, pet = Image.fromarray(read_image(photo)), Image.fromarray((read_mask(trimap) != 2).astype(np.uint8) * 255)
    size = (image.width // 4, image.height // 4)
    return np.asarray(image.resize(size)), np.asarray(pet.filter(ImageFilter.GaussianBlur(8)).resize(size))


@pytest.fixture(params=["made", "real"])
def pairs(request: pytest.FixtureRequest) -> list[Pair]:
    """Five photos with mattes, made up or (where the real data are) photographs."""
    if request.param == "made":
        return made_pairs(5)
    data: Callable[[str], Path] = request.getfixturevalue("data")
    return real_pairs(data("oxford_pet_700"), 5)


def write_split(photos: Path, masks: Path, pairs: Sequence[Pair], stem: str = "p_", suffix: str = ".jpg") -> None:
    for number, (photo, matte) in enumerate(pairs):
        write = write_jpeg if suffix == ".jpg" else write_png
        write(photos / f"{stem}{number:03d}{suffix}", photo)
        write_png(masks / f"{stem}{number:03d}.png", matte)


def write_p3m(root: Path, pairs: Sequence[Pair]) -> Path:
    """The layout of P3M-10k with all of `pairs` in train, the first two in val, the last one in val-np."""
    write_split(root / "train/blurred_image", root / "train/mask", pairs)
    parts = {"P3M-500-P/blurred_image": pairs[:2], "P3M-500-NP/original_image": pairs[-1:]}
    for place, part in parts.items():
        photos = root / "validation" / place
        write_split(photos, photos.parent / "mask", part, stem="v_")
        for mask in (photos.parent / "mask").glob("*.png"):
            write_png(photos.parent / "trimap" / mask.name, np.full(read_mask(mask).shape, 128, np.uint8))
    return root


def write_supervisely(root: Path, pairs: Sequence[Pair]) -> Path:
    write_split(root / "images", root / "masks", pairs, stem="ds1_man-", suffix=".png")
    return root


# --- P3M-10k ---------------------------------------------------------------------------------------------------------


def test_p3m_gives_photo_and_matte_as_they_are(tmp_path: Path, pairs: list[Pair]) -> None:
    dataset = open_dataset(write_p3m(tmp_path / "P3M-10k", pairs), "train")
    assert isinstance(dataset, P3M)
    assert dataset.labels.names == ("person",)
    assert list(dataset.names) == [f"p_{n:03d}" for n in range(5)]
    for sample, (photo, matte) in zip(dataset, pairs, strict=True):
        assert sample.image.shape == photo.shape
        assert np.abs(sample.image.astype(int) - photo).mean() < 8  # JPEG
        np.testing.assert_array_equal(alpha_of(sample.segments), matte)
        np.testing.assert_array_equal(sample.segments.id_map.numpy(), matte >= 128)
        assert [s.label for s in sample.segments] == ["person"]
        assert not sample.segments.void.any()


@pytest.mark.parametrize(
    ("split", "count", "folder"),
    [
        ("train", 5, "train/blurred_image"),
        ("", 5, "train/blurred_image"),
        ("val", 2, "validation/P3M-500-P/blurred_image"),
        ("val-np", 1, "validation/P3M-500-NP/original_image"),
        ("test", 1, "validation/P3M-500-NP/original_image"),
    ],
)
def test_p3m_splits(tmp_path: Path, split: str, count: int, folder: str) -> None:
    root = write_p3m(tmp_path, made_pairs(5))
    dataset = open_dataset(root, split)
    assert (len(dataset), dataset.split) == (count, split or "train")
    photo, mask = dataset.files(0)
    assert photo.parent == root / folder
    assert mask.parent == photo.parent.parent / "mask"
    assert not any(sample.segments.void.any() for sample in dataset)  # trimaps are all "unknown" here


def test_p3m_with_some_splits_only(tmp_path: Path) -> None:
    photos = tmp_path / "validation/P3M-500-NP/original_image"
    write_split(photos, photos.parent / "mask", made_pairs(1))
    assert find_format(tmp_path) == ("p3m", "it has validation/P3M-500-NP/original_image/")
    assert open_dataset(tmp_path).split == "val-np"
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "train")
    assert str(caught.value) == f"no such split: {tmp_path} (asked for train, there are: val-np, test)."


def test_p3m_names_every_orphan(tmp_path: Path) -> None:
    root = write_p3m(tmp_path, made_pairs(5))
    for name in ("blurred_image/p_001.jpg", "blurred_image/p_003.jpg", "mask/p_004.png"):
        (root / "train" / name).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(root, "train")
    assert str(caught.value) == (
        f"files without a partner: {root / 'train'} (3: blurred_image/p_004.jpg, mask/p_001.png, mask/p_003.png). "
        "Add the missing partner or move the orphan away."
    )


def test_jpg_and_png_photos_pair_by_stem_not_by_place_in_a_list(tmp_path: Path) -> None:
    # Sorted by whole names, as the original did it, photos and mattes come in two different orders here.
    pairs = made_pairs(3)
    root = tmp_path / "train"
    for (photo, matte), name in zip(pairs, ("a.jpg", "a.k.jpg", "b.png"), strict=True):
        write = write_png if name.endswith("png") else write_jpeg
        write(root / "blurred_image" / name, photo)
        write_png(root / "mask" / f"{Path(name).stem}.png", matte)
    for sample in open_dataset(tmp_path, "train"):
        expected = pairs[{"a": 0, "a.k": 1, "b": 2}[sample.name]][1]
        np.testing.assert_array_equal(alpha_of(sample.segments), expected)


# --- mattes ----------------------------------------------------------------------------------------------------------


def test_polarity_is_never_inverted(tmp_path: Path) -> None:
    photo, matte = made_pair(0)
    for name, truth in (("upright", matte), ("inverted", 255 - matte)):
        root = tmp_path / name
        write_split(root / "train/blurred_image", root / "train/mask", [(photo, truth)])
        segments = open_dataset(root, "train")[0].segments
        np.testing.assert_array_equal(alpha_of(segments), truth)
        np.testing.assert_array_equal(segments.foreground.numpy(), truth >= 128)
    assert bool(segments.foreground[-1, -1])  # inverted on disk, inverted when read


EYE = np.eye(6, dtype=np.uint8)
SCALE_UP = "Multiply it by 255, or read the folder as plain masks: format='folder'."
AS_GREY = "Save it as an 8-bit grey PNG, 0 to 255."


@pytest.mark.parametrize(
    ("mask", "why", "fix"),
    [
        (EYE, "its values are 0 and 1, not 0 to 255", SCALE_UP),
        (EYE.astype(np.uint16) * 65535, "its values are uint16", AS_GREY),
        (np.stack([EYE * 255, EYE, EYE], axis=2), "its pixels are coloured", AS_GREY),
    ],
)
def test_what_is_no_matte_is_refused(tmp_path: Path, mask: np.ndarray, why: str, fix: str) -> None:
    write_split(tmp_path / "train/blurred_image", tmp_path / "train/mask", [(np.zeros((6, 6, 3), np.uint8), mask)])
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "train")[0]
    assert str(caught.value) == f"expected a matte: {tmp_path / 'train/mask/p_000.png'} ({why}). {fix}"


def test_grey_rgb_matte_and_empty_matte_are_read(tmp_path: Path) -> None:
    photo, matte = made_pair(0)
    grey, empty = np.repeat(matte[..., None], 3, axis=2), np.zeros_like(matte)
    write_split(tmp_path / "train/blurred_image", tmp_path / "train/mask", [(photo, grey), (photo, empty)])
    first, second = open_dataset(tmp_path, "train")
    np.testing.assert_array_equal(alpha_of(first.segments), matte)
    assert len(second.segments) == 0
    assert not second.segments.foreground.any()


def test_matte_of_another_size_is_refused(tmp_path: Path) -> None:
    photo, matte = made_pair(0)
    write_split(tmp_path / "train/blurred_image", tmp_path / "train/mask", [(photo, matte[:-1])])
    with pytest.raises(DataError, match=r"p_000\.jpg is 80x60, its mask 80x59"):
        open_dataset(tmp_path, "train")[0]


# --- Supervisely -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["supervisely_person_clean_2667_img", "Supervisely", "x/supervisely_person"])
def test_supervisely_is_known_by_its_name(tmp_path: Path, place: str) -> None:
    hard = [(photo, np.where(matte > 127, 255, 0).astype(np.uint8)) for photo, matte in made_pairs(2)]
    write_supervisely(tmp_path / place, hard)
    root = tmp_path / place.split("/")[0]
    assert find_format(root) == ("supervisely", f"{Path(place).name}/ has images/ and masks/ and is called so")
    assert open_dataset(root, "train").labels.names == ("person",)


def test_supervisely_is_known_by_soft_masks(tmp_path: Path, pairs: list[Pair]) -> None:
    root = write_supervisely(tmp_path / "people", pairs)
    assert find_format(root) == ("supervisely", "masks/ds1_man-000.png is a matte, and there is no classes.json")
    dataset = open_dataset(root)
    assert isinstance(dataset, Supervisely)
    for sample, (photo, matte) in zip(dataset, pairs, strict=True):
        np.testing.assert_array_equal(sample.image, photo)
        np.testing.assert_array_equal(alpha_of(sample.segments), matte)
        np.testing.assert_array_equal(sample.segments.id_map.numpy(), matte >= 128)


def _class_numbers(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.uint8) * (200 // count), 20)[None].repeat(8, 0)


@pytest.mark.parametrize(
    ("mask", "palette"),
    [
        (np.where(soft_disc(40, 40) > 127, 255, 0).astype(np.uint8), False),  # hard
        (np.where(soft_disc(40, 40) > 127, 1, 0).astype(np.uint8), False),
        (_class_numbers(6), False),  # few class numbers
        (_class_numbers(60), False),  # many class numbers, with hardly any 0
        (soft_disc(40, 40), True),  # a palette file has class numbers
    ],
)
def test_other_masks_stay_with_the_folder_reader(tmp_path: Path, mask: np.ndarray, palette: bool) -> None:
    write_png(tmp_path / "images/a.png", np.zeros((*mask.shape, 3), np.uint8))
    write_png(tmp_path / "masks/a.png", mask, [(k, k, k) for k in range(256)] if palette else None)
    assert find_format(tmp_path)[0] == "folder"


def test_a_class_table_or_a_damaged_mask_is_for_the_folder_reader(tmp_path: Path) -> None:
    root = write_supervisely(tmp_path / "supervisely", made_pairs(3))
    (root / "classes.json").write_text('["cat"]')
    assert find_format(root)[0] == "folder"
    other = write_supervisely(tmp_path / "people", made_pairs(3))
    (other / "masks/ds1_man-000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert find_format(other)[0] == "folder"


def test_supervisely_has_no_splits_and_names_orphans(tmp_path: Path) -> None:
    root = write_supervisely(tmp_path / "supervisely", made_pairs(2))
    assert len(open_dataset(root, "train")) == len(open_dataset(root)) == 2
    with pytest.raises(DataError, match="asked for val"):
        open_dataset(root, "val")
    (root / "masks/ds1_man-001.png").unlink()
    with pytest.raises(DataError, match=r"1: images/ds1_man-001\.png"):
        open_dataset(root)


# --- headerless files ------------------------------------------------------------------------------------------------

SIDE = 24


def write_headerless(folder: Path, pairs: Sequence[Pair], dtype: str = "float16") -> tuple[Path, Path]:
    """Two files as the original hybrid's script wrote them."""
    images = np.stack([photo.transpose(2, 0, 1) for photo, _ in pairs]).astype(np.float32) / 255
    masks = np.stack([matte[None] for _, matte in pairs]).astype(np.float32) / 255
    paths = folder / "train_24_fp16_images.mmap", folder / "train_24_fp16_masks.mmap"
    for path, array in zip(paths, (images, masks), strict=True):
        array.astype(dtype).tofile(path)
    return paths


@pytest.fixture
def squares() -> list[Pair]:
    every = np.arange(SIDE * SIDE * 3).astype(np.uint8).reshape(SIDE, SIDE, 3)  # every value 0..255
    return [(every, soft_disc(SIDE, SIDE)), made_pair(1, SIDE, SIDE), (made_pair(2, SIDE, SIDE)[0], every[..., 0])]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_headerless_round_trip_is_exact(tmp_path: Path, squares: list[Pair], dtype: str) -> None:
    dataset = open_headerless(*write_headerless(tmp_path, squares, dtype), 3, SIDE, dtype, class_name="cat")
    assert dataset.labels.names == ("cat",)
    assert list(dataset.names) == ["000000", "000001", "000002"]
    for sample, (photo, matte) in zip(dataset, squares, strict=True):
        np.testing.assert_array_equal(sample.image, photo)
        np.testing.assert_array_equal(alpha_of(sample.segments), matte)
        np.testing.assert_array_equal(sample.segments.id_map.numpy(), matte >= 128)
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again[1].image, squares[1][0])
    assert len(pickle.dumps(dataset)) < 2000  # never the files themselves


def test_headerless_count_must_fit(tmp_path: Path, squares: list[Pair]) -> None:
    images, masks = write_headerless(tmp_path, squares)
    assert len(open_headerless(images, masks, 3, SIDE)) == 3
    for count in (2, 4):
        with pytest.raises(CheckpointError) as caught:
            open_headerless(images, masks, count, SIDE)
        assert str(caught.value) == (
            f"a headerless file has another size: {images} ({count} x 3 x 24 x 24 float16 are {count * 3456:,} bytes, "
            "the file has 10,368). count=3 would fit."
        )
    masks.write_bytes(masks.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        open_headerless(images, masks, 3, SIDE)
    assert str(caught.value) == (
        f"a headerless file has another size: {masks} (3 x 1 x 24 x 24 float16 are 3,456 bytes, the file has 3,455). "
        "No count fits: see to side and dtype."
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(np.nan, "nan to nan"), (np.inf, "0 to inf"), (-0.5, "-0.5 to 1"), (255.0, "0 to 255")]
)
@pytest.mark.parametrize("file", [0, 1])
def test_headerless_numbers_must_be_sound(
    tmp_path: Path, squares: list[Pair], file: int, value: float, shown: str
) -> None:
    paths = write_headerless(tmp_path, [squares[0]] * 3)
    numbers = np.fromfile(paths[file], np.float16).reshape(3, -1)
    numbers[1, 7] = value
    numbers.tofile(paths[file])
    dataset = open_headerless(*paths, 3, SIDE)
    assert dataset[0].image.shape == (SIDE, SIDE, 3)
    with pytest.raises(DataError) as caught:
        dataset[1]
    assert str(caught.value) == (
        f"expected numbers from 0 to 1: {paths[file]} (sample 1 has values {shown}). "
        "Write the files again, as finite numbers 0..1; or count, side or dtype are others."
    )


def test_headerless_arguments(tmp_path: Path, squares: list[Pair]) -> None:
    images, masks = write_headerless(tmp_path, squares)
    with pytest.raises(UsageError, match=r"count 0, side 24, dtype 'int8'"):
        open_headerless(images, masks, 0, SIDE, "int8")
    with pytest.raises(CheckpointError, match=r"no such file: .*absent"):
        open_headerless(tmp_path / "absent", masks, 3, SIDE)
