"""When two boxes are one animal: geometry of boxes, and nothing of the database they are kept in.

Boxes are XYXY in pixels of the upright original photo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reid.records import Box

SAME_BOX_PX = 1.0
"""Boxes whose edges differ by no more, in pixels of the original, are one."""

MACHINE = ("detector", "whole")
"""Origins of boxes that nobody has looked at."""


def sound(box: Box) -> bool:
    """Whether the box is finite and holds something."""
    return all(map(math.isfinite, (box.x0, box.y0, box.x1, box.y1))) and box.width > 0 and box.height > 0


def same(box: Box, others: Sequence[Box]) -> int | None:
    """The index of the first of the others that is the same box, or None."""
    for i, other in enumerate(others):
        edges = ((box.x0, other.x0), (box.y0, other.y0), (box.x1, other.x1), (box.y1, other.y1))
        if all(abs(a - b) <= SAME_BOX_PX for a, b in edges):
            return i
    return None


def most_overlapped(box: Box, others: Sequence[Box]) -> int | None:
    """The index of the one of the others that the box overlaps most, the first of equals; None where there is none."""
    return max(range(len(others)), key=lambda i: overlap(box, others[i]), default=None)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a.width * a.height + b.width * b.height - shared)
