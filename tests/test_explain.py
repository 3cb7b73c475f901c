"""Attention as pictures: the maps are those of the model, and lie where they should."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everymask.checkpoint import save
from everymask.cli import main
from everymask.errors import UsageError
from everymask.explain import AttentionView, Explanation, QueryView, explain, grid_of, watched
from everymask.explain_page import CELL, explanation_html, grid, heated, masked, sections
from everymask.image import write_png
from everymask.layers.transformer import Attention, DecoderLayer, EncoderLayer
from everymask.model import SegmentationModel
from everymask.models import create_model
from everymask.predict import fit, run
from everymask.types import Letterbox
from tests.scenes import LABELS, scene

PHOTO = scene(50, 80).image


def model_of(name: str, **changes: object) -> SegmentationModel:
    torch.manual_seed(0)
    return create_model(name, "tiny", classes=LABELS, **changes).eval()


def test_weights_are_those_that_attention_uses() -> None:
    torch.manual_seed(0)
    attention, query, key = Attention(16, 4), torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    weights = attention.weights(query, key, valid)
    assert weights.shape == (2, 4, 5, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert not weights[1, :, :, 4:].any()
    values = attention.v_proj(key).unflatten(-1, (4, -1)).transpose(1, 2)
    answer = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(answer, attention(query, key, key, valid))


@pytest.mark.parametrize(
    ("name", "changes", "heads", "kind", "encoder"),
    [
        ("detr", {}, 8, "mask head", 1),
        ("detr", {"dilated": True}, 8, "mask head", 1),
        ("detr", {"head": "boxes"}, 8, "decoder", 1),
        ("hybrid", {}, 2, "decoder", 0),
        ("maskformer", {}, 2, "decoder", 0),
        ("maskformer", {"encoder_layers": 2}, 2, "decoder", 2),
    ],
)
def test_every_transformer_is_explained(
    name: str, changes: dict[str, object], heads: int, kind: str, encoder: int
) -> None:
    found = explain(model_of(name, **changes), PHOTO, threshold=0.0, point=(70, 10), limit=3)
    assert [view.title for view in found.encoder] == [f"encoder layer {n + 1}" for n in range(encoder)]
    assert all(0.3 < view.weights.sum() < 1.001 for view in found.encoder)
    assert 0 < len(found.queries) <= 3
    scores = [query.score for query in found.queries]
    assert scores == sorted(scores, reverse=True)
    for query in found.queries:
        assert query.label in LABELS.names
        assert query.mask.shape == (50, 80)
        titles = [f"{kind}, head {n + 1}" for n in range(heads)]
        assert [view.title for view in query.attention] == ["decoder, all heads", *titles]
        assert (query.box is not None) == (name == "detr")
        # All there is to look at, but for what other systems than DETR see beyond the photo on its canvas.
        together = sum(float(view.weights.sum()) for view in query.attention[1:])
        whole = 1 if kind == "mask head" else heads
        assert together == pytest.approx(whole, abs=0.01) if name == "detr" else 0.3 * whole < together < 1.01 * whole


def test_attention_of_the_mask_head_is_that_of_the_model() -> None:
    model = model_of("detr")
    found = explain(model, PHOTO, threshold=0.0, limit=1)
    batch = fit(PHOTO, model.letterbox((50, 80)))
    prediction = run(model, batch)
    query = prediction.class_logits[0].softmax(-1)[:, :-1].amax(-1).argmax()
    maps = prediction.masks.attention(0, query[None])[0]
    torch.testing.assert_close(torch.stack([view.weights for view in found.queries[0].attention[1:]]), maps)


def test_the_encoder_looks_from_the_point() -> None:
    """Attention that is all on the place itself is found where the point is."""
    model = model_of("detr")

    def on_itself(query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        return (query @ key.transpose(1, 2))[:, None].mul(1e4).softmax(-1)

    layer = next(module for module in model.modules() if isinstance(module, EncoderLayer))
    layer.attention.weights = on_itself  # type: ignore[method-assign]
    for point in ((0, 0), (79, 49), (40, 5), (3, 45)):
        (view,) = explain(model, PHOTO, point=point).encoder
        row, column = np.unravel_index(int(view.weights.argmax()), view.weights.shape)
        content = model.letterbox((50, 80)).content
        assert column == int((point[0] + 0.5) * content[1] / 80 // view.stride)
        assert row == int((point[1] + 0.5) * content[0] / 50 // view.stride)


def test_nothing_is_watched_afterwards() -> None:
    model = model_of("hybrid")
    with watched(model) as calls:
        pass
    assert calls == {}
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("count", "box", "expected"),
    [
        (25 * 34, Letterbox((480, 640), (800, 1066), (800, 1088)), (25, 34, 32)),
        (50 * 67, Letterbox((480, 640), (800, 1066), (800, 1088)), (50, 67, 16)),
        (50 * 68, Letterbox((480, 640), (800, 1066), (800, 1088)), (50, 68, 16)),
        (1, Letterbox((1, 1), (20, 20), (32, 32)), (1, 1, 32)),
    ],
)
def test_grids_of_tokens(count: int, box: Letterbox, expected: tuple[int, int, int]) -> None:
    assert grid_of(count, box) == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threshold": 1.5}, "a threshold must lie in 0..1: threshold (got 1.5)."),
        ({"point": (80, 3)}, "the point is outside the photo: 80,3 (it is 80 x 50)."),
        ({"point": (3, -1)}, "the point is outside the photo: 3,-1 (it is 80 x 50)."),
    ],
)
def test_what_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError) as error:
        explain(model_of("hybrid"), PHOTO, **options)
    assert str(error.value) == text


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(UsageError, match="this system has no queries whose attention could be shown: maskformer"):
        explain(model_of("maskformer", head="per-pixel"), PHOTO)


# --- pictures --------------------------------------------------------------------------------------------------------


def made_up(queries: int = 2, encoder: int = 1) -> Explanation:
    weights = torch.zeros(4, 6)
    weights[1, 4] = 1.0
    view = AttentionView("decoder, all heads", weights, 16, (50, 80))
    mask = torch.zeros(50, 80)
    mask[:25] = 1
    query = QueryView("disc & <square>", 0.91, mask, (-0.2, 0.1, 0.5, 1.4), (view,) * 7)
    return Explanation(PHOTO, (query,) * queries, (70.0, 10.0), (view,) * encoder)


def test_colours_are_where_attention_is() -> None:
    view = made_up().encoder[0]
    picture = np.asarray(heated(Image.new("RGB", (320, 200)), view)).astype(int)
    yellow = picture[..., 0] + picture[..., 1] - picture[..., 2]
    row, column = np.unravel_index(yellow.argmax(), yellow.shape)
    # Cell (1, 4) of 16 pixels, on a photo of 50 x 80 drawn four times as large.
    assert abs(row - 4 * 24) <= 4
    assert abs(column - 4 * 72) <= 4
    assert picture[-1, 0].tolist() == [0, 24, 58]


def test_masks_darken_what_is_beside_them_and_boxes_stay_inside() -> None:
    picture = np.asarray(masked(Image.new("RGB", (320, 200), (200, 200, 200)), made_up().queries[0]))
    assert picture[50, 300].tolist() == [200, 200, 200]
    assert picture[150, 300].tolist() == [40, 40, 40]
    assert picture[100, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("queries", "encoder", "rows"), [(2, 1, 5), (0, 1, 1), (1, 0, 3), (1, 6, 4)])
def test_the_grid_has_five_columns_and_each_query_begins_a_row(queries: int, encoder: int, rows: int) -> None:
    explanation = made_up(queries, encoder)
    counts = [len(panels) for panels in sections(explanation)]
    assert all(count % 5 == 0 for count in counts)
    assert sum(counts) == 5 * rows
    assert grid(explanation).width == 5 * CELL + 6 * 10


def test_photos_of_extreme_shape_are_drawn() -> None:
    for size in ((1, 300), (300, 1)):
        photo = np.zeros((*size, 3), np.uint8)
        found = explain(model_of("detr"), photo, threshold=0.0, limit=1)
        assert grid(found).width == 5 * CELL + 6 * 10


class Images(HTMLParser):
    """Sources of all images, and every other address."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"] or "")
        self.links += [values[key] or "" for key in ("href", "src") if key in values and tag != "img"]


def test_the_page_needs_no_other_file() -> None:
    text = explanation_html(made_up(), "a & <b>")
    page = Images()
    page.feed(text)
    assert len(page.images) == 2 + 2 * 8
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.images)
    assert page.links == []
    assert "disc &amp; &lt;square&gt; 0.91: decoder, all heads" in text
    assert "<title>Where the model looked: a &amp; &lt;b&gt;</title>" in text
    assert "url(" not in re.sub(r"base64,[^\"]*", "", text)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "cat.png", PHOTO)
    save(model_of("detr"), tmp_path / "model")
    out = tmp_path / "out"
    main(["predict", str(tmp_path / "cat.png"), "--out", str(out), "--model", str(tmp_path / "model"), "--explain"])
    assert (out / "cat_explained.html").is_file()
    with Image.open(out / "cat_explained.png") as picture:
        assert picture.width == 5 * CELL + 6 * 10
    assert "cat_explained.png" in capsys.readouterr().out


def test_decoder_layers_of_all_systems_are_ours() -> None:
    """What `explain` relies on."""
    for name in ("detr", "hybrid", "maskformer"):
        assert any(isinstance(module, DecoderLayer) for module in model_of(name).modules())
