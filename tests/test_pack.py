"""Packed sets: what goes in comes out, in every process; damage is named; splits open by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_matting_readers import Pair, alpha_of, made_pair, made_pairs, real_pairs, write_p3m, write_supervisely
from torch.utils.data import DataLoader

from everymask.datasets import Concat, Dataset, Subset, find_format, open_dataset, open_datasets, packfile
from everymask.datasets.headerless import open_headerless
from everymask.datasets.pack import Packed, pack
from everymask.datasets.packfile import write_sealed
from everymask.errors import CheckpointError, DataError
from everymask.image import write_png
from everymask.labels import Label, LabelMap
from everymask.transforms import Geometry
from everymask.types import Sample, Segments

SIDE = 32


class Made(Dataset):
    """Samples held in memory."""

    def __init__(self, samples: Sequence[Sample], labels: LabelMap | None = None) -> None:
        self.samples, self.root, self.split = samples, Path("made"), ""
        self.labels = labels or LabelMap.from_names(["thing", "other"])
        self.names = [sample.name for sample in samples]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def numbered(ids: np.ndarray, name: str = "numbered", **options: object) -> Sample:
    """A sample whose id map [H, W] or [L, H, W] is given; all segments are of class 1."""
    image = np.random.default_rng(len(name)).integers(0, 256, (*ids.shape[-2:], 3), dtype=np.uint8)
    return Sample(image, Segments.build(ids, [1] * max(0, int(ids.max())), **options), name)  # type: ignore[arg-type]


def mixed(root: Path) -> Dataset:
    """Mattes, many instances (ids outgrow int8 half-way), overlaps, void; all but one part from files."""
    if not root.exists():
        write_p3m(root / "p3m", made_pairs(2))
        many = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) // 4  # 0..149
        write_png(root / "cells/images/c.png", made_pair(5, 20, 30)[0])
        write_png(root / "cells/instances/c.png", many)
    layers = np.zeros((2, 24, 16), np.int32)
    layers[0, 4:12], layers[1, 8:20], layers[1, :3] = 1, 2, -1
    overlapping = Made([numbered(layers, "overlapping"), numbered(np.eye(8, dtype=np.int32), "plain")])
    return Concat([open_datasets([root / "p3m", root / "cells"]), overlapping])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_same(found: Sample, expected: Sample) -> None:
    """Every field of both samples; ids may be of another type, all else is equal to the bit."""
    assert found.name == expected.name
    np.testing.assert_array_equal(found.image, expected.image)
    check_same_segments(found.segments, expected.segments)


def check_same_segments(found: Segments, expected: Segments) -> None:
    assert torch.equal(found.id_map.int(), expected.id_map.int())
    for name in ("classes", "is_thing", "is_crowd", "scores", "alpha"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name


def on_canvas(sample: Sample, side: int) -> Sample:
    """What training and inference would make of a sample at this size, without padding."""
    geometry = Geometry.fit((sample.image.shape[0], sample.image.shape[1]), side, multiple=1)
    return Sample(
        geometry.image(sample.image).permute(1, 2, 0).numpy(), geometry.segments(sample.segments), sample.name
    )


class Stop(Exception):
    pass


def build_until(dataset: Dataset, out: Path, count: int) -> None:
    """A build that ends after `count` samples."""

    def progress(done: int, total: int) -> None:
        if done == count:
            raise Stop

    with pytest.raises(Stop):
        pack(dataset, out, side=SIDE, progress=progress)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


# --- what goes in comes out ------------------------------------------------------------------------------------------


@pytest.fixture(params=["made", "real"])
def portraits(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """P3M-10k and Supervisely joined, with made-up photos or (where the real data are) photographs."""
    if request.param == "made":
        pairs: list[Pair] = made_pairs(4)
    else:
        data: Callable[[str], Path] = request.getfixturevalue("data")
        pairs = real_pairs(data("oxford_pet_700"), 4)
    p3m = open_dataset(write_p3m(tmp_path / "P3M-10k", pairs[:2]), "train")
    supervisely = open_dataset(write_supervisely(tmp_path / "supervisely_person", pairs[2:]))
    return Concat([p3m, supervisely])


@pytest.mark.parametrize("dtype", ["uint8", "fp16"])
def test_portraits_are_what_geometry_makes_of_them(tmp_path: Path, portraits: Dataset, dtype: str) -> None:
    packed = pack(portraits, tmp_path / "out", side=48, dtype=dtype)
    assert packed.labels == portraits.labels
    assert packed.labels.names == ("person",)
    assert list(packed.names) == list(portraits.names)
    assert packed.split == "train"
    for sample, source, row in zip(packed, portraits, packed.rows, strict=True):
        expected = on_canvas(source, 48)
        check_same(sample, expected)
        assert row.source == list(source.image.shape[:2])
        assert row.content == list(expected.image.shape[:2])
        assert max(row.content) == 48
        # Polarity: bright in the source's matte is the person, here too.
        assert sample.segments.foreground.float().mean() == pytest.approx(
            float((alpha_of(source.segments) >= 128).mean()), abs=0.05
        )
    packed.verify()


def test_manifest_says_what_it_is_of(tmp_path: Path, portraits: Dataset) -> None:
    manifest = pack(portraits, tmp_path / "out", side=48).manifest
    assert manifest["sources"] == [
        {"reader": "p3m", "root": "P3M-10k", "split": "train", "count": 2},
        {"reader": "supervisely", "root": "supervisely_person", "split": "", "count": 2},
    ]
    expected = {"format": "everymask-packed", "schema": 1, "side": 48, "dtype": "uint8", "ids": "int8", "count": 4}
    assert {key: manifest[key] for key in expected} == expected
    assert {name: entry["bytes"] for name, entry in manifest["files"].items() if name != "table.jsonl"} == {
        "images.bin": 4 * 48 * 48 * 3,
        "ids.bin": 4 * 48 * 48,
        "alpha.bin": 4 * 48 * 48,
    }
    rows = [json.loads(line) for line in (tmp_path / "out/table.jsonl").read_text().splitlines()]
    assert [name for name, _ in rows[0]["files"]] == ["train/blurred_image/p_000.jpg", "train/mask/p_000.png"]
    assert rows[2]["files"][1] == ["masks/ds1_man-000.png", packfile.file_sha256(portraits.files(2)[1])]
    assert all(str(tmp_path) not in text for text in map(str, contents(tmp_path / "out").values()))


def test_image_is_a_view_of_the_file(tmp_path: Path) -> None:
    packed = pack(mixed(tmp_path / "data"), tmp_path / "out", side=SIDE)
    image = packed[0].image
    assert np.shares_memory(image, packed[0].image)
    assert not image.flags.writeable
    canvas = packed.pixels(0)
    height, width = packed.rows[0].content
    assert canvas.image.shape == (SIDE, SIDE, 3)
    assert not canvas.image[height:].any()
    assert not canvas.image[:, width:].any()
    assert (canvas.ids[:, height:] == -1).all()
    assert not canvas.alpha[:, height:].any()


def test_half_precision_file_is_the_original_hybrids(tmp_path: Path) -> None:
    source = open_dataset(write_p3m(tmp_path / "p3m", made_pairs(3)), "train")
    packed = pack(source, tmp_path / "out", side=SIDE, dtype="fp16")
    np.zeros((3, 1, SIDE, SIDE), np.float16).tofile(tmp_path / "masks.mmap")
    bare = open_headerless(tmp_path / "out/images.bin", tmp_path / "masks.mmap", 3, SIDE)
    for sample, other in zip(packed, bare, strict=True):
        height, width = sample.image.shape[:2]
        np.testing.assert_array_equal(other.image[:height, :width], sample.image)


@pytest.mark.parametrize(("highest", "dtype"), [(126, "int8"), (127, "int8"), (128, "int16"), (32768, "int32")])
def test_ids_take_the_smallest_type_that_holds_them(tmp_path: Path, highest: int, dtype: str) -> None:
    side = 8 if highest < 1000 else 200
    ids = np.full(side * side * (9 if side == 8 else 1), -1, np.int32)
    ids[: highest + 1] = np.arange(highest + 1)
    first, last = np.full((side, side), -1, np.int32), ids.reshape(side * (3 if side == 8 else 1), -1)
    dataset = Made([numbered(first), numbered(last), numbered(np.ones((side, side), np.int32))])
    packed = pack(dataset, tmp_path / "out", side=max(last.shape))
    assert packed.manifest["ids"] == dtype
    for sample, source in zip(packed, dataset, strict=True):
        check_same(sample, on_canvas(source, max(last.shape)))
    assert len(packed[1].segments) == highest
    packed.verify()


def test_overlaps_crowds_scores_and_things_are_kept(tmp_path: Path) -> None:
    labels = LabelMap((Label("thing"), Label("stuff", is_thing=False)))
    layers = np.zeros((3, SIDE, 20), np.int32)
    layers[0, 2:9], layers[1, 5:20], layers[2, 7:8], layers[2, 30:] = 1, 2, 3, -1
    deep = Segments.build(layers, [0, 1, 0], labels=labels, crowd=[False, False, True], scores=torch.rand(3))
    flat = Segments.build(layers[0], [1], labels=labels)
    single = Segments.build(layers[:1], [0], alpha=np.full((SIDE, 20), 77, np.uint8))
    image = np.zeros((SIDE, 20, 3), np.uint8)
    dataset = Made([Sample(image, s, name) for s, name in ((deep, "deep"), (flat, "flat"), (single, "single"))], labels)
    packed = pack(dataset, tmp_path / "out", side=SIDE)
    for sample, source in zip(packed, dataset, strict=True):
        check_same(sample, source)
    assert (packed.manifest["maps"], packed.manifest["mattes"]) == (5, 1)


def test_segments_without_a_pixel_left_are_dropped_and_counted(tmp_path: Path) -> None:
    ids = np.zeros((64, 64), np.int32)
    ids[3, 4], ids[20:50, 20:50] = 1, 2
    packed = pack(Made([numbered(ids)]), tmp_path / "out", side=16)
    assert len(packed[0].segments) == 1
    assert (packed.rows[0].dropped, packed.manifest["dropped_segments"]) == (1, 1)


def _lists(samples: list[Sample]) -> list[tuple]:
    """A `collate_fn` of plain arrays."""
    return [(s.name, s.image.copy(), s.segments.id_map.numpy(), s.segments.classes.tolist()) for s in samples]


@pytest.mark.parametrize("opened_before", [False, True])
def test_two_loader_processes_read_the_same(tmp_path: Path, opened_before: bool) -> None:
    packed = pack(mixed(tmp_path / "data"), tmp_path / "out", side=SIDE)
    expected = _lists(list(Packed(tmp_path / "out")))
    if opened_before:
        packed[0]
    loader = DataLoader(packed, batch_size=2, num_workers=2, collate_fn=_lists)  # type: ignore[arg-type]
    found = [item for batch in loader for item in batch]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one[0], one[3]) == (other[0], other[3])
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


def test_pickle_leaves_the_files_behind(tmp_path: Path) -> None:
    packed = pack(open_dataset(write_p3m(tmp_path / "p3m", made_pairs(2))), tmp_path / "out", side=256)
    packed[0]
    data = pickle.dumps(packed)
    assert len(data) < 10_000
    check_same(pickle.loads(data)[1], packed[1])


def test_indices_are_those_of_a_sequence(tmp_path: Path) -> None:
    packed = pack(mixed(tmp_path / "data"), tmp_path / "out", side=SIDE)
    check_same(packed[-1], packed[len(packed) - 1])
    with pytest.raises(IndexError):
        packed[len(packed)]


def test_a_packed_set_can_be_packed(tmp_path: Path) -> None:
    first = pack(mixed(tmp_path / "data"), tmp_path / "one", side=SIDE)
    second = pack(Subset(first, [2, 0]), tmp_path / "two", side=SIDE)
    check_same(second[1], first[0])
    check_same(second[0], first[2])


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return pack(mixed(tmp_path / "data"), tmp_path / "out", side=SIDE).root


@pytest.mark.parametrize("name", ["images.bin", "ids.bin", "alpha.bin", "table.jsonl"])
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size_is_found_when_opening(packed: Path, name: str, change: int) -> None:
    path = packed / name
    size = path.stat().st_size
    os.truncate(path, size + change)
    with pytest.raises(CheckpointError) as caught:
        Packed(packed)
    assert str(caught.value) == (
        f"a packed file has another size: {path} (expected {size:,} bytes, found {size + change:,}). "
        "Copy it again, or delete the folder and pack it anew."
    )
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"expected {size:,} bytes, there is no such file"):
        Packed(packed)


@pytest.mark.parametrize("name", ["images.bin", "ids.bin", "alpha.bin"])
def test_changed_byte_is_found_by_verify(packed: Path, name: str) -> None:
    dataset = Packed(packed)
    dataset.verify()
    data = (packed / name).read_bytes()
    (packed / name).write_bytes(flipped(data, len(data) - 1))
    with pytest.raises(CheckpointError) as caught:
        Packed(packed).verify()
    sample = "sample 1, p_001" if name == "alpha.bin" else "sample 4, plain"
    assert str(caught.value) == (
        f"a packed file has changed: {packed / name} (its SHA-256 is not the one that was written down; first in "
        f"{sample}). Copy it again, or delete the folder and pack it anew."
    )


@pytest.mark.parametrize("name", ["table.jsonl", "manifest.json"])
def test_changed_letter_is_found_when_opening(packed: Path, name: str) -> None:
    text = (packed / name).read_text()
    (packed / name).write_text(text.replace("p_001", "p_003").replace("person", "parson"))
    with pytest.raises(CheckpointError, match=rf"a packed file has changed: .*{name}"):
        Packed(packed)


def test_broken_or_newer_manifest(packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    del manifest["sha256"]
    write_sealed(packed / "manifest.json", {**manifest, "schema": 2})
    with pytest.raises(CheckpointError, match=r"schema 2, this version reads up to 1\). Upgrade everymask\."):
        Packed(packed)
    (packed / "manifest.json").write_text('{"format": "everymask-packed", ')
    with pytest.raises(CheckpointError, match="cannot read a packed set"):
        open_dataset(packed)


def test_unfinished_set_says_how_to_go_on(tmp_path: Path) -> None:
    build_until(mixed(tmp_path / "data"), tmp_path / "out", 2)
    with pytest.raises(CheckpointError) as caught:
        open_dataset(tmp_path / "out", "train")
    assert str(caught.value) == (
        f"no complete packed set: {tmp_path / 'out'} (it was cut off while being packed). "
        "Give the same pack command again: it goes on where it stopped."
    )
    with pytest.raises(CheckpointError, match=r"there is no manifest\.json"):
        Packed(tmp_path)


def test_open_dataset_finds_packed_sets_by_split(tmp_path: Path) -> None:
    root = write_p3m(tmp_path / "p3m", made_pairs(3))
    for split in ("train", "val"):
        pack(open_dataset(root, split), tmp_path / "packed" / split, side=SIDE)
    assert find_format(tmp_path / "packed") == ("pack", "it holds packed sets: train, val")
    assert find_format(tmp_path / "packed/val") == ("pack", "it has a manifest.json of a packed set")
    lengths = {split: len(open_dataset(tmp_path / "packed", split)) for split in ("", "train", "val")}
    assert lengths == {"": 3, "train": 3, "val": 2}
    assert len(open_dataset(tmp_path / "packed/val")) == len(open_dataset(tmp_path / "packed/val", "val")) == 2
    for folder, split in (("packed", "test"), ("packed/val", "train")):
        with pytest.raises(DataError, match=f"no such split: .*asked for {split}"):
            open_dataset(tmp_path / folder, split)


def test_folder_called_val_that_holds_train_is_refused(tmp_path: Path) -> None:
    root = write_p3m(tmp_path / "p3m", made_pairs(2))
    pack(open_dataset(root, "train"), tmp_path / "packed/val", side=SIDE)
    with pytest.raises(DataError, match="asked for val, this was packed from train"):
        open_dataset(tmp_path / "packed", "val")


def test_set_packed_without_splits_is_all_train(packed: Path, tmp_path: Path) -> None:
    flat = pack(open_dataset(tmp_path / "data/cells"), tmp_path / "flat", side=SIDE).root
    assert len(open_dataset(flat)) == len(open_dataset(flat, "train")) == 1
    with pytest.raises(DataError, match="no such split"):
        open_dataset(flat, "val")
    # In a folder of that name it is what its owner says it is.
    shutil.move(flat, tmp_path / "both/val")
    assert len(open_dataset(tmp_path / "both", "val")) == 1


def test_other_manifests_are_none_of_ours(tmp_path: Path) -> None:
    write_supervisely(tmp_path, made_pairs(1))
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    assert find_format(tmp_path)[0] == "supervisely"


# --- the benchmark ---------------------------------------------------------------------------------------------------


def test_benchmark_prints_a_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.pack import main

    write_supervisely(tmp_path / "data/supervisely", made_pairs(2))
    main(["--data", str(tmp_path / "data"), "--name", "supervisely", "--count", "2", "--rounds", "1", "--side", "32"])
    printed = capsys.readouterr().out
    assert "1 worker" in printed
    assert "2 workers" in printed
    assert "x" in printed.splitlines()[-1]
