"""From the tally to findings: what holds for single samples, and what only all of them together can show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...drawing import percent
from ...labels import LabelMap
from ..semantic import hex_color
from . import kinds
from .copies import exact_copies, near_copies
from .kinds import KINDS, Kind
from .report import Example, Finding
from .survey import Survey
from .tally import SHOWN, Hits, Tally

LEAST_FRAMED = 4
"""Fewer masks than these do not show where foreground usually lies."""

RANKS = {"test": 0, "val": 1}
"""Splits by how much depends on their being untouched; all others come after them."""

NAMED = 12
"""Classes, values or colours named in one sentence."""


def findings(tally: Tally, survey: Survey) -> list[Finding]:
    """All findings, the worst first, then in the order of `kinds`."""
    labels = survey.labels
    found = [
        *_refusals(survey),
        *_of_annotations(survey),
        *_orphans(survey),
        *_of_samples(tally, survey, labels),
        *_of_colors(tally, survey, labels),
        *_of_classes(tally, labels),
        *_of_polarity(tally, survey),
        *_of_copies(tally, survey),
    ]
    order = list(KINDS)
    return sorted(found, key=lambda f: (f.kind.severity, order.index(f.kind.name)))


def _of_hits(kind: Kind, hits: Hits, survey: Survey, summary: str = "") -> Finding:
    examples = [example(survey, number, detail) for number, detail in hits.examples]
    return Finding(kind, len(hits), summary, examples, list(hits.numbers) if kind.of_samples else [])


def example(survey: Survey, number: int, detail: str = "") -> Example:
    """Sample `number` as an example."""
    ref = survey.ref(number)
    return Example(ref.title, ref.files, detail, number)


def _named(words: Iterable[str]) -> str:
    listed = list(words)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


# --- files -----------------------------------------------------------------------------------------------------------


def _refusals(survey: Survey) -> Iterator[Finding]:
    # What was found in the annotations says what the refusal says, and more.
    texts = list(dict.fromkeys(text for part in survey.parts if not part.noted for text in part.refusals))
    if texts:
        yield Finding(kinds.LAYOUT, len(texts), "\n".join(texts))


def _of_annotations(survey: Survey) -> Iterator[Finding]:
    noted = [(name, *sign) for part in survey.parts for name, sign in part.noted]
    for kind in dict.fromkeys(kind for _, kind, _ in noted):
        mine = [Example(name, detail=detail) for name, k, detail in noted if k is kind]
        yield Finding(kind, len({example.name for example in mine}), examples=mine[:SHOWN])


def _orphans(survey: Survey) -> Iterator[Finding]:
    for kind in (kinds.ORPHAN_IMAGE, kinds.ORPHAN_MASK):
        files = [path for part in survey.parts for path in part.orphans.get(kind, [])]
        if files:
            shown = [Example(path.name, (path,)) for path in files[:SHOWN]]
            yield Finding(kind, len(files), examples=shown, files=files)


# --- samples ---------------------------------------------------------------------------------------------------------


def _of_samples(tally: Tally, survey: Survey, labels: LabelMap | None) -> Iterator[Finding]:
    hits = dict(tally.hits)
    unknown = hits.get(kinds.UNKNOWN_VALUE.name)
    if unknown and labels:
        if shift := _common_shift(tally, labels, len(unknown)):
            del hits[kinds.UNKNOWN_VALUE.name]
            yield _off_by_one(unknown, shift, tally, survey, labels)
        elif _other_colors(tally, labels):
            del hits[kinds.UNKNOWN_VALUE.name]
            yield _of_hits(kinds.WRONG_COLORS, unknown, survey, _both_color_lists(tally, labels))
    empty = hits.pop(kinds.EMPTY_MASK.name, None)
    if empty:
        yield _of_hits(kinds.NO_LABELS if not tally.labelled else kinds.EMPTY_MASK, empty, survey)
    if kinds.BINARY_MASK.name not in hits and _all_binary(tally):
        yield _of_hits(kinds.BINARY_MASK, tally.binary, survey, "No mask has any other value than 0 and 255.")
    yield from (_of_hits(KINDS[name], found, survey) for name, found in hits.items())


def _common_shift(tally: Tally, labels: LabelMap, refused: int) -> int:
    """The shift that explains every file with unknown values, if the class at the end is never seen; else 0."""
    shift = next((s for s in (1, -1) if tally.shifts[s] == refused), 0)
    values = [label.raw_pixel for label in labels if label.raw_pixel is not None]
    end = min(values) if shift > 0 else max(values)
    return shift if end not in tally.values else 0


def _off_by_one(hits: Hits, shift: int, tally: Tally, survey: Survey, labels: LabelMap) -> Finding:
    values = sorted(value for value in tally.values if value not in (*labels.void, *labels.background))
    classes = sorted(label.raw_pixel for label in labels if label.raw_pixel is not None)
    summary = (
        f"Masks hold {values[0]} to {values[-1]}, the class table {classes[0]} to {classes[-1]}: "
        f"all values are {'one too high' if shift > 0 else 'one too low'}."
    )
    return _of_hits(kinds.OFF_BY_ONE, hits, survey, summary)


def _all_binary(tally: Tally) -> bool:
    """Whether masks of two values could be all there is, though 255 counts as void: then nothing but void is drawn."""
    masks = sum(map(len, tally.holds.values()))
    return len(tally.binary) >= max(2, 0.9 * masks) and set(tally.values) <= {0, 255}


# --- colours and palettes --------------------------------------------------------------------------------------------


def _other_colors(tally: Tally, labels: LabelMap) -> bool:
    """Whether a table of colours and the masks have hardly a colour in common."""
    known = labels.pixel_classes()
    if not tally.by_color:
        return False
    common = [value for value in tally.values if value in known]
    pixels = sum(seen.pixels for seen in tally.values.values())
    return 2 * len(common) <= len(labels) and 2 * sum(tally.values[value].pixels for value in common) < pixels


def _both_color_lists(tally: Tally, labels: LabelMap) -> str:
    pixels = sum(seen.pixels for seen in tally.values.values())
    most = sorted(tally.values.items(), key=lambda item: -item[1].pixels)
    in_masks = _named(f"{hex_color(value)} ({percent(seen.pixels / pixels)})" for value, seen in most)
    in_table = _named(f"{hex_color(label.raw_pixel or 0)} {label.name}" for label in labels)
    return f"The masks have {in_masks}.\nThe class table has {in_table}."


def _of_colors(tally: Tally, survey: Survey, labels: LabelMap | None) -> Iterator[Finding]:
    # With a table, each file that is not of its kind has been refused already.
    if labels is None and "colours" in tally.holds and len(tally.holds) > 1:
        rare = min(tally.holds.values(), key=len)
        summary = ", ".join(f"{len(hits)} hold {name}" for name, hits in tally.holds.items())
        yield _of_hits(kinds.MIXED_MASKS, rare, survey, f"Of the masks, {summary}.")
    # Where a table has the colours too, it shows which of the files is wrong.
    conflicts = [] if kinds.WRONG_PALETTE.name in tally.hits else list(tally.colors.conflicts())
    if conflicts and _permuted(tally, conflicts):
        yield _palettes_differ(conflicts, survey)


def _permuted(tally: Tally, conflicts: list[tuple[int, dict[int, int]]]) -> bool:
    """Whether the colours of one value are those of another elsewhere: the numbers were dealt out anew.

    Palettes that merely look different (random colours in each file) say nothing about the numbers.
    """
    values_of: dict[int, set[int]] = {}
    for value, first in tally.colors.of_value.items():
        for color in first:
            values_of.setdefault(color, set()).add(value)
    return any(len(values_of[color]) > 1 for _, first in conflicts for color in first)


def _palettes_differ(conflicts: list[tuple[int, dict[int, int]]], survey: Survey) -> Finding:
    numbers = sorted({number for _, first in conflicts for number in first.values()})
    value, first = conflicts[0]
    told = _named(f"{hex_color(color)} in {survey.ref(number).title}" for color, number in first.items())
    summary = f"Value {value} is {told}. {len(conflicts)} values have several colours."
    return Finding(kinds.PALETTES_DIFFER, len(numbers), summary, [example(survey, n) for n in numbers[:SHOWN]])


# --- classes ---------------------------------------------------------------------------------------------------------


def _of_classes(tally: Tally, labels: LabelMap | None) -> Iterator[Finding]:
    if labels is None or not tally.labelled:
        return
    unused = [label.name for k, label in enumerate(labels) if not tally.class_pixels[k]]
    if unused:
        yield Finding(kinds.UNUSED_CLASS, len(unused), f"{len(unused)} of {len(labels)}: {_named(unused)}.")


def _of_polarity(tally: Tally, survey: Survey) -> Iterator[Finding]:
    inverted, framed = len(tally.inverted), tally.framed
    if framed < LEAST_FRAMED or not inverted:
        return
    # Of inverted pets, cats and cells no more than 0.5 % have their foreground in the middle; of true ones, 60 %.
    if inverted >= 0.5 * framed and tally.upright <= 0.1 * framed:
        summary = f"In {inverted} of {framed} masks, foreground fills the border around a hole."
        yield _of_hits(kinds.INVERTED_MASK, tally.inverted, survey, summary)
    elif tally.upright >= 0.7 * framed:
        yield _of_hits(kinds.MIXED_POLARITY, tally.inverted, survey)


# --- copies ----------------------------------------------------------------------------------------------------------


def _of_copies(tally: Tally, survey: Survey) -> Iterator[Finding]:
    leaked, doubled = Copies(kinds.LEAKED_IMAGE), Copies(kinds.DUPLICATE_IMAGE)
    contradicting, near = Copies(kinds.CONTRADICTING_MASKS), Copies(kinds.LEAKED_COPY)
    for group in exact_copies(tally.prints):
        numbers = [number for number, _ in group]
        across = len({survey.split_of(number) for number in numbers}) > 1
        (leaked if across else doubled).add(numbers, survey)
        if len({mask for _, mask in group}) > 1:
            contradicting.add(numbers, survey)
    for pair in near_copies(tally.prints, survey):
        near.add(list(pair), survey)
    yield from (copies.finding() for copies in (leaked, contradicting, doubled, near) if copies.samples)


class Copies:
    """Groups of photos that are the same, on their way to a finding."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.samples: list[int] = []
        self.examples: list[Example] = []

    def add(self, numbers: list[int], survey: Survey) -> None:
        """Note a group; all but one of it are too many, and the one to keep is that which scores depend on."""
        numbers = sorted(numbers, key=lambda n: (RANKS.get(survey.parts[survey.split_of(n)].split, 2), n))
        self.samples += numbers[1:]
        refs = [survey.ref(number) for number in numbers]
        if len(self.examples) < SHOWN:
            files = tuple(ref.files[0] for ref in refs[:2] if ref.files)
            self.examples.append(Example(" = ".join(ref.title for ref in refs[:4]), files))

    def finding(self) -> Finding:
        """All groups as one finding."""
        return Finding(self.kind, len(self.samples), examples=self.examples, samples=self.samples)
