"""Name what happens in videos: `python -m nlzoo.predict --checkpoint C VIDEO|FOLDER...`."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from nlzoo.data.clips import test_clips
from nlzoo.data.decode import VIDEO_SUFFIXES, probe, read_frames
from nlzoo.data.transforms import crops_of, resize_short
from nlzoo.explain import draw, look
from nlzoo.models import load_model
from nlzoo.program import parser_message, run


def main(argv: Sequence[str]) -> None:
    """Load, read, predict; one table or one JSON document."""
    options = parse(argv)
    model = load_model(options.checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    videos = list(find_videos(options.videos))
    if options.look:
        if len(videos) != 1:
            raise ValueError(f"--look draws one video, {len(videos)} were given")
        draw_look(model, videos[0], options.at, options.look)
    results = []
    for video in videos:
        try:
            results.append({"video": str(video), "top": top(model, video, options.clips)})
        except ValueError as error:  # one bad file does not end the list
            results.append({"video": str(video), "error": str(error)})
    show(results, options.json)
    if all("error" in result for result in results):
        raise ValueError(f"none of {len(results)} videos could be read")
