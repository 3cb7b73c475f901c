"""Files of weights in every layout that `everymask.load` reads, and ways to break them; pickles come with a canary."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

from everymask.checkpoint import save
from everymask.models import create_model
from tests.detr_reference import original_state, reference
from tests.mutate import json_mutations, mutations
from tests.scenes import LABELS


@dataclass(frozen=True)
class Specimen:
    """One file that is broken.

    Attributes:
        kind: "safetensors", "JSON" or "pickle".
        source: what `everymask.load` is given.
        path: the file, inside `source` or `source` itself.
        broken: broken copies, by seed and count.
    """

    kind: str
    source: Path
    path: Path
    broken: Callable[[int, int], Iterator[bytes]]


class Canary:
    """Its pickle creates a folder where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def specimens(place: Path, dead: Path) -> list[Specimen]:
    """All kinds of files, in folders below `place`; their pickles would create `dead`."""
    return [*own(place / "own"), *published(place / "published"), *pickles(place / "pickles", dead)]


def own(folder: Path) -> Iterator[Specimen]:
    """A checkpoint of ours without what would tell every change at once: manifest and checksum."""
    torch.manual_seed(0)
    save(create_model("hybrid", "tiny", classes=LABELS), folder)
    (folder / "manifest.json").unlink()
    card = json.loads((folder / "model.json").read_text())
    del card["sha256"]
    (folder / "model.json").write_text(json.dumps(card))
    yield of_json(folder, "model.json")
    yield of_text(folder, "model.json")
    yield of_safetensors(folder, "model.safetensors")


def published(folder: Path) -> Iterator[Specimen]:
    """A checkpoint in the layout of `transformers`, its weights in two parts."""
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="bottleneck"
    )
    config = MaskFormerConfig(
        backbone_config=backbone,
        fpn_feature_size=32,
        mask_feature_size=16,
        decoder_config={
            "model_type": "detr",
            "d_model": 32,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
            "num_queries": 4,
            "dropout": 0.0,
            "encoder_layers": 0,
        },
        id2label={0: "disc", 1: "square"},
        label2id={"disc": 0, "square": 1},
    )
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    processing = {"size": size, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    split(folder)
    yield of_json(folder, "config.json")
    yield of_json(folder, "preprocessor_config.json")
    yield of_json(folder, "model.safetensors.index.json")
    yield of_text(folder, "model.safetensors.index.json")
    yield of_safetensors(folder, "model-2.safetensors")


def split(folder: Path) -> None:
    """Weights in two files and an index."""
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for part, chosen in parts.items():
        save_file({name: state[name] for name in chosen}, folder / part)
    index = {"metadata": {}, "weight_map": {name: part for part, chosen in parts.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def pickles(folder: Path, dead: Path) -> Iterator[Specimen]:
    """Files that `torch.save` and `pickle` wrote, of weights alone, and with a canary among or instead of them."""
    folder.mkdir()
    state = original_state(reference())
    contents: dict[str, Any] = {"weights": {"model": state}, "both": {"model": state, "args": Canary(dead)}}
    for name, content in contents.items():
        for zipped in (True, False):
            path = folder / f"{name}-{zipped}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            yield Specimen("pickle", path, path, ends_or_anywhere(path.read_bytes()))
    for protocol in (0, 2, 4):
        path = folder / f"plain-{protocol}.pt"
        path.write_bytes(pickle.dumps({"model": Canary(dead)}, protocol))
        yield Specimen("pickle", path, path, anywhere(path.read_bytes()))
    bin_ = folder / "bin"
    bin_.mkdir()
    (bin_ / "config.json").write_bytes((folder.parent / "published" / "config.json").read_bytes())
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3), "x": Canary(dead)}, buffer)
    (bin_ / "pytorch_model.bin").write_bytes(buffer.getvalue())
    yield Specimen("pickle", bin_, bin_ / "pytorch_model.bin", anywhere(buffer.getvalue()))


def of_json(folder: Path, name: str) -> Specimen:
    data = json.loads((folder / name).read_text())
    return Specimen("JSON", folder, folder / name, lambda seed, count: json_mutations(data, seed, count))


def of_text(folder: Path, name: str) -> Specimen:
    return Specimen("JSON", folder, folder / name, anywhere((folder / name).read_bytes()))


def of_safetensors(folder: Path, name: str) -> Specimen:
    data = (folder / name).read_bytes()
    return Specimen("safetensors", folder, folder / name, in_header_or_anywhere(data))


def anywhere(data: bytes) -> Callable[[int, int], Iterator[bytes]]:
    return lambda seed, count: mutations(data, seed, count)


def ends_or_anywhere(data: bytes) -> Callable[[int, int], Iterator[bytes]]:
    """In turn anywhere, in the first and in the last 4 KiB, where a file says what is in it."""

    def broken(seed: int, count: int) -> Iterator[bytes]:
        starts, ends = mutations(data[:4096], seed, count), mutations(data[-4096:], seed, count)
        for number, copy in enumerate(mutations(data, seed, count)):
            yield (copy, next(starts) + data[4096:], data[:-4096] + next(ends))[number % 3]

    return broken


def in_header_or_anywhere(data: bytes) -> Callable[[int, int], Iterator[bytes]]:
    """Every second time in the table of contents alone, whose length then stands before it as it should."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]

    def broken(seed: int, count: int) -> Iterator[bytes]:
        chance = random.Random(seed)
        headers, whole = mutations(header, seed, count), mutations(data, seed, count)
        for other, copy in zip(headers, whole, strict=True):
            yield len(other).to_bytes(8, "little") + other + body if chance.random() < 0.5 else copy

    return broken
