"""Things and stuff of class tables that come as names."""

from __future__ import annotations

import pytest

from everymask.datasets.coco_classes import PANOPTIC, STUFF, THINGS
from everymask.datasets.known_tables import ADE20K_BEGINS, ADE20K_STUFF, table_of_coco_ids, table_of_names


@pytest.mark.parametrize("table", [THINGS, PANOPTIC, STUFF])
def test_tables_of_coco_are_recognised(table: object) -> None:
    found = table_of_names(table.names)
    for own, known in zip(found, table, strict=True):
        assert (own.name, own.is_thing, own.source_id, own.color) == (
            known.name,
            known.is_thing,
            known.source_id,
            known.color,
        )


def test_indices_that_are_coco_ids() -> None:
    """Panoptic DETR: 250 classes, of which the last 49 and some between are none; stuff begins at 92."""
    table = table_of_coco_ids(250)
    assert (table[0].name, table[1].name, table[12].name, table[90].name) == (
        "N/A",
        "person",
        "N/A (2)",
        "toothbrush",
    )
    assert len(table) == 250
    stuff = [k for k, label in enumerate(table) if not label.is_thing]
    assert (len(stuff), min(stuff), max(stuff)) == (53, 92, 200)
    assert all(table[k].source_id == k for k in stuff)
    assert all(label.is_thing for label in table_of_coco_ids(91))


def test_names_of_classes_that_are_none_do_not_hide_coco() -> None:
    table = table_of_names(["LABEL_0", "person", "rug-merged", "LABEL_3"])
    assert [label.is_thing for label in table] == [True, True, False, True]


def test_ade20k_has_100_things() -> None:
    names = ["road, route" if k == 6 else f"class {k}" for k in range(150)]
    names[:6], names[12], names[145] = ADE20K_BEGINS, "person", "shower"
    table = table_of_names(names)
    assert sum(label.is_thing for label in table) == 100
    assert len(ADE20K_STUFF) == 50
    kinds = {label.name: label.is_thing for label in table}
    assert (kinds["wall"], kinds["road, route"], kinds["person"], kinds["shower"]) == (False, False, True, False)


@pytest.mark.parametrize("names", [["sky", "tissue"], ["wall", "building", "sky", "floor", "tree", "ceiling"]])
def test_of_other_tables_all_are_things(names: list[str]) -> None:
    table = table_of_names(names)
    assert table.names == tuple(names)
    assert all(label.is_thing for label in table)
