"""CAT-Seg: the contract."""

from __future__ import annotations

from tests.contract import ModelContract


class TestCatSeg(ModelContract):
    system = "catseg"
