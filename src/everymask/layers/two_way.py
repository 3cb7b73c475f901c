"""The two-way transformer and the upscaling of SAM 2's mask decoder: weights of `transformers`, in fewer steps.

A handful of tokens (N, about ten) and thousands of cells (P) attend to each other, for each of O objects. Projecting
the cells to queries, keys and values is what `transformers` spends its time on; since ``q . (W x) = (q W) . x``, the
tokens are projected instead, with the same result. Upscaled maps stay in the order in which the sub-cells are made, so
that nothing is moved in memory before the last step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2Attention, Sam2MaskDecoder, Sam2TwoWayTransformer


def two_way(
    transformer: Sam2TwoWayTransformer, tokens: Tensor, cells: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens and cells that know of each other.

    Args:
        tokens: [O, N, D], what is asked.
        cells: [O, P, D], the image, or [1, P, D] if it is the same for all objects.
        position: [1, P, D], where the cells lie.

    Returns:
        tokens [O, N, D] and cells [O, P, D].
    """
    states = tokens
    layers: Iterable[Any] = transformer.layers
    for layer in layers:
        placed = states if layer.skip_first_layer_pe else states + tokens
        attended = layer.self_attn(placed[:, None], placed[:, None], states[:, None])[0][:, 0]
        states = layer.layer_norm1(attended if layer.skip_first_layer_pe else states + attended)
        seen = cells + position
        states = states + look_at_cells(layer.cross_attn_token_to_image, states + tokens, seen, cells)
        states = layer.layer_norm2(states)
        states = layer.layer_norm3(states + layer.mlp(states))
        cells = layer.layer_norm4(told_by_tokens(layer.cross_attn_image_to_token, cells, seen, states + tokens, states))
    final = look_at_cells(transformer.final_attn_token_to_image, states + tokens, cells + position, cells)
    return transformer.layer_norm_final_attn(states + final), cells


def look_at_cells(attention: Sam2Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[O, N, D]: what tokens [O, N, D] find in cells [O or 1, P, D]."""
    heads, count = attention.num_attention_heads, queries.shape[1]
    if len(keys) == 1:
        # The cells of all objects: the tokens of all objects ask together.
        together: Tensor = attention(queries.flatten(0, 1)[None, None], keys[None], values[None])[0]
        return together.view_as(queries)
    scores = attention_scores(attention.k_proj, keys, by_head(attention.q_proj(queries), heads) * attention.scaling)
    found = torch.bmm(scores.flatten(1, 2).softmax(2), values).unflatten(1, (heads, count))
    found = torch.einsum("ohnc,hdc->onhd", found, attention.v_proj.weight.unflatten(0, (heads, -1))).flatten(2)
    output: Tensor = attention.o_proj(found + attention.v_proj.bias)
    return output


def told_by_tokens(attention: Sam2Attention, cells: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[O, P, D]: the cells [O or 1, P, D] plus what they find in tokens [O, N, D]; `queries` are the placed cells."""
    heads = attention.num_attention_heads
    # Tokens first, so that the softmax over a few of them runs along thousands of cells.
    scores = attention_scores(attention.q_proj, queries, by_head(attention.k_proj(keys), heads) * attention.scaling)
    said = by_head(attention.v_proj(values), heads)
    said = torch.einsum("onhd,chd->ohnc", said, attention.o_proj.weight.unflatten(1, (heads, -1))).flatten(1, 2)
    # The weights of each head add up to 1, so every head brings its share of the bias.
    return torch.baddbmm(cells, scores.softmax(2).flatten(1, 2).mT, said + attention.o_proj.bias / heads)


def attention_scores(projection: nn.Linear, cells: Tensor, tokens: Tensor) -> Tensor:
    """[O, heads, N, P]: products of projected cells [O or 1, P, D] with projected tokens [O, N, heads, d]."""
    _, count, heads, _ = tokens.shape
    if len(cells) == 1:
        return torch.einsum("onhd,phd->ohnp", tokens, by_head(projection(cells), heads)[0])
    weight, bias = projection.weight.unflatten(0, (heads, -1)), projection.bias.unflatten(0, (heads, -1))
    asked = torch.einsum("onhd,hdc->ohnc", tokens, weight).flatten(1, 2)
    start = torch.einsum("onhd,hd->ohn", tokens, bias).flatten(1)[..., None]
    return torch.baddbmm(start, asked, cells.mT).unflatten(1, (heads, count))


def by_head(projected: Tensor, heads: int) -> Tensor:
    """[O, N, D] -> [O, N, heads, D / heads]."""
    return projected.unflatten(2, (heads, -1))


def in_blocks(maps: Tensor, block: int) -> Tensor:
    """[B, C, h * block, w * block] -> [B, h * w * block^2, C]: cell by cell, each with its sub-cells in the order
    in which `split` makes them."""
    batch, channels = maps.shape[:2]
    height, width = maps.shape[2] // block, maps.shape[3] // block
    if block == 2:
        return maps.view(batch, channels, height, 2, width, 2).permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, channels)
    halves = maps.view(batch, channels, height, 2, 2, width, 2, 2)
    return halves.permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(batch, -1, channels)


def upscaled_masks(
    decoder: Sam2MaskDecoder, cells: Tensor, middle: Tensor, fine: Tensor, weights: Tensor, size: tuple[int, int]
) -> Tensor:
    """Mask logits [O, M, 4 h, 4 w].

    Args:
        cells: [O, h * w, D].
        middle, fine: features of the image `in_blocks` of 2 and 4.
        weights: [O, M, C] of the masks.
        size: (h, w).
    """
    norm = decoder.upscale_layer_norm
    x = split(cells, decoder.upscale_conv1, middle)
    x = decoder.activation(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
    x = decoder.activation(split(x, decoder.upscale_conv2, fine))
    halves = (x @ weights.mT).view(len(cells), *size, 2, 2, 2, 2, -1)
    return halves.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(cells), -1, 4 * size[0], 4 * size[1])


def split(cells: Tensor, convolution: nn.ConvTranspose2d, features: Tensor) -> Tensor:
    """[O, 4 P, C]: features [1, 4 P, C] of the image plus a transposed convolution of kernel and stride 2 over cells
    [O, P, D], as the product that it is."""
    kernel, bias = convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias
    assert bias is not None
    start = (features + bias).view(1, cells.shape[1], -1)
    return torch.baddbmm(start, cells, kernel.expand(len(cells), -1, -1)).view(len(cells), -1, len(bias))
