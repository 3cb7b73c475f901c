"""The class table: index, name, colour, thing or stuff, and the ids that other id spaces give the same class."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .errors import DataError


@dataclass(frozen=True)
class Label:
    """One class. Its training id is its position in the `LabelMap`.

    Attributes:
        name: what people call it.
        color: RGB, 0..255.
        is_thing: countable (a car) rather than stuff (sky).
        source_id: id in the data set's own table (COCO category id: cat = 17).
        raw_pixel: value in the data set's own masks (COCO-Stuff pixel maps: cat = 16).
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
    """The ordered classes of a data set or model: class index ``k`` is ``labels[k]``."""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if not self.labels:
            raise DataError("a class table needs at least one class", where="LabelMap")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise DataError("class names must be unique", where="LabelMap", why=f"repeated: {', '.join(repeated)}")

    @classmethod
    def from_names(cls, names: Iterable[str], *, is_thing: bool = True) -> LabelMap:
        """A table of `names` with well separated colours."""
        return cls(tuple(Label(name, distinct_color(k), is_thing) for k, name in enumerate(names)))

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, Any]]) -> LabelMap:
        """The inverse of `to_json`."""
        return cls(tuple(_label_from_json(row) for row in rows))

    def to_json(self) -> list[dict[str, Any]]:
        """One plain dictionary a class, in order."""
        return [asdict(label) for label in self.labels]

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


def distinct_color(index: int) -> tuple[int, int, int]:
    """RGB colour number `index`: hues by the golden ratio, so that neighbours differ and the list never ends."""
    hue = (0.58 + index * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 - 0.2 * (index // 12 % 2), 0.95 - 0.25 * (index // 6 % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def _label_from_json(row: dict[str, Any]) -> Label:
    red, green, blue = row["color"]
    return Label(**{**row, "color": (red, green, blue), "synonyms": tuple(row.get("synonyms", ()))})
