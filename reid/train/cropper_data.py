"""Photos with boxes and points for training a cropper: rendered, empty ones, or a user's own; and how they are varied.

Photos are kept as squashed squares `(N, S, S, 3) uint8 RGB`; whatever lies in them is in shares of the square, x to
the right and y down, so 0 to 1 inside the photo. An animal comes with an outline: the extreme points of its mask in
`DIRECTIONS` directions. The tight box of a turned and sheared animal then follows exactly from the turned outline, which
the turned corners of its box would not give; pixels and points go through one and the same matrix.

Landmarks are left tip, notch, right tip and base, as they lie in the picture: a mirrored photo swaps the tips.

Knows pixels and points; no networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import images
from reid.errors import PhotoError
from reid.locate import squash
from reid.records import Box, Failure
from reid.synth import Shot, View, camera, random_view, scene, staged
from reid.synth.noise import window
from reid.synth.render import expose

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

STORED = 160  # pixels a side of a kept photo
DIRECTIONS = 32  # extreme points kept of an outline
SWAPPED = (2, 1, 0, 3)  # landmarks of the mirrored photo, by those of the photo
STRIP = 0.2  # of a photo's area, the least that counts as background
WORKERS = 2
_RENDERED = 61  # stream of random numbers


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """N photos. `outline (N, DIRECTIONS, 2)` and `landmarks (N, 4, 2)` float32, shares of the photo; `animal (N,)` bool:
    there is one at all; `marked (N,)` bool: its landmarks are known; `shaped (N,)` bool: its outline is one, and not
    only the corners of a box; `group (N,)` int64: photos of one animal have one number, and stay in one fold.
    """

    pixels: Pixels
    outline: Points
    landmarks: Points
    animal: NDArray[np.bool_]
    marked: NDArray[np.bool_]
    shaped: NDArray[np.bool_]
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def none(cls) -> Photos:
        """No photos."""
        return _without(np.zeros((0, STORED, STORED, 3), np.uint8))

    def part(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Photos:
        """Those at the places `chosen`."""
        return Photos(*(getattr(self, f.name)[chosen] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Variation:
    """How a photo differs each time it is shown; 0 switches a kind off. Angles in degrees, the rest probabilities
    except where it says otherwise.

    `tight` of the photos are framed so that the animal fills 80 to 100 % of the width, `cut` so that the frame cuts it;
    the others show it smaller. Its height in the frame is drawn on its own: whatever shape a photo has, it is squashed.
    """

    mirror: float = 0.5
    tight: float = 0.62
    cut: float = 0.1
    rotate: float = 14.0
    shear: float = 10.0
    grey: float = 0.4
    light: float = 0.45  # ± share of brightness, contrast and gamma
    colour: float = 0.25  # ± share by which a channel is stronger
    blur: float = 0.3
    shrink: float = 0.4  # taken at a fraction of the resolution
    jpeg: float = 0.5
    noise: float = 0.3
    paper: float = 0.08  # a white strip with writing, as scans have
    patch: float = 0.2  # something in front


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A varied batch: `pixels (B, side, side, 3)`, `boxes (B, 4)` XYXY and `landmarks (B, 4, 2)` in shares."""

    pixels: Pixels
    boxes: Points
    landmarks: Points
    animal: NDArray[np.bool_]
    marked: NDArray[np.bool_]


def joined(parts: Sequence[Photos]) -> Photos:
    """Several sets as one; groups of different sets stay apart."""
    shifted, top = [], 0
    for part in parts:
        shifted.append(replace(part, group=part.group + top))
        top += int(part.group.max(initial=-1)) + 1
    return Photos(*(np.concatenate([getattr(part, f.name) for part in shifted]) for f in fields(Photos)))


def rendered(
    animals: int, photos_each: int, *, seed: int, plain: bool = False, progress: Progress | None = None
) -> Photos:
    """`animals * photos_each` rendered flukes; `plain` leaves the framing as the renderer chooses it (for judging), else
    there is sea on all sides, from which other framings can be cut.
    """

    def photos_of(animal: int) -> list[tuple[Pixels, Points, Points]]:
        return [_rendered(seed, animal, number, plain) for number in range(photos_each)]

    rows: list[tuple[Pixels, Points, Points]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for done, made in enumerate(pool.map(photos_of, range(animals)), 1):
            rows += made
            if progress is not None:
                progress("render", done, animals)
    n = len(rows)
    yes = np.ones(n, np.bool_)
    seen = np.array([np.isfinite(outline).all() for _, outline, _ in rows], np.bool_)  # else all of it is drowned
    return Photos(
        np.stack([pixels for pixels, _, _ in rows]),
        np.stack([np.nan_to_num(outline) for _, outline, _ in rows]),
        np.stack([marks for _, _, marks in rows]).astype(np.float32),
        seen,
        yes & seen,
        yes,
        np.repeat(np.arange(animals), photos_each),
    )


def _rendered(seed: int, animal: int, number: int, plain: bool) -> tuple[Pixels, Points, Points]:
    """One photo with its outline and landmarks in shares."""
    individual, view = staged(Shot(seed, animal, number))
    if not plain:
        view = _roomy(view, np.random.default_rng([_RENDERED, seed, animal, number]))
    photo = expose(individual, view, None, 320)
    size = np.array([photo.width, photo.height], np.float32)
    return squash(camera.decode(photo.jpeg), STORED), outline_of(photo.mask), photo.landmarks / size


def beside(photos: Photos) -> Photos:
    """What lies beside the animals, as photos without one: of each photo the largest strip left or right of, above or
    below the box, where it is at least `STRIP` of the photo.
    """
    pixels = []
    for one, (x0, y0, x1, y1) in zip(photos.pixels, box_of(photos.outline) * STORED, strict=True):
        strips = [one[:, : int(x0)], one[:, int(np.ceil(x1)) :], one[: int(y0)], one[int(np.ceil(y1)) :]]
        largest = max(strips, key=lambda strip: strip.shape[0] * strip.shape[1])
        if largest.size >= STRIP * one.size:
            pixels.append(squash(largest, STORED))
    return _without(np.stack(pixels) if pixels else np.zeros((0, STORED, STORED, 3), np.uint8))


def scrambled(photos: Photos, *, seed: int) -> Photos:
    """The same photos cut into tiles that are dealt anew: all that an animal's photo is made of, and no animal."""
    made = []
    for number, one in enumerate(photos.pixels):
        rng = np.random.default_rng([_RENDERED, seed, number, 2])
        n = int(rng.choice((4, 5, 8)))
        size = STORED // n
        tiles = one[: n * size, : n * size].reshape(n, size, n, size, 3).swapaxes(1, 2).reshape(n * n, size, size, 3)
        dealt = tiles[rng.permutation(n * n)].reshape(n, n, size, size, 3).swapaxes(1, 2)
        made.append(squash(dealt.reshape(n * size, n * size, 3), STORED))
    return _without(np.stack(made)) if made else Photos.none()


def _without(pixels: Pixels) -> Photos:
    n = len(pixels)
    no = np.zeros(n, np.bool_)
    outline, marks = np.zeros((n, DIRECTIONS, 2), np.float32), np.zeros((n, 4, 2), np.float32)
    return Photos(pixels, outline, marks, no, no, no, np.arange(n))


def empty(n: int, *, seed: int) -> Photos:
    """Photos without an animal: seas with surf, fields of cloud, shapes that are none."""
    made = [_nothing(np.random.default_rng([_RENDERED, seed, i, 1])) for i in range(n)]
    return _without(np.stack(made)) if made else Photos.none()


def boxed(
    photos: Sequence[tuple[Path, Box, tuple[int, int] | None]],
    groups: Sequence[int],
    *,
    progress: Progress | None = None,
) -> tuple[Photos, list[Failure]]:
    """A user's photos with their boxes, drawn in a photo of the size (width, height) given, None for its own. Those that
    cannot be read are left out and named.
    """
    kept: list[tuple[Pixels, Points, int]] = []
    failures = []
    for number, ((path, box, drawn), group) in enumerate(zip(photos, groups, strict=True)):
        try:
            loaded = images.load(path)
            pixels = images.read(loaded, target=(STORED, STORED)).pixels
        except PhotoError as error:
            failures.append(Failure(str(path), error.code, error.message, error.next_step))
            continue
        width, height = drawn or (loaded.facts.width, loaded.facts.height)
        x0, y0, x1, y1 = np.clip(np.array([box.x0, box.y0, box.x1, box.y1]) / (width, height, width, height), 0, 1)
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32)
        kept.append((squash(pixels, STORED), np.resize(corners, (DIRECTIONS, 2)), group))
        if progress is not None and number % 50 == 49:
            progress("photos", number + 1, len(photos))
    n = len(kept)
    yes, no = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    return Photos(
        np.stack([p for p, _, _ in kept]) if n else np.zeros((0, STORED, STORED, 3), np.uint8),
        np.stack([o for _, o, _ in kept]) if n else np.zeros((0, DIRECTIONS, 2), np.float32),
        np.zeros((n, 4, 2), np.float32),
        yes,
        no,
        no,
        np.array([g for _, _, g in kept], np.int64),
    ), failures


def outline_of(mask: NDArray[np.bool_]) -> Points:
    """The mask's extreme points, `(DIRECTIONS, 2)` in shares of the picture; NaN where nothing is set.

    Pixels count with their corners, so that the outline's box is the mask's tight box.
    """
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return np.full((DIRECTIONS, 2), np.nan, np.float32)
    first, last = mask[rows].argmax(axis=1), width - mask[rows][:, ::-1].argmax(axis=1)
    ends = [np.stack([x, y], -1) for x in (first, last) for y in (rows, rows + 1)]
    points = np.concatenate(ends).astype(np.float32)
    angles = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    far = (points @ np.stack([np.cos(angles), np.sin(angles)])).argmax(axis=0)
    return np.asarray(points[far] / np.array([width, height], np.float32), np.float32)


def box_of(outline: Points) -> Points:
    """The box of outlines `(..., D, 2)`, clipped to the photo: `(..., 4)` XYXY."""
    low, high = outline.min(axis=-2), outline.max(axis=-2)
    return np.asarray(np.clip(np.concatenate([low, high], axis=-1), 0.0, 1.0), np.float32)


def plain(photos: Photos, side: int) -> Shown:
    """As they are, at the network's size."""
    pixels = (
        np.stack([squash(p, side) for p in photos.pixels]) if len(photos) else np.zeros((0, side, side, 3), np.uint8)
    )
    return Shown(pixels, box_of(photos.outline), photos.landmarks, photos.animal, photos.marked)


def varied(photos: Photos, side: int, how: Variation, rng: np.random.Generator) -> Shown:
    """Every photo framed, turned, mirrored and retoned anew, its points with it."""
    made = [_varied(photos, i, side, how, rng) for i in range(len(photos))]
    animal = np.array([there for *_, there in made], np.bool_)
    boxes, marks = (np.stack([one[k] for one in made]).astype(np.float32) for k in (1, 2))
    return Shown(np.stack([one[0] for one in made]), boxes, marks, animal, photos.marked & animal)


def moved(points: Points, matrix: NDArray[np.float64]) -> Points:
    """`points (..., 2)` through a matrix `(2, 3)`."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float32)


def _varied(
    photos: Photos, i: int, side: int, how: Variation, rng: np.random.Generator
) -> tuple[Pixels, Points, Points, bool]:
    matrix = _framing(box_of(photos.outline[i]), bool(photos.animal[i]), bool(photos.shaped[i]), how, rng)
    marks = moved(photos.landmarks[i], matrix)
    if rng.random() < how.mirror:
        matrix = np.array([[-1.0, 0, 1], [0, 1, 0]]) @ np.concatenate([matrix, [[0, 0, 1]]])
        marks = moved(photos.landmarks[i], matrix)[list(SWAPPED)]
    pixels = warp(photos.pixels[i], matrix, side, _BORDERS[int(rng.choice(3, p=(0.6, 0.25, 0.15)))])
    pixels = _retoned(_covered(pixels, how, rng), how, rng)
    box = box_of(moved(photos.outline[i], matrix))
    there = bool(photos.animal[i]) and float((box[2] - box[0]) * (box[3] - box[1])) > 1e-3
    return pixels, box, marks, there


_BORDERS = (cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT)


def warp(pixels: Pixels, matrix: NDArray[np.float64], side: int, border: int = cv2.BORDER_REFLECT_101) -> Pixels:
    """The photo through a matrix between shares of the photo, at `side` pixels: a point p of it comes to `matrix` p."""
    size = pixels.shape[0]
    to_pixels = np.diag([side, side, 1.0]) @ np.concatenate([matrix, [[0, 0, 1]]]) @ np.diag([1 / size, 1 / size, 1.0])
    to_pixels = _centres(-0.5) @ to_pixels @ _centres(0.5)  # OpenCV counts from the middle of the first pixel
    return np.asarray(
        cv2.warpAffine(
            pixels, to_pixels[:2], (side, side), flags=cv2.INTER_LINEAR, borderMode=border, borderValue=(250, 250, 250)
        ),
        np.uint8,
    )


def _centres(by: float) -> NDArray[np.float64]:
    return np.array([[1.0, 0, by], [0, 1, by], [0, 0, 1]])


def _framing(box: Points, animal: bool, shaped: bool, how: Variation, rng: np.random.Generator) -> NDArray[np.float64]:
    """A matrix `(2, 3)` in shares that turns, shears and frames: the animal's box gets a size and place of our choice."""
    if not animal:
        zoom = rng.uniform(1.0, 2.0, 2)
        return np.array([[zoom[0], 0, -rng.uniform(0, zoom[0] - 1)], [0, zoom[1], -rng.uniform(0, zoom[1] - 1)]])
    turn, shear = np.deg2rad(rng.uniform(-1, 1, 2) * (how.rotate, how.shear)) if shaped else (0.0, 0.0)
    have = np.maximum(np.array([box[2] - box[0], box[3] - box[1]], np.float64), 0.02)
    middle = np.array([box[0] + box[2], box[1] + box[3]], np.float64) / 2
    wanted = _wanted(how, rng)
    # a photo cannot be framed much wider than it is: what would come in from outside is no sea
    wanted = np.maximum(wanted, have * (0.75 if shaped else 0.9))
    slack = np.abs(1.0 - wanted) / 2
    place = 0.5 + rng.uniform(-1, 1, 2) * slack * np.where(wanted > 1, 1.0, 0.96)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array(
        [[1, np.tan(shear)], [0, 1]]
    )
    matrix = np.diag(wanted) @ linear @ np.diag(1 / have)  # turned in the animal's own frame, then brought to size
    return np.concatenate([matrix, (place - matrix @ middle)[:, None]], axis=1)


def _wanted(how: Variation, rng: np.random.Generator) -> NDArray[np.float64]:
    """Width and height of the box in the frame."""
    draw = rng.random()
    if draw < how.tight:
        width = rng.uniform(0.8, 1.0)
    elif draw < how.tight + how.cut:
        width = rng.uniform(1.0, 1.3)
    else:
        width = rng.uniform(0.22, 0.8)
    tall = rng.random()
    height = rng.uniform(0.28, 1.0) if tall < 0.85 else rng.uniform(0.1, 0.28) if tall < 0.93 else rng.uniform(1.0, 1.2)
    return np.array([width, min(height, 2.5 * width)])


def _covered(pixels: Pixels, how: Variation, rng: np.random.Generator) -> Pixels:
    """Perhaps something in front, perhaps a strip of paper with writing."""
    side = pixels.shape[0]
    if rng.random() < how.patch:
        pixels = pixels.copy()
        for _ in range(int(rng.integers(1, 4))):
            x, y = (int(v) for v in rng.integers(0, side, 2))
            size = tuple(int(v) for v in rng.integers(2, side // 5, 2))
            cv2.ellipse(pixels, (x, y), size, float(rng.uniform(0, 180)), 0, 360, rng.integers(0, 256, 3).tolist(), -1)
    if rng.random() < how.paper:
        pixels = pixels.copy()
        tall = int(rng.integers(3, side // 6))
        top = 0 if rng.random() < 0.3 else side - tall
        pixels[top : top + tall] = int(rng.integers(225, 256))
        place = (int(rng.integers(0, side // 2)), top + max(tall - 3, 3))
        cv2.putText(pixels, "No 4127 ab"[: int(rng.integers(3, 11))], place, 0, 0.3, (40, 40, 40), 1, cv2.LINE_AA)
    return pixels


def _retoned(pixels: Pixels, how: Variation, rng: np.random.Generator) -> Pixels:
    """Another camera, another light, another file."""
    side = pixels.shape[0]
    if rng.random() < how.shrink:
        small = max(16, round(side * rng.uniform(0.3, 0.8)))
        pixels = np.asarray(cv2.resize(pixels, (small, small), interpolation=cv2.INTER_AREA), np.uint8)
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    if rng.random() < how.blur:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.6)), np.uint8)
    tones = pixels.astype(np.float32)
    tones *= (1 + how.colour * rng.uniform(-1, 1, 3)).astype(np.float32)
    if rng.random() < how.grey:
        tones[:] = (tones @ rng.dirichlet((3, 6, 2)).astype(np.float32))[..., None]
    light, contrast, gamma = 1 + how.light * rng.uniform(-1, 1, 3)
    mean = float(tones.mean())
    tones = (tones - mean) * np.float32(contrast * (1.6 if rng.random() < 0.2 else 1.0)) + np.float32(mean * light)
    np.clip(tones, 0, 255, out=tones)
    tones = np.float32(255) * (tones * np.float32(1 / 255)) ** np.float32(gamma)
    if rng.random() < how.noise:
        tones += rng.normal(0, rng.uniform(1, 14), (side, side, 1)).astype(np.float32)
    pixels = np.clip(tones, 0, 255).astype(np.uint8)
    if rng.random() < how.jpeg:
        ok, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 85))])
        if ok:
            pixels = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return pixels


def _roomy(view: View, rng: np.random.Generator) -> View:
    """The same view with sea on all sides."""
    fill = float(rng.uniform(0.45, 0.8))
    return replace(
        view, fill=fill, aspect=float(rng.uniform(1.2, 2.2)), offset_x=float(rng.normal(0, 0.05)), margin=0.0
    )


def _nothing(rng: np.random.Generator) -> Pixels:
    """One photo without an animal: sea and surf, or a scene on land."""
    pixels = _sea(rng) if rng.random() < 0.5 else _land(rng)
    if rng.random() < 0.6:
        _shapes(pixels, rng)
    return pixels


def _sea(rng: np.random.Generator) -> Pixels:
    """A sea with waves and perhaps the splash that a whale has left."""
    view = random_view(rng)
    shape = (160, int(rng.integers(160, 320)))
    row, scale = float(rng.uniform(0.4, 1.3)) * shape[0], float(rng.uniform(0.1, 0.6)) * shape[1]
    water = scene.sea(shape, view, row, scale, rng).picture
    if rng.random() < 0.5:
        centre = float(rng.uniform(0, shape[1]))
        line = scene.waterline(shape[1], row, scale, view, centre, rng)
        scene.wash(water, line, centre, scale, replace(view, splash=float(rng.gamma(1.5, 0.5))), rng)
        scene.spray(water, line, centre, scale, view, rng)
    return squash(camera.expose(water, view, rng), STORED).copy()


def _land(rng: np.random.Generator) -> Pixels:
    """Ground, scrub, sky, and bodies on legs: nothing that could be taken for a fluke, and much that is no sea."""
    pixels = _texture(rng)
    if rng.random() < 0.5:
        split = int(rng.integers(20, STORED - 20))
        pixels[:split] = _texture(rng)[:split]
    for _ in range(int(rng.integers(0, 9))):
        inside = np.zeros((STORED, STORED), np.uint8)
        x, y = (int(v) for v in rng.integers(0, STORED, 2))
        axes = (int(rng.integers(4, 70)), int(rng.integers(4, 45)))
        cv2.ellipse(inside, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        for _ in range(int(rng.integers(0, 6))):  # legs, stems, necks
            end = (x + int(rng.integers(-70, 71)), y + int(rng.integers(-70, 71)))
            cv2.line(inside, (x + int(rng.integers(-30, 31)), y), end, 1, int(rng.integers(1, 14)))
        pixels = np.where(inside[..., None] > 0, _texture(rng), pixels)
    return np.asarray(pixels, np.uint8)


def _texture(rng: np.random.Generator) -> Pixels:
    """A field between two colours, `(STORED, STORED, 3)`, from smooth to rough."""
    field = np.zeros((STORED, STORED), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        cell = np.exp(rng.uniform(np.log(0.15), np.log(4.0), 2))
        kind = "cloud" if rng.random() < 0.6 else "grain"
        field += np.float32(rng.uniform(0.3, 1.0)) * window(
            rng, kind, field.shape, (cell[0], cell[1]), rng.uniform(0, 3)
        )
    share = 1 / (1 + np.exp(-field * rng.uniform(0.3, 3.0)))[..., None]
    dark, light = (rng.uniform(*reach) * (1 + 0.4 * rng.uniform(-1, 1, 3)) for reach in ((0, 130), (50, 255)))
    return np.asarray(np.clip(dark + share * (light - dark), 0, 255), np.uint8)


def _shapes(pixels: Pixels, rng: np.random.Generator) -> None:
    """Backs, fins, boats, birds and nothing in particular, drawn into the photo in place."""
    side = pixels.shape[0]
    for _ in range(int(rng.integers(1, 4))):
        colour = (rng.uniform(0, 1) ** 2 * rng.uniform(0.6, 1.0, 3) * 255).astype(int).tolist()
        x, y = rng.uniform(0.1, 0.9, 2) * side
        kind = int(rng.integers(3))
        if kind == 0:
            axes = (int(rng.uniform(0.05, 0.5) * side), int(rng.uniform(0.03, 0.35) * side))
            cv2.ellipse(pixels, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            corners = int(rng.integers(3, 9)) if kind == 1 else 4
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            reach = rng.uniform(0.08, 0.5, (corners, 1)) * side
            polygon = (x, y) + reach * np.stack([np.cos(angles), np.sin(angles)], -1) * (1.0, rng.uniform(0.3, 1.0))
            cv2.fillPoly(pixels, [np.round(polygon).astype(np.int32)], colour, cv2.LINE_AA)
