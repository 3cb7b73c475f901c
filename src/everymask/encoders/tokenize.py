"""Texts to token ids: by the tokenizer that comes with a tower's weights, or by hashing for towers without any."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError, EverymaskError, UsageError
from ..files import write_bytes

FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "spiece.model", "vocab.json")


class Tokenizer(Protocol):
    """Texts to ids of a fixed length, padding included."""

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """int64 [n, length].

        Raises:
            UsageError: a text is longer.
            CheckpointError: the tokenizer's files are missing or damaged.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write what `FolderTokenizer` reads, if there is anything to write."""
        ...


class HashTokenizer:
    """Words by their hash: any language, no file. For towers with random weights, which know no language yet.

    The text is repeated until it fills the length: a random tower takes no notice of one word among padding. The
    largest id is the end.

    Args:
        size: of the vocabulary.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        words = [list(map(self._id, re.findall(r"\w+|[^\w\s]", text.lower()))) for text in texts]
        check_length(texts, [len(row) + 1 for row in words], length)
        rows = [[*islice(cycle(row or [0]), length - 1), self.size - 1] for row in words]
        return torch.tensor(rows).view(-1, length)

    def _id(self, word: str) -> int:
        return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % (self.size - 1)

    def save(self, folder: Path) -> None:
        """Nothing: there are no files."""


class FolderTokenizer:
    """The tokenizer in a folder, or of a name of the Hub that was downloaded before; read when first needed.

    Args:
        lowercase: the tower was trained with texts in lower case.
    """

    def __init__(self, source: str | Path, lowercase: bool = False) -> None:
        self.source, self.lowercase = str(source), lowercase
        self._read: Any = None

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        given = [text.lower() for text in texts] if self.lowercase else list(texts)
        rows = self._tokenizer(given, padding="max_length", max_length=length, truncation=False)["input_ids"]
        check_length(texts, [len(row) for row in rows], length)
        return torch.tensor(rows).view(-1, length)

    @property
    def _tokenizer(self) -> Any:
        if self._read is None:
            from transformers import AutoTokenizer

            try:
                self._read = AutoTokenizer.from_pretrained(self.source, local_files_only=True)
            except Exception as error:  # Missing, damaged and unknown files each fail in their own way.
                raise self._missing(error) from error
        return self._read

    def _missing(self, error: Exception) -> EverymaskError:
        why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if Path(self.source).is_dir():
            fix = "Copy tokenizer.json and tokenizer_config.json of the published weights into it."
        else:
            fix = f"Run once: hf download {self.source} config.json tokenizer.json tokenizer_config.json"
        return CheckpointError("this model's tokenizer is not here", where=self.source, why=why[:200], fix=fix)

    def save(self, folder: Path) -> None:
        """Copy the files; of a name of the Hub only if it has been read."""
        source = Path(self.source)
        if source.is_dir():
            for path in (source / name for name in FILES):
                if path.is_file():
                    write_bytes(folder / path.name, path.read_bytes())
        elif self._read is not None:
            self._read.save_pretrained(folder)

    def __deepcopy__(self, memo: dict[int, Any]) -> FolderTokenizer:
        return self  # It never changes.


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in FILES)


def check_length(texts: Sequence[str], counts: Sequence[int], length: int) -> None:
    """Raise `UsageError` if a text has more tokens than `length`: cut off, it would mean something else."""
    for text, count in zip(texts, counts, strict=True):
        if count > length:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            why = f"{count} tokens, the text tower reads {length}"
            raise UsageError("a class has too many words", where=shown, why=why, fix="Shorten it.")
