"""``report.html``: what is on it, what it must not need, and how a browser takes it."""

import dataclasses
import doctest
import html
import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mim4d.errors import BadDataError, UserError
from mim4d.pretrain import report, trainer
from mim4d.pretrain.folder import RunFolder
from mim4d.pretrain.presets import DEMO
from mim4d.pretrain.report import CHARTS, MAX_PICTURES, MAX_POINTS, choose_pictures, round_ticks, thin, write_report
from mim4d.pretrain.trainer import train
from tests.pretrain.runs import metrics, tiny

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = (100, 200, 300)


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and its text."""

    VOID = frozenset({"meta", "img", "input", "br", "hr", "link"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def references(self):
        """Everything that a browser would load."""
        names = ("src", "srcset", "href", "xlink:href", "data", "poster", "action", "background")
        return [at[name] for _, at in self.elements for name in names if name in at]


def write_run(root: Path, rows: list[dict[str, float]], pictures: tuple[int, ...] = ()) -> RunFolder:
    """A run folder as the trainer leaves it, without its checkpoints."""
    folder = RunFolder(root)
    folder.pictures.mkdir(parents=True)
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in pictures:
        Image.new("RGB", (60, 20), (step % 256, 0, 0)).save(folder.pictures / f"step_{step:08d}.png")
    return folder


def some_rows(count: int = 300) -> list[dict[str, float]]:
    """Rows with every measure there is a chart for, the held-out ones every 100 steps."""
    names = [series.name for _, chosen in CHARTS for series in chosen]
    rows = []
    for step in range(1, count + 1):
        measured = [name for name in names if step % 100 == 0 or not name.startswith(("val_", "grad_encoder_"))]
        rows.append({"step": step} | {name: (1 + place) / step for place, name in enumerate(measured)})
    return rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run of every kind of figure, three pictures and an animation."""
    folder = write_run(tmp_path_factory.mktemp("run") / "demo", some_rows(), PICTURES)
    frames = [Image.new("RGB", (704, 426), (40 * shade, 0, 0)) for shade in range(3)]
    frames[0].save(folder.animation, save_all=True, append_images=frames[1:])
    return write_report(folder, DEMO, state="finished")


def test_a_run_keeps_its_page_up_to_date(root, tmp_path, monkeypatch, fresh_accelerate):
    states = []

    def noted(folder, config, **given):
        states.append((given["state"], len(metrics(tmp_path / "run"))))
        return write_report(folder, config, **given)

    monkeypatch.setattr(trainer, "write_report", noted)
    monkeypatch.setattr(trainer, "ANIMATED", 2)
    out = train(tiny(root, tmp_path / "run", "--steps", "3", "--save-every", "2", "--picture-every", "2"))
    assert states == [("running", 0), ("running", 2), ("running", 3), ("finished", 3)]  # with as many rows

    page, last = Page(out / "report.html"), metrics(out)[-1]
    assert f'timm.create_model("local-dir:{out}/encoder", pretrained=True, features_only=True).eval()' in page.text
    assert f"{last['loss']:.3f}" in page.text
    assert f"{last['temporal_rgb']:.3f}" in page.text
    assert "held-out clip at step 3" in page.text
    sheets = [image for image in page.all("img") if "data-step" in image]
    assert [image["data-step"] for image in sheets] == ["2", "3"]
    assert len(page.all("img")) == len(sheets) + 1
    with Image.open(out / "rendered.webp") as animation:
        assert (animation.n_frames, animation.info["loop"]) == (2, 0)
        assert animation.size == (2 * 128, 3 * (64 + 14))
    assert not list(out.rglob("*.partial"))


def test_a_run_that_stops_says_why_on_its_page(root, tmp_path, monkeypatch, fresh_accelerate):
    def fail(*_, **__):
        raise UserError("the loss is <nan>")

    monkeypatch.setattr(trainer, "save_checkpoint", fail)
    with pytest.raises(UserError, match="the loss is <nan>"):
        train(tiny(root, tmp_path / "run", "--steps", "2"))
    page = Page(tmp_path / "run" / "report.html")
    assert "stopped" in page.text
    assert "the loss is <nan>" in page.text


def test_a_report_that_cannot_be_written_stops_the_run(root, tmp_path, fresh_accelerate):
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^cannot write .*report\.html: Is a directory$"):
        train(tiny(root, tmp_path / "run", "--steps", "1"))


def test_an_animation_that_cannot_be_read_for_does_not_spoil_the_run(
    root, tmp_path, monkeypatch, capsys, fresh_accelerate
):
    def broken(*_, **__):
        raise BadDataError("samples/x.jpg", "no such file")

    monkeypatch.setattr(trainer, "save_animation", broken)
    out = train(tiny(root, tmp_path / "run", "--steps", "1", "--picture-every", "1"))
    assert "warning: no rendered.webp: samples/x.jpg: no such file" in capsys.readouterr().err
    assert "finished" in Page(out / "report.html").text


def test_a_page_needs_no_other_file_and_no_network(finished):
    page = Page(finished)
    assert len(page.references()) == len(PICTURES) + 1
    assert all(reference.startswith("data:image/") for reference in page.references())
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\(", finished.read_text())
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_curves_are_where_their_values_belong(finished):
    """Against the axes as they are drawn: the gridlines' labels say what a height means."""
    rows, drawn = some_rows(), Page(finished)
    names = [series.name for _, chosen in CHARTS for series in chosen]
    lines = drawn.all("polyline")
    assert len(lines) == len(names)
    charts = re.findall(r"<svg.*?</svg>", finished.read_text(), re.DOTALL)
    assert len(charts) == len(CHARTS)
    slow = []
    for svg, (_, chosen) in zip(charts, CHARTS, strict=True):
        heights = [float(y) for y in re.findall(r'<line class="grid"[^>]* y1="([^"]+)"', svg)]
        labels = [float(text) for text in re.findall(r'text-anchor="end">([\d.e+-]+)</text>', svg)]
        left, right = (float(re.search(rf'<line class="grid"[^>]*{x}="([^"]+)"', svg)[1]) for x in ("x1", "x2"))
        assert labels[0] < labels[-1]
        assert heights[0] > heights[-1]  # up the page
        for series in chosen:
            path = []
            for row in rows:
                if series.name in row:
                    share = (row[series.name] - labels[0]) / (labels[-1] - labels[0])
                    path.append(
                        (
                            left + (right - left) * row["step"] / rows[-1]["step"],
                            heights[0] + share * (heights[-1] - heights[0]),
                        )
                    )
            slow.append(path)
    for line, expected in zip(lines, slow, strict=True):
        found = [tuple(map(float, point.split(","))) for point in line["points"].split()]
        assert len(found) == len(expected)
        assert all(math.dist(a, b) < 0.1 for a, b in zip(found, expected, strict=True))
    assert sum("dashed" in line["class"] for line in lines) == sum(name.startswith("val_") for name in names)


def test_a_held_out_curve_has_its_measures_colour():
    colours: dict[str, set[int]] = {}
    for title, chosen in CHARTS[:5]:
        for series in chosen:
            colours.setdefault(title + series.name.removeprefix("val_"), set()).add(series.colour)
        assert len({series.name for series in chosen}) == len(chosen)
    assert all(len(found) == 1 for found in colours.values())


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "a\"b'c&amp;d", "{{ 7 * 7 }}", "</title></pre>"])
def test_names_and_settings_are_text(hostile, tmp_path):
    folder = write_run(tmp_path / hostile.replace("/", "|"), some_rows(3))
    config = dataclasses.replace(DEMO, dataroot=hostile, split=hostile)
    plain = write_run(tmp_path / "plain", some_rows(3))
    page = Page(write_report(folder, config, state="stopped", reason=hostile))
    assert page.text.count(hostile) >= 3  # the reason and two settings
    assert folder.root.name in page.text
    harmless = Page(write_report(plain, DEMO, state="stopped", reason="because"))
    assert Counter(tag for tag, _ in page.elements) == Counter(tag for tag, _ in harmless.elements)


def test_a_name_that_is_no_utf8_is_shown_as_far_as_it_goes(tmp_path):
    folder = write_run(tmp_path / "caf\udce9", [])
    assert "caf?" in Page(write_report(folder, DEMO, state="running")).text


@pytest.mark.parametrize(("rows", "charts"), [([], 0), (some_rows(1), 13)])
def test_a_page_can_be_written_early(rows, charts, tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", rows), DEMO, state="running"))
    assert f"step {len(rows)} of 300" in page.text
    assert page.text.count("step 1\n") == charts  # the horizontal axis ends at the newest step
    assert {"http-equiv": "refresh", "content": "30"} in page.all("meta")
    assert len(page.all("svg")) == charts
    assert "timm" not in page.text
    assert all(line["points"].count(",") == 1 for line in page.all("polyline"))
    assert len(page.all("circle")) == len(page.all("polyline"))  # or one value would not be seen


def test_what_is_damaged_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", [], (1, 2))
    folder.metrics.write_text(
        '{"step": 1, "loss": 2.0}\n\0\0\0\n{"step": 2, "loss": NaN, "lr": Infinity}\n{"step": 3, "lo'
    )
    (folder.pictures / "step_00000001.png").write_bytes(b"\x89PNG")
    (folder.pictures / "step_best.png").write_bytes(b"")
    page = Page(write_report(folder, DEMO, state="running"))
    assert [line["points"].count(",") for line in page.all("polyline")] == [1]
    assert [image["data-step"] for image in page.all("img")] == ["2"]


def test_pictures_of_training_clips_are_not_called_held_out(tmp_path):
    folder = write_run(tmp_path / "run", [], (1,))
    assert "held-out" not in Page(write_report(folder, DEMO, state="running", held_out=False)).text


@given(st.integers(0, 60))
def test_the_first_and_the_newest_picture_are_chosen(tmp_path_factory, count):
    folder = tmp_path_factory.mktemp("pictures")
    for step in range(count):
        (folder / f"step_{step:08d}.png").touch()
    chosen = [int(path.stem[5:]) for path in choose_pictures(folder)]
    assert len(chosen) == min(count, MAX_PICTURES)
    assert chosen == sorted(set(chosen))
    assert not count or {0, count - 1} <= set(chosen) or count == 1


values = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(st.lists(values, min_size=1, max_size=20))
def test_ticks_are_round_and_span_all_values(chosen):
    ticks = round_ticks(chosen)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    slack = 1e-6 * step
    assert 2 <= len(ticks) <= 7
    assert ticks[0] - slack <= min(chosen) <= max(chosen) <= ticks[-1] + slack
    assert all(abs(b - a - step) < slack for a, b in pairwise(ticks))
    assert any(abs(step / 10 ** math.floor(math.log10(step * 1.001)) - digit) < 1e-6 for digit in (1, 2, 2.5, 5))


@given(st.lists(values, max_size=3 * MAX_POINTS + 5))
def test_thinning_keeps_the_mean_and_the_last_step(chosen):
    points = [(float(7 * step), value) for step, value in enumerate(chosen)]
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert [step for step, _ in thinned] == sorted({step for step, _ in thinned})
    if len(points) <= MAX_POINTS:
        assert thinned == points
    else:
        assert thinned[-1][0] == points[-1][0]
        size = math.ceil(len(points) / MAX_POINTS)
        counts = [min(size, len(points) - first) for first in range(0, len(points), size)]
        total = sum(count * value for count, (_, value) in zip(counts, thinned, strict=True))
        assert total == pytest.approx(sum(chosen), abs=1e-3)


def test_the_examples_in_docstrings_hold():
    found = doctest.testmod(report)
    assert found.attempted
    assert not found.failed


PROBE = """
<!DOCTYPE html><pre id="found">{}</pre><iframe id="page" width="360" height="800" srcdoc="%s"></iframe><script>
const frame = document.getElementById("page"), found = {};
frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  found.width = [root.clientWidth, root.scrollWidth];
  found.errors = frame.contentWindow.errors;
  const look = () => [page.getElementById("at").value,
    [...page.querySelectorAll(".sheet img")].filter(i => i.getClientRects().length).map(i => i.dataset.step)];
  found.newest = look();
  const slider = page.getElementById("slider");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  found.first = look();
  found.broken = [...page.images].filter(i => i.complete && !i.naturalWidth).length;
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""
"""A page that holds a report in a frame of a phone's width, moves its slider and says what it found."""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it_on_a_phones_width(finished, tmp_path):
    noted = "<script>errors = []; addEventListener('error', e => errors.push(e.message));</script>"
    page = finished.read_text(encoding="utf-8").replace("<head>", f"<head>{noted}", 1)
    (tmp_path / "probe.html").write_text(PROBE % html.escape(page), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
    quiet = ("--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND")
    done = subprocess.run(
        [
            *(CHROMIUM, *flags, *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"),
            *("--dump-dom", (tmp_path / "probe.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    first, newest = str(PICTURES[0]), str(PICTURES[-1])
    assert found == {
        "width": [360, 360],
        "errors": [],
        "newest": [newest, [newest]],
        "first": [first, [first]],
        "broken": 0,
    }
