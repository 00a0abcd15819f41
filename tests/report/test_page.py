import base64
import dataclasses
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genfed.core.errors import GenfedError
from genfed.report.images import Grid, SetGrid
from genfed.report.page import build_compare_page, build_page, write_headlines
from genfed.report.results import ClientScore, PersonalScore, PhaseCost, Point, Published, Report, TrialResult
from tests.report.fake import fake_report

EVIL = '<script>alert(1)</script>$x_{"&\\1 日'
SECTIONS = [
    "summary",
    "published",
    "accuracy",
    "architectures",
    "clients",
    "partition",
    "samples",
    "generators",
    "losses",
    "costs",
    "failures",
    "repeat",
]


class Reader(HTMLParser):
    """Takes a page apart, and minds that every tag is closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(" ".join(data.split()))

    def values(self, name: str, tag: str | None = None) -> list[str]:
        return [value for t, n, value in self.attributes if n == name and tag in (None, t)]


def fake_grids() -> dict[str, Grid]:
    rng = torch.Generator().manual_seed(0)
    images, real = (torch.randint(256, (10, 6, 1, 8, 8), dtype=torch.uint8, generator=rng) for _ in range(2))
    return {"gefl, seed 0": Grid("gefl", images, real), "gefl-f, seed 0": Grid("gefl-f", images)}


@pytest.fixture(scope="module")
def html() -> str:
    return build_page(fake_report(), fake_grids())


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return Reader(html)


def test_every_section_is_there(reader: Reader) -> None:
    assert reader.values("id", "section") == SECTIONS
    assert {"#" + name for name in SECTIONS} >= set(reader.values("href", "a"))


def test_the_page_loads_nothing(html: str, reader: Reader) -> None:
    loads = [v for name in ("src", "href", "xlink:href") for v in reader.values(name)]
    assert loads
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in loads)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert not re.search(r"url\((?!#)|@import", html)
    assert "default-src 'none'" in html


def test_pictures_are_described_and_ids_unique(reader: Reader) -> None:
    assert reader.tags.count("svg") == len(reader.values("aria-label", "svg")) == 4 + 1 + 1 + 5 + 3
    assert reader.tags.count("img") == len(reader.values("alt", "img")) == 30
    ids = reader.values("id")
    assert len(set(ids)) == len(ids)


def test_the_page_says_what_was_run(reader: Reader) -> None:
    report = fake_report()
    for text in (report.environment.command, report.config, "genfed 0.1.0, python 3.12.1, torch 2.6.0", "0, 1, 2"):
        assert " ".join(text.split()) in reader.text
    assert "gefl, seed 1: generator round 4: client 5 excluded: its upload is not finite" in reader.text


def test_whatever_a_user_names_is_escaped() -> None:
    report = fake_report(3, 1)
    trials = tuple(
        dataclasses.replace(
            trial,
            method=EVIL + trial.method,
            failures=(EVIL,),
            clients=tuple(dataclasses.replace(c, architecture=EVIL) for c in trial.clients),
            own=(PersonalScore(0, EVIL, 0.5),),
            losses=tuple(dataclasses.replace(p, phase=EVIL + p.phase) for p in trial.losses),
            costs=tuple(dataclasses.replace(c, phase=EVIL + c.phase) for c in trial.costs),
        )
        for trial in report.trials
    )
    environment = dataclasses.replace(report.environment, command=EVIL, versions={EVIL: EVIL}, processor=EVIL)
    evil = dataclasses.replace(
        report,
        name=EVIL,
        config=EVIL,
        classes=(EVIL,) * 10,
        environment=environment,
        trials=trials,
        scored_on=EVIL,
        published={trials[0].method: Published(accuracy=1.0, source=EVIL)},
        skewed=True,
        column=EVIL,
        natural={"0": ((EVIL,),) * 3},
    )
    grids = {EVIL: dataclasses.replace(fake_grids()["gefl, seed 0"], method=EVIL)}
    for html in (build_page(evil, grids), build_compare_page([(EVIL, evil), (EVIL, report)])):
        assert "script" not in Reader(html).tags
        assert "alert(1)&lt;/script&gt;$x_{" in html


def trial(method: str, seed: int, *accuracies: float) -> TrialResult:
    clients = tuple(ClientScore(i, f"cnn-{i}", 5, a, (a,)) for i, a in enumerate(accuracies))
    mean = sum(accuracies) / len(accuracies)
    cost = PhaseCost("train", 1, 0, 0, 1.0, 1.0)
    return TrialResult(
        method, seed, mean, clients, (Point("evaluate", 0, 1, mean),), (Point("train", 0, 0, None),), (cost,)
    )


def small(*trials: TrialResult) -> Report:
    return dataclasses.replace(fake_report(2, 1), trials=trials, classes=("a",), partition={}, published={})


def test_the_headline_compares_with_the_baselines() -> None:
    report = small(
        trial("local", 0, 0.5, 0.6), trial("centralised", 0, 0.9), trial("x", 0, 0.7, 0.8), trial("x", 1, 0.8, 0.9)
    )
    assert write_headlines(report) == [
        # Over seeds 75 and 85; gains are those of seed 0, which the baselines have: 75 - 55 and 75 - 90.
        "x: 80.0 ± 7.1 % accuracy on the test part, 20.0 points above local training and 15.0 points below training on "
        "all data in one place."
    ]
    assert write_headlines(small(trial("local", 0, 0.5))) == ["local: 50.0 % accuracy on the test part."]


def test_tables_have_the_numbers_of_each_architecture_and_client() -> None:
    report = small(trial("x", 0, 0.1, 0.2), trial("x", 1, 0.3, 0.6), trial("y", 0, 0.5))
    html = "".join(build_page(report, {}).split())
    assert '<thscope="row"class="word">cnn-1</th><td>1</td><td>40.0</td><td>–</td>' in html
    assert '<thscope="row"class="word">1</th><tdclass="word">cnn-1</td><td>5</td><td>20.0</td><td>–</td>' in html


def test_what_a_run_lacks_is_left_out() -> None:
    reader = Reader(build_page(small(trial("x", 0, 0.5)), {}))
    assert reader.values("id", "section") == [
        s for s in SECTIONS if s not in ("partition", "samples", "generators", "published", "failures")
    ]  # a loss that is not finite has a picture all the same
    assert "warning" not in reader.values("class", "div")


def test_a_score_on_validation_data_is_flagged() -> None:
    report = dataclasses.replace(small(trial("x", 0, 0.5)), scored_on="validation")
    assert "Evaluated on the validation part, not on the test part." in Reader(build_page(report, {})).text


@pytest.mark.parametrize("show", [lambda r: build_page(r, {}), lambda r: build_compare_page([("run", r)])])
def test_a_report_without_trials_is_refused(show: Callable[[Report], str]) -> None:
    with pytest.raises(GenfedError, match="the report has no finished trial"):
        show(small())


def test_clients_by_a_column_are_shown_on_data_like_their_own() -> None:
    trials = [
        dataclasses.replace(t, own=tuple(PersonalScore(i, f"cnn-{i}", a) for i in range(60)))
        for t, a in ((trial("local", 0, 0.5), 0.25), (trial("x", 0, 0.7), 0.125))
    ]
    natural: dict[str, tuple[tuple[str, ...], ...]] = {"0": tuple((f"site {i:02}",) for i in range(60))}
    report = dataclasses.replace(small(*trials), skewed=True, column="hospital", natural=natural)
    reader = Reader(build_page(report, {}))
    for text in ("By hospital", "The first 50 of 60.", "own data %", "own data, worst", "site 49", "12.5"):
        assert text in reader.text
    assert reader.text.count("site 49") == 2
    assert reader.text.count("site 50") == 1
    plain = Reader(build_page(dataclasses.replace(report, column=None, natural={}), {}))
    assert "Accuracy of each client on its own data" in plain.text
    alike = Reader(build_page(dataclasses.replace(report, skewed=False), {}))
    assert not [
        text
        for text in alike.text
        if text.startswith(("own data", "By hospital", "Accuracy of each client on its own"))
    ]
    assert "own data %" in Reader(build_compare_page([("now", report), ("before", small(trial("local", 0, 0.5)))])).text


def test_a_thousand_clients_make_a_page() -> None:
    report = fake_report(20, 1)
    many = dataclasses.replace(report, partition={"0": report.partition["0"] * 50})
    assert len(build_page(many, {})) < 1_000_000


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_samples_are_shown_pixel_by_pixel(channels: int) -> None:
    images = torch.randint(256, (1, 2, channels, 4, 5), dtype=torch.uint8)
    (source,) = Reader(build_page(small(trial("x", 0, 0.5)), {"x": Grid("x", images)})).values("src", "img")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
    assert pixels.shape == (4, 2 * 5 + 1, 4)
    second = images[0, 1] if channels == 3 else images[0, 1].float().mean(0).round().expand(3, -1, -1)
    assert (pixels[:, 6:, :3] == second.permute(1, 2, 0).numpy()).all()
    assert pixels[0, :, 3].tolist() == [255] * 5 + [0] + [255] * 5


def test_runs_that_do_not_compare_are_flagged() -> None:
    report = fake_report(2, 1)
    same, other = build_compare_page([("a", report), ("b", report)]), dataclasses.replace(report, shape=(1, 9, 9))
    assert "warning" not in Reader(same).values("class", "div")
    assert (
        "These runs are not comparable: they differ in shape of an example."
        in Reader(build_compare_page([("a", report), ("b", other)])).text
    )


@pytest.mark.parametrize(("size", "dark"), [((1200, 1000), False), ((1200, 1000), True), ((500, 1000), False)])
def test_a_browser_draws_it(html: str, tmp_path: Path, size: tuple[int, int], dark: bool) -> None:
    (tmp_path / "page.html").write_text(html)
    shot = tmp_path / "shot.png"
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    _chromium(tmp_path, *scheme, "--window-size={},{}".format(*size), "--hide-scrollbars", f"--screenshot={shot}")
    pixels = np.array(Image.open(shot).convert("L")).astype(float)
    assert pixels.shape == size[::-1]
    assert pixels.std() > 10  # not a blank page
    assert (np.median(pixels) < 80) == dark


def test_a_browser_reads_it(html: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html)
    dom = Reader(_chromium(tmp_path, "--dump-dom"))
    assert dom.values("id", "section") == SECTIONS
    assert dom.tags.count("svg") == 14


def _chromium(folder: Path, *flags: str) -> str:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", "--disable-quic"]
    command = [program, *quiet, f"--user-data-dir={folder / 'profile'}", *flags, (folder / "page.html").as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_kept_set_is_shown_by_class_and_client() -> None:
    some = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    clients = (-1, *range(11))
    cells = {(k, c): some for k in range(2) for c in clients if (k, c) != (1, 3)}
    real = torch.zeros(2, 5, 1, 8, 8, dtype=torch.uint8)
    report = dataclasses.replace(fake_report(), classes=("cat", EVIL))
    reader = Reader(build_page(report, {"fedlmg": SetGrid("fedlmg", 1234, clients, cells, real)}))
    assert "fedlmg: 1,234 images" in reader.text
    assert "The first 10 of 12 clients." in reader.text
    shown = [value for value in reader.values("alt", "img") if value.startswith("Images of class")]
    assert len(shown) == 2 * 10 - 1, "a class that a client lacks has an empty cell"
    assert "Images of class cat for no client" in shown
    assert f"Images of class {EVIL} for client 8" in shown
