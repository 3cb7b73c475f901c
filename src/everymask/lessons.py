"""What a promptable model learns from one image in one step: which objects, and the first prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .clicks import sampled_boxes, sampled_clicks
from .errors import UsageError
from .frames import FrameBatch
from .maps import segment_areas
from .prompt_criterion import Lesson
from .prompts import PromptSettings, draw_prompts, objects_of
from .types import Batch, Prompts, Segments


@dataclass(frozen=True)
class LessonPlan:
    """How lessons are drawn. Random numbers come from torch, as all within a training step.

    Attributes:
        by: what an object is, see `PromptSettings`.
        least_area: objects of fewer canvas pixels are not asked for.
        classes: indices of the classes whose objects are asked for; all if empty.
        objects: most objects of an image in one step.
        explicit: share of the images whose first prompts are explicit: those of the batch, else drawn by the rules of
            `kinds`. The others get a random click or a jittered box, as SAM 2 is trained.
        kinds: of explicit prompts, see `PromptSettings`.
    """

    by: str = "segment"
    least_area: int = 16
    classes: tuple[int, ...] = ()
    objects: int = 8
    explicit: float = 0.5
    kinds: tuple[str, ...] = ("box",)

    def __post_init__(self) -> None:
        PromptSettings(self.kinds, by=self.by, least_area=self.least_area)
        if not 0 <= self.explicit <= 1:
            raise UsageError("a setting is out of range", where="explicit", why=f"{self.explicit} is not in 0..1")
        if self.objects < 1:
            raise UsageError("a setting is out of range", where="objects", why=f"{self.objects} is below 1")

    def lesson(self, batch: Batch, b: int) -> Lesson:
        """The objects of image `b`; where there is none, one that counts for nothing, to keep the shapes.

        With prompts in the batch its segments are the objects, and only those that have prompts are learnt.
        """
        truth, device = batch.truth()[b].to("cpu"), batch.images.device
        given = None if batch.prompts is None else batch.prompts[b]
        objects = objects_of(truth, self.by) if given is None else truth
        rows = self.rows(objects, given)
        masks, known = learnt_masks(objects, rows, batch.letterboxes[b].content, device)
        points, labels = self.first_prompts(masks, rows, objects, given, batch.names[b] if batch.names else "")
        counts = torch.full((len(masks),), float(bool(rows)), device=device)
        return Lesson(masks, known, points.to(device), labels.to(device), counts)

    def clip_lesson(self, clip: FrameBatch) -> list[Lesson]:
        """The same objects in every frame: some of those that the first frame shows, and prompts for that one."""
        truth, device = [segments.to("cpu") for segments in clip.truth()], clip.images.device
        given = clip.prompts[0] if clip.prompts else None
        rows = self.rows(truth[0], given)
        shown = [
            learnt_masks(segments, rows, box.content, device)
            for segments, box in zip(truth, clip.letterboxes, strict=True)
        ]
        first = self.first_prompts(shown[0][0], rows, truth[0], given, clip.names[0] if clip.names else "")
        points, labels = (values.to(device) for values in first)
        counts = torch.full((len(points),), float(bool(rows)), device=device)
        return [Lesson(masks, known, points, labels, counts) for masks, known in shown]

    def rows(self, objects: Segments, given: Prompts | None = None) -> list[int]:
        """Rows of the objects to learn, `objects` of them at random."""
        fit = torch.from_numpy(segment_areas(objects) >= self.least_area) & ~objects.is_crowd
        if self.classes:
            fit &= torch.isin(objects.classes, torch.tensor(self.classes))
        if given is not None:
            fit &= torch.isin(torch.arange(len(objects)), given.objects.cpu())
        rows = torch.nonzero(fit).flatten()
        chosen: list[int] = rows[torch.randperm(len(rows))[: self.objects]].sort().values.tolist()
        return chosen

    def first_prompts(
        self, masks: Tensor, rows: Sequence[int], objects: Segments, given: Prompts | None, name: str
    ) -> tuple[Tensor, Tensor]:
        """Points [O, K, 2] and labels [O, K]: explicit or sampled."""
        if not rows or torch.rand(()) >= self.explicit:
            return (sampled_boxes if torch.rand(()) < 0.5 else sampled_clicks)(masks)
        drawn = draw_prompts(objects, PromptSettings(self.kinds), name=name, rows=rows) if given is None else given
        points, labels = drawn.padded(max(len(objects), drawn.count))
        return points[list(rows)], labels[list(rows)]


def learnt_masks(
    objects: Segments, rows: Sequence[int], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Masks bool [O, H, W] of some rows, one empty mask for no row, and bool [H, W] of what is known.

    Args:
        size: (H, W), the part of the canvas that shows the photo.
    """
    ids = objects.id_map[..., : size[0], : size[1]].to(device)
    ids = ids if ids.ndim == 3 else ids[None]
    wanted = torch.tensor([n + 1 for n in rows] or [-2], device=device)  # No id map has -2.
    masks = (ids == wanted[:, None, None, None]).any(1)
    return masks, ~objects.void[: size[0], : size[1]].to(device)
