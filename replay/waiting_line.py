"""Who was answered "not yet" and comes first when there is room again."""

from __future__ import annotations

from dataclasses import dataclass

# Rounds in which one may be silent before it is taken for gone. Writers ask again every 50 ms, so
# this is two seconds.
_ROUNDS = 40


@dataclass
class _Waiting:
    transitions: int
    round: int  # in which it last asked


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

    One that asks no more, since its actor died, loses its place, so that after a while the first in
    line is judged as if it were alone. A round is over when somebody asks for the second time in
    it: rounds are counted, not seconds, so that a serial run is reproducible, and however many died
    at once, whoever lives makes the rounds pass as fast as it asks.
    """

    def __init__(self) -> None:
        """Begin with nobody in the line."""
        self._line: dict[bytes, _Waiting] = {}  # in the order of arrival
        self._round = 0

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
        waiting = self._line.setdefault(key, _Waiting(transitions, self._round - 1))
        if waiting.round == self._round:
            self._round += 1
            for gone in [k for k, w in self._line.items() if self._round - w.round > _ROUNDS]:
                del self._line[gone]
        waiting.round = self._round
