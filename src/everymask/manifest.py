"""Folders that can be trusted: a manifest with the size and SHA-256 of every file, written last and checked first."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .files import sync_file, write_bytes

NAME = "manifest.json"
SCHEMA = 1


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Describe all files of `folder`, each of which is on the disk before this returns.

    Args:
        facts: further entries (step, configuration hash).
    """
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != NAME):
        sync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_bytes(folder / NAME, _sealed({"schema": SCHEMA, **facts, "files": files}))
    sync_file(folder / NAME)


def faults_of(folder: Path) -> list[str]:
    """What is wrong with a folder; empty if every byte is as it was written."""
    try:
        text = (folder / NAME).read_bytes()
        data = json.loads(text)
        seal = data.pop("seal")
        if text != _sealed(data) or seal != _seal(data):
            return [f"{NAME} was changed"]
        if data["schema"] > SCHEMA:
            return [f"a newer version wrote it (schema {data['schema']})"]
        return [fault for name, facts in data["files"].items() if (fault := _file_fault(folder / name, facts))]
    except OSError as error:
        return [f"{NAME}: {error.strerror or error}"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{NAME} is damaged"]


def _file_fault(path: Path, facts: dict[str, Any]) -> str:
    try:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{path.name} has {path.stat().st_size:,} of {facts['bytes']:,} bytes"
        return "" if file_hash(path) == facts["sha256"] else f"{path.name} was changed"
    except OSError as error:
        return f"{path.name}: {error.strerror or error}"


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(data: dict[str, Any]) -> bytes:
    """The one text that these data have, with a checksum of the rest, so that no changed byte goes unseen."""
    return json.dumps(data | {"seal": _seal(data)}, indent=1, sort_keys=True).encode() + b"\n"


def _seal(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
