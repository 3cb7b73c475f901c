"""Scores by kind of prompt: of a model whose answers are known, repeated by seed, compared, from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from everymask.checkpoint import save
from everymask.cli import main
from everymask.cli_prompts import prompt_options, protocol_of
from everymask.datasets.base import Dataset
from everymask.errors import UsageError
from everymask.evaluate import evaluate
from everymask.labels import LabelMap
from everymask.layers.prompt_decoder import Candidates
from everymask.model import SegmentationModel
from everymask.models import create_model
from everymask.models.hybrid import PRESETS
from everymask.prompted import PromptedMasks
from everymask.prompted_evaluation import (
    Protocol,
    evaluate_prompts,
    prompted_segments,
    score_picture,
    score_rows,
    worse,
)
from everymask.types import Batch, Letterbox, Prediction, Prompts, Sample, Segments
from tests.scenes import write_dataset

LABELS = LabelMap.from_names(["cat", "dog"])
SIDE = 64


class Literal(SegmentationModel):
    """Takes prompts at their word: a box is filled; clicks paint squares of `reach` cells, positive or negative."""

    takes_prompts = True

    def __init__(self, reach: int = 1) -> None:
        super().__init__(PRESETS["tiny"], LABELS)
        self.reach, self.asked = reach, list[Prompts]()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def letterbox(self, source: tuple[int, int], side: int | None = None) -> Letterbox:
        return Letterbox(source, (SIDE, SIDE), (SIDE, SIDE))

    def forward(self, batch: Batch) -> Prediction:
        assert batch.prompts is not None
        (prompts,) = batch.prompts
        self.asked.append(prompts)
        masks = torch.stack([self.mask(prompts, n) for n in range(prompts.count)])
        logits = masks[:, None].expand(-1, 4, -1, -1)
        count = len(masks)
        ious, present = torch.full((count, 4), 0.5), torch.ones(count)
        found = Candidates(logits, ious, present, torch.zeros(count, 4, 8), torch.zeros(count, dtype=torch.bool))
        masks_of = PromptedMasks([found], batch.letterboxes, [prompts.classes])
        return Prediction(torch.zeros(1, count, 3), masks_of)

    def mask(self, prompts: Prompts, n: int) -> Tensor:
        own = prompts.objects == n
        cells = (prompts.points[own] / 4 + 0.125).floor().long()
        logits = torch.full((SIDE // 4, SIDE // 4), -5.0)
        labels = prompts.labels[own].tolist()
        if 2 in labels:
            (x0, y0), (x1, y1) = cells[labels.index(2)].tolist(), cells[labels.index(3)].tolist()
            logits[y0 : y1 + 1, x0 : x1 + 1] = 5
        for (x, y), label in zip(cells.tolist(), labels, strict=True):
            if label in (0, 1):
                r = self.reach
                logits[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1] = 5.0 if label else -5.0
        return logits

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError


class Rectangles(Dataset):
    """Photos of 64 x 64 with a cat of 32 x 32 pixels, a dog of 16 x 16 and, if `void`, void below them."""

    def __init__(self, count: int = 2, void: bool = False) -> None:
        self.root, self.split, self.labels = Path(), "", LABELS
        self.names = [f"photo{n}" for n in range(count)]
        self.void = void

    def __getitem__(self, index: int) -> Sample:
        ids = torch.zeros(64, 64, dtype=torch.int32)
        ids[4:36, 8:40] = 1
        ids[40:56, 44:60] = 2
        if self.void:
            ids[36:, :40] = -1
        return Sample(np.zeros((64, 64, 3), np.uint8), Segments.build(ids, [0, 1], labels=LABELS), self.names[index])


def test_every_object_by_every_kind() -> None:
    scores = evaluate_prompts(Literal(), Rectangles(), Protocol(("box", "point")))
    assert (scores["images"], [row["name"] for row in scores["per_image"]]) == (2, ["photo0", "photo1"])
    box, point = scores["kinds"]["box"], scores["kinds"]["point"]
    assert box["objects"] == 4
    assert box["dice"] == pytest.approx(1, abs=0.02)  # But for the corners, which interpolation rounds.
    # A square of 12 x 12 inside one of 32 x 32, and inside one of 16 x 16.
    assert point["per_class"]["cat"]["dice"] == pytest.approx(2 * 144 / (144 + 1024), abs=0.02)
    assert point["per_class"]["cat"]["iou"] == pytest.approx(144 / 1024, abs=0.02)
    assert point["per_class"]["dog"]["dice"] == pytest.approx(2 * 144 / (144 + 256), abs=0.02)
    means = [point["per_class"][name]["dice"] for name in ("cat", "dog")]
    assert point["dice"] == pytest.approx(sum(means) / 2)


def test_void_counts_for_nothing() -> None:
    """A box that reaches into void is not worse for it."""

    class Low(Literal):
        def mask(self, prompts: Prompts, n: int) -> Tensor:
            logits = super().mask(prompts, n)
            if n == 0:
                logits[9:, 2:10] = 5
            return logits

    for void, dice in ((True, 1.0), (False, 2 * 1024 / (2 * 1024 + 28 * 32))):
        scores = evaluate_prompts(Low(), Rectangles(1, void), Protocol(("box",)))
        assert scores["kinds"]["box"]["per_class"]["cat"]["dice"] == pytest.approx(dice, abs=0.02)


@pytest.mark.parametrize("shift", [0, 8, 20])
def test_boxes_that_are_moved_score_what_they_still_cover(shift: int) -> None:
    """The dog's box reaches the border of the photo, where it stops."""
    scores = evaluate_prompts(Literal(), Rectangles(1), Protocol(("box",), shift=shift))["kinds"]["box"]["per_class"]
    assert scores["cat"]["dice"] == pytest.approx((32 - shift) ** 2 / 32**2, abs=0.03)
    # From 44 and 40 to 59 and 55; the photo ends at 63.
    width, height = (min(63, last + shift) - first - shift + 1 for first, last in ((44, 59), (40, 55)))
    both = max(0, 16 - shift) ** 2
    assert scores["dog"]["dice"] == pytest.approx(2 * both / (max(0, width) * max(0, height) + 256), abs=0.06)


def test_a_shift_has_a_direction() -> None:
    with pytest.raises(UsageError) as error:
        Protocol(shift=-1)
    assert str(error.value) == "a setting is out of range: shift (-1 is below 0)."


def test_clicks_go_where_the_answer_is_wrong() -> None:
    model = Literal(reach=2)
    scores = evaluate_prompts(model, Rectangles(1), Protocol(("click4",)))
    assert list(scores["kinds"]) == ["click1", "click2", "click3", "click4"]
    curve = [own["dice"] for own in scores["kinds"].values()]
    assert curve[0] < curve[1] < curve[3]
    assert [prompts.padded(2)[1].shape[1] for prompts in model.asked] == [1, 2, 3, 4]
    assert model.asked[0].masks is None
    assert model.asked[1].masks is not None
    assert model.asked[1].masks.shape == (2, 16, 16)
    assert torch.equal(model.asked[3].points[:2], model.asked[0].points)


def test_two_models_get_the_same_prompts() -> None:
    first, second = Literal(1), Literal(2)
    protocol = Protocol(("negatives", "box", "click2"), seed=3)
    for model in (first, second):
        evaluate_prompts(model, Rectangles(), protocol)
    for a, b in zip(first.asked, second.asked, strict=True):
        if a.masks is None:  # Corrections depend on the answers.
            assert torch.equal(a.points, b.points)
            assert torch.equal(a.labels, b.labels)
    other = Literal(1)
    evaluate_prompts(other, Rectangles(), Protocol(("negatives",), seed=4))
    assert not torch.equal(other.asked[0].points, first.asked[0].points)


def test_which_objects_are_asked_for() -> None:
    def objects(**settings: Any) -> int:
        return evaluate_prompts(Literal(), Rectangles(1), Protocol(("box",), **settings))["kinds"]["box"]["objects"]

    assert objects() == 2
    assert objects(least_area=300) == 1
    assert objects(only=("dog",)) == 1
    assert objects(by="class") == 2
    with pytest.raises(UsageError) as error:
        objects(least_area=5000)
    assert str(error.value) == (
        "there is no object to ask for: prompts (1 images; by segment, at least 5000 pixels each)."
    )


def test_many_objects_go_in_parts() -> None:
    class Dots(Rectangles):
        def __getitem__(self, index: int) -> Sample:
            ids = torch.arange(1, 257, dtype=torch.int32).view(16, 16).repeat_interleave(4, 0).repeat_interleave(4, 1)
            return Sample(np.zeros((64, 64, 3), np.uint8), Segments.build(ids, [0] * 256, labels=LABELS), "dots")

    model = Literal(0)
    scores = evaluate_prompts(model, Dots(1), Protocol(("box",)))
    assert scores["kinds"]["box"]["objects"] == 256
    assert [prompts.count for prompts in model.asked] == [32] * 8


def test_segments_that_are_told() -> None:
    sample = Rectangles(1)[0]
    segments = prompted_segments(Literal(), sample, sample.segments)
    assert [(s.label, s.area > 240) for s in segments] == [("cat", True), ("dog", True)]
    empty = Segments.build(torch.zeros(64, 64), [], labels=LABELS)
    assert len(prompted_segments(Literal(), sample, empty)) == 0


def test_the_task_of_training() -> None:
    scores = evaluate(Literal(), Rectangles(), task="prompted")
    assert scores["dice"] == pytest.approx(1, abs=0.02)
    assert set(scores["per_class"]) == {"cat", "dog"}
    assert [row["name"] for row in scores["per_image"]] == ["photo0", "photo1"]
    with pytest.raises(UsageError, match="this system takes no prompts"):
        evaluate(create_model("hybrid", "tiny", classes=LABELS), Rectangles(), task="prompted")


@pytest.mark.parametrize(
    ("kinds", "why"), [(("dot",), "dot"), (("click0",), "click0"), (("click9",), "click9"), ((), "")]
)
def test_unknown_kinds(kinds: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError) as error:
        Protocol(kinds)
    because = f" ({why})" if why else ""
    known = "point, box, negatives, click1 to click8"
    assert str(error.value) == f"unknown kind of prompt: prompts{because}. There are: {known}."


# ---- comparing -------------------------------------------------------------------------------------------------------


def scores_of(kinds: dict[str, tuple[float, float]]) -> dict[str, Any]:
    rows = {
        name: {
            "dice": cat / 2 + dog / 2,
            "iou": 0.1,
            "objects": 2,
            "per_class": {"cat": {"dice": cat, "iou": 0.1}, "dog": {"dice": dog, "iou": 0.1}},
        }
        for name, (cat, dog) in kinds.items()
    }
    return {"kinds": rows, "images": 1, "per_image": []}


def test_what_became_worse_is_said() -> None:
    before = scores_of({"box": (0.5, 0.8), "point": (0.3, 0.3)})
    after = scores_of({"box": (0.9, 0.7), "point": (0.2, 0.2)})
    assert worse(before, after) == [
        "training made box, dog worse: Dice 0.800 -> 0.700",
        "training made point worse: Dice 0.300 -> 0.200",
        "training made point, cat worse: Dice 0.300 -> 0.200",
        "training made point, dog worse: Dice 0.300 -> 0.200",
    ]
    assert worse(before, before) == []


def test_one_table_and_one_picture() -> None:
    runs = {"before": scores_of({"box": (0.5, 0.8), "click1": (0.3, 0.3), "click2": (0.4, 0.5)})}
    runs["after"] = scores_of({"box": (0.6, 0.9), "click1": (0.3, 0.4), "click2": (0.6, 0.7)})
    head, rows = score_rows(runs)
    assert head == ["prompt", "class", "objects", "before Dice", "before IoU", "after Dice", "after IoU"]
    assert rows[0] == ["box", "all", "2", "0.650", "0.100", "0.750", "0.100"]
    assert rows[1] == ["box", "cat", "", "0.500", "0.100", "0.600", "0.100"]
    assert len(rows) == 9
    picture = np.asarray(score_picture(runs))
    assert picture.shape == (540, 960, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_verb_compares_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dataset(tmp_path / "data", train=2, val=2)
    torch.manual_seed(0)
    for name in ("old", "new"):
        save(create_model("sam2", "tiny", classes=["disc", "square"]), tmp_path / name)
    arguments = ["--prompts", "box,click2", "--against", str(tmp_path / "old"), "--ask", "least_area=20"]
    files = ["--json", str(tmp_path / "scores.json"), "--picture", str(tmp_path / "scores.png")]
    main(["evaluate", str(tmp_path / "new"), str(data), "--split", "val", *arguments, *files])
    printed = capsys.readouterr().out
    assert "click2" in printed
    written = json.loads((tmp_path / "scores.json").read_text())
    assert list(written) == ["before", "after"]
    assert list(written["after"]["kinds"]) == ["box", "click1", "click2"]
    assert written["after"]["kinds"]["box"]["objects"] == 4
    assert (tmp_path / "scores.png").is_file()
    photo = sorted((data / "val" / "images").glob("*.png"))[0]
    told = ["--box", "10,10,40,50", "--box", "50,10,90,50"]
    main(["predict", str(photo), "--model", str(tmp_path / "new"), "--out", str(tmp_path / "out"), *told])
    assert photo.stem in capsys.readouterr().out


def test_prompts_as_texts() -> None:
    assert prompt_options(["3,4", "5,6,0"], []) == {"points": [[3, 4], [5, 6]], "labels": [1, 0]}
    assert prompt_options([], ["1,2,3,4"]) == {"boxes": [[1, 2, 3, 4]]}
    for points, boxes, text in (
        (["3"], [], "a prompt is made of numbers: --point 3 (expected x,y or x,y,label)."),
        ([], ["1,2,3,x"], "a prompt is made of numbers: --box 1,2,3,x (expected x0,y0,x1,y1)."),
    ):
        with pytest.raises(UsageError) as error:
            prompt_options(points, boxes)
        assert str(error.value) == text


def test_protocols_as_texts() -> None:
    expected = Protocol(("box", "click5"), seed=3, by="component", least_area=50, only=("cat", "dog"), shift=20)
    texts: Sequence[str] = ("seed=3", "by=component", "least_area=50", "only=cat,dog", "shift=20")
    assert protocol_of("box,click5", texts) == expected
    for text in ("area=3", "seed=x", "by"):
        with pytest.raises(UsageError) as error:
            protocol_of("box", [text])
        if text != "by":
            known = "seed, least_area, shift, by, only"
            assert str(error.value) == f"unknown setting: --ask {text}. There are: {known}."
