"""Photos for training a cropper that nobody took: rendered flukes with their points, and scenes without an animal.

The same seed gives the same photos. Knows the renderer (`reid.synth`); no networks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np

from reid.locate import squash
from reid.synth import Shot, View, camera, random_view, scene, staged
from reid.synth.noise import window
from reid.synth.render import expose
from reid.train.cropper_data import STORED, STREAM, Photos, Pixels, Points, Progress, outline_of

WORKERS = 2


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
        view = _roomy(view, np.random.default_rng([STREAM, seed, animal, number]))
    photo = expose(individual, view, None, 320)
    size = np.array([photo.width, photo.height], np.float32)
    return squash(camera.decode(photo.jpeg), STORED), outline_of(photo.mask), photo.landmarks / size


def _roomy(view: View, rng: np.random.Generator) -> View:
    """The same view with sea on all sides."""
    fill = float(rng.uniform(0.45, 0.8))
    return replace(
        view, fill=fill, aspect=float(rng.uniform(1.2, 2.2)), offset_x=float(rng.normal(0, 0.05)), margin=0.0
    )


def empty(n: int, *, seed: int) -> Photos:
    """Photos without an animal: seas with surf, fields of cloud, shapes that are none."""
    made = [_nothing(np.random.default_rng([STREAM, seed, i, 1])) for i in range(n)]
    return Photos.without(np.stack(made)) if made else Photos.none()


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
