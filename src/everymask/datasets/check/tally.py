"""The sum of all facts: counters, a few examples of each finding, some bytes a photo; never the facts themselves."""

from __future__ import annotations

from array import array
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .examine import BACKGROUND_ROW
from .facts import Counts, Facts
from .masks import Framing

SHOWN = 12
"""Examples kept of each kind of finding."""

KEPT_VALUES = 4096
"""Different mask values that are counted one by one over the whole data set."""


@dataclass
class Hits:
    """Samples in which something was found: all their numbers, and the particulars of the first few.

    Which examples are kept does not depend on the order of adding: a check that was interrupted reports the same.
    """

    numbers: array[int] = field(default_factory=lambda: array("q"))
    examples: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, detail: str = "") -> None:
        """Count sample `number`."""
        self.numbers.append(number)
        insort(self.examples, (number, detail))
        del self.examples[SHOWN:]

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass
class Seen:
    """How often a mask value occurs, and what it means (in a data set where files differ in that, several things)."""

    pixels: int = 0
    images: int = 0
    meanings: set[str] = field(default_factory=set)


class Colors:
    """Which colours palette files give each value, and a file for each."""

    def __init__(self) -> None:
        self.of_value: dict[int, dict[int, int]] = {}

    def add(self, number: int, palette: Counts) -> None:
        """Note the colours of sample `number`; of a value with ever new colours the first few are enough."""
        for value, color in palette.items():
            first = self.of_value.setdefault(value, {})
            if len(first) < SHOWN:
                first[color] = min(number, first.get(color, number))

    def conflicts(self) -> Iterator[tuple[int, dict[int, int]]]:
        """(value, sample number by colour) where one value has several colours."""
        return ((value, first) for value, first in sorted(self.of_value.items()) if len(first) > 1)


class Prints:
    """What all photos can be recognised by: 40 bytes each."""

    def __init__(self) -> None:
        self.rows = array("Q")

    def add(self, number: int, facts: Facts) -> None:
        """Note a photo that could be read."""
        if facts.digest is not None:
            self.rows.extend((number, facts.digest, facts.mask_digest, facts.look or 0, facts.look is not None))

    def columns(self) -> np.ndarray:
        """uint64 [5, n] by sample number: that, digest, digest of the mask, look, whether there is a look."""
        rows = np.array(self.rows, np.uint64).reshape(-1, 5)
        return rows[np.argsort(rows[:, 0])].T


class Tally:
    """What was counted over all samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.hits: dict[str, Hits] = {}
        self.holds: dict[str, Hits] = {}
        self.values: dict[int, Seen] = {}
        self.other_values, self.by_color = 0, False
        self.colors = Colors()
        self.shifts: Counter[int] = Counter()
        self.binary = Hits()
        self.class_pixels: Counter[int] = Counter()
        self.class_images: Counter[int] = Counter()
        self.sizes: dict[int, Counter[int]] = {}
        self.labelled = 0
        self.framed, self.upright, self.inverted = 0, 0, Hits()
        self.prints = Prints()

    def add(self, number: int, facts: Facts) -> None:
        """Count one sample."""
        self.samples += 1
        for name, detail in dict(facts.signs).items():
            self.hits.setdefault(name, Hits()).add(number, detail)
        if facts.holds:
            self.holds.setdefault(facts.holds, Hits()).add(number)
        self._add_values(number, facts)
        self._add_classes(facts)
        self._add_framing(number, facts)
        self.prints.add(number, facts)

    def _add_values(self, number: int, facts: Facts) -> None:
        for value, pixels in facts.values.items():
            if value not in self.values and len(self.values) >= KEPT_VALUES:
                self.other_values += 1
                continue
            seen = self.values.setdefault(value, Seen())
            seen.pixels += pixels
            seen.images += 1
            seen.meanings.add(facts.meanings.get(value, ""))
        self.other_values += facts.other_values
        self.by_color |= facts.by_color
        self.colors.add(number, facts.palette)
        self.shifts[facts.shift] += 1
        if facts.binary:
            self.binary.add(number)

    def _add_classes(self, facts: Facts) -> None:
        self.class_pixels.update(facts.classes)
        self.class_images.update(k for k, pixels in facts.classes.items() if pixels)
        self.labelled += any(pixels for k, pixels in facts.classes.items() if k >= 0)
        for k, sizes in facts.sizes.items():
            self.sizes.setdefault(k, Counter()).update(sizes)

    def _add_framing(self, number: int, facts: Facts) -> None:
        if facts.framing:
            framing = Framing(*facts.framing)
            self.framed += 1
            self.upright += framing.upright
            if framing.inverted:
                self.inverted.add(number)

    @property
    def background(self) -> int:
        """Pixels of background."""
        return self.class_pixels[BACKGROUND_ROW]
