"""Who is silent for too long: decisions only, no processes, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from driver.supervisor import WorkerName


@dataclass
class _Watched:
    """What is known of one worker: when it was last known to do something, and what is asked."""

    alive_s: float
    has_answered: bool = False
    is_asked: bool = False


class Watch:
    """Tells which workers to ask whether they are alive, and which are silent for too long.

    The driver's loop, with the driver doing all that touches a process:

      for name in watch.due(now): ask(name); watch.asked(name)
      for name, idle_s in answers(): watch.answered(name, now - idle_s)
      for name in watch.hung(now): kill(name); watch.forget(name)

    Whatever proves that a worker works, a push for one, counts as an answer (`heard`), so that in a
    busy run hardly anybody has to be asked. A worker's answer tells when its loop last turned: a
    process that answers while its loop hangs is silent, too.

    Times are seconds of any clock that never goes back, passed in. One thread only.
    """

    def __init__(self, *, ask_s: float, first_s: float, silence_s: float) -> None:
        """Watch nobody yet.

        Args:
          ask_s: silence after which a worker is asked.
          first_s: silence allowed to one that never did anything: it imports, compiles, connects.
          silence_s: silence allowed afterwards.

        Raises:
          ValueError: a time that is not > 0, or no time to answer in.
        """
        if not 0.0 < ask_s < min(first_s, silence_s):
            raise ValueError(
                f"Expect 0 < `ask_s` < `first_s` and `silence_s`, actually: {ask_s}, {first_s}, "
                f"{silence_s}"
            )
        self._ask_s = ask_s
        self._first_s = first_s
        self._silence_s = silence_s
        self._workers: dict[WorkerName, _Watched] = {}

    def started(self, name: WorkerName, now: float) -> None:
        """Watch a worker that is being started: there is a host for it."""
        self._workers[name] = _Watched(alive_s=now)

    def forget(self, name: WorkerName) -> None:
        """Watch a worker no more; it need not be known."""
        self._workers.pop(name, None)

    def stood_still(self, seconds: float) -> None:
        """Take note that whoever asks stood still for so long itself: that was nobody's silence."""
        for worker in self._workers.values():
            worker.alive_s += seconds

    def heard(self, name: WorkerName, alive_s: float) -> None:
        """Take note that a worker was at work at `alive_s`; it need not be known."""
        worker = self._workers.get(name)
        # Older than its start: word of another, in whose place it was started.
        if worker is not None and alive_s >= worker.alive_s:
            worker.alive_s = alive_s
            worker.has_answered = True

    def asked(self, name: WorkerName) -> None:
        """Take note that a worker was asked."""
        self._workers[name].is_asked = True

    def answered(self, name: WorkerName, alive_s: float | None) -> None:
        """Take note of an answer.

        Args:
          name: whose; it need not be known any more.
          alive_s: when its loop last turned; None: it is still getting ready.
        """
        if (worker := self._workers.get(name)) is not None:
            worker.is_asked = False
            if alive_s is not None:
                self.heard(name, alive_s)

    def due(self, now: float) -> list[WorkerName]:
        """Return the workers to ask now."""
        return [
            name
            for name, worker in self._workers.items()
            if not worker.is_asked and now - worker.alive_s >= self._ask_s
        ]

    def hung(self, now: float) -> dict[WorkerName, float]:
        """Return the workers that are silent for too long, each with its seconds of silence."""
        silent = {name: self.silence_s(name, now) for name in self._workers}
        return {name: silence for name, silence in silent.items() if silence > self.allowed_s(name)}

    def silence_s(self, name: WorkerName, now: float) -> float:
        """Return for how many seconds a worker is silent; 0 for one that is not known."""
        worker = self._workers.get(name)
        return 0.0 if worker is None else now - worker.alive_s

    def has_worked(self, name: WorkerName) -> bool:
        """Return whether a worker, known or not, ever was at work."""
        return name in self._workers and self._workers[name].has_answered

    def allowed_s(self, name: WorkerName) -> float:
        """Return the seconds of silence that are allowed to a worker as things are."""
        return self._silence_s if self._workers[name].has_answered else self._first_s
