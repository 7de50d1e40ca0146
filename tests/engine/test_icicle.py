"""The picture of a plan shows what the plan says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trunkline.engine.icicle import COMPUTED, OWN, draw_icicle
from trunkline.engine.prefix_tree import Prompts, build_prefix_tree


def share_of(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(image.astype(int) - colour).sum(-1) < 12).mean())


@pytest.mark.parametrize("num_groups", [3, 5000])
def test_readable_for_few_prompts_and_for_many(tmp_path: Path, num_groups: int) -> None:
    prompts = [
        [group] * 48 + [num_groups + i] * 16 for group in range(num_groups) for i in range(10)
    ]
    tree = build_prefix_tree(Prompts.from_lists(prompts), page_size=16)
    draw_icicle(tree, tmp_path / "plan.png", "a title")
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.format == "PNG"
        image = np.array(picture.convert("RGB"))
    assert image.shape == (800, 1600, 3)
    plot = image[60:750, 70:1580]
    assert share_of(plot, OWN) == pytest.approx(16 / 64, abs=0.03)
    if num_groups == 3:
        assert share_of(plot, COMPUTED) == pytest.approx(48 / 64 / 10, abs=0.03)
    else:
        # A tenth of what is shared is computed: the mixed colour says so.
        top = plot[100:400].reshape(-1, 3).mean(0)
        reused = np.array([157, 202, 225])
        assert top == pytest.approx(0.1 * np.array(COMPUTED) + 0.9 * reused, abs=3)


def test_no_prompts(tmp_path: Path) -> None:
    draw_icicle(build_prefix_tree(Prompts.from_lists([]), 16), tmp_path / "empty.png", "none")
    assert (tmp_path / "empty.png").stat().st_size > 0
