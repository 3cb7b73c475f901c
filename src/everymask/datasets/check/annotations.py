"""What is looked at in annotation files, independently of their readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from .kinds import Kind

Sign = tuple[Kind, str]
"""Something that is wrong, and the particulars in words."""


def whole(value: object) -> int | None:
    """The whole number that an id in a JSON file should be; None for whatever else is there."""
    return value if type(value) is int else None


class Annotations(Protocol):
    """Knows what is wrong with the annotations of single samples."""

    def signs(self, files: tuple[Path, ...], size: tuple[int, int]) -> list[Sign]:
        """What is wrong with those of one sample.

        Args:
            files: of the sample, the photo first.
            size: of the photo (H, W).
        """
        ...

    def everything(self) -> Iterator[tuple[str, Sign]]:
        """What is wrong with each sample, by a name that says which: for data sets that their reader refuses."""
        ...
