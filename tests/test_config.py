"""reid.toml: what `reid init` writes is what the defaults say, and nothing unknown is ignored."""

from pathlib import Path

import pytest

from reid.config import Config
from reid.config_file import TEMPLATE, load, named, parse, values_of, with_model, with_values
from reid.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "reid.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_says_what_the_defaults_are(tmp_path: Path) -> None:
    assert load(written(tmp_path, TEMPLATE)) == Config()


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Config()


def test_an_integer_serves_where_a_number_is_wanted(tmp_path: Path) -> None:
    assert load(written(tmp_path, "[encounters]\nmax_km = 3")).encounters.max_km == 3.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour"),
        ("[gallery]\nbackends = 'flat'", "gallery.backends"),
        ("[gallery]\nneighbours = 'many'", "gallery.neighbours"),
        ("[gallery]\nneighbours = 2", "gallery.neighbours"),
        ("[photos]\ncopy = 1", "photos.copy"),
        ("[decision]\nshare_new = 1.0", "decision.share_new"),
        ("[decision]\naggregate = 'best'", "decision.aggregate"),
        ("[decision]\nnew_label = 'new whale'", "decision.new_label"),
        ("[embedder]\ndevice = 'abacus'", "embedder.device"),
        ("[local]\nmirrored = true\nmatcher = 'xfeat'", "local.mirrored"),
        ("[local]\nestimator = 'guess'", "local.estimator"),
        ("[local]\nmatcher = 'guess'", "local.matcher"),
        ("[local]\niterations = 0", "local.iterations"),
        ("[local]\niterations = 3000000000", "local.iterations"),
        ("[local]\nkeypoints = 3000000", "local.keypoints"),
        ("[local]\nlong_side = 100000", "local.long_side"),
        ("[local]\nenlarge_to = 100000", "local.enlarge_to"),
        ("[query]\nstage_timeout_s = inf", "query.stage_timeout_s"),
        ("[query]\nstage_timeout_s = 1e9", "query.stage_timeout_s"),
        ("[decision]\nthreshold = nan", "decision.threshold"),
        ("[decision]\nthreshold = 2.0", "decision.threshold"),
        ("[encounters]\nmax_km = inf", "encounters.max_km"),
        ("[local]\ninlier_distance = 0.0", "local.inlier_distance"),
        ("[local]\nmin_matches = -1", "local.min_matches"),
        ("[local]\nestimator = 'frames'\nmatcher = 'xfeat'", "local.estimator"),
        ("[query]\nranking = 'geometry_first'\n[decision]\naggregate = 'mean'", "decision.aggregate"),
        ("[query]\nranking = 'geometry_first'\n[decision]\naggregate = 'sum_above'", "query.ranking"),
        ("not toml", "not a settings file"),
    ],
)
def test_a_bad_setting_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert named in caught.value.message
    assert caught.value.source == str(path)
    assert caught.value.next_step


def test_no_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reid init"):
        load(tmp_path / "reid.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[embedder]\nmodel = "a"  # why\nx = 1\n', '[embedder]\nmodel = "new"  # why\nx = 1\n'),
        ("[embedder]\n model='a'\n", '[embedder]\n model="new"\n'),
        ('[other]\nmodel = "a"\n[embedder]\nx = 1\n', '[other]\nmodel = "a"\n[embedder]\nx = 1\nmodel = "new"\n'),
        ('[embedder]\n[other]\nmodel = "a"\n', '[embedder]\nmodel = "new"\n[other]\nmodel = "a"\n'),
        ("[embedder]", '[embedder]\nmodel = "new"\n'),
        ("x = 1", 'x = 1\n[embedder]\nmodel = "new"\n'),
        ("embedder.threads = 1\n[other]\n", 'embedder.threads = 1\nembedder.model = "new"\n[other]\n'),
        ('embedder = {model = "a", threads = 1} # why', 'embedder = {model = "new", threads = 1} # why'),
    ],
)
def test_a_models_name_is_written_into_the_settings_and_nothing_else_changes(text: str, expected: str) -> None:
    assert with_model(text, "new") == expected


def test_the_template_of_settings_takes_a_models_name() -> None:
    changed = with_model(TEMPLATE, "2026-11-21-head")
    assert parse(changed, "x").embedder.model == "2026-11-21-head"
    assert changed.count("2026-11-21-head") == 1 and len(changed.splitlines()) == len(TEMPLATE.splitlines())


@pytest.mark.parametrize("name", named())
def test_settings_of_the_package_are_settings_and_change_something(name: str) -> None:
    changed = parse(with_values(TEMPLATE, values_of(name)), name)
    assert changed != Config() and changed == parse(with_values("", values_of(name)), name)


def test_the_fourth_place_gives_the_first_place_by_geometry() -> None:
    found = parse(with_values(TEMPLATE, values_of("fourth_place")), "x")
    assert (found.query.ranking, found.local.estimator, found.local.model) == (
        "geometry_first", "lmeds_ransac", "homography"
    )  # fmt: skip


def test_ones_own_settings_are_checked_and_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no settings 'sixth_place'.*fourth_place"):
        values_of("sixth_place")
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*cannot be read"):
        values_of(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"mine\.toml.*local\.nothing"):
        values_of(own := written(tmp_path, "[local]\nnothing = 1").rename(tmp_path / "mine.toml"))
    own.write_text("[photos]\ncopy = true\n")
    assert values_of(own) == {"photos": {"copy": True}}


def test_values_are_put_where_they_belong_and_nothing_else_changes() -> None:
    text = '# ours\nspecies = "a"  # why\n[photos]\ncopy = false\n'
    values = {"crop": {}, "photos": {"copy": True}, "decision": {"new_label": 'a"b'}}
    changed = '# ours\nspecies = "a"  # why\n[photos]\ncopy = true\n\n[decision]\nnew_label = "a\\"b"\n'
    assert with_values(text, values) == changed
