"""What a check comes to: findings with examples, and tables of pixel values, classes and sizes; also as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..quarantine import Quarantine, photo_of, relative
from .kinds import Kind, Severity
from .survey import Survey


@dataclass(frozen=True)
class Example:
    """One place where something was found.

    Attributes:
        name: of the sample, as in ``train/cat1``, or of the file.
        number: of the sample; None for a file that belongs to none.
        files: photo and mask, or whatever belongs to it.
        detail: the particulars in words.
    """

    name: str
    files: tuple[Path, ...] = ()
    detail: str = ""
    number: int | None = None


@dataclass
class Finding:
    """One kind of finding and where it was made.

    Attributes:
        count: samples or files, all of them.
        summary: the particulars of the data set as a whole.
        examples: the first few.
        samples: numbers of samples that training should leave out.
        files: files that belong to no sample.
    """

    kind: Kind
    count: int
    summary: str = ""
    examples: list[Example] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def to_json(self, root: Path) -> dict[str, Any]:
        """Plain values; files relative to the data folder."""
        rows = [
            {"name": e.name, "files": [relative(path, root) for path in e.files], "detail": e.detail}
            for e in self.examples
        ]
        kind = self.kind
        return {
            "name": kind.name, "severity": kind.severity.name.lower(), "title": kind.title, "count": self.count,
            "summary": self.summary, "why_it_hurts": kind.hurts, "how_to_mend": kind.mend, "examples": rows,
        }  # fmt: skip


@dataclass(frozen=True)
class ValueRow:
    """What one raw mask value means, and how often it occurs.

    Attributes:
        value: as people write it: a number, or #RRGGBB.
    """

    value: str
    meaning: str
    pixels: int
    images: int


@dataclass(frozen=True)
class ClassRow:
    """How much there is of a class, void or background.

    Attributes:
        share: of all pixels of masks that could be read, 0..1.
        objects: things that were told apart; 0 for stuff.
        median_area: of those things in pixels, exact to a factor of 2; 0 without things.
        smallest_area: at least this many pixels has the smallest.
    """

    name: str
    pixels: int
    share: float
    images: int
    objects: int
    median_area: int
    smallest_area: int


@dataclass
class Report:
    """The outcome of one check.

    Attributes:
        survey: what was checked.
        findings: the worst first.
        mask_note: what the masks hold where that is no table of values, in words.
        seconds: that it took.
        reused: samples whose facts were known from an earlier check.
    """

    survey: Survey
    findings: list[Finding]
    values: list[ValueRow]
    classes: list[ClassRow]
    mask_note: str
    seconds: float
    reused: int

    @property
    def splits(self) -> dict[str, int]:
        """Samples by split."""
        return {part.split: len(part) for part in self.survey.parts}

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.kind.severity == severity]

    @property
    def faults(self) -> list[Finding]:
        """The findings that must be mended."""
        return self.of(Severity.FAULT)

    @property
    def verdict(self) -> str:
        """How many findings of each severity there are, in words."""
        numbers = ((len(self.of(severity)), severity.name.lower()) for severity in Severity)
        return ", ".join(f"{count or 'no'} {noun}{'' if count == 1 else 's'}" for count, noun in numbers)

    @property
    def counts(self) -> str:
        """How many samples there are, by split."""
        parts = ", ".join(f"{name} {count:,}" for name, count in self.splits.items() if name)
        return f"{sum(self.splits.values()):,} samples" + (f" ({parts})" if parts else "")

    def quarantine(self) -> Quarantine:
        """The samples and files at fault that training can do without."""
        why: dict[int, list[str]] = {}
        for finding in self.faults:
            for number in finding.samples:
                why.setdefault(number, []).append(finding.kind.name)
        root = self.survey.folder.root
        refs = {number: self.survey.ref(number) for number in sorted(why)}
        samples = {(ref.name, photo_of(ref.files, root)): why[number] for number, ref in refs.items()}
        return Quarantine(samples, frozenset(path for finding in self.faults for path in finding.files))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        folder = self.survey.folder
        return {
            "data": str(folder.root), "format": folder.format, "recognised_by": folder.why, "samples": self.splits,
            "faults": len(self.faults), "warnings": len(self.of(Severity.WARNING)),
            "notes": len(self.of(Severity.NOTE)), "seconds": round(self.seconds, 1),
            "findings": [finding.to_json(folder.root) for finding in self.findings],
            "pixel_values": [vars(row) for row in self.values], "masks_hold": self.mask_note,
            "classes": [vars(row) for row in self.classes],
        }  # fmt: skip
