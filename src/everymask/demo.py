"""The offline demonstration: bundled model, bundled photos, one page to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .checkpoint import load
from .files import write_text
from .gallery import gallery_html
from .image import list_images, read_image
from .model import SegmentationModel
from .predict import predict
from .result import Result

PHOTOS = Path(__file__).parent / "samples" / "photos"

NOTE = (
    "These photos are held out: the model has never been trained on them. "
    "Photos: Oxford-IIIT Pet (Parkhi et al. 2012), CC BY-SA 4.0."
)


def run_demo(model_name: str, out: Path, progress: Callable[[str], None] = print) -> Path:
    """Segment the bundled photos, write all files and ``index.html`` into `out`.

    Returns:
        the page.
    """
    model = load(model_name)
    shown = []
    for path in list_images(PHOTOS):
        result = with_matte(model, path)
        shown.append((result, result.save(out)))
        found = ", ".join(f"{s.label} {s.score:.2f}" for s in result.segments) or "nothing found"
        progress(f"{path.name}: {found} in {sum(result.timings.values()):.2f} s")
    page = out / "index.html"
    write_text(page, gallery_html(f"Everymask: {model_name}", shown, NOTE))
    return page


def with_matte(model: SegmentationModel, path: Path) -> Result:
    """Semantic segments with the soft edge of the cut-out."""
    photo = read_image(path)
    result = predict(model, photo, task="semantic", name=path.stem)
    soft = predict(model, photo, task="cutout", name=path.stem)
    return replace(result, segments=replace(result.segments, alpha=soft.segments.alpha))
