"""What the pairs of an image tower and a text tower have in common: sizes, where guidance is taken, what learns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..layers.lora import add_lora

Kind = Literal["siglip", "naflex", "clip"]
Trained = Literal["attention", "full", "frozen", "lora"]


@dataclass(frozen=True)
class TowerSizes:
    """Of an image tower and its text tower.

    Attributes:
        kind: "siglip" has a fixed resolution, "naflex" has not, "clip" is the older family, see `encoders.clip`.
        patch: pixels a side.
        positions: patches a side of the table of positions: that of the images the tower was made for.
        width, depth, heads, hidden: of the image tower.
        text_width, text_depth, text_heads, text_hidden: of the text tower.
        text_length: tokens of a text, padding included.
        tokens: size of the vocabulary.
        space: width of the space that images and texts share.
    """

    kind: Kind
    patch: int
    positions: int
    width: int
    depth: int
    heads: int
    hidden: int
    text_width: int
    text_depth: int
    text_heads: int
    text_hidden: int
    text_length: int
    tokens: int
    space: int

    @classmethod
    def of(cls, kind: Kind, image: Any, text: Any, positions: int, space: int) -> TowerSizes:
        """From the configurations that `transformers` has of an image tower and a text tower."""
        return cls(
            kind=kind,
            patch=image.patch_size,
            positions=positions,
            width=image.hidden_size,
            depth=image.num_hidden_layers,
            heads=image.num_attention_heads,
            hidden=image.intermediate_size,
            text_width=text.hidden_size,
            text_depth=text.num_hidden_layers,
            text_heads=text.num_attention_heads,
            text_hidden=text.intermediate_size,
            text_length=text.max_position_embeddings,
            tokens=text.vocab_size,
            space=space,
        )

    def shared(self, part: Literal["image", "text"]) -> dict[str, Any]:
        """Settings of a tower that have the same names in all of `transformers`."""
        prefix = "" if part == "image" else "text_"
        width, depth, heads, hidden = (getattr(self, prefix + key) for key in ("width", "depth", "heads", "hidden"))
        return {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": hidden,
        }


def guidance_depths(depth: int) -> tuple[int, int]:
    """How many layers a patch has passed where `DenseFeatures.early` and `middle` are taken: 4 and 8 of 12."""
    return max(1, depth // 3), max(1, 2 * depth // 3)


def check_activations(known: str, *towers: Any) -> None:
    """Raise `ValueError` unless all towers have the activation function that they have here."""
    if odd := [tower.hidden_act for tower in towers if tower.hidden_act != known]:
        raise ValueError(f"hidden_act is {odd[0]}, known is {known}")


LEARNING = {
    "full": "",
    "attention": r"\.[qv]_proj\.weight$",
    "lora": r"\.lora_(down|up)$",
    "frozen": r"(?!)",
}
"""Patterns of the names of the parameters that learn."""


def choose_trained(towers: Any, trained: Trained, rank: int) -> None:
    """Let learn all of the towers, their query and value projections, low-rank updates to these, or nothing.

    Args:
        towers: of SigLIP or CLIP.
        rank: of the updates.
    """
    if trained == "lora":
        add_lora(towers, ("q_proj", "v_proj"), rank)
    for name, parameter in towers.named_parameters():
        parameter.requires_grad_(re.search(LEARNING[trained], name) is not None)
    for parameter in towers.untrained():
        parameter.requires_grad_(False)
