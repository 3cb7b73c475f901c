"""Words for open-vocabulary models: what people ask for as a class table, shipped lists, synonyms, prompt templates.

``"sofa, couch"`` is one class with a synonym; a text model sees the mean of both. Lists can be named among the words:
``["cityscapes-19", "zebra crossing"]`` are 20 classes. Names of data sets that are no speech ("wall-other-merged",
"window-blind") are replaced by their synonyms where they have any.

Sources of ``vocabulary.json``: the 80 ImageNet templates are OpenAI's (CLIP, MIT); the lists of ADE20K and Pascal
Context are those that CAT-Seg is evaluated with (MIT), Cityscapes' are its 19 evaluation classes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from .datasets import camvid, coco_classes, voc
from .errors import UsageError
from .labels import Label, LabelMap, distinct_color

SINGLE = "A photo of a {} in the scene"
"""The one template that CAT-Seg was trained with."""

_DATA: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))


@cache
def _listed(name: str) -> LabelMap:
    """A list of ``vocabulary.json``; of entries that begin alike, some are called by a later word."""
    entries = [[part.strip() for part in entry.split(",")] for entry in _DATA["classes"][name]]
    first = Counter(parts[0] for parts in entries)
    taken = {parts[0] for parts in entries if first[parts[0]] == 1 or len(parts) == 1}
    labels = []
    for k, parts in enumerate(entries):
        own = parts[0]
        if first[own] > 1 and len(parts) > 1:
            own = next(part for part in parts if part not in taken)
            taken.add(own)
        labels.append(Label(own, distinct_color(k), source_id=k, synonyms=tuple(p for p in parts if p != own)))
    return LabelMap(tuple(labels))


SHIPPED: dict[str, Callable[[], LabelMap]] = {
    "coco-171": lambda: coco_classes.STUFF,
    "coco-133": lambda: coco_classes.PANOPTIC,
    "coco-80": lambda: coco_classes.THINGS,
    "ade-150": partial(_listed, "ade-150"),
    "ade-847": partial(_listed, "ade-847"),
    "pascal-20": lambda: voc.LABELS,
    "pascal-59": partial(_listed, "pascal-59"),
    "cityscapes-19": partial(_listed, "cityscapes-19"),
    "camvid-11": lambda: camvid.LABELS,
}
"""Class tables by the names that stand for them."""


def words(classes: LabelMap | Iterable[str] | str) -> LabelMap:
    """The class table of what somebody looks for.

    Args:
        classes: a table, which stays as it is; or words, each a class, with synonyms after commas, or the name of a
            shipped list (`SHIPPED`); a text alone must be such a name.

    Raises:
        UsageError: no word, an empty one, or the same twice.
    """
    if isinstance(classes, LabelMap):
        return classes
    if isinstance(classes, str):
        classes = [classes] if classes in SHIPPED else _refuse_text(classes)
    labels = [label for entry in classes for label in _entry(entry)]
    if not labels:
        raise UsageError("there is no class to look for", where="classes", fix="Give one word or more.")
    # Most text towers are told all in lower case.
    repeated = [name for name, count in Counter(label.name.casefold() for label in labels).items() if count > 1]
    if repeated:
        raise UsageError("a class is given twice", where="classes", why=", ".join(repeated[:8]), fix="Give it once.")
    return LabelMap(tuple(labels))


def _refuse_text(text: str) -> list[str]:
    fix = f"Give a list, as in ['sofa', 'cat'], or one of: {', '.join(SHIPPED)}."
    raise UsageError("classes are a list of words", where="classes", why=f"{text[:60]!r} is a text", fix=fix)


def _entry(entry: Any) -> Sequence[Label]:
    if not isinstance(entry, str):
        raise UsageError("a class is a word", where="classes", why=f"{entry!r} is none")
    if entry in SHIPPED:
        return SHIPPED[entry]().labels
    parts = [part.strip() for part in entry.split(",")]
    if not all(parts):
        raise UsageError("a class has no name", where="classes", why=f"{entry!r} is empty", fix="Leave it out.")
    # Colours by name, so that a class keeps its colour whatever else is asked for.
    return [Label(parts[0], distinct_color(sum(parts[0].encode()) % 997), synonyms=tuple(parts[1:]))]


def phrases(label: Label) -> tuple[str, ...]:
    """What a text model is given for a class: its name and synonyms, as far as they are speech and differ."""
    found = dict.fromkeys(re.sub(r"[_\s]+", " ", text).strip() for text in (label.name, *label.synonyms))
    spoken = [text for text in found if "-" not in text] or list(found)
    # "pottedplant" beside "potted plant" says nothing more.
    joined = {text.replace(" ", "") for text in spoken if " " in text}
    return tuple(text for text in spoken if text not in joined)


def templates(names: Sequence[str]) -> tuple[str, ...]:
    """Prompt templates: "single", "imagenet" (80), or texts with ``{}`` where the word comes in.

    Raises:
        UsageError: a text without ``{}`` that is not such a name.
    """
    found: list[str] = []
    for name in names:
        if "{}" in name:
            found.append(name)
        elif name == "single":
            found.append(SINGLE)
        elif name == "imagenet":
            found += _DATA["templates"]["imagenet"]
        else:
            fix = "Say where the word comes in, as in 'a photo of a {}', or give single or imagenet."
            raise UsageError("a template has no place for the word", where=name, fix=fix)
    if not found:
        raise UsageError("there is no template", where="templates", fix="Give single, imagenet or texts with {}.")
    return tuple(found)
