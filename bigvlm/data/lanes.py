"""Which stretch of the order each row of a global batch follows, so that few hosts need the same stretch.

With ``order='blocks'`` examples that follow each other in the order lie together in storage. If the rows of batch t were
simply the next ones in the order, every host would touch every open block. So rows are grouped into lanes, and over some
batches each lane goes along a stretch of its own: position(number, row) is a bijection between (batch number, row) and
positions, computed in O(1) and independent of hosts and devices. Hosts feed consecutive rows, hence whole lanes.
"""
import math
from dataclasses import dataclass

_STRAIGHT = 16  # windows in a lane's stretch: at its end a window is shared with the next lane's, read twice


@dataclass(frozen=True)
class Lanes:
    """`batch` rows in `lanes` groups; a stretch is `span` batches long, but shorter before batch `end` where one is set."""
    batch: int
    lanes: int = 1
    span: int = 1
    end: int | None = None

    def position(self, number: int, row: int) -> int:
        """The position that row `row` of batch `number` looks up."""
        width = self.batch // self.lanes
        first, since = number - number % self.span, number % self.span
        span = self.span if self.end is None else min(self.span, self.end - first)
        lane, place = divmod(row, width)
        return first * self.batch + (lane * span + since) * width + place


def shared_pool(batch: int, n: int, pool: int, block: int) -> tuple[int, int, int]:
    """(lanes, span, window) for a pool of `pool` examples that are mixed at a time, `window` in blocks per lane.

    Lanes get at least four blocks each to mix. The pool is at most an eighth of the data set, and so is what all lanes take
    in one stretch, over which the end of an epoch is blurred.
    """
    pool = max(block, min(pool, n // 8))
    most = max(1, pool // (4 * block))
    lanes = max(d for d in range(1, min(batch, most) + 1) if batch % d == 0)
    window = max(1, pool // (lanes * block))
    span = 1 if lanes == 1 else max(1, min(math.ceil(_STRAIGHT * window * block * lanes / batch), n // (8 * batch)))
    return lanes, span, window
