"""One imaginary whale: the numbers that make its fluke unlike any other's, and what the years add to them.

Only parameters here, no pixels. Canonical frame of a fluke, used by the whole package: the unit is half the span; x
runs from the left tip (-1) to the right tip (+1) as the photographer sees the underside; y points down the picture, 0
at the notch, about 0.55 where the lobes join the tail stock. Everything follows from `(seed, index)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

MarkKind = Literal["scratch", "rake", "ring", "spot", "blotch"]

_FLUKE, _YEAR = 11, 12  # streams of random numbers that must never meet


@dataclass(frozen=True, slots=True)
class Lobe:
    """Outline of one lobe, for the right side (the left is mirrored). Lengths in half spans."""

    shoulder: tuple[float, float]
    middle: tuple[float, float]
    hollow: tuple[float, float]
    tip: tuple[float, float]
    leading: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Nick:
    """A bite out of the trailing edge: `at` in [-1, 1] along x, width and depth in half spans; from year `since` on."""

    at: float
    width: float
    depth: float
    since: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """One scar or spot. `tone` in [-1, 1]: pale above 0 (and fading), dark below; there from year `since` on."""

    kind: MarkKind
    x: float
    y: float
    angle: float
    length: float
    width: float
    tone: float
    bow: float
    strands: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class Pigment:
    """Where the underside is white: a sigmoid of `outward * (distance from the stock - core) + noise`."""

    core: float
    outward: float
    edge_width: float
    edge_raggedness: float
    sharpness: float
    blotchiness: float
    streakiness: float
    speckle: float
    white: float
    black: float
    mottle: float
    asymmetry: float
    seam: float
    tip_scarring: float
    warmth: float


@dataclass(frozen=True, slots=True)
class Fluke:
    """One individual at one age. `age` counts years since it was first described; see `aged`."""

    seed: int
    index: int
    left: Lobe
    right: Lobe
    notch_depth: float
    notch_width: float
    stock: float
    serration: float
    serration_grain: float
    pigment: Pigment
    nicks: tuple[Nick, ...]
    marks: tuple[Mark, ...]
    age: int = 0

    @property
    def identity(self) -> str:
        """`fluke_0007`: the name used in tables; four digits, more where the index needs them."""
        return f"fluke_{self.index:04d}"


def fluke(seed: int, index: int) -> Fluke:
    """The individual number `index` of the population `seed`, at age 0."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index of a fluke must not be negative, got seed {seed}, index {index}")
    rng = np.random.default_rng([_FLUKE, seed, index])
    right = _lobe(rng)
    pigment = _pigment(rng)
    nicks = tuple(_nick(rng, 0) for _ in range(int(rng.poisson(2.5))))
    busy = float(rng.gamma(1.6, 1.0))
    marks = tuple(_mark(rng, pigment, 0) for _ in range(4 + int(rng.poisson(9.0 * busy))))
    return Fluke(
        seed=seed,
        index=index,
        left=_resembling(rng, right),
        right=right,
        notch_depth=float(rng.uniform(0.03, 0.15)),
        notch_width=float(rng.uniform(0.012, 0.05)),
        stock=float(rng.uniform(0.085, 0.12)),
        serration=0.003 + float(rng.gamma(2.5, 0.0032)),
        serration_grain=float(rng.uniform(12.0, 34.0)),
        pigment=pigment,
        nicks=nicks,
        marks=marks,
    )


def aged(individual: Fluke, years: int) -> Fluke:
    """The same whale `years` later: new scratches and now and then a new nick, each dated.

    `years` >= 0, else ValueError.

    Steps add up: `aged(aged(f, 2), 3) == aged(f, 5)`.
    """
    if years < 0:
        raise ValueError(f"a whale cannot age by {years} years; ask for fluke(seed, index) and age that")
    marks, nicks = list(individual.marks), list(individual.nicks)
    for year in range(individual.age + 1, individual.age + years + 1):
        rng = np.random.default_rng([_YEAR, individual.seed, individual.index, year])
        marks += [_mark(rng, individual.pigment, year) for _ in range(int(rng.poisson(0.7)))]
        nicks += [_nick(rng, year) for _ in range(int(rng.poisson(0.1)))]
    return replace(individual, marks=tuple(marks), nicks=tuple(nicks), age=individual.age + years)


def _lobe(rng: np.random.Generator) -> Lobe:
    """A lobe of average build with every knot moved a little."""
    n = rng.normal
    chord = float(np.clip(n(1.0, 0.09), 0.78, 1.25))
    tip_y = float(np.clip(n(-0.13, 0.06), -0.28, 0.05))
    return Lobe(
        shoulder=(float(rng.uniform(0.09, 0.17)), float(n(-0.06, 0.018))),
        middle=(float(rng.uniform(0.42, 0.55)), float(n(-0.15, 0.03))),
        hollow=(float(rng.uniform(0.78, 0.87)), float(n(-0.085, 0.02)) + 0.45 * tip_y),
        tip=(0.992, tip_y - 0.05),
        leading=(
            (float(rng.uniform(0.93, 0.965)), tip_y + float(n(0.085, 0.015))),
            (0.83, float(n(0.165, 0.018)) * chord + 0.3 * tip_y),
            (0.53, float(n(0.335, 0.02)) * chord),
            (0.26, min(float(n(0.475, 0.018)) * chord, 0.52)),
        ),
    )


def _resembling(rng: np.random.Generator, other: Lobe) -> Lobe:
    """The opposite lobe: the same build, never quite the same."""

    def near(p: tuple[float, float], spread: float) -> tuple[float, float]:
        return (p[0] + float(rng.normal(0.0, spread)), p[1] + float(rng.normal(0.0, spread)))

    return Lobe(
        shoulder=near(other.shoulder, 0.012),
        middle=near(other.middle, 0.014),
        hollow=near(other.hollow, 0.012),
        tip=(0.992, other.tip[1] + float(rng.normal(0.0, 0.015))),
        leading=tuple(near(p, 0.008) for p in other.leading),
    )


def _pigment(rng: np.random.Generator) -> Pigment:
    """Draw one of the five classes used to sort catalogues (1 nearly white ... 5 nearly black), then vary within it."""
    kind = int(rng.choice(5, p=[0.27, 0.17, 0.18, 0.16, 0.22]))
    core = (
        rng.uniform(-0.05, 0.12),
        rng.uniform(0.15, 0.34),
        rng.uniform(0.34, 0.6),
        rng.uniform(0.6, 0.9),
        rng.uniform(1.15, 1.7),
    )
    edge = (rng.gamma(3.0, 0.009), rng.gamma(3.0, 0.011), rng.gamma(3.0, 0.014), rng.gamma(3.0, 0.02), 0.03)
    black_scratched = kind >= 3
    return Pigment(
        core=float(core[kind]),
        outward=float(rng.uniform(2.0, 6.0)) if kind < 4 else float(rng.uniform(1.5, 3.0)),
        edge_width=float(edge[kind]),
        edge_raggedness=float(rng.uniform(0.3, 1.0)),
        sharpness=float(np.exp(rng.uniform(np.log(1.6), np.log(9.0)))),
        blotchiness=float(rng.uniform(0.25, 0.9)),
        streakiness=float(rng.uniform(0.0, 0.6)),
        speckle=float(rng.gamma(1.5, 0.3)),
        white=float(rng.uniform(0.62, 0.95)),
        black=float(rng.uniform(0.02, 0.07)) + (float(rng.uniform(0.0, 0.12)) if rng.random() < 0.2 else 0.0),
        mottle=float(rng.gamma(2.0, 0.05)),
        asymmetry=float(rng.normal(0.0, 0.10)),
        seam=float(rng.uniform(0.2, 1.3)),
        tip_scarring=float(rng.gamma(1.0, 0.7 if black_scratched else 0.25)),
        warmth=float(rng.uniform(-0.3, 1.0)),
    )


def _nick(rng: np.random.Generator, since: int) -> Nick:
    """Most nicks are small; about one in twelve is a missing piece."""
    large = rng.random() < 0.05
    depth = float(rng.uniform(0.05, 0.11)) if large else float(rng.gamma(2.0, 0.006))
    return Nick(float(rng.uniform(-0.97, 0.97)), depth * float(rng.uniform(0.4, 1.0)) + 0.006, depth, since)


_KINDS: tuple[MarkKind, ...] = ("scratch", "rake", "ring", "spot", "blotch")


def _mark(rng: np.random.Generator, pigment: Pigment, since: int) -> Mark:
    """A mark anywhere on the lobes; on dark skin scars heal pale, on pale skin spots are mostly dark."""
    dark_skin = pigment.core > 0.75
    kind = _KINDS[int(rng.choice(5, p=[0.52, 0.04, 0.12, 0.28, 0.04]))]
    pale = (
        rng.random()
        < {"scratch": 0.75, "rake": 0.75, "ring": 0.8, "spot": 0.7 if dark_skin else 0.2, "blotch": 0.5}[kind]
    )
    x = float(rng.uniform(-0.95, 0.95))
    y = float(rng.uniform(-0.1, 0.45 - 0.4 * abs(x)))
    length = {
        "scratch": float(rng.gamma(2.0, 0.06)) + 0.02,
        "rake": float(rng.uniform(0.06, 0.16)),
        "ring": float(rng.uniform(0.006, 0.018)),
        "spot": float(rng.gamma(2.5, 0.0035)) + 0.003,
        "blotch": float(rng.uniform(0.015, 0.05)),
    }[kind]
    return Mark(
        kind=kind,
        x=x,
        y=y,
        angle=float(rng.uniform(0.0, np.pi)),
        length=length,
        width=float(rng.gamma(2.0, 0.0012)) + 0.001,
        tone=(1.0 if pale else -1.0) * float(rng.uniform(0.25, 0.9)),
        bow=float(rng.normal(0.0, 0.18)),
        strands=int(rng.integers(3, 6)) if kind == "rake" else 1,
        since=since,
    )
