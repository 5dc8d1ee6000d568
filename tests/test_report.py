"""The page and the table of what was measured, read by a browser, too."""

import io
import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from PIL import Image

from nlzoo.export import __main__ as program
from nlzoo.export.bench import against, spread
from nlzoo.export.plots import INK, plots
from nlzoo.export.report import cells, read_results, show, write_report
from nlzoo.export.timing import Times
from nlzoo.program import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NASTY = "<b>a&b.onnx"


def row(label, batch, ms, **more):
    """One row of `measure`, of 10 rounds; the first network takes 10 ms a clip."""
    wall = [ms / 1e3 * (1 + 0.02 * i) for i in range(10)]
    base = [0.01 * batch * (1 + 0.02 * i) for i in range(10)]
    facts = {"source": label, "label": f"{label} cpu", "batch": batch, "bytes": 2_000_000}
    times = Times(wall, wall)
    start = {"load_s": 0.5, "first_run_s": 0.25}
    return facts | start | spread(times) | against(times, Times(base, base)) | more


def results(batches=(1, 8)):
    """Two networks, the second of half the time."""
    close = {"parity": {"relative_l2": 1.25e-7, "top1_agreement": 1.0}, "top1": 0.75}
    exact = {"parity": {"relative_l2": 0.0, "top1_agreement": 1.0}, "top1": 0.76}
    rows = [
        one
        for batch in batches
        for one in (row("eager", batch, 10 * batch, **exact), row(NASTY, batch, 5 * batch, **close))
    ]
    stages = [
        {"label": "", "stage": "decode", **spread(Times([0.002] * 6, [0.002] * 6))},
        {"label": f"{NASTY} cpu", "stage": "compute", **spread(Times([0.004] * 6, [0.004] * 6))},
    ]
    machine = {"cpu": "A & B", "versions": {"torch": "2"}, "load": [0.5, 0.25], "gpu": ""}
    return {"machine": machine, "settings": {"rounds": 10}, "rows": rows, "stages": stages}


def test_cells():
    heads, parts = cells(results()["rows"])
    (first, second), (_, last) = (
        [dict(zip(heads, line, strict=True)) for line in part] for part in parts
    )
    assert (first["ratio"], first[""], first["L2"]) == ("1", "", "")
    assert (second["ratio"], second[""]) == ("0.50 0.50-0.50", "faster")
    assert (second["L2"], second["same"], second["top-1"]) == ("1.2e-7", "100%", "0.750")
    assert (second["start"], second["ms"], second["MB"]) == ("0.75", "5.45", "2.0")
    assert last["batch"] == "8"


def test_columns_that_say_nothing_are_left_out():
    heads, _ = cells([row("eager", 1, 10), row("other", 1, 10, bytes=None)])
    assert "MB" in heads
    assert not {"top-1", "L2", "same"} & {*heads}
    assert "faster" not in str(cells([row("eager", 1, 10), row("other", 1, 10)]))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    show(results())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("batches", [(1,), (1, 8)])
def test_plots(batches):
    drawn = {plot.name: plot for plot in plots(results(batches)["rows"])}
    assert list(drawn) == ["latency", "parity", "accuracy", "size"]
    for plot in drawn.values():
        assert plot.alt
        for ink in INK:
            assert Image.open(io.BytesIO(plot.png[ink])).size[0] == 980
        assert plot.png["light"] != plot.png["dark"]
    assert "eager cpu 10.9" in drawn["latency"].alt
    assert [plot.name for plot in plots([row("eager", 1, 10, bytes=None)])] == ["latency"]


def test_the_page_needs_nothing_else(tmp_path):
    write_report({"one.json": results(), "<2>.json": results((4,))}, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert not re.search(r"https?://|<script|<link(?! rel=\"icon\" href=\"data:)", page)
    sources = re.findall(r'(?:src|srcset)="([^"]{22})', page)
    assert sources == ["data:image/png;base64,"] * 16
    assert "<b>a" not in page
    assert "&lt;b&gt;a&amp;b.onnx cpu" in page
    assert "<h2>&lt;2&gt;.json</h2>" in page
    assert all(unescape(alt) for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))


def test_program(tmp_path, capsys):
    (tmp_path / "bench.json").write_text(json.dumps(results()))
    files = [str(tmp_path / name) for name in ("bench.json", "r.html", "plots")]
    program.main(["report", files[0], "--output", files[1], "--plots", files[2]])
    assert "decode" in capsys.readouterr().out
    names = [f"bench-{name}.png" for name in ("accuracy", "latency", "parity", "size")]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == names


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"rows": [{"a": 1}]}'])
def test_other_files_are_named(tmp_path, capsys, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no file of"):
        read_results(tmp_path / "other.json")
    for name in ("other.json", "none.json"):
        with pytest.raises(SystemExit) as exit_:
            run(
                program.main, ["report", str(tmp_path / name), "--output", str(tmp_path / "r.html")]
            )
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_every_plot(tmp_path, scheme):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    write_report({"bench.json": results()}, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    mark = (
        "<script>addEventListener('load', () => document.querySelectorAll('img').forEach("
        "i => i.dataset.loaded = i.naturalWidth + (i.currentSrc == i.src ? ' light' : ' dark')))"
        "</script></body>"
    )
    (tmp_path / "marked.html").write_text(page.replace("</body>", mark))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    options += ["--force-dark-mode"] if scheme == "dark" else []
    done = subprocess.run(
        [browser, *options, "--dump-dom", (tmp_path / "marked.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    assert re.findall(r'data-loaded="([^"]*)"', done.stdout) == [f"980 {scheme}"] * 4
