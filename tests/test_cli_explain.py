"""`reid explain` and `reid query --explain`: what is written, what the page says, what is said of bad input."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from rendered_store import enrolled, field, flukes, reid, reid_json, rows_of

from reid.explaining import explain_answer
from reid.pipeline import identify, query_of
from reid.store import Store
from reid.synth import Conditions, View, fluke, render

__all__ = ["enrolled", "field", "flukes"]

PICTURES = {"matches", "warp_a", "warp_b", "overlay", "heat_a", "heat_b"}


class Links(HTMLParser):
    """Every address that a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.to: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.to += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_page(page: Path) -> Links:
    """Everything it shows is beside it; nothing comes from elsewhere."""
    found = Links(page.read_text(encoding="utf-8"))
    for address in found.to:
        assert not address.startswith(("http", "//", "/")), address
        assert (page.parent / unquote(address)).is_file(), address
    return found


def box_of(row: dict[str, str]) -> str:
    x, y, w, h = json.loads(row["bbox"])
    return f"{x},{y},{x + w},{y + h}"


@pytest.fixture(scope="module")
def twice(flukes: Path) -> list[dict[str, str]]:
    """Two photos of one whale."""
    rows = rows_of(flukes / "labels.csv")
    for row in rows:
        same = [r for r in rows if r["identity"] == row["identity"]]
        if len(same) > 1:
            return same[:2]
    raise AssertionError("no whale was photographed twice")


def explain(flukes: Path, twice: list[dict[str, str]], out: Path, *more: object, **how: Any) -> dict[str, Any]:
    a, b = twice
    boxes = ("--box-a", box_of(a), "--box-b", box_of(b))
    return reid_json("explain", flukes / a["path"], flukes / b["path"], *boxes, "--out", out, *more, **how)


def test_two_photos_are_explained_in_a_store(
    enrolled: Path, flukes: Path, twice: list[dict[str, str]], tmp_path: Path
) -> None:
    done = explain(flukes, twice, tmp_path / "why", store=enrolled)
    (pair,) = done["pairs"]
    assert done["model"] == "fluke"
    assert set(pair["pictures"]) | ({"warp_a", "warp_b", "overlay"} if "warp" in pair["skipped"] else set()) == PICTURES
    x, y, w, h = json.loads(twice[0]["bbox"])
    assert pair["box_a"] == {"x0": x, "y0": y, "x1": x + w, "y1": y + h, "confidence": 1.0, "origin": "user"}
    assert -1 <= pair["cosine"] <= 1 and pair["heat_ms"] > 0
    links = check_page(tmp_path / "why" / "index.html")
    assert {unquote(to) for to in links.to} == set(pair["pictures"].values()) - {"overlay.jpg"}


def test_photos_of_the_store_need_no_boxes(
    enrolled: Path, flukes: Path, twice: list[dict[str, str]], tmp_path: Path
) -> None:
    a, b = (flukes / one["path"] for one in twice)
    (pair,) = reid_json("explain", a, b, "--no-heat", "--out", tmp_path / "known", store=enrolled)["pairs"]
    x, y, w, h = json.loads(twice[0]["bbox"])
    assert [pair["box_a"][key] for key in ("x0", "y0", "x1", "y1")] == [x, y, x + w, y + h]
    (other,) = explain(flukes, twice, tmp_path / "given", "--no-heat", store=enrolled)["pairs"]
    assert pair["cosine"] == pytest.approx(other["cosine"]) and pair["inliers"] == other["inliers"]
    with Store.open(enrolled) as store:  # the cosine is the one that serves, of all views
        assert store.fingerprint.endswith("+around")
        infos = store.catalogue.annotations(store.catalogue.labels().annotations.tolist())
        ids = {store.resolve(info.path).name: str(id) for id, info in infos.items()}
        one, two = store.gallery().vectors([ids[a.name], ids[b.name]])
    assert pair["cosine"] == pytest.approx(float(one @ two), abs=0.01)


def test_a_photo_beside_itself_agrees_and_lies_on_itself(
    enrolled: Path, flukes: Path, twice: list[dict[str, str]], tmp_path: Path
) -> None:
    done = explain(flukes, [twice[0], twice[0]], tmp_path / "same", store=enrolled)
    (pair,) = done["pairs"]
    assert pair["verification"] == "verified" and pair["inliers"] == pair["matches"] > 5
    assert pair["cosine"] == pytest.approx(1, abs=1e-3)
    assert not pair["mirrored"] and pair["skipped"] == {}
    warped, plain = (np.asarray(Image.open(tmp_path / "same" / pair["pictures"][n])) for n in ("warp_a", "warp_b"))
    assert warped.shape == plain.shape
    assert np.abs(warped[5:-5, 5:-5].astype(int) - plain[5:-5, 5:-5]).mean() < 8


def test_without_a_store_the_default_model_serves(
    flukes: Path, twice: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = explain(flukes, twice, tmp_path / "why", "--no-heat", "--no-warp")
    (pair,) = done["pairs"]
    assert done["model"] == "lite0-wide"  # both boxes are wide
    assert set(pair["pictures"]) == {"matches"}
    assert pair["skipped"]["heat"] == "switched off" and pair["heat_ms"] is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["why"]


def test_without_a_folder_it_is_explained_beside_you_and_over_nothing_that_is_there(
    flukes: Path, twice: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("explain", *(flukes / one["path"] for one in twice), "--no-heat", "--no-warp")
    said = reid(*words)
    assert said.exit_code == 0 and f"explained in {Path('explain', 'index.html')}" in said.stdout
    check_page(tmp_path / "explain" / "index.html")
    (tmp_path / "explain" / "index.html").write_text("mine")
    (tmp_path / "explain-2").write_text("a file of mine")
    assert Path(reid_json(*words)["page"]) == Path("explain-3", "index.html")
    check_page(tmp_path / "explain-3" / "index.html")
    assert (tmp_path / "explain" / "index.html").read_text() == "mine"
    assert (tmp_path / "explain-2").read_text() == "a file of mine"


def test_what_is_switched_off_is_not_made(
    enrolled: Path, flukes: Path, twice: list[dict[str, str]], tmp_path: Path
) -> None:
    done = explain(flukes, twice, tmp_path / "bare", "--no-heat", "--no-matches", store=enrolled)
    (pair,) = done["pairs"]
    assert pair["pictures"] == {}
    assert pair["skipped"] == {"matches": "switched off", "warp": "switched off", "heat": "switched off"}
    assert sorted(p.name for p in (tmp_path / "bare").iterdir()) == ["index.html"]


def test_a_photo_that_cannot_be_read_is_said_and_is_an_error(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    found = reid_json("explain", photo, tmp_path / "broken.jpg", "--out", tmp_path / "x", store=enrolled, code=1)
    (pair,) = found["pairs"]
    assert set(pair["skipped"]) == {"photo"} and "broken.jpg" in pair["skipped"]["photo"]
    assert "broken.jpg" in " ".join(check_page(tmp_path / "x" / "index.html").words)
    said = reid("explain", photo, tmp_path / "absent.jpg", "--out", tmp_path / "y", store=enrolled)
    assert said.exit_code == 1 and "absent.jpg: does not exist" in said.stderr and said.stdout == ""


def test_a_box_outside_the_photo_is_said(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    words = ("explain", photo, photo, "--box-b", "5000,5000,6000,6000", "--out", tmp_path / "x")
    (pair,) = reid_json(*words, store=enrolled, code=1)["pairs"]
    assert "outside the photo" in pair["skipped"]["photo"]


@pytest.mark.parametrize("box", ["1,2,3", "9,9,1,1", "a,b,c,d"])
def test_a_box_that_is_none_is_wrong_usage(enrolled: Path, box: str, tmp_path: Path) -> None:
    result = reid("explain", "a.jpg", "b.jpg", "--box-b", box, "--out", tmp_path, store=enrolled)
    assert result.exit_code == 2 and "--box-b" in result.stderr


def test_a_store_that_was_named_must_be_there(flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    result = reid("explain", photo, photo, "--out", tmp_path / "x", store=tmp_path / "none")
    assert result.exit_code == 1 and "no store there" in result.stderr


def test_a_sheet_shows_everything_at_once(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    shapes = {}
    for name, more in (("all.png", ()), ("lines.jpg", ("--no-heat", "--no-warp")), ("heat.png", ("--no-matches",))):
        done = reid_json(
            "explain", photo, photo, "--out", tmp_path / "x", "--sheet", tmp_path / name, *more, store=enrolled
        )
        assert done["pairs"][0]["b"] == str(photo)
        with Image.open(tmp_path / name) as picture:
            shapes[name] = picture.size
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert shapes["all.png"][0] == shapes["lines.jpg"][0] == 1100
    assert shapes["all.png"][1] > shapes["lines.jpg"][1]
    words = ("explain", photo, photo, "--out", tmp_path / "x", "--no-heat")
    none = reid(*words, "--no-matches", "--sheet", tmp_path / "none.png", store=enrolled)
    assert none.exit_code == 1 and "nothing to draw" in none.stderr
    odd = reid(*words, "--sheet", tmp_path / "odd.nonsense", store=enrolled)
    assert odd.exit_code == 1 and "cannot be written" in odd.stderr


def test_a_folder_that_cannot_be_made_is_an_error(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    (tmp_path / "file").write_text("here already")
    result = reid("explain", photo, photo, "--no-heat", "--out", tmp_path / "file", store=enrolled)
    assert result.exit_code == 1 and "cannot be written" in result.stderr
    query = reid("query", photo, "--explain", tmp_path / "file", store=enrolled)
    assert query.exit_code == 1 and "cannot be written" in query.stderr


def test_a_query_is_explained_against_each_known_candidate(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    row = rows_of(flukes / "queries.csv")[0]
    out = tmp_path / "why"
    answer = reid_json("query", flukes / row["path"], "--box", box_of(row), "--explain", out, store=enrolled)
    known = [label for label in answer["labels"] if not label["is_new"]]
    pairs = answer["explanation"]["pairs"]
    assert [pair["label"] for pair in pairs] == [label["label"] for label in known]
    assert [pair["b"] for pair in pairs] == [label["photo"] for label in known]
    assert all({"matches", "heat_a", "heat_b"} <= set(pair["pictures"]) for pair in pairs)
    links = check_page(out / "index.html")
    text = " ".join(links.words)
    assert all(label["label"] in text and f"Score {label['score']:.3f}" in text for label in known)
    assert len({pair["pictures"]["matches"] for pair in pairs}) == len(known)
    said = reid("query", flukes / row["path"], "--explain", tmp_path / "again", store=enrolled)
    assert f"explained in {tmp_path / 'again' / 'index.html'}" in said.stdout


@pytest.mark.parametrize(
    ("switch", "lost", "left"),
    [
        ("--no-heat", {"heat_a", "heat_b"}, {"matches"}),
        ("--no-heat --no-warp", {"heat_a", "heat_b", "warp_a", "warp_b", "overlay"}, {"matches"}),
        ("--no-heat --no-matches", PICTURES, set()),
    ],
)
def test_a_query_explains_what_is_switched_on(
    enrolled: Path, flukes: Path, tmp_path: Path, switch: str, lost: set[str], left: set[str]
) -> None:
    row = rows_of(flukes / "labels.csv")[0]
    words = ("query", flukes / row["path"], "--box", box_of(row))
    answer = reid_json(*words, "--explain", tmp_path / "why", *switch.split(), store=enrolled)
    pairs = answer["explanation"]["pairs"]
    assert pairs and pairs[0]["label"] == row["identity"]
    for pair in pairs:
        assert left <= set(pair["pictures"]) and not lost & set(pair["pictures"])
        assert "switched off" in pair["skipped"].values()
    assert not any(path.stem in lost for path in (tmp_path / "why").rglob("*"))


def test_a_flipped_query_is_explained_mirrored_where_asked(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    row = rows_of(flukes / "labels.csv")[0]
    with Image.open(flukes / row["path"]) as photo:
        width = photo.width
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "flipped.png")
    x, y, w, h = json.loads(row["bbox"])
    words = ("query", tmp_path / "flipped.png", "--box", f"{width - x - w},{y},{width - x},{y + h}", "--no-heat")
    found = {}
    for name, more in (("plain", ()), ("mirror", ("--mirror",))):
        answer = reid_json(*words, *more, "--explain", tmp_path / name, store=enrolled)
        found[name] = {pair["label"]: pair for pair in answer["explanation"]["pairs"]}
    assert row["identity"] in found["mirror"]
    mine, plain = found["mirror"][row["identity"]], found["plain"][row["identity"]]
    assert mine["mirrored"] and not plain["mirrored"] and mine["inliers"] > 5 * max(plain["inliers"], 1)


@pytest.mark.parametrize("switch", ["--no-heat", "--no-matches", "--no-warp", "--mirror"])
def test_a_switch_of_an_explanation_that_was_not_asked_for_is_wrong_usage(
    enrolled: Path, flukes: Path, switch: str
) -> None:
    result = reid("query", flukes / rows_of(flukes / "queries.csv")[0]["path"], switch, store=enrolled)
    assert result.exit_code == 2 and "--explain" in result.stderr and switch.removeprefix("--no-") in result.stderr


def test_several_queries_get_a_page_each_and_one_that_leads_to_them(
    enrolled: Path, flukes: Path, tmp_path: Path
) -> None:
    photos = [flukes / row["path"] for row in rows_of(flukes / "queries.csv")[:2]]
    found = reid_json("query", *photos, "--explain", tmp_path / "why", store=enrolled)
    assert len(found["answers"]) == 2
    links = check_page(tmp_path / "why" / "index.html")
    assert links.to == ["query-1/index.html", "query-2/index.html"]
    for photo, address in zip(photos, links.to, strict=True):
        assert photo.name in " ".join(check_page(tmp_path / "why" / address).words)


def test_of_an_encounter_the_photo_that_is_most_like_the_candidate_is_shown(
    enrolled: Path, flukes: Path, tmp_path: Path
) -> None:
    rows = rows_of(flukes / "labels.csv")
    other = next(row for row in rows if row["identity"] != rows[0]["identity"])
    photos = [flukes / other["path"], flukes / rows[0]["path"]]
    with Store.open(enrolled) as opened:
        (answer,) = identify(opened, [query_of(photos)])
        done = explain_answer(opened, answer, photos, tmp_path)
    shown = {pair.label: Path(pair.a) for pair in done.pairs}
    whole = {pair.label: pair.cosine for pair in done.pairs}
    assert shown[rows[0]["identity"]] == photos[1] or whole[rows[0]["identity"]] is None
    assert shown[other["identity"]] == photos[0]


def test_a_gallery_photo_that_has_gone_is_said_and_the_others_go_on(field: Path, tmp_path: Path) -> None:
    rows = rows_of(field / "labels.csv")
    photo = tmp_path / "query.jpg"
    shutil.copy2(field / rows[0]["path"], photo)
    best = reid_json("query", photo, store=field / "store")["labels"]
    gone = Path(next(label["photo"] for label in best if not label["is_new"]))
    gone.unlink()
    answer = reid_json("query", photo, "--explain", tmp_path / "why", store=field / "store")
    pairs = answer["explanation"]["pairs"]
    assert [pair["b"] for pair in pairs if "photo" in pair["skipped"]] == [str(gone)]
    assert sum("matches" in pair["pictures"] for pair in pairs) == len(pairs) - 1 > 0
    assert "does not exist" in " ".join(check_page(tmp_path / "why" / "index.html").words)


def test_an_answer_without_candidates_still_has_a_page(enrolled: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    answer = reid_json("query", tmp_path / "broken.jpg", "--explain", tmp_path / "why", store=enrolled, code=1)
    assert (answer["status"], answer["explanation"]["pairs"]) == ("error", [])
    assert "broken.jpg" in " ".join(check_page(tmp_path / "why" / "index.html").words)


def test_names_with_odd_signs_neither_break_the_page_nor_run(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = tmp_path / "a <b>&\"'#?%20 ü.jpg"
    shutil.copy2(flukes / rows_of(flukes / "labels.csv")[0]["path"], photo)
    out = tmp_path / "why <i>#1"
    answer = reid_json("query", photo, "--explain", out, store=enrolled)
    assert answer["explanation"]["pairs"]
    links = check_page(out / "index.html")
    assert "<b>" not in (out / "index.html").read_text(encoding="utf-8")
    assert photo.name in " ".join(links.words)


def test_the_page_says_where_the_evidence_lies_outside_the_animal(enrolled: Path, tmp_path: Path) -> None:
    """Two plain animals in front of one busy wall."""
    random = np.random.default_rng(2)
    wall = np.asarray(
        Image.fromarray(random.integers(0, 256, (30, 45, 3)).astype(np.uint8)).resize(
            (450, 300), Image.Resampling.BICUBIC
        )
    )
    photos = []
    for name, shade in (("a.png", 90), ("b.png", 160)):
        pixels = wall.copy()
        pixels[60:240, 90:360] = shade + random.normal(0, 2, (180, 270, 3)).astype(np.int64)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
        photos.append(tmp_path / name)
    boxes = ("--box-a", "90,60,360,240", "--box-b", "90,60,360,240")
    words = ("explain", *photos, *boxes, "--no-heat", "--out", tmp_path / "why")
    (pair,) = reid_json(*words, store=enrolled)["pairs"]
    assert pair["flagged"] and pair["outside"]["matches"] > 0.9
    assert "Look twice." in " ".join(check_page(tmp_path / "why" / "index.html").words)
    assert "LOOK TWICE" in reid(*words, store=enrolled).stdout


def test_two_whales_in_one_water_agree_by_it_and_are_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`docs/explain_flagged.jpg` is the sheet that is written here."""
    monkeypatch.chdir(tmp_path)  # no store: the network for any animal
    sea = Conditions(whitecaps=0.7, sea_contrast=0.9, choppiness=0.6)
    view = View(conditions=sea, seed=7, fill=0.42, aspect=1.9, offset_y=0.06, horizon=0.2)
    words: list[object] = []
    for name, whale in (("a", 8), ("b", 11)):
        photo = render(fluke(5, whale), view)
        Image.fromarray(photo.pixels).save(tmp_path / f"whale_{whale}.png")
        box = ",".join(f"{edge:.0f}" for edge in (photo.box.x0, photo.box.y0, photo.box.x1, photo.box.y1))
        words += [f"whale_{whale}.png", f"--box-{name}", box]
    (pair,) = reid_json("explain", *words, "--no-heat", "--no-warp", "--sheet", "explain_flagged.jpg")["pairs"]
    assert pair["verification"] == "verified" and pair["inliers"] >= 5
    assert pair["flagged"] and pair["outside"]["matches"] > 0.5
    assert (tmp_path / "explain_flagged.jpg").is_file()
