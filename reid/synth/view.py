"""The circumstances of a photo: sea and light of one sighting, then pose, framing and camera of one exposure.

Only numbers, no pixels and no animal. `random_conditions` is drawn once a sighting and `random_view` once a photo, so
the photos of one sighting share their sea and sky as they do in life.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

Colour = tuple[float, float, float]  # linear RGB, 0 to 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """Sea, sky and light of one sighting."""

    sky: Colour = (0.72, 0.78, 0.85)
    water: Colour = (0.10, 0.22, 0.36)
    light: Colour = (1.0, 1.0, 1.0)
    light_on_fluke: float = 0.75  # below 0.4 the sun stands behind the whale
    sun_side: float = 0.3  # -1 left, 1 right
    gloss: float = 0.3  # wet highlights on the skin, 0 none
    glints: float = 0.2  # sun sparkle on the sea, 0 none
    choppiness: float = 0.5  # 0 swell, 1 ripples
    sea_contrast: float = 0.5
    wave_size: float = 1.0
    sea: int = 0  # which ocean
    whitecaps: float = 0.0
    haze: float = 0.05
    algae: float = 0.0  # yellow diatom film, 0 none
    shore: float = 0.0  # 0 open horizon, else height of a far coast as a share of the photo
    archive: bool = False  # black and white film, scanned


@dataclass(frozen=True, slots=True)
class View:
    """One exposure. Angles in radians, blur in pixels at 640 pixels width, `fill` fluke width / photo width."""

    conditions: Conditions = field(default_factory=Conditions)
    seed: int = 0  # windows on waves, splash and noise
    yaw: float = 0.0
    pitch: float = 0.25
    roll: float = 0.0
    bend_left: float = 0.2  # lobe curling towards the camera, positive lifts its tip
    bend_right: float = 0.2
    curl: float = 0.0
    distance: float = 8.0  # camera to notch, half spans
    waterline: float = 0.55  # y in the fluke's frame where the sea closes over it
    fill: float = 0.9
    offset_x: float = 0.0  # of the fluke's centre from the photo's, share of the width
    offset_y: float = 0.0
    aspect: float = 1.8  # width / height of the photo
    horizon: float = -0.6  # y of the horizon, share of the height; below 0 it is out of the picture
    camera_roll: float = 0.0
    splash: float = 0.5
    streaming: float = 0.3
    spray: float = 0.3
    defocus: float = 0.6
    shake: float = 0.0
    shake_angle: float = 0.0
    noise: float = 0.012
    exposure: float = 1.0
    black_point: float = 0.0
    white_point: float = 1.0
    contrast: float = 0.4  # of the tone curve, 0 straight
    saturation: float = 1.0
    grey: bool = False
    grain: float = 0.0
    margin: float = 0.0  # white paper left by a scan or by turning the picture, share of the height
    turned: float = 0.0  # the finished picture turned by this and its corners left white
    jpeg_quality: int = 90
    encounter: str = ""
    taken_at: datetime = datetime(2010, 7, 1, 12, 0, 0)
    latitude: float = 0.0
    longitude: float = 0.0


_WATERS: tuple[tuple[Colour, Colour], ...] = (  # (deep, sky it mirrors), linear
    ((0.018, 0.075, 0.20), (0.40, 0.56, 0.80)),
    ((0.010, 0.040, 0.13), (0.24, 0.36, 0.60)),
    ((0.03, 0.16, 0.30), (0.46, 0.66, 0.86)),
    ((0.05, 0.075, 0.10), (0.42, 0.47, 0.52)),
    ((0.10, 0.12, 0.14), (0.60, 0.63, 0.66)),
    ((0.035, 0.075, 0.075), (0.36, 0.44, 0.44)),
    ((0.02, 0.03, 0.06), (0.20, 0.24, 0.34)),
    ((0.16, 0.20, 0.25), (0.75, 0.79, 0.84)),
)
_ASPECTS = (
    (0.0, 0.02, 0.12, 0.25, 0.5, 0.62, 0.75, 0.88, 0.96, 1.0),
    (1.25, 1.33, 1.5, 1.6, 1.85, 2.1, 2.7, 3.3, 4.2, 5.0),
)


def planes(colour: Colour, grey: bool) -> npt.NDArray[np.float32]:
    """A colour as (P, 1, 1) float32 planes: red, green, blue, or where `grey` the one that panchromatic film sees."""
    if grey:
        return np.full((1, 1, 1), 0.28 * colour[0] + 0.55 * colour[1] + 0.17 * colour[2], np.float32)
    return np.array(colour, np.float32)[:, None, None]


def random_conditions(rng: np.random.Generator) -> Conditions:
    """Sea, sky and light of a sighting, in about the proportions of public catalogues."""
    deep, sky = _WATERS[int(rng.choice(len(_WATERS), p=[0.24, 0.12, 0.13, 0.14, 0.14, 0.09, 0.05, 0.09]))]
    vary = np.exp(rng.normal(0.0, 0.18, 3)) * np.exp(rng.normal(0.0, 0.25))
    backlit = rng.random() < 0.3
    warm = float(rng.beta(1.3, 6.0)) if rng.random() < 0.8 else float(rng.uniform(0.3, 1.0))
    light = float(rng.uniform(0.15, 0.42)) if backlit else float(np.exp(rng.normal(np.log(0.72), 0.22)))
    shade = backlit or rng.random() < 0.35  # lit by blue sky alone
    tint = (0.66, 0.84, 1.12) if shade else (1.0 + 0.12 * warm, 1.0 - 0.1 * warm, 1.0 - 0.5 * warm)
    return Conditions(
        sky=_scaled(sky, float(vary[0]) if not backlit else float(vary[0]) * 1.2),
        water=(deep[0] * float(vary[0]), deep[1] * float(vary[1]), deep[2] * float(vary[2])),
        light=tint,
        light_on_fluke=light,
        sun_side=float(rng.uniform(-1.0, 1.0)),
        gloss=float(rng.gamma(1.6, 0.22)),
        glints=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.3 else 0.0,
        choppiness=float(rng.uniform(0.0, 1.0)),
        sea_contrast=float(rng.uniform(0.35, 1.0)),
        wave_size=float(np.exp(rng.normal(0.25, 0.4))),
        sea=int(rng.integers(3)),
        whitecaps=float(rng.uniform(0.1, 0.9)) if rng.random() < 0.4 else 0.0,
        haze=float(rng.gamma(0.8, 0.05)),
        algae=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.08 else 0.0,
        shore=float(rng.uniform(0.02, 0.22)) if rng.random() < 0.3 else 0.0,
        archive=bool(rng.random() < 0.38),
    )


def random_view(rng: np.random.Generator, conditions: Conditions | None = None, **where: object) -> View:
    """One exposure under `conditions` (drawn where None); `where`: encounter, taken_at, latitude, longitude."""
    c = random_conditions(rng) if conditions is None else conditions
    pose = {**_pose(rng), **_framing(rng), **_water(rng), **_camera(rng, c)}
    return View(conditions=c, seed=int(rng.integers(2**31)), **pose, **where)  # type: ignore[arg-type]


def _pose(rng: np.random.Generator) -> dict[str, float]:
    """How the fluke stands: mostly square to the camera, sometimes well turned, seldom edge-on."""
    oblique = rng.random() < 0.2
    yaw = float(rng.normal(0.0, 0.16)) if not oblique else float(rng.choice([-1, 1]) * rng.uniform(0.35, 0.8))
    bend = float(rng.normal(0.38, 0.33))
    return {
        "yaw": yaw,
        "pitch": float(np.clip(rng.normal(0.55, 0.30), -0.3, 1.12)),
        "roll": float(rng.normal(0.0, 0.10)) + (0.35 * yaw if oblique else 0.0),
        "bend_left": float(np.clip(bend + rng.normal(0.0, 0.16), -0.7, 0.85)),
        "bend_right": float(np.clip(bend + rng.normal(0.0, 0.16), -0.7, 0.85)),
        "curl": float(rng.normal(0.0, 0.10)),
        "distance": float(np.exp(rng.uniform(np.log(3.5), np.log(15.0)))),
    }


def _framing(rng: np.random.Generator) -> dict[str, float]:
    """Most catalogue photos are cropped to the fluke; some are far views and some cut a tip off."""
    draw = rng.random()
    if draw < 0.78:
        fill, dx = float(rng.beta(9.0, 1.2) * 0.30 + 0.69), float(rng.normal(0.0, 0.008))
    elif draw < 0.93:
        fill, dx = float(rng.uniform(0.28, 0.75)), float(rng.normal(0.0, 0.07))
    else:
        fill, dx = float(rng.uniform(1.02, 1.35)), float(rng.normal(0.0, 0.12))
    far = fill < 0.7
    return {
        "fill": fill,
        "offset_x": dx,
        "offset_y": float(rng.normal(0.0, 0.04)),
        "aspect": float(np.interp(rng.random(), *_ASPECTS)) if not far else float(rng.uniform(1.33, 1.9)),
        "horizon": float(rng.uniform(0.02, 0.35))
        if rng.random() < (0.35 if far else 0.13)
        else float(-rng.uniform(0.1, 2.2)),
        "camera_roll": float(rng.normal(0.0, 0.035)) if rng.random() < 0.88 else float(rng.normal(0.0, 0.16)),
    }


def _water(rng: np.random.Generator) -> dict[str, float]:
    """How far the fluke is out, and the water it carries."""
    return {
        "waterline": float(
            np.interp(rng.random(), (0.0, 0.1, 0.3, 0.7, 0.9, 1.0), (0.12, 0.24, 0.38, 0.54, 0.68, 0.88))
        ),
        "splash": float(rng.gamma(1.2, 0.35)),
        "streaming": float(rng.gamma(1.0, 0.25)),
        "spray": float(rng.gamma(1.0, 0.25)),
    }


def _camera(rng: np.random.Generator, c: Conditions) -> dict[str, object]:
    """Sharpness, tone curve, noise and compression; old film is harder and grainier."""
    grey = c.archive or bool(rng.random() < 0.03)
    hard = grey and rng.random() < 0.6
    turned = rng.random() < 0.04
    return {
        "defocus": float(rng.gamma(1.4, 0.4)),
        "shake": float(rng.uniform(2.0, 7.0)) if rng.random() < 0.1 else 0.0,
        "shake_angle": float(rng.uniform(0.0, np.pi)),
        "noise": float(rng.gamma(1.5, 0.008)),
        "exposure": float(np.exp(rng.normal(0.24 if hard else 0.05, 0.22))),
        "black_point": float(rng.uniform(0.0, 0.16)) if hard else float(rng.uniform(-0.03, 0.16)),
        "white_point": float(rng.uniform(0.7, 0.95)) if hard else float(rng.uniform(0.8, 1.05)),
        "contrast": float(rng.uniform(0.3, 1.0)),
        "saturation": float(rng.uniform(0.8, 1.4)),
        "grey": grey,
        "grain": float(rng.uniform(0.01, 0.06)) if c.archive else 0.0,
        "margin": float(rng.uniform(0.02, 0.12)) if c.archive and rng.random() < 0.15 else 0.0,
        "turned": float(rng.uniform(-0.3, 0.3)) if turned else 0.0,
        "jpeg_quality": int(rng.integers(35, 75)) if rng.random() < 0.25 else int(rng.integers(75, 96)),
    }


def _scaled(colour: Colour, by: float) -> Colour:
    """A colour times a factor, kept at or below 1."""
    return (min(colour[0] * by, 1.0), min(colour[1] * by, 1.0), min(colour[2] * by, 1.0))
