"""The class table: index, name, colour, thing or stuff, and the ids that other id spaces give the same class.

Three id spaces meet here and nowhere else. In COCO-Stuff, cat is 17 among the categories (`source_id`), 16 in the
published pixel maps (`raw_pixel`) and 15 for the model (its position, the training id); pixel 17 of a training map is
horse, of a published one dog.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import DataError


@dataclass(frozen=True)
class Label:
    """One class. Its training id is its position in the `LabelMap`.

    Attributes:
        name: what people call it.
        color: RGB, 0..255.
        is_thing: countable (a car) rather than stuff (sky).
        source_id: id in the data set's own table (COCO category id: cat = 17).
        raw_pixel: value in the data set's own masks (COCO-Stuff pixel maps: cat = 16). A colour is one number,
            R + 256 G + 65536 B, as in COCO panoptic files.
        synonyms: other names, for matching tables by name and for text models.
    """

    name: str
    color: tuple[int, int, int] = (0, 0, 0)
    is_thing: bool = True
    source_id: int | None = None
    raw_pixel: int | None = None
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelMap:
    """The ordered classes of a data set or model: class index ``k`` is ``labels[k]``.

    Attributes:
        void: raw pixel values whose truth is unknown.
        background: raw pixel values that are known to be none of the classes.
    """

    labels: tuple[Label, ...]
    void: tuple[int, ...] = ()
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.labels:
            raise DataError("a class table needs at least one class", where="LabelMap")
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise DataError("class names must be unique", where="LabelMap", why=f"repeated: {', '.join(repeated)}")
        _check_one_meaning([label.raw_pixel for label in self.labels], self.void, self.background)

    @classmethod
    def from_names(cls, names: Iterable[str], *, is_thing: bool = True) -> LabelMap:
        """A table of `names` with well separated colours."""
        return cls(tuple(Label(name, distinct_color(k), is_thing) for k, name in enumerate(names)))

    @classmethod
    def from_json(cls, data: dict[str, Any] | list[dict[str, Any]]) -> LabelMap:
        """The inverse of `to_json`; also reads the rows alone, as the first version wrote them."""
        if isinstance(data, list):
            data = {"labels": data}
        labels = tuple(_label_from_json(row) for row in data["labels"])
        return cls(labels, tuple(data.get("void", ())), tuple(data.get("background", ())))

    def to_json(self) -> dict[str, Any]:
        """``labels``: one plain dictionary a class, in order; ``void`` and ``background``: raw pixel values."""
        rows = [asdict(label) for label in self.labels]
        return {"labels": rows, "void": list(self.void), "background": list(self.background)}

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __getitem__(self, index: int) -> Label:
        return self.labels[index]

    @property
    def names(self) -> tuple[str, ...]:
        """The class names in index order."""
        return tuple(label.name for label in self.labels)

    def index(self, name: str) -> int:
        """Class index of `name`, else of the first class that has it as a synonym.

        Raises:
            DataError: no class is called so; the message lists the table.
        """
        if name in self.names:
            return self.names.index(name)
        for k, label in enumerate(self.labels):
            if name in label.synonyms:
                return k
        raise DataError("unknown class", where=name, why=f"the table has: {', '.join(self.names)}")

    def index_of_source(self, source_id: int) -> int:
        """Class index of an id of the data set's own table.

        Raises:
            DataError: the table has no such id.
        """
        for k, label in enumerate(self.labels):
            if label.source_id == source_id:
                return k
        known = ", ".join(f"{label.source_id} {label.name}" for label in self.labels)
        raise DataError("unknown class id", where=source_id, why=f"the table has: {known}")

    def pixel_classes(self) -> dict[int, int]:
        """Class index of each raw pixel value: -1 for void, ``len(self)`` for background."""
        classes = dict.fromkeys(self.void, -1) | {value: len(self) for value in self.background}
        return classes | {label.raw_pixel: k for k, label in enumerate(self.labels) if label.raw_pixel is not None}

    def meaning(self, pixel: int) -> str:
        """What a raw pixel value stands for, in words: a class name, "void", "background" or "unknown"."""
        k = self.pixel_classes().get(pixel)
        if k is None:
            return "unknown"
        return "void" if k < 0 else "background" if k == len(self) else self[k].name

    def classes_of(self, pixels: np.ndarray, where: object) -> np.ndarray:
        """Raw pixels to class indices: the one place where labels are remapped.

        Args:
            pixels: raw values [H, W], or colours [H, W, 3].
            where: the file, for the message.

        Returns:
            int64 [H, W]: class index, -1 for void, ``len(self)`` for background.

        Raises:
            DataError: a value that the table does not know.
        """
        values = packed(pixels) if pixels.ndim == 3 else pixels
        table = self.pixel_classes()
        known = np.array(sorted(table), np.int64)
        position = _position_in(known, values)
        if position.size and position.min() < 0:
            raise unknown_values(np.unique(values[position < 0]).tolist(), table, where)
        return np.array([table[value] for value in known.tolist()], np.int64)[position]


def packed(colors: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] as single numbers int64 [...]: R + 256 G + 65536 B."""
    return colors.astype(np.int64) @ np.array([1, 256, 65536])


def _position_in(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each value [H, W] in the sorted `known` [n], -1 where it is not among them."""
    lowest, highest = int(values.min(initial=0)), int(values.max(initial=0))
    if lowest >= 0 and highest < 1 << 16:  # A table to look up in takes a tenth of the time of a search.
        table = np.full(highest + 1, -1, np.int32)
        reachable = known <= highest
        table[known[reachable]] = np.flatnonzero(reachable)
        return table[values]
    position = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[position] == values, position, -1)


def unknown_values(unknown: Iterable[int], known: Iterable[int], where: object) -> DataError:
    """The error for mask values that no table entry stands for."""
    found = list(unknown)
    shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    why = f"found {shown}; this data set knows {', '.join(map(str, sorted(known)))}"
    fix = "List it in classes.json or mend the mask."
    return DataError("unknown value in a mask", where=where, why=why, fix=fix)


def _check_one_meaning(pixels: Iterable[int | None], void: Iterable[int], background: Iterable[int]) -> None:
    every = [value for value in pixels if value is not None] + [*set(void), *set(background)]
    repeated = sorted({value for value in every if every.count(value) > 1})
    if repeated:
        why = f"{', '.join(map(str, repeated))} among classes, void and background"
        raise DataError("a pixel value has two meanings", where="LabelMap", why=why, fix="Give each value once.")


def distinct_color(index: int) -> tuple[int, int, int]:
    """RGB colour number `index`: hues by the golden ratio, so that neighbours differ and the list never ends."""
    hue = (0.58 + index * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 - 0.2 * (index // 12 % 2), 0.95 - 0.25 * (index // 6 % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def _label_from_json(row: dict[str, Any]) -> Label:
    red, green, blue = row["color"]
    return Label(**{**row, "color": (red, green, blue), "synonyms": tuple(row.get("synonyms", ()))})
