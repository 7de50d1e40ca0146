"""A picture of a plan: the prefix tree as an icicle plot.

    x    requests, in depth-first order
    y    tokens of the prompt, from the first at the top
    colour: computed for the first request below a node, reused by the others, or a request's own

A pixel column stands for several requests when there are many; their colours are mixed then, and
the longest of them says how far down the column goes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trunkline.engine.prefix_tree import PrefixTree

WIDTH, HEIGHT = 1600, 800
LEFT, TOP, BOTTOM, RIGHT = 70, 60, 50, 20

PAPER = (255, 255, 255)
INK = (40, 40, 40)
OWN = (230, 159, 0)
COMPUTED = (0, 84, 147)
# Reused, in turn by level, so that neighbouring levels can be told apart.
REUSED = ((157, 202, 225), (198, 219, 239))
EDGE = (255, 255, 255)
# A node is outlined when it is at least so wide and high.
MIN_EDGE_PIXELS = 6


def draw_icicle(tree: PrefixTree, path: Path, title: str) -> None:
    """Write the picture of `tree` to `path`, as PNG.

    Args:
        title: a line above the picture.
    """
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    longest = max(int(tree.lengths.max(initial=1)), 1)
    plot = _plot(tree, plot_width, plot_height, longest)
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    image.paste(Image.fromarray(plot), (LEFT, TOP))
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 12), title, INK, font_size=18)
    _draw_legend(draw)
    _draw_axes(draw, len(tree.lengths), longest, plot_width, plot_height)
    image.save(path, format="PNG")


def _plot(tree: PrefixTree, width: int, height: int, longest: int) -> NDArray[np.uint8]:
    """The plot itself, [height, width, 3]."""
    num = len(tree.lengths)
    plot = np.full((height, width, 3), PAPER, np.float32)
    if not num:
        return plot.astype(np.uint8)
    lengths = tree.lengths[tree.order]
    for x in range(width):
        first = x * num // width
        last = max((x + 1) * num // width, first + 1)
        plot[: int(lengths[first:last].max()) * height // longest, x] = OWN

    # Nodes narrower than a pixel cover a part of it, and their colours are mixed.
    scale = width / num
    level = np.zeros(tree.num_nodes, np.int64)
    for v, up in enumerate(tree.parent.tolist()):
        level[v] = 0 if up < 0 else level[up] + 1
        rows = slice(int(tree.start[v]) * height // longest, int(tree.end[v]) * height // longest)
        left, right = float(tree.first[v]) * scale, float(tree.last[v]) * scale
        _cover(plot[rows], (left, left + scale), COMPUTED)
        _cover(plot[rows], (left + scale, right), REUSED[int(level[v]) % 2])
        is_wide = right - left >= MIN_EDGE_PIXELS
        if is_wide and rows.stop - rows.start >= MIN_EDGE_PIXELS:
            plot[rows.start, round(left) : round(right)] = EDGE
            plot[rows, round(right) - 1] = EDGE
    return plot.round().astype(np.uint8)


def _cover(
    rows: NDArray[np.float32], columns: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    """Paint the columns from one to the other, both in pixels, parts of pixels in proportion."""
    left, right = columns
    pixels = np.arange(int(left), min(int(np.ceil(right)), rows.shape[1]))
    share = np.minimum(pixels + 1, right) - np.maximum(pixels, left)
    # What is own in a column makes way; what other nodes have painted there stays.
    change = np.array(colour, np.float32) - np.array(OWN, np.float32)
    rows[:, pixels] += share[:, None].astype(np.float32) * change


def _draw_legend(draw: ImageDraw.ImageDraw) -> None:
    x = LEFT
    for colour, name in (
        (COMPUTED, "shared, computed once"),
        (REUSED[0], "shared, reused"),
        (OWN, "a request's own"),
    ):
        draw.rectangle((x, 38, x + 12, 50), fill=colour)
        draw.text((x + 18, 36), name, INK, font_size=14)
        x += 36 + 8 * len(name)


def _draw_axes(
    draw: ImageDraw.ImageDraw, num_requests: int, longest: int, width: int, height: int
) -> None:
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + round(share * height)
        draw.line((LEFT - 6, y, LEFT, y), INK)
        draw.text((LEFT - 10, y), f"{round(share * longest)}", INK, font_size=13, anchor="rm")
        x = LEFT + round(share * width)
        draw.line((x, TOP + height, x, TOP + height + 6), INK)
        draw.text(
            (x, TOP + height + 10), f"{round(share * num_requests)}", INK, font_size=13, anchor="ma"
        )
    draw.text((LEFT + width / 2, HEIGHT - 18), "requests", INK, font_size=14, anchor="mm")
    draw.text((8, TOP - 14), "tokens", INK, font_size=14, anchor="lm")
