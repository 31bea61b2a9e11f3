"""Photo-like humpback flukes with everything known about them: identity, box, landmarks, mask, date and place.

For the demo, the unit tests and the tests of scale, where real photos may not or need not travel. Deterministic by
seed: the same numbers give the same bytes. numpy and OpenCV only.

    for photo in catalogue(n_identities=20, seed=7):      # RenderedPhoto, one at a time
        photo.pixels, photo.identity, photo.box, photo.landmarks, photo.mask
    write_dataset("flukes", n_identities=50, n_queries=40)  # photos/, labels.csv, queries.csv
"""

from __future__ import annotations

from reid.synth.dataset import write_dataset
from reid.synth.fluke import Fluke, aged, fluke
from reid.synth.population import Shot, catalogue, photo_counts, queries, shots, staged
from reid.synth.render import RenderedPhoto, render
from reid.synth.view import Conditions, View, random_conditions, random_view

__all__ = [
    "Conditions",
    "Fluke",
    "RenderedPhoto",
    "Shot",
    "View",
    "aged",
    "catalogue",
    "fluke",
    "photo_counts",
    "queries",
    "random_conditions",
    "random_view",
    "render",
    "shots",
    "staged",
    "write_dataset",
]
