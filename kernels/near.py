"""What attention does with scores beside adding a bias: a soft cap, biases by distance, and a window."""

from typing import Any, NamedTuple


class Near(NamedTuple):
    """Options of a step of attention; as it stands, nothing.

    A score s becomes cap tanh(s / cap), then gets its bias by distance, and -inf beyond the window. Distances are those
    of places: positions as int32, a sequence's keys ascending. Without a window and biases nobody reads them.
    """

    cap: float = 0.0  # 0: scores stay as they are
    window: int = 0  # a query sees keys nearer than this, on both sides; 0: all
    relative: Any = None  # (H, 2 R + 1) float32: biases at distances -R .. R of key from query, which are clipped to it
    query_places: Any = None  # (a,)
    key_places: Any = None  # (m,)

    @property
    def placed(self) -> bool:
        """Whether positions matter."""
        return bool(self.window) or self.relative is not None
