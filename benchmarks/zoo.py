"""Published weights as docs/models.md and the README's table, from zoo.csv."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from nlzoo.weights.zoo import Entry, read_zoo

ROOT = Path(__file__).parents[1]

BEST = (  # the README's rows
    "i3d_r50_nl5.k400_32x2_official",
    "i3d_r50_nl5.k400_32x4_official",
    "i3d_r50_nl5.k400_8x8_pyslowfast",
    "slowfast_r50.k400_8x8_pyslowfast",
    "slow_r50.k400_8x8_pytorchvideo",
    "i3d_r50_nl5.k400_32x2_mmaction2_dot",
    "i3d_r50_nl5.k400_32x2_mmaction2_gaussian",
    "slow_r50_nl5.k400_8x8_mmaction2_0x",
    "tsm_r50_nl5.k400_1x1x8_mmaction2_dot",
    "tsm_r50_nl5.k400_8x8_mit",
    "i3d_r101_nl10.k400_32x2_gluoncv",
    "i3d_r101_nl5.charades_32x4_lfb",
)
_TOP, _MAP, _MIOU = ("top-1", "top-5"), ("mAP", ""), ("mIoU", "mIoU, scales and flip")
DATASETS = {  # in the order of the page; what their two figures are
    "Kinetics-400": _TOP,
    "Kinetics-600": _TOP,
    "UCF101": _TOP,
    "Charades": _MAP,
    "EPIC-Kitchens verb": _TOP,
    "EPIC-Kitchens noun": _TOP,
    "AVA": _MAP,
    "AVA v2.1": _MAP,
    "AVA v2.2": _MAP,
    "ImageNet-1k": _TOP,
    "MNIST": _TOP,
    "COCO": ("box AP", "mask or keypoint AP"),
    "Cityscapes": _MIOU,
    "ADE20K": _MIOU,
    "Pascal VOC 2012 + aug": _MIOU,
}
SOURCES = {  # a word of the tag, and the repository that publishes or converts the file
    "official": "facebookresearch/video-nonlocal-net",
    "pyslowfast": "facebookresearch/SlowFast",
    "pytorchvideo": "facebookresearch/pytorchvideo",
    "pysf": "facebookresearch/pytorchvideo",
    "mmaction2": "open-mmlab/mmaction2",
    "lfb": "facebookresearch/video-long-term-feature-banks",
    "tushar": "Tushar-N/pytorch-resnet3d",
    "patykov": "patykov/OnlineAction",
    "mmaction01": "open-mmlab/mmaction",
    "gluoncv": "dmlc/gluon-cv",
    "mxnet": "dmlc/gluon-cv",
    "mit": "mit-han-lab/temporal-shift-module",
    "bat": "BA-Transform",
    "glore": "facebookresearch/GloRe",
    "paddle": "PaddlePaddle/models",
    "zjcv": "ZJCV/Non-local",
    "ch": "huggingface/pytorch-image-models",
    "ra2": "huggingface/pytorch-image-models",
    "alexhex7": "AlexHex7/Non-local_pytorch",
    "mmseg": "open-mmlab/mmsegmentation",
    "mmdet": "open-mmlab/mmdetection",
    "torchvision": "pytorch/vision",
}
INTRO = """\
# Published weights

<!-- Rendered from nlzoo/weights/zoo.csv by `python -m benchmarks.reproduce`. -->

{count} files and configurations of {sources} sources: the public checkpoints with non-local
blocks, and their baselines. [weights.md](weights.md) says how they are fetched, read, fine-tuned.

```python
model = nlzoo.create_model("i3d_r50_nl5.k400_32x2_official", pretrained=True)
model = nlzoo.create_model("i3d_r50_nl5", pretrained="k400_32x2_official")  # the same
```

```
python -m nlzoo.weights download i3d_r50_nl5.k400_32x2_official
python -m nlzoo.weights list i3d_r50_nl5.k400_32x2_official
```

`list NAME` shows all that is known: address, hash, mean, crop, form and scale of the blocks.

* **top-1** and other figures are those that the source published. nlzoo has not measured them: it
  is tested that its networks compute what the sources' code computes, on the same weights.
* **clip**: frames x stride, of SlowFast those of the fast pathway; of images the side in pixels.
* **M**, **GFLOPs**: parameters, and multiply-adds of one view, as the source counts them; those of
  video-nonlocal-net, SlowFast and long-term feature banks at 256 x 256, with attention.
* **nlzoo**: *whole*: the network with its classifier; *trunk*: without it (`num_classes=K` starts
  a fresh one); *blocks*: by `nlzoo.weights.blocks.load_block`; *-*: nothing, and a note says why.
"""


def page() -> str:
    """All rows: a table for each source of each data set."""
    entries = list(read_zoo().values())
    text = INTRO.format(count=len(entries), sources=len(set(SOURCES.values())))
    makes = ("whole", "trunk", "blocks", "")
    counts, parts = [], []
    for dataset, heads in DATASETS.items():
        found = [entry for entry in entries if entry.dataset == dataset]
        given = [str(sum(e.gives == gives for e in found) or "") for gives in makes]
        counts.append([f"[{dataset}](#{_anchor(dataset)})", str(len(found)), *given])
        parts.append(f"\n## {dataset}\n")
        order = list(dict.fromkeys(map(source, found)))
        found.sort(key=lambda entry: order.index(source(entry)))
        parts += [_section(repo, list(own), heads) for repo, own in groupby(found, source)]
    head = ["data set", "rows", "whole", "trunk", "blocks", "nothing"]
    return f"{text}\n{table(head, counts)}{''.join(parts)}"


def best_rows() -> str:
    """The README's table."""
    rows = []
    for entry in map(read_zoo().__getitem__, BEST):
        head = DATASETS[entry.dataset][0]
        licence = "" if entry.is_commercial else ", not for commercial use"
        figure = f"{entry.top1.removesuffix(' mAP')} {head}"
        rows.append([f"`{entry.name}`", figure, source(entry).rpartition("/")[2] + licence])
    return table(["weights", "published", "by"], rows)


def source(entry: Entry) -> str:
    """`owner/repository` on GitHub."""
    words = entry.name.partition(".")[2].split("_")
    return next(SOURCES[word] for word in words if word in SOURCES)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown, without the columns that are empty."""
    rows = list(rows)
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [f"| {' | '.join(row[i] for i in kept)} |\n" for row in (head, *rows)]
    return "".join([lines[0], f"|{'---|' * len(kept)}\n", *lines[1:]])


def _section(repository: str, entries: list[Entry], heads: tuple[str, str]) -> str:
    """What all rows share is above their table; the rest is numbered, below it."""
    facts = [list(dict.fromkeys(_facts(entry))) for entry in entries]
    shared = [fact for fact in facts[0] if all(fact in others for others in facts)]
    numbers: dict[str, int] = {}
    rows = []
    for entry, own in zip(entries, facts, strict=True):
        notes = [numbers.setdefault(f, len(numbers) + 1) for f in own if f not in shared]
        figures = entry.top1.removesuffix(" mAP"), entry.top5, entry.clip
        cost = entry.params_M, entry.gflops
        cells = [f"`{entry.name}`", *figures, *cost, entry.gives or "-"]
        rows.append([*cells, ", ".join(map(str, sorted(notes)))])
    head = ["name", *heads, "clip", "M", "GFLOPs", "nlzoo", "notes"]
    above = [f"* {fact}\n" for fact in shared]
    below = [f"{number}. {fact}\n" for fact, number in numbers.items()]
    title = f"### [{repository}](https://github.com/{repository})\n"
    parts = [title, "".join(above), table(head, rows), "".join(below)]
    return "".join(f"\n{part}" for part in parts if part)


def _facts(entry: Entry) -> Iterator[str]:
    """What there is to say in words: licence, views, why it is not whole, doubts."""
    licence = entry.licence or "unknown"
    if entry.is_commercial:
        yield f"licence: {licence}"
    elif "NC" in licence:
        yield f"**not for commercial use**: {licence}"
    else:
        yield f"**licence {licence}**: ask its authors before any use"
    if entry.views:
        yield f"views: {entry.views}"
    for text in (entry.reason, *entry.note.split("; ")):
        if text and not text.startswith("top1 column is"):  # the table's head says it
            yield text.replace("*", r"\*")


def _anchor(title: str) -> str:
    """As GitHub names headings."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
