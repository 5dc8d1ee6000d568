"""What `nlzoo.export.bench` measured, as one page and as a table in the terminal."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nlzoo.console import table_console
from nlzoo.export.plots import Plot, plots
from nlzoo.files import read_text, write_whole

Results = dict[str, Any]  # of one measurement
Row = dict[str, Any]
Cells = tuple[list[str], list[list[list[str]]]]  # heads, parts of lines

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Latency, parity and accuracy</title>
<style>
:root { color-scheme: light dark; --line: #d0d7de; --faint: #59636e; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --faint: #9198a1; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; }
figure { margin: 2rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-weight: 600; } .faint { color: var(--faint); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody + tbody { border-top: 2px solid var(--line); }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Latency, parity and accuracy</h1>
$sections
</body>
</html>
""")
CAPTIONS = {
    "latency": "Latency of a call, from clips on the device to scores: median to 99th percentile",
    "parity": "Difference from the first one's scores on the same clips",
    "accuracy": "Top-1 on validation clips against latency",
    "size": "Size of the files (a checkpoint also holds the optimizer's state)",
}
PRECISIONS = ("box AP", "mask AP", "keypoint AP")
WHAT, RATIO = "what", "ratio"
NOTE = (
    "start: load and first run, s; ms: median of a call; ratio: share of the first one's time at "
    "the same batch, and its 95 % bootstrap interval: faster or slower is said only where that "
    "excludes 1; L2: relative difference of the scores from the first one's; same: share of clips "
    "with the first one's top-1, or of detections that both have."
)


def read_results(path: str | Path) -> Results:
    """One file of `nlzoo.export bench`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is another file.
    """
    try:
        results = json.loads(read_text(path))
        if results["rows"][0]["median_ms"] and results["machine"]:
            return dict(results)
    except (ValueError, KeyError, IndexError, TypeError):
        pass
    raise ValueError(f"{path} is no file of python -m nlzoo.export bench")


def cells(rows: Sequence[Row]) -> Cells:
    """Head and body of the table, a part a batch size; columns that say nothing are left out."""
    table = [_cells(row, first=row["label"] == rows[0]["label"]) for row in rows]
    heads = [head for head in table[0] if any(line[head] for line in table)]
    parts = groupby(table, key=lambda line: line["batch"])
    return heads, [[[line[head] for head in heads] for line in part] for _, part in parts]


def _cells(row: Row, first: bool) -> dict[str, str]:
    low, high = row["interval"]
    parity = row.get("parity", {})
    return {
        WHAT: row["label"],
        "batch": str(row["batch"]),
        "start": f"{row['load_s'] + row['first_run_s']:.2g}",
        "ms": _figures(row["median_ms"]),
        "p90": _figures(row["p90_ms"]),
        "p99": _figures(row["p99_ms"]),
        RATIO: "1" if first else f"{row['ratio']:.2f} {low:.2f}-{high:.2f}",
        "": row["verdict"],
        "L2": _power(parity["relative_l2"]) if parity and not first else "",
        "same": f"{parity['top1_agreement']:.0%}" if parity and not first else "",
        "top-1": f"{row['top1']:.3f}" if "top1" in row else "",
        **{name: f"{row[name]:.3f}" if name in row else "" for name in PRECISIONS},
        "MB": f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "",
    }


def _figures(number: float) -> str:
    """Three of them, none after the point from 100 on."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _power(number: float) -> str:
    """1.4e-7."""
    return f"{number:.1e}".replace("e-0", "e-")


def show(results: Results) -> None:
    """The tables, in the terminal."""
    console = table_console()
    console.print(_table(cells(results["rows"])), soft_wrap=False)
    if stages := results.get("stages"):
        console.print(_table(_stage_cells(stages)), soft_wrap=False)
    console.print(NOTE, style="dim", soft_wrap=False)


def _table(cells: Cells) -> Table:
    heads, parts = cells
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in heads:
        if head == WHAT:
            table.add_column(head, overflow="fold", min_width=11)
        else:  # where there is no room, the interval goes below the ratio
            table.add_column(
                head, justify="right", min_width=9 * (head == RATIO), no_wrap=head != RATIO
            )
    for part in parts:
        for line in part:
            table.add_row(*line)
        table.add_section()
    return table


def _stage_cells(stages: Sequence[Row]) -> Cells:
    names = ("median_ms", "p90_ms", "p99_ms")
    lines = [
        [row["label"] or "all", row["stage"], *(_figures(row[name]) for name in names)]
        for row in stages
    ]
    return [WHAT, "stage", "ms", "p90", "p99"], [lines]


def write_report(found: Mapping[str, Results], output: str | Path, folder: str = "") -> None:
    """One page that needs no other file.

    Args:
        found: measurements by name.
        output: HTML file to write.
        folder: where the plots also go, as PNG files NAME-PLOT.png; empty: nowhere.
    """
    sections = []
    for name, results in found.items():
        drawn = plots(results["rows"])
        for plot in drawn if folder else ():
            write_whole(Path(folder) / f"{Path(name).stem}-{plot.name}.png", plot.png["light"])
        sections.append(_section(name, results, drawn))
    write_whole(output, PAGE.substitute(sections="\n".join(sections)))


def _section(name: str, results: Results, drawn: Sequence[Plot]) -> str:
    parts = [f"<h2>{escape(name)}</h2>", _html_table(cells(results["rows"]))]
    parts.append(f'<p class="faint">{escape(NOTE)}</p>')
    parts += map(_figure, drawn)
    if stages := results.get("stages"):
        parts.append("<h3>From a video file to scores, one clip</h3>")
        parts.append(_html_table(_stage_cells(stages)))
    facts = results["machine"] | results.get("settings", {})
    lines = [[key, _plain(value)] for key, value in facts.items() if value not in ("", None)]
    parts.append("<h3>Machine and settings</h3>")
    parts.append(_html_table(([], [lines]), "facts"))
    return "\n".join(parts)


def _html_table(cells: Cells, kind: str = "") -> str:
    def line(tag: str, words: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(word)}</{tag}>" for word in words) + "</tr>"

    heads, parts = cells
    head = f"<thead>{line('th', heads)}</thead>\n" if heads else ""
    bodies = ("\n".join(line("td", words) for words in part) for part in parts)
    body = "\n".join(f"<tbody>\n{one}\n</tbody>" for one in bodies)
    return f'<div class="scroll"><table class="{kind}">\n{head}{body}\n</table></div>'


def _figure(plot: Plot) -> str:
    light, dark = (
        f"data:image/png;base64,{b64encode(plot.png[ink]).decode()}" for ink in ("light", "dark")
    )
    return (
        f"<figure><figcaption>{escape(CAPTIONS[plot.name])}</figcaption>"
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(plot.alt)}"></picture></figure>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
