"""Ask in a thread of its own, what is visited most first, while the run goes on."""

import ctypes
import heapq
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from goals.asking import Costs
from lab.errors import UserError

QUEUE_CAPACITY = 8192  # scenes that wait: more than a small model answers in an hour
FIRST_BATCH, LARGEST_BATCH = 8, 256
BATCH_SECONDS = 10.0  # no batch shall take much longer: meanwhile others are visited most
CLOSE_SECONDS = 20.0  # a model that hangs may hold up the end for so long

AnswerScenes = Callable[[list[bytes]], tuple[dict[bytes, str | None], Costs]]


class Background:
    """A bounded queue of scenes (their bytes) with visits, and a thread that gets their answers.

    open_asker() is entered in the thread, where what it opens belongs; it yields a function from
    scenes to their raw answers (None: there is none) and what they cost. A failure ends the thread
    and stands in `failure`. The thread never keeps the process alive.
    """

    def __init__(
        self,
        open_asker: Callable[[], AbstractContextManager[AnswerScenes]],
        capacity: int = QUEUE_CAPACITY,
    ):
        self.failure: UserError | None = None
        self._open_asker, self._capacity = open_asker, capacity
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: dict[bytes, int] = {}
        self._asked: dict[bytes, int] = {}  # what the thread has taken and nobody has taken from it
        self._answers: dict[bytes, str | None] = {}
        self._costs = Costs()
        self._left, self._busy, self._stopped = 0.0, False, False
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)

    def __contains__(self, scene: bytes) -> bool:
        with self._changed:
            return scene in self._waiting or scene in self._asked

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting) + len(self._asked)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def visits(self) -> dict[bytes, int]:
        """Return the visits of all scenes whose answers have not been taken."""
        with self._changed:
            return self._asked | self._waiting

    def start(self, budget: float) -> None:
        """Let the thread begin, to ask at most `budget` questions; later calls do nothing."""
        if self._thread.ident is None:
            self._left = budget
            self._thread.start()

    def add(self, visits: Mapping[bytes, int]) -> int:
        """Add to the visits of scenes; return how many of them a full queue has let go.

        Those are the least visited.
        """
        with self._changed:
            for scene, count in visits.items():
                if scene not in self._asked:
                    self._waiting[scene] = self._waiting.get(scene, 0) + count
            dropped = max(0, len(self._waiting) - self._capacity)
            if dropped:
                self._waiting = {
                    scene: self._waiting[scene] for scene in self._most_visited(self._capacity)
                }
            self._changed.notify_all()
            return dropped

    def take(self) -> tuple[dict[bytes, str | None], Costs]:
        """Hand over the answers that have come since the last call, and what they cost."""
        with self._changed:
            answers, self._answers = self._answers, {}
            costs, self._costs = self._costs, Costs()
            for scene in answers:
                del self._asked[scene]
            return answers, costs

    def wait(self, seconds: float) -> bool:
        """Wait at most so long until nothing is left to ask; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, seconds)

    def stop(self, at_once: bool = False) -> None:
        """Let the thread end after the batch that it is at, or in the midst of it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if at_once and self.is_alive:
            # When the interpreter ends, a thread inside a native library would abort the process.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
            )

    def join(self) -> None:
        """Wait until a stopped thread has ended, though not for ever."""
        if self.is_alive:
            self._thread.join(CLOSE_SECONDS)

    def _most_visited(self, number: int) -> list[bytes]:
        return heapq.nlargest(number, self._waiting, key=self._waiting.get)

    def _is_idle(self) -> bool:
        return self.failure is not None or not (self._busy or (self._waiting and self._left > 0))

    def _next(self, size: int) -> list[bytes]:
        """Wait for something to ask and return the most visited; nothing once stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._waiting and self._left > 0))
            batch = [] if self._stopped else self._most_visited(int(min(size, self._left)))
            self._asked |= {scene: self._waiting.pop(scene) for scene in batch}
            self._busy = bool(batch)
            return batch

    def _run(self) -> None:
        size = FIRST_BATCH
        try:
            with self._open_asker() as answer:
                while batch := self._next(size):
                    start = time.monotonic()
                    answers, costs = answer(batch)
                    seconds = max(time.monotonic() - start, 1e-3)
                    if costs.queries:
                        size = min(
                            max(1, int(BATCH_SECONDS * costs.queries / seconds)), LARGEST_BATCH
                        )
                    with self._changed:
                        self._answers |= answers
                        self._costs += costs
                        self._left -= costs.queries
                        self._busy = False
                        self._changed.notify_all()
        except SystemExit:  # from stop()
            pass
        except Exception as error:  # of any kind: it must reach the user
            reason = " ".join(str(error).split()) or type(error).__name__
            failure = UserError(f"asking in the background ended ({reason})")
            failure.__cause__ = error
            with self._changed:
                self.failure = failure
                self._changed.notify_all()
