"""SAM 2 against `transformers` with the same random weights, at the size of sam2.1 tiny.

    python -m benchmarks sam2

- **50 boxes on one photo of 1024 x 1024**: ours encodes once; the peer is called once a box, as its users do who do not
  know that it can be otherwise.
- **the boxes on features that are there**: all at once, against one call of the peer a box with `image_embeddings`.
- **a training epoch with a frozen encoder**: features from disk, against encoding every photo every time (both ours).
- **200 objects on 4096 x 4096**: from candidate masks to one id map, what it takes beyond its inputs.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everymask.datasets import open_dataset
from everymask.datasets.loader import training_batches
from everymask.image import write_png
from everymask.labels import LabelMap
from everymask.layers.prompt_decoder import Candidates
from everymask.models import create_model
from everymask.models.sam2 import RECIPE, Model
from everymask.overfit import learn_step
from everymask.prompted import PromptedMasks, prompted
from everymask.types import Batch, Letterbox, Prediction, Prompts

from .measure import Row, Step, alternate, peak_memory


@dataclass(frozen=True)
class Sizes:
    """Of all rows. `side`: of the canvas; `photo`: of the large photo; `images`: of the training epoch."""

    preset: str = "hiera-t"
    side: int = 1024
    prompts: int = 50
    objects: int = 200
    photo: int = 4096
    images: int = 4


SMALL = Sizes(preset="tiny", side=64, prompts=5, objects=4, photo=128, images=2)


def boxes(count: int, side: int) -> Tensor:
    """[count, 4] (x0, y0, x1, y1), each about a fifth of the canvas wide."""
    chance = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=chance) * 0.75 * side
    return torch.cat([low, low + (0.1 + 0.1 * torch.rand(count, 2, generator=chance)) * side], dim=1)


def told(corners: Tensor) -> Prompts:
    """The boxes as prompts, one object each."""
    count = len(corners)
    labels = torch.tensor([2, 3], dtype=torch.int32).repeat(count)
    return Prompts(corners.reshape(-1, 2), labels, torch.arange(count).repeat_interleave(2))


def photo(side: int) -> Batch:
    """Noise that fills the canvas."""
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(images, (Letterbox((side, side), (side, side), (side, side)),))


def pair(sizes: Sizes) -> tuple[Model, Any]:
    """Ours and the peer's `Sam2Model` with one set of weights."""
    from transformers import Sam2Model

    torch.manual_seed(0)
    ours = create_model("sam2", sizes.preset, classes=["object"], memory=False, train="full").eval()
    assert isinstance(ours, Model)
    peer = Sam2Model(peer_config(ours.config)).eval()
    state = {peer_name(name): value for name, value in ours.state_dict().items() if "normalize" not in name}
    peer.load_state_dict(state)
    return ours, peer


def peer_config(config: Any) -> Any:
    """The same sizes in the words of `transformers`."""
    from transformers import Sam2Config

    cells, widths = config.image_side // 4, [config.width * 2**n for n in range(4)]
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": config.width,
        "image_size": [config.image_side] * 2,
        "window_positional_embedding_background_size": [config.background] * 2,
        "blocks_per_stage": list(config.depths),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": list(config.heads),
        "window_size_per_stage": list(config.windows),
        "global_attention_blocks": list(config.global_blocks),
    }
    vision = {
        "backbone_config": hiera,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[cells // n] * 2 for n in (1, 2, 4)],
        "fpn_hidden_size": config.dim,
    }
    decoder = {
        "hidden_size": config.dim,
        "mlp_dim": config.hidden_dim,
        "num_attention_heads": config.decoder_heads,
        "iou_head_hidden_dim": config.dim,
    }
    prompts = {"hidden_size": config.dim, "image_size": config.image_side}
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def peer_name(name: str) -> str:
    """Of one of our weights."""
    if name == "no_memory":
        return "no_memory_embedding"
    for ours, theirs in (("encoder.", "vision_encoder."), ("decoder.position.", "shared_image_embedding.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name.removeprefix("decoder.")


def asking(sizes: Sizes) -> dict[str, Step]:
    """Many boxes on one photo: with and without encoding, on both sides."""
    model, peer = pair(sizes)
    corners, batch = boxes(sizes.prompts, sizes.side), photo(sizes.side)
    pixels = model.normalize(batch.images)
    with torch.no_grad():
        levels = model.encode(batch)[0]
    embeddings = [levels[0], levels[1], levels[2] + model.no_memory.view(1, -1, 1, 1)]
    prompts = told(corners)

    @torch.no_grad()
    def whole() -> int:
        return len(model.candidates(model.encode(batch)[0], prompts))

    @torch.no_grad()
    def together() -> int:
        return len(model.candidates(levels, prompts))

    @torch.no_grad()
    def one_by_one() -> int:
        return sum(len(model.candidates(levels, told(corner[None]))) for corner in corners)

    @torch.no_grad()
    def peer_whole() -> int:
        # One call is what the others cost, too: the caller multiplies.
        return len(peer(pixel_values=pixels, input_boxes=corners[None, :1], multimask_output=False).pred_masks)

    @torch.no_grad()
    def peer_one_by_one() -> int:
        calls = (
            peer(image_embeddings=embeddings, input_boxes=corner[None, None], multimask_output=False)
            for corner in corners
        )
        return sum(len(call.pred_masks) for call in calls)

    return {
        "whole": whole,
        "together": together,
        "one by one": one_by_one,
        "peer whole": peer_whole,
        "peer one by one": peer_one_by_one,
    }


def epochs(sizes: Sizes, folder: Path) -> dict[str, Step]:
    """One epoch of a decoder on photos that are seen again: features from disk, and encoded each time."""
    for n in range(sizes.images):
        rng = np.random.default_rng(n)
        image = rng.integers(0, 255, (sizes.side, sizes.side, 3)).astype(np.uint8)
        mask = np.zeros((sizes.side, sizes.side), np.uint8)
        mask[sizes.side // 4 : sizes.side // 2, sizes.side // 4 : sizes.side // 2] = 255
        write_png(folder / "data" / "images" / f"{n}.png", image)
        write_png(folder / "data" / "masks" / f"{n}.png", mask)
    data = open_dataset(folder / "data")
    settings = ["batch_size=1", "views=1", "color=0", "flip=0", "workers=0", f"steps={sizes.images}"]
    config = RECIPE.with_settings(settings)
    steps: dict[str, Step] = {}
    for name in ("kept", "encoded"):
        torch.manual_seed(0)
        model = create_model(
            "sam2", sizes.preset, classes=data.labels, memory=False, train="decoder", clicks=0, compare="cells"
        )
        if name == "kept":
            model.keep_features(folder / "features")
        optimizer = torch.optim.AdamW(model.param_groups(1e-4))

        def step(model: Any = model, optimizer: Any = optimizer) -> float:
            batches = training_batches(data, config, model.labels, sizes.side, 0)
            return sum(learn_step(model, batch, optimizer) for batch in batches)

        steps[name] = step
    return steps


def lattice(count: int, side: int) -> Tensor:
    """[count, 4]: boxes side by side over the canvas, each a little over its neighbours, so that all are seen."""
    across = math.ceil(math.sqrt(count))
    step = side / across
    y, x = torch.arange(count).div(across, rounding_mode="floor") * step, torch.arange(count) % across * step
    return torch.stack([x, y, (x + 1.2 * step).clamp(max=side - 1), (y + 1.2 * step).clamp(max=side - 1)], dim=1)


def many_objects(sizes: Sizes) -> Step:
    """From the candidates of many objects to one id map of a large photo."""
    cells = sizes.side // 4
    logits = torch.full((sizes.objects, 4, cells, cells), -8.0)
    for n, (x0, y0, x1, y1) in enumerate((lattice(sizes.objects, sizes.side) / 4).long().tolist()):
        logits[n, :, y0 : y1 + 1, x0 : x1 + 1] = 8.0
    count = sizes.objects
    ious = torch.rand(count, 4, generator=torch.Generator().manual_seed(2))
    found = Candidates(logits, ious, torch.ones(count), torch.zeros(count, 4, 8), torch.zeros(count, dtype=torch.bool))
    box = Letterbox((sizes.photo, sizes.photo), (sizes.side, sizes.side), (sizes.side, sizes.side))
    prediction = Prediction(torch.zeros(1, count, 2), PromptedMasks([found], [box], [None]))
    labels = LabelMap.from_names(["object"])

    def step() -> int:
        return len(prompted(prediction, box, labels))

    return step


def rows(sizes: Sizes | None = None, rounds: int = 3) -> list[Row]:
    """Times in alternating runs; memory in a process of its own."""
    sizes = sizes or Sizes()
    seconds = alternate(asking(sizes), rounds)
    with tempfile.TemporaryDirectory() as scratch:
        epoch = alternate(epochs(sizes, Path(scratch)), rounds)
    paint = many_objects(sizes)
    kept = paint()
    painted = alternate({"ours": paint}, rounds)
    memory = peak_memory(many_objects, SMALL, sizes)
    count = sizes.prompts
    on_features = f"{count} boxes on kept features"
    return [
        Row(f"{count} boxes, {sizes.side} px", seconds["whole"], "s", count * seconds["peer whole"], ratio_least=10),
        Row(on_features, seconds["together"], "s", seconds["peer one by one"], ratio_least=2),
        Row("  against ours one by one", seconds["together"], "s", seconds["one by one"]),
        Row(f"decoder epoch, {sizes.images} photos", epoch["kept"], "s", epoch["encoded"], ratio_least=5),
        Row(f"{kept} objects on {sizes.photo}x{sizes.photo}: time", painted["ours"], "s"),
        Row("  memory", memory, "MiB", most=2048),
    ]
