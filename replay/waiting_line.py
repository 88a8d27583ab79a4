"""Who was answered "not yet" and comes first when there is room again."""

from __future__ import annotations

from dataclasses import dataclass

# How often everybody else in the line may ask in vain before one who does not ask is taken for
# gone. Writers ask again every 50 ms, so this is two seconds of silence.
_TURNS = 40


@dataclass
class _Waiting:
    transitions: int
    asked: int  # how many had asked in vain when this one last did


class WaitingLine:
    """Keeps room for pushes in the order in which they first asked.

    Room for inserts comes in small pieces, as the learner samples. If whoever asks at the right
    moment could take it, small pushes would fill every gap and a large one would never fit: an
    actor whose environments fill their segments at the same step would stand still, for minutes,
    beside another whose environments do not (docs/decisions.md). So a push may use only what is
    left when those before it have theirs.

    The loop it lives in, once for each push that is offered:

        if limiter.can_insert(inserts, samples, push.transitions, promised=line.ahead_of(key)):
            line.leave(key)
        else:
            line.wait(key, push.transitions)

    The first in line is judged as if it were alone. One that asks no more, since its actor died,
    loses its place when the others have asked often enough; turns are counted, not seconds, so that
    a serial run is reproducible.
    """

    def __init__(self) -> None:
        """Begin with nobody in the line."""
        self._line: dict[bytes, _Waiting] = {}  # in the order of arrival
        self._asked = 0

    def __len__(self) -> int:
        """Pushes in the line."""
        return len(self._line)

    def ahead_of(self, key: bytes) -> int:
        """Return how many transitions wait before the push `key`; all, if it is new."""
        total = 0
        for other, waiting in self._line.items():
            if other == key:
                break
            total += waiting.transitions
        return total

    def leave(self, key: bytes) -> None:
        """Take note that a push was let in, whether it had to wait or not."""
        self._line.pop(key, None)

    def wait(self, key: bytes, transitions: int) -> None:
        """Take note that a push has to ask again: it keeps its place, or comes in at the end."""
        self._asked += 1
        if key in self._line:
            self._line[key].asked = self._asked
        else:
            self._line[key] = _Waiting(transitions, self._asked)
        patience = _TURNS * len(self._line)
        for other in [k for k, w in self._line.items() if self._asked - w.asked > patience]:
            del self._line[other]
