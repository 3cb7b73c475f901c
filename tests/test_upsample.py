"""Deciding at outlines only against interpolating and deciding everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from everymask import upsample
from everymask.upsample import bands, contenders, decide_pixels, grey_pixels


def positions(count: int, cells: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) * cells / count - 0.5


def everywhere(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size, mode="bilinear")[0]


def winner(values: Tensor, chosen: Tensor | None = None) -> Tensor:
    return values.argmax(0)


def covered_winner(values: Tensor, chosen: Tensor | None = None) -> Tensor:
    return (values[:-1].argmax(0) + 1) * (values[-1] >= 0.2)


def grey(values: Tensor, chosen: Tensor | None = None) -> Tensor:
    return (values[0] * 5).round().long()


SIDES = st.integers(1, 9)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@pytest.mark.parametrize("decide", [winner, covered_winner, grey])
@given(st.integers(2, 4), SIDES, SIDES, SIZES, st.integers(0, 2**16))
def test_the_same_as_everywhere(decide: Any, n: int, h: int, w: int, size: tuple[int, int], seed: int) -> None:
    maps = torch.randn(n, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = decide_pixels(maps, positions(size[0], h), positions(size[1], w), decide)
    large = everywhere(maps, size)
    expected = decide(large)
    # Where two maps tie to the last bit, rounding may choose either.
    wrong = found != expected
    assert not bool((wrong & ~near_a_tie(large, decide)).any())


def near_a_tie(values: Tensor, decide: Any) -> Tensor:
    """Where the slightest change decides otherwise."""
    return torch.stack(
        [decide(values + 1e-9 * s * torch.randn_like(values)) != decide(values) for s in range(1, 9)]
    ).any(0)


@pytest.mark.parametrize("chunk", [1, 7, 10**9])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    maps = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0))
    at = positions(50, 6), positions(60, 7)
    expected = decide_pixels(maps, *at, winner)
    monkeypatch.setattr(upsample, "CHUNK_VALUES", chunk)
    assert torch.equal(decide_pixels(maps, *at, winner), expected)


def test_only_outlines_are_interpolated() -> None:
    maps = torch.zeros(2, 8, 8)
    maps[0, :4], maps[1, 4:] = 1, 1
    seen: list[int] = []

    def counting(values: Tensor, chosen: Tensor) -> Tensor:
        seen.append(values[0].numel())
        return winner(values)

    pixels = decide_pixels(maps, positions(80, 8), positions(80, 8), counting)
    assert pixels.float().mean() == 0.5
    # The cells and their border, then the line of blocks where the winner changes: ten rows of eighty, those at the
    # border, half as wide, visited as if they were whole.
    assert seen == [10 * 10, 10 * 90]


@given(SIDES, SIDES, SIZES, st.integers(0, 2**16))
def test_grey_pixels_are_rounded_interpolated_values(h: int, w: int, size: tuple[int, int], seed: int) -> None:
    values = torch.rand(h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = grey_pixels(values, positions(size[0], h), positions(size[1], w))
    expected = everywhere(values[None], size)[0] * 255
    assert found.dtype == torch.uint8
    assert float((found - expected).abs().max()) <= 0.5 + 1e-9


@given(st.integers(2, 5), SIDES, SIDES, SIZES, st.integers(0, 2**16), st.sampled_from([1, 50, 10**9]))
def test_leaving_out_maps_that_cannot_win_changes_nothing(
    n: int, h: int, w: int, size: tuple[int, int], seed: int, chunk: int
) -> None:
    maps = torch.randn(n, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    maps += torch.arange(n)[:, None, None]
    at = positions(size[0], h), positions(size[1], w)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "CHUNK_VALUES", chunk)
        found = decide_pixels(maps, *at, lambda values, chosen: chosen[values.argmax(0)], contenders)
    assert torch.equal(found, decide_pixels(maps, *at, winner))


@given(st.integers(1, 4), SIDES, SIDES, SIZES, st.integers(0, 2**16), st.sampled_from([1, 50, 10**9]))
def test_counts_are_those_of_interpolated_maps(
    n: int, h: int, w: int, size: tuple[int, int], seed: int, chunk: int
) -> None:
    maps = torch.rand(n, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsample, "CHUNK_VALUES", chunk)
        grid = positions(size[0], h), positions(size[1], w)
        found = torch.stack([band.count_above(torch.full((n,), 0.5)) for band in bands(maps, *grid)]).sum(0)
    assert found.tolist() == (everywhere(maps, size) > 0.5).flatten(1).sum(1).tolist()


@given(st.integers(2, 5), SIDES, SIDES, st.integers(0, 2**16))
def test_contenders_include_every_winner(n: int, h: int, w: int, seed: int) -> None:
    maps = torch.randn(n, h, w, generator=torch.Generator().manual_seed(seed)) + torch.arange(n)[:, None, None]
    winners = set(everywhere(maps, (h * 5, w * 5)).argmax(0).unique().tolist())
    assert winners <= set(contenders(maps).tolist())


def test_a_class_that_is_second_everywhere_may_win_between_cells() -> None:
    maps = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.6, 0.6]], [[0.0, 0.0]]])
    assert contenders(maps).tolist() == [0, 1, 2]
    assert everywhere(maps, (1, 9)).argmax(0).unique().tolist() == [0, 1, 2]


def test_contenders_where_something_is_covered() -> None:
    maps = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]])
    least = torch.tensor([[0.0, 0.0, 0.0, 0.9]])
    assert contenders(maps, least, 0.5).tolist() == [1]
    assert contenders(maps, least, 0.95).tolist() == []
