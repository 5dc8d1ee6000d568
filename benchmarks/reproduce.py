"""Pages that are rendered: results, recipes and models of docs/, the README's tables.

    python -m benchmarks.reproduce          # all of them, from JSON, zoo.csv and recipes' heads
    python -m benchmarks.reproduce --list   # commands, hardware and scores to be expected

Rows of the paper's tables are in benchmarks/paper.csv; their scores are read from the
`evaluation.json` of `nlzoo.evaluate`, kept as benchmarks/results/paper_RUN.json.
"""

import ast
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import worth, zoo
from benchmarks.measure import describe, table
from nlzoo.files import write_whole
from nlzoo.program import make_parser, parse_options, run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = ("Command", "Try it")  # of a recipe's head
TABLES = {  # the paper's tables that begin so: what they are of, and the figures in their order
    "2": ("Tables 2 and 3: Kinetics-400", ("top1", "top5")),
    "4": ("Table 4: Charades", ("map",)),
    "5": (
        "Table 5: COCO, boxes and masks",
        ("box/AP", "box/AP50", "box/AP75", "mask/AP", "mask/AP50", "mask/AP75"),
    ),
    "6": ("Table 6: COCO, keypoints", ("keypoint/AP", "keypoint/AP50", "keypoint/AP75")),
}
RESULTS_HEAD = """# Results

<!-- Rendered by `python -m benchmarks.reproduce`. -->

## The paper's tables

Published figures ([arXiv 1711.07971](https://arxiv.org/abs/1711.07971)), and those of nlzoo, empty
until somebody has run them: each row wants what its [recipe](recipes.md) names, days of eight GPUs.
A row is filled by

```
python -m nlzoo.fit --recipe RECIPE --data DATA --run runs/RUN
python -m nlzoo.evaluate --checkpoint runs/RUN/checkpoints/best.ckpt
cp runs/RUN/evaluation.json benchmarks/results/paper_RUN.json
python -m benchmarks.reproduce
```

with the recipe and options of the row; `python -m benchmarks.reproduce --list` prints the commands.
"""
MEASURED_HEAD = """
## Measured

All that is in `benchmarks/results/*.json`, but for raw samples.
"""
RECIPES_HEAD = """# Recipes

<!-- Rendered from the heads of recipes/*.yaml by `python -m benchmarks.reproduce`. -->

`--recipe` takes a name or a file; every key is an option (`--task.lr 0.02`). `--sample` trains a
small network on a set that is made on the spot.
"""


def heads() -> dict[str, dict[str, str]]:
    """Of each recipe what the comment above it says, by its labels; the first line is `title`."""
    files = sorted((ROOT / "recipes").glob("[!_]*.yaml"))
    return {file.stem: _head(file.read_text("utf-8")) for file in files}


def _head(text: str) -> dict[str, str]:
    """`# Label:   words`, continued by lines that begin in the same column."""
    found, label = {"title": ""}, "title"
    for line in text.partition("\n\n")[0].splitlines():
        start, words = line[2:12].strip(), line[12:].strip()
        if start.endswith(":"):
            label, start = start[:-1], ""
        elif start:
            label, start, words = ("note" if found["title"] else "title"), "", line[2:]
        found[label] = f"{found.get(label, '')} {words}".strip()
    return found


def paper() -> list[dict[str, str]]:
    """The rows of the paper's tables: run, tables, network, published, recipe, options."""
    with (ROOT / "benchmarks" / "paper.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(row: Mapping[str, str]) -> str:
    """The figures of a row's evaluation, as the paper writes them; empty where there is none."""
    file = RESULTS / f"paper_{row['run']}.json"
    if not file.exists():
        return ""
    found = json.loads(file.read_text("utf-8"))
    return "/".join(f"{100 * found[name]:.1f}" for name in TABLES[row["tables"][0]][1])


def command(row: Mapping[str, str], base: str) -> str:
    """The training of a row, from the command of its recipe."""
    return f"{base} --run runs/{row['run']} {row['options']}".strip()


def results() -> str:
    """docs/results.md."""
    parts = [RESULTS_HEAD]
    for first, (title, figures) in TABLES.items():
        rows = [
            {
                "table": row["tables"],
                "network": row["network"],
                "published": row["published"],
                "nlzoo": measured(row),
                "run": f"`{row['run']}`",
                "recipe and options": f"`{row['recipe']} {row['options']}`".replace(" `", "`"),
            }
            for row in paper()
            if row["tables"].startswith(first)
        ]
        parts.append(f"\n### {title}\n\n{'/'.join(figures)}\n\n{table(rows, list(rows[0]))}\n")
    parts.append(MEASURED_HEAD)
    for file in sorted(RESULTS.glob("*.json")):
        if not file.stem.startswith("paper_"):
            parts += [f"\n### {file.stem}\n", _docstring(file.stem)]
            page = ROOT / "docs" / f"{file.stem.replace('_', '-')}.md"
            document = json.loads(file.read_text("utf-8"))
            shown = [f"See [{page.name}]({page.name})."] if page.exists() else _shown(document)
            parts += [f"\n{part}\n" for part in shown]
    return "".join(parts)


def _docstring(name: str) -> str:
    """What the module that wrote a file says of itself, which is Markdown with its commands."""
    while name and not (file := ROOT / "benchmarks" / f"{name}.py").exists():
        name = name.rpartition("_")[0]
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if name else ""
    return f"\n{text}\n" if text else ""


def _shown(value: Mapping[str, Any], title: str = "") -> Iterator[str]:
    """A JSON object as Markdown: where it was measured, its facts, its tables, what is inside."""
    if title:
        yield f"**{title}**"
    if "machine" in value:
        yield f"Measured on {describe(value['machine'])}."
    inner = {key: x for key, x in value.items() if key != "machine"}
    tables = {key: x for key, x in inner.items() if _is_table(x)}
    if facts := [f"* {key}: {_text(x)}" for key, x in inner.items() if _text(x)]:
        yield "\n".join(facts)
    alike = len({tuple(rows[0]) for rows in tables.values()}) == 1
    if len(tables) > 1 and alike:  # runs of several things
        rows = [{"": key} | row for key, rows in tables.items() for row in rows]
        yield _table(rows)
    else:
        for key, rows in tables.items():
            yield f"**{key}**"
            yield _table(rows)
    for key, x in inner.items():
        if isinstance(x, dict) and not _text(x):
            yield from _shown(x, key)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _text(value: Any) -> str:
    """A fact in a line; empty for raw samples, longer texts, and what has objects inside."""
    if isinstance(value, dict):
        flat = not any(isinstance(x, dict) or _is_table(x) for x in value.values())
        return "; ".join(f"{k}: {_text(x)}" for k, x in value.items() if _text(x)) if flat else ""
    if isinstance(value, list):
        return " ".join(map(_text, value)) if len(value) < 5 and not _is_table(value) else ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if "\n" in str(value) else str(value).replace("|", "\\|")


def _table(rows: list[dict[str, Any]]) -> str:
    flat = [{k: x for k, x in row.items() if not isinstance(x, dict)} for row in rows]
    cells = [{key: text for key, x in row.items() if (text := _text(x))} for row in flat]
    return table(cells, list(dict.fromkeys(key for row in cells for key in row)))


def recipes() -> str:
    """docs/recipes.md."""
    parts = [RECIPES_HEAD]
    for name, head in heads().items():
        facts = {k: v for k, v in head.items() if k not in ("title", *COMMANDS)}
        lines = [f"* **{label}**: {words}\n" for label, words in facts.items()]
        own = "\n".join(head[key] for key in COMMANDS if key in head)
        about = f"{head['title']}\n\n{''.join(lines)}".replace("*.", "\\*.")
        parts.append(f"\n## {name}\n\n{about}\n```\n{own}\n```\n")
    return "".join(parts)


def comparisons() -> list[dict[str, str]]:
    """The README's table: what was measured with one thread, from the files' own rows."""
    block, image, network, loader, coco = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("block", "block2d", "network", "loader", "coco_metric")
    )
    bars = {bar["bar"]: bar["measured"] for bar in block["bars"] + image["bars"]}
    passes = ("forward", "forward + backward")

    def of_block(pair: str) -> list[float]:
        return [bars[f"{one}, threads 1: {pair}"] for one in passes]

    both = "{:.1f}x forward, {:.1f}x with backward"
    dot = "pytorchvideo dot product"
    speedups = [row["speed-up"] for row in network["rows"] if row["threads"] == 1]
    least = [bars[f"pooled, channels-last, {one}"] for one in passes]
    reading = [row["times as fast"] for row in loader["rows"] if row["files"] == "raw"]
    faster = sorted(row["times as fast"] for row in coco["rows"])
    soft = "embedded Gaussian against pytorchvideo softmax"
    found = (
        ("block, dot product", dot, both.format(*of_block(f"dot product against {dot}")), "block"),
        (
            "block, concatenation",
            dot,
            both.format(*of_block(f"concatenation against {dot}")),
            "block",
        ),
        ("block, embedded Gaussian", "pytorchvideo softmax", both.format(*of_block(soft)), "block"),
        ("block for images, pooled", "timm, not pooled", both.format(*least), "block2d"),
        ("I3D ResNet-50, 5 blocks", "pytorchvideo", both.format(*speedups), "network"),
        ("reading a raw clip", "pytorchvideo", "{:.1f}x".format(*reading), "loader"),
        ("COCO's numbers", "pycocotools", f"{faster[0]:.1f}x to {faster[-1]:.1f}x", "coco_metric"),
    )
    return [
        {
            "what": what,
            "beside": beside,
            "times as fast": figure,
            "measured by": f"`benchmarks.{by}`",
        }
        for what, beside, figure, by in found
    ]


def readme() -> str:
    """README.md with its tables of weights and of what was measured."""
    text = (ROOT / "README.md").read_text("utf-8")
    rows = comparisons()
    values = {"worth": worth.table(json.loads(worth.RESULT.read_text()))}
    values |= {"comparisons": table(rows, list(rows[0])), "weights": zoo.best_rows().strip()}
    for name, value in values.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n\n{value}\n\n{end}{rest.partition(end)[2]}"
    return text


def documents() -> dict[Path, str]:
    """The pages that are rendered, and what they are to hold."""
    pages = {ROOT / "docs" / "results.md": results(), ROOT / "docs" / "recipes.md": recipes()}
    return {**pages, ROOT / "docs" / "models.md": zoo.page(), ROOT / "README.md": readme()}


def listing() -> Iterator[str]:
    """Of each recipe its command, hardware and score, and the rows of the paper that it is for."""
    for name, head in heads().items():
        yield f"{name}: {head['title']}"
        yield f"  expected: {head['Expected']}"
        yield f"  hardware: {head['Hardware']}"
        rows = [row for row in paper() if row["recipe"] == name]
        for row in rows:
            yield f"  {row['network']}, table {row['tables']}: {row['published']}"
            run = f"runs/{row['run']}"
            yield f"    {command(row, head['Command'])}"
            yield f"    python -m nlzoo.evaluate --checkpoint {run}/checkpoints/best.ckpt"
        if not rows:
            yield f"    {head['Command']}"


def main() -> None:
    """Write the pages, or print the list."""
    parser = make_parser("python -m benchmarks.reproduce", __doc__)
    parser.add_argument("--list", action="store_true", help="commands, hardware, expected scores")
    if parse_options(parser, sys.argv[1:]).list:
        print("\n".join(listing()))
        return
    for path, text in documents().items():
        write_whole(path, text)


if __name__ == "__main__":
    run(lambda _: main())
