"""Photos from the command line: a result for each file, under a name of its own, and where the model looked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from .model import SegmentationModel
    from .result import Result


def results(
    images: list[Path], model: str, task: str | None, side: int | None, max_pixels: int | None, options: dict[str, Any]
) -> Iterator[tuple[SegmentationModel, Result]]:
    """The model, and a `Result` for each photo of files and folders."""
    from .checkpoint import load
    from .image import MAX_PIXELS, list_images, read_image
    from .predict import predict as run

    if not images:
        raise UsageError("no photo given", where="IMAGE", fix="Give files or folders.")
    paths = [found for given in images for found in (list_images(given) if given.is_dir() else [given])]
    names = _result_names(list(dict.fromkeys(paths)))
    loaded = load(model)
    for path, name in names.items():
        photo = read_image(path, max_pixels=max_pixels or MAX_PIXELS)
        yield loaded, run(loaded, photo, task=task, side=side, name=name, **options)


def write_explanation(
    model: SegmentationModel,
    result: Result,
    out: Path,
    point: tuple[float, float] | None,
    side: int | None,
    threshold: float | None,
) -> None:
    """Draw where the model looked, with the threshold of the result."""
    from .explain import explain
    from .explain_page import save_explanation

    found = explain(model, result.photo, threshold=0.5 if threshold is None else threshold, point=point, side=side)
    print(f"{result.name}: {', '.join(map(str, save_explanation(found, out, result.name)))}")


def _result_names(paths: list[Path]) -> dict[Path, str]:
    """File stems, or whole file names where two stems are equal, so that no result overwrites another."""
    for names in ([path.stem for path in paths], [path.name for path in paths]):
        if len(set(names)) == len(names):
            return dict(zip(paths, names, strict=True))
    twice = next(path for n, path in enumerate(paths) if path.name in names[:n])
    fix = "Give one folder at a time, each its own --out."
    raise UsageError("two photos have the same file name", where=twice, fix=fix)
