"""Parity: how near what runs without torch is to what was trained."""

from dataclasses import dataclass, field
from typing import Literal

from blemish.errors import count_of

RunPrecision = Literal["fp32", "fp16", "bf16", "int8"]
"""What an exported network computes in."""
AskedPrecision = Literal["fp32", "fp16", "bf16", "int8", "auto"]
"""The same, or the fastest here that is near enough to the detector."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported artifact was from its detector, on the same pictures, when it was written.

    Differences are shares of the detector's own value, or of the threshold where that is larger.
    """

    precision: RunPrecision
    """What the exported network computes in."""
    pictures: int
    """Pictures that went through both."""
    batches: tuple[int, ...]
    """How many of them at a time."""
    map_difference: float
    """The largest difference of a map value; in less than fp32, of pictures of parts."""
    score_difference: float
    """The largest difference of an image score; likewise."""
    decisions: int
    """Decisions compared: each picture with each category's threshold."""
    flipped: int
    """Those that came out otherwise."""
    tolerance: float
    """The largest difference that would have been accepted."""
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    """{metric: (of the detector, of the export)} on a labelled test set, if one was given."""
    computed: RunPrecision | None = None
    """What the machine that proved it computed in, apart from products of 8 bit; None in files that do not say."""
    products: tuple[int, int] = (0, 0)
    """Of int8: how many filters and products that machine computed in 8 bit, and how many there are."""
    made_differences: tuple[float, float] = (0.0, 0.0)
    """In less than fp32, the largest differences of map and score on made pictures, which are unlike any part."""

    def sentence(self) -> str:
        """All of it in words.

        >>> Parity("fp32", 9, (1, 2, 5, 1), 2e-06, 1e-06, 9, 0, 0.001).sentence()
        'fp32 against the detector, on 9 pictures in batches of 1, 2, 5: map values differ by at most 2e-06 of \
themselves or of the threshold, scores by 1e-06 (accepted: 0.001); 0 of 9 decisions flipped.'
        """
        sizes = ", ".join(str(size) for size in sorted(set(self.batches)))
        return (
            f"{self.precision}{self._how()} against the detector, on {count_of(self.pictures, 'picture')} in batches "
            f"of {sizes}: map values differ by at most {self.map_difference:.1g} of themselves or of the threshold, "
            f"scores by {self.score_difference:.1g} (accepted: {self.tolerance:g}{self._made()}); "
            f"{self.flipped} of {self.decisions} decisions flipped.{self._change()}"
        )

    def _made(self) -> str:
        """Where less than fp32 is held to that, and what it does elsewhere."""
        if self.precision == "fp32":
            return ""
        return " on pictures of parts; on made ones {:.1g} and {:.1g}".format(*self.made_differences)

    def _how(self) -> str:
        """What it was computed in, where that is not what it is called by."""
        if self.precision == "int8" and self.products[1]:
            done, of = self.products
            return f" ({done} of {of} filters and products, all else in {self.computed})"
        return f" (computed in {self.computed})" if self.computed not in (None, self.precision) else ""

    def _change(self) -> str:
        each = (f"{name} {before:.4f} -> {after:.4f}" for name, (before, after) in self.metrics.items())
        return f" On the test set: {', '.join(each)}." if self.metrics else ""
