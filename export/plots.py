"""Pictures of what `nlzoo.export.bench` measured, for light and for dark pages."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

Row = dict[str, Any]
Values = dict[str, float]  # by label
INK = {"light": "#1f2328", "dark": "#e6edf3"}
EXACT = 1e-9  # where a relative L2 of 0 is drawn, on an axis of powers


class Plot(NamedTuple):
    """One picture in both inks."""

    name: str
    alt: str
    png: dict[str, bytes]  # of "light" and "dark"


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Latency against batch with p50 to p99, parity, accuracy against latency, and file sizes.

    What the rows do not hold is left out.
    """
    labels = {label: f"C{i}" for i, label in enumerate(dict.fromkeys(r["label"] for r in rows))}
    made = [_latency(rows, labels)]
    apart: Values = {}
    for row in rows:
        if "parity" in row:
            error = row["parity"]["relative_l2"]
            apart[row["label"]] = max(error, apart.get(row["label"], 0))
    if apart:
        made.append(_parity(apart, labels))
    if any("top1" in row for row in rows):
        made.append(_accuracy(rows, labels))
    files = {r["label"].rpartition(" ")[0]: r["bytes"] / 1e6 for r in rows if r["bytes"]}
    if files:
        made.append(_bars("size", "size, MB", files, dict.fromkeys(files, "C7")))
    return made


def _latency(rows: Sequence[Row], colours: dict[str, str]) -> Plot:
    """Lines over the batch sizes; bars where there is one."""
    batches = sorted({row["batch"] for row in rows})
    if len(batches) == 1:
        values = {row["label"]: row["median_ms"] for row in rows}
        tails = {row["label"]: row["p99_ms"] for row in rows}
        what = f"ms a call, batch {batches[0]} (line: to p99)"
        return _bars("latency", what, values, colours, tails)

    def draw(axes: Axes) -> None:
        for label, colour in colours.items():
            line = sorted((r["batch"], r["median_ms"], r["p99_ms"]) for r in _of(rows, label))
            x, low, high = zip(*line, strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(x, low, color=colour, marker="o", markersize=4, label=label)
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms a call, p50 to p99")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=9)

    said = (f"{r['label']} {r['median_ms']:.3g} ms at batch {r['batch']}" for r in rows)
    return _plot("latency", f"Latency against batch: {'; '.join(said)}", draw)


def _accuracy(rows: Sequence[Row], colours: dict[str, str]) -> Plot:
    least = min(row["batch"] for row in rows)
    points = [row for row in rows if row["batch"] == least and "top1" in row]

    def draw(axes: Axes) -> None:
        for row in points:
            at, colour = (row["median_ms"], 100 * row["top1"]), colours[row["label"]]
            axes.plot(*at, "o", color=colour, label=row["label"])
        axes.margins(0.2)
        low, high = (100 * pick(row["top1"] for row in points) for pick in (min, max))
        axes.set(xlabel=f"ms a call, batch {least}", ylabel="top-1, %", xlim=(0, None))
        axes.set_ylim(max(low - 5, -1), min(high + 5, 101))
        axes.legend(frameon=False, fontsize=9)

    said = (f"{p['label']} {100 * p['top1']:.1f} % in {p['median_ms']:.3g} ms" for p in points)
    return _plot("accuracy", f"Top-1 against latency: {'; '.join(said)}", draw)


def _bars(
    name: str, what: str, values: Values, colours: dict[str, str], tails: Values | None = None
) -> Plot:
    """A horizontal bar a label, with a line to its tail."""

    def draw(axes: Axes) -> None:
        labels, ends = list(values), tails or values
        axes.barh(labels, list(values.values()), color=[colours[k] for k in labels])
        axes.hlines(labels, list(values.values()), [ends[k] for k in labels], linewidth=2)
        for i, label in enumerate(labels):
            _say(axes, f"{values[label]:.3g}", (ends[label], i))
        axes.invert_yaxis()
        axes.set(xlabel=what)
        axes.margins(x=0.15)

    said = "; ".join(f"{label} {value:.3g}" for label, value in values.items())
    return _plot(name, f"{what}: {said}", draw, height=1.2 + 0.4 * len(values))


def _parity(values: Values, colours: dict[str, str]) -> Plot:
    """Relative L2 on an axis of powers; larger is to the right."""

    def draw(axes: Axes) -> None:
        labels = list(values)
        for i, label in enumerate(labels):
            value = values[label]
            at = min(max(value, EXACT), 1.0), i
            axes.plot(*at, "o", color=colours[label])
            _say(axes, f"{value:.1e}" if value else "exact", at)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xscale="log", xlabel="relative L2 to the first", xlim=(EXACT / 3, 10))
        axes.margins(y=0.2)
        axes.invert_yaxis()

    said = "; ".join(f"{label} {value:.1e}" for label, value in values.items())
    alt = f"Parity, relative L2 to the first: {said}"
    return _plot("parity", alt, draw, height=1.2 + 0.4 * len(values))


def _say(axes: Axes, text: str, at: tuple[float, float]) -> None:
    """Right of a point."""
    axes.annotate(text, at, (8, 0), textcoords="offset points", va="center")


def _of(rows: Sequence[Row], label: str) -> list[Row]:
    return [row for row in rows if row["label"] == label]


def _plot(name: str, alt: str, draw: Callable[[Axes], None], height: float = 4) -> Plot:
    png = {}
    for mode, ink in INK.items():
        keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        style: Any = dict.fromkeys((*keys, "lines.color"), ink) | {"font.size": 11}
        with mpl.rc_context(style):
            figure = Figure(figsize=(7, height), layout="constrained")
            axes = figure.add_subplot()
            axes.set_facecolor("none")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.2)
            draw(axes)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=140, transparent=True)
        png[mode] = buffer.getvalue()
    return Plot(name, alt, png)
