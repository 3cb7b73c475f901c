"""Prompt encoder and mask decoder of SAM 2: the weights of `transformers`, run so that all candidates come out.

Of the four masks that the decoder makes for an object, the first is for prompts that leave no doubt, the other three
are for a single click, which may mean a whole, a part or a part of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig, Sam2PromptEncoderConfig
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder, Sam2PositionalEmbedding, Sam2PromptEncoder

from .two_way import in_blocks, two_way, upscaled_masks

CHUNK = 4
"""Objects that go through the decoder together at inference. Larger maps would leave the caches, and take longer."""

ABSENT = -1024.0
"""Mask logit of an object that is thought not to be in the frame."""

SURE = 32.0
"""Mask logits that are fed back are cut at + and - this, as SAM 2's predictors do."""

STABLE, DELTA = 0.98, 0.05
"""The first mask is stable if its area hardly depends on the threshold: areas at + and - `DELTA` agree so far."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the decoder says of O objects.

    Attributes:
        logits: [O, 4, h, w], at stride 4 over the square canvas.
        ious: [O, 4], the IoU that each mask is thought to have, 0..1.
        presence: [O], logits of the object being there at all.
        tokens: [O, 4, D], what the masks were made from.
        ambiguous: bool [O], the prompt is at most one click: the candidates are 1 to 3, else 0 alone.
    """

    logits: Tensor
    ious: Tensor
    presence: Tensor
    tokens: Tensor
    ambiguous: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    @classmethod
    def join(cls, parts: Sequence[Candidates], order: Tensor | None = None) -> Candidates:
        """Several as one; object ``n`` comes from position ``order[n]``."""
        if len(parts) == 1 and order is None:
            return parts[0]
        joined = {name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])}
        return cls(**(joined if order is None else {name: value[order] for name, value in joined.items()}))

    def likely(self) -> Tensor:
        """int64 [O]: the candidate of highest predicted IoU among those that fit the prompt."""
        return torch.where(self.ambiguous, self._best_of_three(), 0)

    def trusted(self, stable: float = STABLE) -> Tensor:
        """int64 [O]: `likely`, but the best of the other three where the first is unstable, as SAM 2 infers.

        Args:
            stable: least share of the first mask's area that stays at a higher threshold; 0 always takes the first.
        """
        flat = self.logits[:, 0].flatten(1)
        inner, outer = (flat > DELTA).sum(1), (flat > -DELTA).sum(1)
        unstable = (outer > 0) & (inner.float() / outer.clamp(min=1) < stable)
        return torch.where(self.ambiguous | unstable, self._best_of_three(), 0)

    def _best_of_three(self) -> Tensor:
        return self.ious[:, 1:].argmax(1) + 1

    def gated(self) -> Candidates:
        """The same, all masks far below zero for objects that are thought not to be there."""
        return replace(self, logits=torch.where(self.presence[:, None, None, None] > 0, self.logits, ABSENT))

    def pick(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [O, h, w], predicted IoU [O] and token [O, D] of candidate `chosen` [O] of each object."""
        rows = torch.arange(len(chosen), device=chosen.device)
        return self.logits[rows, chosen], self.ious[rows, chosen], self.tokens[rows, chosen]


@dataclass(frozen=True, eq=False)
class Image:
    """Features of one square canvas, in the order in which the decoder makes its cells.

    Attributes:
        coarse: [1 or O, h * w, D], at stride 16.
        position: [1, h * w, D], where the cells lie.
        middle, fine: [1, 4 h * w, C] and [1, 16 h * w, C], `in_blocks`.
        size: (h, w).
    """

    coarse: Tensor
    position: Tensor
    middle: Tensor
    fine: Tensor
    size: tuple[int, int]

    @property
    def side(self) -> int:
        """Of the canvas, in pixels."""
        return 16 * self.size[1]

    def of(self, rows: Tensor) -> Image:
        """What these objects see: some have an image each, which knows of their past."""
        return self if len(self.coarse) == 1 else replace(self, coarse=self.coarse[rows])


class PromptDecoder(nn.Module):
    """From image features and prompts to `Candidates`.

    Args:
        dim: width of features and tokens.
        heads: attention heads.
        hidden_dim: of the feed-forward layers.
    """

    def __init__(self, dim: int, heads: int, hidden_dim: int) -> None:
        super().__init__()
        prompts = Sam2PromptEncoderConfig(hidden_size=dim)
        masks = Sam2MaskDecoderConfig(
            hidden_size=dim, num_attention_heads=heads, mlp_dim=hidden_dim, iou_head_hidden_dim=dim
        )
        masks._attn_implementation = "sdpa"
        self.prompt_encoder = Sam2PromptEncoder(prompts)
        self.mask_decoder = Sam2MaskDecoder(masks)
        self.position = Sam2PositionalEmbedding(prompts)
        # Places in the image and places of prompts must mean the same.
        self.position.load_state_dict(self.prompt_encoder.shared_embedding.state_dict())

    def forward(
        self,
        levels: Sequence[Tensor],
        points: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
        ambiguous: Tensor | None = None,
    ) -> Candidates:
        """The candidates of O objects of one image.

        Args:
            levels: features [1, C, h, w] at strides 4, 8 and 16 of a square canvas; the last may be one an object.
            points: [O, K, 2], canvas pixels.
            labels: [O, K] as in `Prompts`; how much padding there is does not matter.
            masks: logits [O, h, w] of an earlier answer.
            ambiguous: bool [O] instead of "at most one point".
        """
        counts = (labels >= 0).sum(1)
        ambiguous = counts <= 1 if ambiguous is None else ambiguous
        image, found, rows = self._prepared(levels), [], []
        for count in counts.unique().tolist():
            for some in self._chunks(torch.nonzero(counts == count).flatten()):
                sparse = self._sparse(points[some], labels[some], count, image.side)
                dense = self._dense(None if masks is None else masks[some], image.size)
                found.append(Candidates(*self._decode(image.of(some), sparse, dense), ambiguous[some]))
                rows.append(some)
        together = torch.cat(rows)
        in_order = bool((together.diff() > 0).all())
        return Candidates.join(found, None if in_order else together.argsort())

    def _prepared(self, levels: Sequence[Tensor]) -> Image:
        """Features as the decoder takes them, once for all objects."""
        fine, middle, coarse = levels
        size = (coarse.shape[-2], coarse.shape[-1])
        position = self.image_position(size).to(coarse.dtype)
        return Image(coarse.flatten(2).mT.contiguous(), position, in_blocks(middle, 2), in_blocks(fine, 4), size)

    def _chunks(self, rows: Tensor) -> Sequence[Tensor]:
        """In parts of bounded size, but all together where gradients keep everything anyway."""
        return [rows] if torch.is_grad_enabled() else rows.split(CHUNK)

    def _sparse(self, points: Tensor, labels: Tensor, count: int, side: int) -> Tensor:
        """[O, count + 1, D]: the `count` points of each object, and one that is none (two where there is no point)."""
        order = (labels < 0).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
        points = points.gather(1, order[..., None].expand(-1, -1, 2))
        encoder = self.prompt_encoder
        embedded = encoder.shared_embedding((points + 0.5)[:, None], (side, side))[:, 0]
        embedded = embedded + encoder.point_embed(labels.gather(1, order).long())
        nothing = encoder.not_a_point_embed.weight.expand(len(points), 1 if count else 2, -1)
        return torch.cat([embedded.to(nothing.dtype), nothing], dim=1)

    def _dense(self, masks: Tensor | None, size: tuple[int, int]) -> Tensor:
        """[O or 1, h * w or 1, D]: what earlier masks say of each cell."""
        if masks is None:
            return self.prompt_encoder.no_mask_embed.weight[None]
        full = (4 * size[0], 4 * size[1])
        if masks.shape[-2:] != full:
            masks = F.interpolate(masks[:, None].float(), full, mode="bilinear", antialias=True)[:, 0]
        dense: Tensor = self.prompt_encoder.mask_embed(masks[:, None].clamp(-SURE, SURE))
        return dense.flatten(2).mT

    def image_position(self, size: tuple[int, int]) -> Tensor:
        """[1, h * w, D]: positions of the cells of the coarsest level."""
        device = self.position.positional_embedding.device
        y, x = torch.meshgrid(*(torch.arange(n, device=device) + 0.5 for n in size), indexing="ij")
        grid = torch.stack([x / size[1], y / size[0]], dim=-1)
        return self.position(grid[None]).flatten(1, 2)

    def _decode(self, image: Image, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mask logits [O, 4, h, w], predicted IoUs [O, 4], presence [O] and mask tokens [O, 4, D]."""
        decoder = self.mask_decoder
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        states, cells = two_way(decoder.transformer, tokens, image.coarse + dense, image.position)
        mask_tokens = states[:, 2:6]
        weights = [mlp(mask_tokens[:, n]) for n, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        logits = upscaled_masks(decoder, cells, image.middle, image.fine, torch.stack(weights, dim=1), image.size)
        ious = decoder.iou_prediction_head(states[:, 1])
        return logits, ious, decoder.pred_obj_score_head(states[:, 0])[:, 0], mask_tokens
