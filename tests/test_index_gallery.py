"""Adding, replacing, removing and committing: the gallery against a dictionary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from galleries import DIM, holds, rows

from reid.errors import GalleryError, IndexStale
from reid.index import Gallery


def test_nothing_is_visible_before_the_commit_and_all_of_it_after(gallery: Gallery) -> None:
    gallery.add(["b", "a"], rows(2, 1))
    assert ("a" in gallery, len(gallery), gallery.revision) == (False, 0, 0)
    gallery.commit(revision=4)
    assert ("a" in gallery, "c" in gallery, 5 in gallery, len(gallery), gallery.revision) == (True, False, False, 2, 4)
    again = Gallery.open(gallery.folder, fingerprint="model-a", verify=True)
    assert (again.fingerprint, again.dim, again.backend, again.revision) == ("model-a", DIM, "flat", 4)
    assert holds(again, dict(zip(["b", "a"], rows(2, 1), strict=True)))


def test_the_last_word_on_an_id_counts(gallery: Gallery) -> None:
    gallery.add(["a", "b", "c"], rows(3, 1))
    gallery.add(["b"], rows(1, 2))
    assert gallery.remove(["c", "nobody"]) == 1
    gallery.add(["d"], rows(1, 3))
    assert gallery.remove(["d", "d"]) == 1
    gallery.add(["d"], rows(1, 4))
    gallery.commit(revision=1)
    assert holds(gallery, {"a": rows(3, 1)[0], "b": rows(1, 2)[0], "d": rows(1, 4)[0]})
    assert gallery.remove(["a", "c"]) == 1
    gallery.add(["b"], rows(1, 5))
    gallery.commit(revision=2)
    assert holds(gallery, {"b": rows(1, 5)[0], "d": rows(1, 4)[0]})
    gallery.remove(["b", "d"])
    gallery.commit(revision=3)
    assert holds(gallery, {}) and gallery.check().files == 0


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_leaves_what_a_dictionary_would(gallery: Gallery, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for step in range(60):
        names = [f"id-{i}" for i in rng.choice(400, rng.integers(1, 40), replace=False)]
        match rng.integers(0, 6):
            case 0:
                present = sum(name in store for name in names)
                assert gallery.remove(names) == present
                store = {id: vector for id, vector in store.items() if id not in names}
            case 1:
                gallery.commit(revision=step)
                seen = dict(store)
            case 2:
                gallery.compact()
            case 3:
                assert holds(Gallery.open(gallery.folder, verify=True), seen)
            case _:
                vectors = rows(len(names), 1000 * seed + step)
                gallery.add(names, vectors)
                store |= dict(zip(names, vectors, strict=True))
        assert holds(gallery, seen)
    gallery.commit(revision=100)
    assert holds(gallery, store)
    query = rows(1, 5)
    products = {id: float(vector.astype(np.float16).astype(np.float64) @ query[0]) for id, vector in store.items()}
    (found,) = gallery.search(query, 10)
    assert list(found.ids) == sorted(products, key=lambda id: (-products[id], id))[:10]
    assert found.scores == tuple(np.float32([products[id] for id in found.ids]).tolist())


def test_ids_are_any_text_of_reasonable_length(gallery: Gallery) -> None:
    names = ["Zürich/фото 12.jpg", "z", "鯨", "a" * 255, "a\n", "A"]
    gallery.add(names, rows(6, 1))
    gallery.commit(revision=1)
    assert gallery.ids() == sorted(names) and all(name in gallery for name in names)
    assert gallery.search(rows(6, 1)[2:3], 1)[0].ids == ("鯨",)
    for bad in ("", "a\0", "a" * 256, "é" * 128, "photo-\udcff.jpg"):
        assert bad not in gallery
        with pytest.raises(GalleryError, match="cannot be an id"):
            gallery.add([bad], rows(1, 1))


def test_vectors_that_are_no_unit_rows_are_refused_and_leave_nothing_behind(gallery: Gallery) -> None:
    good = rows(2, 1)
    nan, inf = good.copy(), good.copy()
    nan[1, 2], inf[0, 0] = np.nan, np.inf
    for bad in (good * 1.01, nan, inf, good * 0, good[:, :5], good[0]):
        with pytest.raises(GalleryError):
            gallery.add(["a", "b"], bad)
    with pytest.raises(GalleryError, match="row 1 has nan"):
        gallery.add(["a", "b"], nan)
    with pytest.raises(GalleryError, match="3 ids for 2 vectors"):
        gallery.add(["a", "b", "c"], good)
    with pytest.raises(GalleryError, match="'a' was given twice"):
        gallery.add(["a", "a"], good)
    with pytest.raises(GalleryError, match="no vector of 'x'"):
        gallery.vectors(["x"])
    gallery.commit(revision=1)
    assert holds(gallery, {})


def test_the_callers_arrays_are_left_alone_and_need_not_stay(gallery: Gallery) -> None:
    vectors = rows(3, 1)
    kept = vectors.copy()
    gallery.add(["a", "b", "c"], vectors)
    assert np.array_equal(vectors, kept)
    vectors[:] = 0
    gallery.commit(revision=1)
    assert holds(gallery, dict(zip("abc", kept, strict=True)))


def test_another_models_query_is_refused_with_the_command_that_mends_it(gallery: Gallery) -> None:
    with pytest.raises(IndexStale) as caught:
        Gallery.open(gallery.folder, fingerprint="model-b")
    assert "`reid reindex`" in caught.value.next_step
    assert "model-a" in caught.value.message and "model-b" in caught.value.message
    assert caught.value.source == str(gallery.folder)


def test_no_gallery_and_a_second_gallery_are_errors(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="no gallery here"):
        Gallery.open(tmp_path / "elsewhere")
    with pytest.raises(GalleryError, match="a gallery here already"):
        Gallery.create(gallery.folder, fingerprint="model-a", dim=DIM)


def test_a_commit_at_another_revision_than_expected_changes_nothing(gallery: Gallery) -> None:
    other = Gallery.open(gallery.folder)
    other.add(["a"], rows(1, 1))
    other.commit(revision=7, expect=0)
    gallery.add(["b"], rows(1, 2))
    with pytest.raises(IndexStale, match="at revision 7, not 0"):
        gallery.commit(revision=8, expect=0)
    assert Gallery.open(gallery.folder).ids() == ["a"]
    gallery.commit(revision=8, expect=7)
    assert (gallery.ids(), gallery.revision) == (["a", "b"], 8)


def test_the_revision_never_goes_down(gallery: Gallery) -> None:
    gallery.commit(revision=9)
    gallery.add(["a"], rows(1, 1))
    gallery.commit(revision=3)
    assert (gallery.revision, gallery.ids()) == (9, ["a"])


def test_a_commit_of_nothing_writes_nothing(gallery: Gallery) -> None:
    gallery.commit(revision=5)
    before = gallery.generation
    gallery.remove(["nobody"]) and gallery.commit(revision=5)
    gallery.commit(revision=5)
    assert gallery.generation == before
