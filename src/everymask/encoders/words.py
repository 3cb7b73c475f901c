"""Words to text features: synonyms and prompt templates, tokenizer, text tower, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import vocabulary
from ..labels import Label, LabelMap
from .text_memory import TextMemory, Texts
from .tokenize import Tokenizer

MOST_TEXTS = 64
"""Texts that go through a tower together."""

Ensemble = Literal["mean", "channels"]


class TextTower(Protocol):
    """What turns token ids into features."""

    def texts(self, ids: Tensor) -> Tensor:
        """[n, length] -> [n, D]."""
        ...

    def text_parts(self) -> nn.ModuleList:
        """The modules that `texts` depends on."""
        ...


class WordEncoder:
    """Features of classes, computed once for each state of the tower.

    Args:
        templates: as in `vocabulary.templates`.
        ensemble: the features of many templates become their "mean", or stay apart as "channels".
        length: tokens of a text, padding included.
        first_only: synonyms are left out.

    Attributes:
        channels: features a class.
        memory: what was computed before.
    """

    def __init__(
        self, templates: Sequence[str], ensemble: Ensemble, length: int, tokenizer: Tokenizer, first_only: bool = False
    ) -> None:
        self.templates = vocabulary.templates(templates)
        self.ensemble, self.length, self.tokenizer, self.first_only = ensemble, length, tokenizer, first_only
        self.channels = 1 if ensemble == "mean" else len(self.templates)
        self.memory = TextMemory()

    def features(self, tower: TextTower, labels: LabelMap, device: torch.device) -> Tensor:
        """[T, P, D] of unit length; with gradients where the tower learns.

        Raises:
            UsageError: a class has more words than the tower reads.
            CheckpointError: the tokenizer is missing.
        """

        def tokenize(classes: Sequence[Texts]) -> Tensor:
            return self.tokenizer([text for own in classes for text in own], self.length).to(device)

        def encode(classes: Sequence[Texts], ids: Tensor) -> Tensor:
            return self._encoded(tower, classes, ids)

        classes, parts = [self.texts(label) for label in labels], tower.text_parts()
        if torch.is_grad_enabled() and any(p.requires_grad for p in parts.parameters()):
            return encode(classes, tokenize(classes))
        with torch.no_grad():
            return self.memory.get(parts, classes, tokenize, encode, f"{self.ensemble} of {len(self.templates)}")

    def texts(self, label: Label) -> Texts:
        """All prompts of a class, template by template."""
        phrases = vocabulary.phrases(label)[: 1 if self.first_only else None]
        return tuple(template.replace("{}", phrase) for template in self.templates for phrase in phrases)

    def _encoded(self, tower: TextTower, classes: Sequence[Texts], ids: Tensor) -> Tensor:
        features = F.normalize(torch.cat([tower.texts(part) for part in ids.split(MOST_TEXTS)]), dim=-1)
        by_class = features.split([len(texts) for texts in classes])
        # The mean over synonyms of each template.
        means = torch.stack([own.unflatten(0, (len(self.templates), -1)).mean(1) for own in by_class])
        found = F.normalize(means, dim=-1)
        return F.normalize(found.mean(1, keepdim=True), dim=-1) if self.ensemble == "mean" else found
