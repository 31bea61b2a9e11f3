"""Two photos → what speaks for one animal in them, as numbers and as pictures: matches, overlay, heat.

`reid.look` takes a photo in once; `compare` sets two of them side by side, so that a query is looked at once for all
its candidates. Must not know files, stores, identities or thresholds of decision. What cannot be shown is named in
`Comparison.skipped`, never raised: only a photo that cannot be read, or a box outside it, raises, and only from `look`.

Where is the evidence? The box is described as ever, and so is a window wider than it: if most of what matches
there, or most of the heat, lies outside the animal's box (or mask), `Outside.flagged` says so. Photos taken minutes
apart share reeds, waves and a horizon, and such a match says where the animals stood, not which they are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid import pictures
from reid.explain import Pixels
from reid.heatmap import HeatMap, heat, share_outside, upsampled
from reid.keypoints import LocalFeatures, mirrored
from reid.look import Options, Seen, flipped
from reid.pictures import Links, Panel
from reid.records import Box
from reid.verify import Verification, matching_of, verify_matches

MOST_OUTSIDE = 0.5
"""Share of the evidence outside the animal from which a person should look twice."""
LEAST_POINTS = 8
"""Agreeing points outside the animal that are worth a warning: of other animals, fewer agree by chance."""
LEAST_HEAT = 1e-5
"""Of a cosine: a smaller change is arithmetic, not heat."""
Bools = NDArray[np.bool_]
SWITCHED_OFF = "switched off"


@dataclass(frozen=True, slots=True)
class Outside:
    """Shares of the evidence that lie outside the animal, [0, 1]; None where there is no such evidence, or no box.

    `matches` of the agreeing matches' weight in the wider windows, `points` how many of them lie outside; `heat_a`,
    `heat_b` of the positive heat.
    """

    matches: float | None = None
    points: int = 0
    heat_a: float | None = None
    heat_b: float | None = None

    @property
    def flagged(self) -> bool:
        """Whether most of any evidence lies outside."""
        matches = self.matches if self.points >= LEAST_POINTS else None
        return any(share is not None and share > MOST_OUTSIDE for share in (matches, self.heat_a, self.heat_b))


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What speaks for one animal in photos A and B.

    `cosine` of their embeddings; `verification` of the boxes' keypoints, as a query verifies them, from A to B;
    `mirrored` whether A fits better flipped (then the matches and the overlay show it flipped). `pictures` by name:
    `matches`, `warp_a` and `warp_b` (a pair of one size), `overlay`, `heat_a`, `heat_b`. `skipped` says of each
    picture that is missing why. `seconds` per stage.
    """

    a: str
    b: str
    box_a: Box | None
    box_b: Box | None
    cosine: float
    verification: Verification | None
    mirrored: bool
    heat_a: HeatMap | None
    heat_b: HeatMap | None
    outside: Outside
    pictures: dict[str, Pixels]
    skipped: dict[str, str]
    seconds: dict[str, float]


def compare(a: Seen, b: Seen, options: Options) -> Comparison:
    """Everything about one pair; both were looked at with these `options`."""
    skipped: dict[str, str] = {}
    drawn: dict[str, Pixels] = {}
    seconds = {"look": a.seconds + b.seconds}
    start = time.perf_counter()
    found, turned, outside, beyond = None, False, None, pictures.no_links()
    if options.matches and a.near is not None and b.near is not None:
        found, links, turned = _verified(a, b, options)
        shown = flipped(a) if turned else a
        beyond, outside = _beyond(shown, b, options)
        drawn["matches"] = _matches_picture(shown, b, found, links, beyond, turned)
        if found.status != "verified":
            skipped["matches"] = why_not(found)
        if options.mirror and options.verify.learned is not None:
            skipped["mirrored"] = "a learned matcher does not try the photo mirrored"
    else:
        skipped["matches"] = SWITCHED_OFF
    seconds["match"] = time.perf_counter() - start
    start = time.perf_counter()
    drawn |= _warped(flipped(a) if turned else a, b, found, options, skipped)
    seconds["warp"] = time.perf_counter() - start
    start = time.perf_counter()
    heats = _heats(a, b, skipped, drawn)
    seconds["heat"] = time.perf_counter() - start
    shares = [
        share_outside(h.map, seen.crop_inside) if h is not None and seen.knows_outside else None
        for h, seen in zip(heats, (a, b), strict=True)
    ]
    return Comparison(
        a.name,
        b.name,
        a.box,
        b.box,
        float(a.vector @ b.vector),
        found,
        turned,
        *heats,
        Outside(outside, len(beyond), *shares),
        drawn,
        skipped,
        seconds,
    )


def why_not(found: Verification) -> str:
    """Why there is no geometry to show, in words; empty where there is."""
    return {
        "verified": "",
        "no_keypoints": "no distinct points were found on the animal in one of the photos",
        "too_few_matches": f"only {found.matches} points look alike, too few for a geometry",
        "no_model": f"{found.matches} points look alike, but they do not agree on one geometry",
        "degenerate": f"{found.matches} points look alike, but agree only on an impossible geometry",
    }[found.status]


def _verified(a: Seen, b: Seen, options: Options) -> tuple[Verification, Links, bool]:
    """The pair's verification and its agreeing matches, in pixels of the boxes; A mirrored where asked and better."""
    assert a.near is not None and b.near is not None  # asked for by the caller
    found, links = _agreeing(a.near, b.near, options)
    if (options.mirror or options.verify.mirrored) and options.verify.learned is None:
        other, other_links = _agreeing(mirrored(a.near), b.near, options)
        if other.weight > found.weight:
            return other, other_links, True
    return found, links, False


def _agreeing(left: LocalFeatures, right: LocalFeatures, options: Options) -> tuple[Verification, Links]:
    config = options.verify
    matches = matching_of(left, config)(right)
    found = verify_matches(left, right, matches, config)
    if not found.inliers:
        return found, pictures.no_links()
    q, c = found.pairs.T
    weight = dict(zip(matches.query.tolist(), matches.weight.tolist(), strict=True))
    kept = np.array([weight[row] for row in q.tolist()], np.float32)
    return found, Links(left.xy[q], right.xy[c], kept, np.zeros(len(q), bool))


def _beyond(a: Seen, b: Seen, options: Options) -> tuple[Links, float | None]:
    """Agreeing matches of the wider windows that lie outside either animal, and their share of the weight; None where
    nothing agrees, or nobody knows where the animal is."""
    if a.wide is None or b.wide is None or not (a.knows_outside and b.knows_outside):
        return pictures.no_links(), None
    _, links = _agreeing(a.wide, b.wide, options)
    total = float(links.weight.sum())
    if not len(links) or total <= 0:
        return pictures.no_links(), None
    out = ~(_within(a.inside, links.left) & _within(b.inside, links.right))
    share = float(links.weight[out].sum()) / total
    return Links(links.left[out], links.right[out], links.weight[out], np.ones(int(out.sum()), bool)), share


def _within(inside: Bools, xy: NDArray[np.floating]) -> Bools:
    """Whether each point's pixel is True."""
    x = np.clip(np.rint(xy[:, 0]).astype(int), 0, inside.shape[1] - 1)
    y = np.clip(np.rint(xy[:, 1]).astype(int), 0, inside.shape[0] - 1)
    return np.asarray(inside[y, x], np.bool_)


def _matches_picture(a: Seen, b: Seen, found: Verification, links: Links, beyond: Links, turned: bool) -> Pixels:
    """Both windows with all links, those of the boxes moved to where the boxes are."""
    every = Links(
        np.concatenate([links.left + np.array(a.frame[:2], np.float32), beyond.left]),
        np.concatenate([links.right + np.array(b.frame[:2], np.float32), beyond.right]),
        np.concatenate([links.weight, beyond.weight]),
        np.concatenate([links.outside, beyond.outside]),
    )
    drawn = pictures.strongest(every)
    within = int((~drawn.outside).sum())
    if found.inliers:
        where = " in the boxes" if a.knows_outside and b.knows_outside else ""
        heading = f"{found.inliers} points{where} agree, of {found.matches} that look alike"
    else:
        heading = why_not(found)
    notes = []
    if within < found.inliers:
        notes.append(f"The {within} strongest of {found.inliers} are drawn.")
    if drawn.outside.any():
        notes.append("Orange squares: points outside the animal that match. Is it background, or is the box too small?")
    panels = [
        Panel(seen.window, f"{letter}: {seen.name}{' (mirrored)' if mirror else ''}", _outline(seen))
        for letter, seen, mirror in (("A", a, turned), ("B", b, False))
    ]
    return pictures.joined(panels[0], panels[1], drawn, heading=heading, notes=notes)


def _outline(seen: Seen) -> tuple[float, float, float, float] | None:
    """The box, unless it is the whole picture."""
    x0, y0, x1, y1 = seen.frame
    return None if (y1 - y0, x1 - x0) == seen.window.shape[:2] else (x0, y0, x1, y1)


def _warped(
    a: Seen, b: Seen, found: Verification | None, options: Options, skipped: dict[str, str]
) -> dict[str, Pixels]:
    """A laid on B by the geometry of the matches, where there is one; else `skipped` is told why."""
    if not (options.warp and options.matches):
        skipped["warp"] = SWITCHED_OFF
        return {}
    if found is None or found.status != "verified" or found.H is None:
        skipped["warp"] = why_not(found) if found is not None else SWITCHED_OFF
        return {}
    (ax, ay), (bx, by) = a.frame[:2], b.frame[:2]
    to_box = np.array([[1, 0, -ax], [0, 1, -ay], [0, 0, 1]], np.float64)
    from_box = np.array([[1, 0, bx], [0, 1, by], [0, 0, 1]], np.float64)
    warped, plain, covered = pictures.warp_pair(a.window, b.window, from_box @ found.H @ to_box)
    return {"warp_a": warped, "warp_b": plain, "overlay": pictures.overlay(warped, plain, covered)}


def _heats(
    a: Seen, b: Seen, skipped: dict[str, str], drawn: dict[str, Pixels]
) -> tuple[HeatMap | None, HeatMap | None]:
    """Heat of A against B and of B against A; their pictures go to `drawn`, each with its own scale of colour."""
    if a.occluded is None or b.occluded is None:
        skipped["heat"] = SWITCHED_OFF
        return None, None
    both = heat(a.occluded, b.vector), heat(b.occluded, a.vector)
    for name, seen, one in (("heat_a", a, both[0]), ("heat_b", b, both[1])):
        height, width = seen.view.shape[:2]
        if float(np.abs(one.map).max()) < LEAST_HEAT:
            skipped[name] = "covering any part of this photo changes nothing"
            continue
        drawn[name] = pictures.heat_over(seen.view, upsampled(one.map, height, width))
    return both
