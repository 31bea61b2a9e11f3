"""What `reid explain` and `reid query --explain` do: compare photos, write the pictures, and a page to leaf through.

    <folder>/index.html   and for each pair: matches.jpg  overlay.jpg  heat_a.jpg  heat_b.jpg  warp_a.png  warp_b.png

(`warp_a` and `warp_b` are of one size, for a slider; of several pairs, each has a folder of its own.) Knows stores,
files and answers; prints nothing. A photo that cannot be read is said in the pair's `skipped`, and the others go on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import crop, ensemble, images, intake, local, models, page
from reid.compare import LEAST_POINTS, MOST_OUTSIDE, Comparison, Outside, compare
from reid.embed import Embedder, OpenVinoEmbedder
from reid.errors import InputError, ReidError
from reid.images import printable
from reid.look import Eye, Options, Seen, look
from reid.page import Entry
from reid.picture_files import Write, put, write_sheet, writing
from reid.records import Answer, Box, IdentityScore, Mask, Sighting
from reid.store import Store
from reid.suitable import by_shape
from reid.vectors import embed_views, views_of

PAGE = "index.html"


@dataclass(frozen=True, slots=True)
class Explained:
    """One pair, as it was written. `pictures` by name are paths relative to the folder of the page.

    `cosine` as the store compares vectors; `inliers` of `matches` points agree on one geometry (`verification` says
    how that went); `outside` as in `reid.compare.Outside`, and `flagged` where most of some evidence lies outside the
    animal. `drop_a`, `drop_b`: by how much the cosine falls when the most telling part is covered. `seconds` per
    stage.
    """

    a: str
    b: str
    label: str = ""
    box_a: Box | None = None
    box_b: Box | None = None
    cosine: float | None = None
    verification: str = ""
    matches: int = 0
    inliers: int = 0
    mirrored: bool = False
    drop_a: float | None = None
    drop_b: float | None = None
    heat_ms: float | None = None
    outside: Outside = field(default_factory=Outside)
    flagged: bool = False
    pictures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was written: the page, and each pair on it."""

    page: Path
    pairs: tuple[Explained, ...]
    model: str
    seconds: float

    @property
    def unread(self) -> tuple[str, ...]:
        """What could not be compared at all, and why."""
        return tuple(pair.skipped["photo"] for pair in self.pairs if "photo" in pair.skipped)


def settings_of(store: Store, options: Options) -> Options:
    """`options`, with boxes described and compared as this store's queries do."""
    described = local.description(store)
    return replace(options, keypoints=described or options.keypoints, verify=local.verification(store))


def eye_of(store: Store) -> Eye:
    """How this store sees: its model, its views, its whitening. Of an ensemble, whose members see crops of their own,
    the eye is that of the member with most to say; the others are given that crop in their size (roughly
    what they see, where their margin or their way to keep a shape differs).
    """
    gallery = store.gallery()
    mirrors = 2 if store.config.embedder.mirror else 1
    every = views_of(store)
    views = every if every[0] == crop.PLAIN else (crop.PLAIN,)  # aligned ones want landmarks: the box as it lies
    seen = store.embedder.card.preprocessing
    lead = ensemble.lead(store.embedder.card)

    def embed(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        if mirrors == 2:
            crops = np.stack([crops, crops[:, :, ::-1]], axis=1).reshape(-1, *crops.shape[1:])
        return store.project(embed_views(store.embedder, crop.resized(crops, seen), mirrors), gallery)

    def joined(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return store.project(embed_views(store.embedder, crop.resized(crops, seen), len(crops)), gallery)

    return Eye(lead, embed) if len(views) == mirrors else Eye(lead, embed, views, joined)


@contextmanager
def default_model(boxes: Sequence[Box | None]) -> Iterator[Embedder]:
    """The model that a new store would take for animals of this shape, in a folder that is gone afterwards."""
    name = by_shape([Sighting(Path("photo"), "", box=box) for box in boxes])
    with tempfile.TemporaryDirectory(prefix="reid-explain-", ignore_cleanup_errors=True) as folder:
        yield OpenVinoEmbedder(models.ensure(Path(folder), name))


def explain_pair(
    photos: tuple[Path, Path],
    boxes: tuple[Box | None, Box | None],
    folder: Path,
    *,
    store: Store | None = None,
    options: Options | None = None,
    sheet: Path | None = None,
    drawn: tuple[Mask | None, Mask | None] = (None, None),
) -> Explanation:
    """Compare two photos and write `folder`; with the store's model, or the default one where there is no store.

    `sheet`: also draw everything as one picture into this file (PNG or JPEG by its name). `drawn`: where exactly the
    animals are; keypoints come from within, and evidence outside is flagged. A photo of the store's for which neither
    box nor mask is given has those of its one animal from the catalogue.

    Raises:
        InputError: the folder or the sheet cannot be written.
        IndexStale, SnapshotCorrupt: the store's gallery cannot be used.
    """
    if store is not None:
        as_asked = settings_of(store, options or Options())
        known = [_as_given_or_known(store, *one) for one in zip(photos, boxes, drawn, strict=True)]
        boxes, drawn = (known[0][0], known[1][0]), (known[0][1], known[1][1])
        return _pair(photos, boxes, drawn, folder, eye_of(store), store.embedder.card.name, as_asked, sheet)
    with default_model(boxes) as embedder:
        eye = Eye(embedder.card.preprocessing, embedder.embed)
        return _pair(photos, boxes, drawn, folder, eye, embedder.card.name, options or Options(), sheet)


def explain_answer(
    store: Store,
    answer: Answer,
    photos: Sequence[Path],
    folder: Path,
    *,
    options: Options | None = None,
    drawn: Mapping[Path, Mask] | None = None,
) -> Explanation:
    """Compare the query's photos with the best photo of each candidate of `answer`, and write `folder`.

    `photos` are the files of `answer.photos`, in that order, and `drawn` the masks that they were asked
    with. Of an encounter's photos, each candidate is shown beside
    the one that is most like it. Raises as `explain_pair`.
    """
    start = time.perf_counter()
    settings = settings_of(store, options or Options(sparse=True))
    candidates = [label for label in answer.labels if not label.is_new and label.photo]
    model = store.embedder.card.name
    pairs: list[Explained] = []
    if candidates:
        eye = eye_of(store)
        queries, unread = _queries(photos, answer.boxes, drawn or {}, eye, settings)
        with writing(folder) as write:
            for rank, label in enumerate(candidates, 1):
                pairs.append(_candidate(store, eye, queries, unread, label, rank, write, settings))
    heading = f"{', '.join(printable(p.name) for p in photos)}: {_verdict(answer)}"
    text = page.page(heading, _lead(answer), [_answered(pair, answer) for pair in pairs])
    return Explanation(put(folder / PAGE, text), tuple(pairs), model, time.perf_counter() - start)


def contents(folder: Path, done: Sequence[tuple[Answer, Explanation]]) -> Path:
    """A page in `folder` that leads to the pages of several answers below it."""
    links = [
        (
            f"{', '.join(Path(p).name for p in answer.photos)}: {_verdict(answer)}",
            os.path.relpath(one.page, folder),
        )
        for answer, one in done
    ]
    return put(folder / PAGE, page.index("Explained queries", links))


def _as_given_or_known(store: Store, photo: Path, box: Box | None, mask: Mask | None) -> tuple[Box | None, Mask | None]:
    """Box and mask as they were given; where neither was, those that the catalogue has of this very photo, if it shows
    one animal.
    """
    if box is not None or mask is not None:
        return box, mask
    try:
        kept = store.catalogue.photo_by_hash(images.load(photo).facts.sha256)
    except ReidError:  # said when the photo is looked at
        return None, None
    shown = store.catalogue.annotations_of(photos=[kept.id]) if kept is not None else []
    return _kept(store, shown[0])[1:] if len(shown) == 1 else (None, None)


def _kept(store: Store, annotation: int) -> tuple[Path | None, Box | None, Mask | None]:
    """Where an annotation's photo lies, its box and its mask; a whole photo has no box."""
    info = store.catalogue.annotations([annotation]).get(annotation)
    if info is None:
        return None, None, None
    [photo] = store.catalogue.photos([info.photo]).values()
    mask = local.masks_of(store).path(photo.sha256, local.key_of(info.box))
    box = None if info.box.origin == "whole" else info.box
    return store.resolve(info.path), box, Mask(picture=mask) if mask.exists() else None


def _pair(
    photos: tuple[Path, Path],
    boxes: tuple[Box | None, Box | None],
    drawn: tuple[Mask | None, Mask | None],
    folder: Path,
    eye: Eye,
    model: str,
    options: Options,
    sheet: Path | None,
) -> Explanation:
    start = time.perf_counter()
    seen: list[Seen] = []
    problems: list[str] = []
    for photo, box, mask in zip(photos, boxes, drawn, strict=True):
        try:
            seen.append(_looked(photo, eye, options, box, mask, printable(photo.name)))
        except ReidError as error:
            problems.append(str(error))
    a, b = (printable(photo) for photo in photos)
    with writing(folder) as write:
        if problems:
            pair = Explained(a, b, skipped={"photo": "; ".join(problems)})
        else:
            found = compare(seen[0], seen[1], options)
            pair = _explained(found, a, b, "", write("", found.pictures))
            if sheet is not None:
                write_sheet(found.pictures, sheet)
    title = f"A {photos[0].name} and B {photos[1].name}"
    text = page.page("Two photos compared", f"Model {model}.", [_entry(pair, printable(title))])
    return Explanation(put(folder / PAGE, text), (pair,), model, time.perf_counter() - start)


def _queries(
    photos: Sequence[Path], boxes: Sequence[Box], drawn: Mapping[Path, Mask], eye: Eye, options: Options
) -> tuple[list[tuple[Path, Seen]], list[str]]:
    """Each photo of the query that can be looked at, and what was wrong with the others."""
    placed: list[Box | None] = [None] * len(photos)
    if len(boxes) == len(photos):
        placed = [None if box.origin == "whole" else box for box in boxes]
    seen, unread = [], []
    for photo, box in zip(photos, placed, strict=True):
        try:
            seen.append((photo, _looked(photo, eye, options, box, drawn.get(photo), printable(photo.name))))
        except ReidError as error:
            unread.append(str(error))
    return seen, unread


def _candidate(
    store: Store,
    eye: Eye,
    queries: Sequence[tuple[Path, Seen]],
    unread: Sequence[str],
    label: IdentityScore,
    rank: int,
    write: Write,
    options: Options,
) -> Explained:
    """The best photo of one candidate beside the query's photo that is most like it."""
    found, box, mask = (None, None, None) if label.annotation is None else _kept(store, int(label.annotation))
    path = found or Path(label.photo or "")
    name = printable(path)
    if not queries:
        return Explained("", name, label.label, skipped={"photo": "; ".join(unread) or "the query has no photo"})
    try:
        theirs = _looked(path, eye, options, box, mask, f"{label.label}, {printable(path.name)}")
    except ReidError as error:
        return Explained(printable(queries[0][0]), name, label.label, skipped={"photo": str(error)})
    asked, mine = max(queries, key=lambda one: float(one[1].vector @ theirs.vector))
    compared = compare(mine, theirs, options)
    return _explained(compared, printable(asked), name, label.label, write(f"candidate-{rank}", compared.pictures))


def _looked(path: Path, eye: Eye, options: Options, box: Box | None, mask: Mask | None, name: str) -> Seen:
    """`look`, with a mask as it was given; one that is empty raises InputError, as any other trouble of a photo does."""
    if mask is None:
        return look(path, eye, options, box=box, name=name)
    facts = images.load(path).facts
    masked = intake.with_masks([Sighting(path, printable(path), box=box, mask=mask)], facts.width, facts.height)
    if masked.failures:
        problem = masked.failures[0]
        message = problem.message.removesuffix(intake.WITHOUT_MASK)
        raise InputError(message, source=problem.source, next_step=problem.next_step)
    [sighting] = masked.sightings
    return look(path, eye, options, box=sighting.box, mask=masked.of(sighting), name=name)


def _explained(found: Comparison, a: str, b: str, label: str, written: dict[str, str]) -> Explained:
    geometry, heats = found.verification, (found.heat_a, found.heat_b)
    drops = [float(h.drops.max()) if h is not None else None for h in heats]
    return Explained(
        a,
        b,
        label,
        found.box_a,
        found.box_b,
        found.cosine,
        geometry.status if geometry else "",
        geometry.matches if geometry else 0,
        geometry.inliers if geometry else 0,
        found.mirrored,
        drops[0],
        drops[1],
        sum(h.milliseconds for h in heats if h is not None) if heats[0] else None,
        found.outside,
        found.outside.flagged,
        written,
        dict(found.skipped),
        dict(found.seconds),
    )


def _verdict(answer: Answer) -> str:
    if answer.labels:
        return {
            "match": f"match: {answer.labels[0].label}",
            "new": "a new individual",
            "review": "for a person to review",
        }.get(answer.status, answer.status)
    return answer.status.replace("_", " ")


def _lead(answer: Answer) -> str:
    filters = "".join(f", {key}: {value}" for key, value in answer.compared.filters.items())
    about = (
        f"Compared with {answer.compared.photos} photos of {answer.compared.identities} individuals{filters}; "
        f"model {answer.model}."
    )
    return f"{about} {answer.message}".strip()


def _answered(pair: Explained, answer: Answer) -> Entry:
    """A candidate's pair with what the answer says of that candidate."""
    place, label = next((i, label) for i, label in enumerate(answer.labels, 1) if label.label == pair.label)
    chance = "" if label.probability is None else f"; probability that it is the same animal: {label.probability:.0%}"
    photos = f"{label.n_photos} photo{'' if label.n_photos == 1 else 's'} of it in the catalogue"
    entry = _entry(pair, f"{place}. {pair.label}")
    return replace(entry, facts=(f"Score {label.score:.3f}{chance}; {photos}.", *entry.facts))


def _entry(pair: Explained, title: str) -> Entry:
    """The pair in words."""
    facts = [f"A: {pair.a}", f"B: {pair.b}"]
    if pair.inliers:
        facts.append(f"{pair.inliers} points agree on one geometry, of {pair.matches} that look alike.")
    if pair.cosine is not None:
        facts.append(f"Likeness to the model (cosine): {pair.cosine:.3f}; 1 is the same picture.")
    if pair.mirrored:
        facts.append("A fits better mirrored: is one of the photos a flipped scan, or the other flank?")
    if pair.drop_a is not None and pair.drop_b is not None and pair.heat_ms is not None:
        facts.append(
            f"Covering its most telling part lowers the likeness by {max(pair.drop_a, 0):.3f} in A and by "
            f"{max(pair.drop_b, 0):.3f} in B (worked out in {pair.heat_ms:.0f} ms)."
        )
    return Entry(title, tuple(facts), _warning(pair), pair.pictures, pair.skipped)


def _warning(pair: Explained) -> str:
    """What a person should look at twice, empty where nothing."""
    if not pair.flagged:
        return ""
    shares = (
        ("the matching points", pair.outside.matches if pair.outside.points >= LEAST_POINTS else None),
        ("what the model looked at in A", pair.outside.heat_a),
        ("what the model looked at in B", pair.outside.heat_b),
    )
    said = [f"{share:.0%} of {words}" for words, share in shares if share is not None and share > MOST_OUTSIDE]
    lies = "lie" if len(said) > 1 or said[0].endswith("points") else "lies"
    return (
        f"{' and '.join(said)} {lies} outside the animal. Photos taken at one place and time share their "
        "background, and that says nothing of the animal; or the box is too small."
    )
