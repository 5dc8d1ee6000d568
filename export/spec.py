"""What an exported file says of itself: all that is needed to run it."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from nlzoo.preprocessing import Preprocessing

KEY = "nlzoo"  # of the file's metadata
AXES = {"batch": 0, "frames": 2, "height": 3, "width": 4}  # of a clip (B, C, T, H, W)


@dataclass(frozen=True)
class Spec:
    """One exported network.

    Its input "clip" is (B, 3, T, H, W): float32, normalised, or with `raw` uint8 as decoded. Its
    output "scores" is (B, K) float32: logits, or log-probabilities where the size is dynamic.
    """

    model: str  # name
    source: str  # file of the weights; empty: random
    sha256: str  # of that file
    version: str  # of nlzoo
    precision: str  # fp32 or fp16
    raw: bool
    shape: tuple[int, ...]  # it was exported with
    dynamic: tuple[str, ...]  # keys of AXES that may differ from it
    preprocessing: Preprocessing

    def to_json(self) -> str:
        """For the metadata."""
        return json.dumps(asdict(self) | {"preprocessing": self.preprocessing.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """Inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where an input of this shape does not fit."""
        if len(shape) != len(self.shape):
            raise ValueError(f"clip has shape {shape}, wanted {self.wanted()}")
        free = {AXES[name] for name in self.dynamic}
        wrong = [i for i, s in enumerate(self.shape) if i not in free and shape[i] != s]
        if wrong or min(shape) < 1:
            raise ValueError(f"clip has shape {shape}, wanted {self.wanted()}")

    def wanted(self) -> str:
        """The shape in words: `(batch, 3, 32, 256, 256)`."""
        names = {AXES[name]: name for name in self.dynamic}
        return f"({', '.join(str(names.get(i, s)) for i, s in enumerate(self.shape))})"
