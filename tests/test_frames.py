"""Videos: the DAVIS layout, clips of it, and that a row stays the same object whatever a frame shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everymask.datasets import Subset, find_folders, find_format, open_dataset
from everymask.datasets.loader import training_batches
from everymask.errors import DataError, UsageError
from everymask.frames import FrameBatch, as_clip, clip_of, collate_frames, frame_number
from everymask.image import write_png
from everymask.recipe import TrainConfig
from everymask.transforms import Geometry
from everymask.types import Prompts
from tests.contract import batch_of
from tests.scenes import scene

SIZE = (24, 32)


def write_video(root: Path, video: str, masks: list[np.ndarray], place: str = "480p") -> Path:
    """Frames with masks of object numbers; the photo is grey by frame."""
    for n, mask in enumerate(masks):
        photo = np.full((*mask.shape, 3), 10 * n, np.uint8)
        write_png(root / "JPEGImages" / place / video / f"{n:05}.png", photo)
        write_png(root / "Annotations" / place / video / f"{n:05}.png", mask)
    return root


def moving(numbers: tuple[int, ...], count: int = 5) -> list[np.ndarray]:
    """Objects 4 pixels wide that go right by 3 pixels a frame, below each other."""
    masks = []
    for t in range(count):
        mask = np.zeros(SIZE, np.uint8)
        for row, number in enumerate(numbers):
            mask[5 * row : 5 * row + 4, 3 * t : 3 * t + 4] = number
        masks.append(mask)
    return masks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos; object 7 of the first is absent from its frames 0 and 3, and its frame 1 has void."""
    masks = moving((2, 7))
    for t in (0, 3):
        masks[t][masks[t] == 7] = 0
    masks[1][20:] = 255
    write_video(tmp_path, "cat", masks)
    write_video(tmp_path, "dog", moving((1,), 3))
    lists = tmp_path / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("cat\n")
    (lists / "val.txt").write_text("dog\n")
    return tmp_path


def test_the_layout_is_found(root: Path) -> None:
    assert find_format(root) == ("frames", "it has videos in JPEGImages/480p/ and Annotations/480p/")
    assert find_folders([root])[0].splits == ("train", "val")
    train, val, whole = (open_dataset(root, split) for split in ("train", "val", ""))
    assert list(train.names) == [f"cat/{n:05}" for n in range(5)]
    assert list(val.names) == [f"dog/{n:05}" for n in range(3)]
    assert len(whole) == 8
    assert whole.videos
    assert open_dataset(root, name="animal").labels.names == ("animal",)


def test_without_the_folder_of_the_resolution(tmp_path: Path) -> None:
    write_video(tmp_path, "cat", moving((1,)), place="")
    assert find_format(tmp_path)[0] == "frames"
    assert len(open_dataset(tmp_path, "train")) == 5


def test_rows_are_the_same_objects_in_every_frame(root: Path) -> None:
    for t, sample in enumerate(open_dataset(root, "train")):
        areas = [s.area for s in sample.segments]
        assert areas == [16, 0 if t in (0, 3) else 16]
        assert sample.segments[0].box == (3 * t, 0, 3 * t + 3, 3)
        assert bool(sample.segments.void.any()) == (t == 1)
    assert sample.segments[1].box == (12, 5, 15, 8)


def test_more_objects_than_a_byte_counts(tmp_path: Path) -> None:
    """A 16-bit mask of 300 objects, of which 255 is one."""
    mask = np.kron(np.arange(300, dtype=np.uint16).reshape(15, 20) + 1, np.ones((2, 2), np.uint16))
    (sample,) = open_dataset(write_video(tmp_path, "crowd", [mask]))
    assert len(sample.segments) == 300
    assert not sample.segments.void.any()
    assert all(s.area == 4 for s in sample.segments)


def test_bad_videos(root: Path) -> None:
    masks = root / "Annotations" / "480p" / "cat"
    (masks / "00002.png").unlink()
    with pytest.raises(DataError) as error:
        open_dataset(root, "train")
    text = f"files without a partner: {root / 'JPEGImages' / '480p'} (1: cat/00002.png)."
    assert str(error.value) == f"{text} Add the missing partner or move the orphan away."
    write_png(masks / "00002.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(DataError) as error:
        open_dataset(root, "train")[0]
    assert str(error.value) == f"expected one object number a pixel: {masks / '00002.png'} (the mask is RGB)."
    (root / "ImageSets" / "2017" / "train.txt").write_text("cat\nbird\n")
    with pytest.raises(DataError) as error:
        open_dataset(root, "train")
    assert str(error.value) == f"a list names videos that are not there: {root / 'ImageSets'} (1, the first is 'bird')."


# ---- clips -----------------------------------------------------------------------------------------------------------

NAMES = [f"a/{n}" for n in range(10)] + [f"b/{n}" for n in range(3)]


def test_a_clip_holds_the_sample_in_either_order() -> None:
    rng = np.random.default_rng(0)
    seen: set[tuple[int, ...]] = set()
    for _ in range(300):
        chosen = clip_of(NAMES, 1, 4, rng)
        seen.add(tuple(chosen))
        assert 1 in chosen
        assert abs(np.diff(chosen)).tolist() == [1, 1, 1]
        assert len({*np.sign(np.diff(chosen))}) == 1
    assert seen == {(0, 1, 2, 3), (3, 2, 1, 0), (1, 2, 3, 4), (4, 3, 2, 1)}
    assert sorted(clip_of(NAMES, 11, 4, rng)) == [10, 11, 12]
    assert {tuple(sorted(clip_of(NAMES, 9, 3, rng))) for _ in range(50)} == {(7, 8, 9)}
    assert clip_of(["photo"], 0, 4, rng) == [0]


def test_the_batch_of_a_clip(root: Path) -> None:
    samples = list(open_dataset(root, "train"))[1:4]
    geometries = [Geometry.fit(SIZE, 64)] * 3
    clip = collate_frames(samples, geometries)
    assert (clip.frames, clip.reverse, clip.count, len(clip)) == ((1, 2, 3), False, 2, 3)
    assert clip.source_sizes == (SIZE,) * 3
    masks = clip.masks()
    assert masks.shape == (3, 2, 64, 64)
    assert masks.flatten(2).sum(2).tolist() == [[64, 64], [64, 64], [64, 0]]  # Twice as large; absent from frame 3.
    assert collate_frames(samples[::-1], geometries).reverse
    told = Prompts(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), torch.tensor([1, 0]).int(), torch.tensor([1, 1]))
    none = Prompts(torch.zeros(0, 2), torch.zeros(0).int(), torch.zeros(0).long())
    coords, labels = replace(clip, prompts=(told, none, none)).padded()
    assert (coords.shape, coords.dtype, labels.dtype) == ((3, 2, 2, 2), torch.float32, torch.int32)
    assert labels.tolist() == [[[-1, -1], [1, 0]], [[-1, -1]] * 2, [[-1, -1]] * 2]
    assert coords[0, 1].tolist() == [[5, 6], [7, 8]]


def test_a_photo_is_a_clip_of_one_frame() -> None:
    batch = batch_of([scene(64, 96), scene(90, 40, seed=1)], 96)
    clip = as_clip(batch, 1)
    assert (len(clip), clip.count, clip.names) == (1, 2, ("scene1",))
    assert torch.equal(clip.masks()[0, 1], batch.truth()[1][1].mask)
    assert clip.padded()[1].shape == (1, 2, 0)


def test_frames_must_fit_together(root: Path) -> None:
    whole = open_dataset(root)
    with pytest.raises(DataError) as error:
        collate_frames([whole[0], whole[5]], [Geometry.fit(SIZE, 64)] * 2)
    assert str(error.value).startswith(
        "frames of one clip have different objects: dog/00000 (2 objects in cat/00000, 1 in"
    )
    small = replace(whole[0], segments=replace(whole[0].segments, id_map=whole[0].segments.id_map[:9]))
    with pytest.raises(DataError, match="differ in size"):
        collate_frames([whole[0], small], [Geometry.fit(SIZE, 64)] * 2)
    assert [frame_number(name) for name in ("a/00012", "b7", "c")] == [12, 7, 0]


def test_training_sees_clips(root: Path) -> None:
    data = open_dataset(root, "train")
    config = TrainConfig(steps=4, batch_size=1, frames=3, targets="instance", workers=0, image_side=64)
    clips = list(training_batches(data, config, data.labels, 64, 0))
    assert all(isinstance(clip, FrameBatch) and len(clip) == 3 for clip in clips)
    assert {clip.count for clip in clips} == {2}
    assert len({box for clip in clips[:1] for box in clip.letterboxes}) == 1  # One view for all frames.
    again = list(training_batches(data, config, data.labels, 64, 2))
    assert [clip.frames for clip in again] == [clip.frames for clip in clips[2:]]
    for other in (batch_data(root), Subset(batch_data(root), [0])):
        with pytest.raises(UsageError, match="these data are no videos"):
            list(training_batches(other, config, data.labels, 64, 0))
    with pytest.raises(UsageError) as error:
        TrainConfig(frames=3)
    assert str(error.value).startswith("a batch is one clip: frames (batch_size=16).")


def batch_data(root: Path) -> Subset:
    """The same frames, of a reader that does not promise that rows are objects."""
    data = open_dataset(root, "train")
    data.videos = False
    return Subset(data, range(len(data)))
