"""nlzoo: non-local neural networks (Wang, Girshick, Gupta, He, CVPR 2018, arXiv 1711.07971)."""

import importlib
from typing import TYPE_CHECKING, Any

from nlzoo.version import __version__

if TYPE_CHECKING:
    from nlzoo.blocks import NonLocalBlock
    from nlzoo.insert import InsertionReport, insert_non_local
    from nlzoo.models import create_model, list_models, load_model

__all__ = [
    "InsertionReport",
    "NonLocalBlock",
    "__version__",
    "create_model",
    "insert_non_local",
    "list_models",
    "load_model",
]

_HOMES = {
    "NonLocalBlock": "blocks",
    "InsertionReport": "insert",
    "insert_non_local": "insert",
    "create_model": "models",
    "list_models": "models",
    "load_model": "models",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import nlzoo` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nlzoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nlzoo.{_HOMES[name]}"), name)
