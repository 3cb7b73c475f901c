"""Where COCO data lies: annotation files and their splits, folders of images, and the file of each image.

The name of an annotation file says that of its images' folder, and its split is that without the year:
``annotations/panoptic_val2017.json`` is split "val" and speaks of ``val2017/`` or ``images/val2017/``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from .coco_index import CocoIndex
from .layout import SPLITS, split_name


def image_folder(path: Path) -> str:
    """The folder of images that an annotation file speaks of, as far as its name tells; else that name."""
    words = re.split("[_. ]", path.stem)
    return next((word for word in words if split_name(word) in SPLITS.values()), path.stem)


def by_split(files: Sequence[Path], folders: Sequence[str]) -> dict[str, Path]:
    """Annotation files by split; where two would be the same split, all by longer names.

    Args:
        folders: the name of each one's folder of images.
    """
    short, stems = [split_name(folder) for folder in folders], [path.stem for path in files]
    unique = [names for names in (short, folders, stems) if len({*names}) == len(files)]
    return dict(zip(unique[0] if unique else map(str, files), files, strict=True))


def split_names(files: Mapping[str, Path]) -> tuple[str, ...]:
    """The splits; none where one file of another name is all there is."""
    return () if len(files) == 1 and not set(files) & set(SPLITS.values()) else tuple(files)


def image_folders(root: Path, name: str, beside: Path) -> list[Path]:
    """Where the images of an annotation file may be, the most likely first.

    Args:
        name: of their folder, as in "val2017"; that of the split, "val", will do.
        beside: the annotation file.
    """
    split = split_name(name)
    likely = [root / name, root / "images" / name, root / "images" / split, root / split / "images", root / split]
    usual = [root / "images", root / "input_images", beside.parent / "images", beside.parent, root]
    return [folder for folder in dict.fromkeys([*likely, *usual]) if folder.is_dir()]


def find_images(index: CocoIndex, folders: Sequence[Path]) -> list[Path]:
    """The file of each image of an annotation file.

    Raises:
        DataError: a file is in none of the folders, or its name leads out of them.
    """
    return [_find_image(index, n, image.file_name, folders) for n, image in enumerate(index.images)]


def _find_image(index: CocoIndex, number: int, name: str, folders: Sequence[Path]) -> Path:
    if not is_inside(name):
        raise index.image_error(number, "the name of an image leads out of its folder", f'"file_name" is {name!r}')
    for folder in folders:
        if os.path.isfile(path := folder / name):  # Unlike `Path.is_file`, not troubled by names of any length.
            return path
    why = f"{name!r} is not in {', '.join(folder.name for folder in folders)}"
    raise index.image_error(number, "no such image file", why, "Add the file, or remove its entry and annotations.")


def is_inside(name: str) -> bool:
    """Whether a file of this name lies below the folder that it is looked for in."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def sample_names(file_names: Iterable[str]) -> list[str]:
    """File stems, as far as these are unique; else with folders; else with suffixes as well."""
    paths = [PurePosixPath(name) for name in file_names]
    stems, longer = [path.stem for path in paths], [path.with_suffix("").as_posix() for path in paths]
    return next((names for names in (stems, longer) if len({*names}) == len(names)), [str(path) for path in paths])
