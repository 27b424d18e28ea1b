"""Requests share one model: each runs in a slot, the others wait in a queue.

A slot is a context of its own over the same weights. One thread advances all busy slots: in every
round a piece of one new prompt or of a text to embed is evaluated, then one token of every answer
under way, these in a single step that reads the weights once. What a slot computes is what it would
compute alone, so answers do not depend on who else asks. Everything that a client may do meanwhile
(leave, change the sparsity) only sets a field that this thread looks at before the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .._task import Task
from ..errors import CancelledError, WinaError
from ..generation import Stream, decode_together
from ..model import Model
from .bell import Bell
from .metrics import Metrics

Json = dict[str, Any]
#: gets a slot, yields the parts of the reply, and before each the tasks that must be evaluated for
#: it; runs on the engine's thread
Work = Callable[["Slot"], Iterator[Json | Task]]


#: tokens of a prompt that are evaluated between two tokens of the answers under way
PROMPT_PIECE = 32


class Busy(Exception):
    """All slots are taken and the queue is full."""


class Slot:
    """A context, and what runs in it."""

    def __init__(self, model: Model) -> None:
        self.model = model.share()
        self.task: Task | None = None
        # The model's own calls shape the reply; this is how the stream below is reached.
        make = self.model._make_stream

        def keep(*args: Any, **options: Any) -> Stream:
            self.task = stream = make(*args, **options)
            return stream

        self.model._make_stream = keep  # type: ignore[method-assign]

    @property
    def stream(self) -> Stream | None:
        return self.task if isinstance(self.task, Stream) else None


class Job:
    """One request. Read it with ``async for``; ``cancel`` may be called at any time."""

    def __init__(self, work: Work, metrics: Metrics, bell: Bell, n_ahead: int = 0) -> None:
        self._work, self._metrics, self._bell = work, metrics, bell
        self._n_ahead = n_ahead  # parts that come before the prompt is evaluated
        self.prefilling = True  # its prompt, or its text, is not evaluated yet
        self._parts: deque[Json | BaseException | None] = deque()  # of the loop's thread
        self._reader: asyncio.Future[None] | None = None  # who waits for the next part
        #: gets a part in place of one who waits for it; False: it cannot
        self.sink: Callable[[Json], bool] | None = None
        self._iterator: Iterator[Json | Task] | None = None
        self.slot: Slot | None = None
        self.cancelled = False
        self.sparsity: float | None = None  # wanted from the next token on
        self.turn = 0  # when its prompt was last worked at
        self.id = ""  # of the reply; known from its first part on

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> Json:
        while not self._parts:
            self._reader = self._bell.loop.create_future()
            await self._reader
        part = self._parts.popleft()
        if part is None:
            raise StopAsyncIteration
        if isinstance(part, BaseException):
            raise part
        return part

    def ready(self) -> Iterator[Json]:
        """Parts that are there already."""
        while self._parts and isinstance(self._parts[0], dict):
            part = self._parts.popleft()
            assert isinstance(part, dict)
            yield part

    def cancel(self) -> None:
        """Frees the slot, in the middle of a prompt too."""
        self.cancelled = True
        slot = self.slot
        task = slot.task if slot is not None else None
        if task is not None:
            task.cancel()

    def _put(self, part: Json | BaseException | None) -> None:
        if self._bell.loop.is_closed():  # nobody waits any more
            self.cancelled = True
        else:
            self._bell.call(self._arrived, part)

    def _arrived(self, part: Json | BaseException | None) -> None:
        reader = self._reader
        waits = reader is not None and not reader.done()  # then no earlier part is on its way
        if waits and self.sink is not None and isinstance(part, dict) and self.sink(part):
            return
        self._parts.append(part)
        if reader is not None and waits:
            reader.set_result(None)

    def prepare(self) -> None:
        """What was asked for since the last token takes effect. On the engine's thread, as are the
        following ones; a failure ends the job."""
        slot = self.slot
        if slot is None:
            return
        try:
            if self.cancelled:
                raise CancelledError("the client has left")
            if self._iterator is None:
                self._iterator = self._work(slot)
            wanted, self.sparsity = self.sparsity, None
            if wanted is not None and slot.stream is not None:
                slot.stream.set_sparsity(wanted)
        except BaseException as error:
            self._finish(error)

    def prefill(self, n_tokens: int) -> None:
        """Evaluates so many tokens of the prompt or text, or hands out a part that comes before."""
        slot = self.slot
        if slot is None:
            return
        if self._n_ahead > 0 or slot.task is None:
            self._n_ahead -= 1
            self.step()
            return
        try:
            self.prefilling = slot.task.prefill(n_tokens) > 0
        except BaseException as error:
            self._finish(error)

    def step(self) -> None:
        """Runs to the next part, or to what must be evaluated before it."""
        if self._iterator is None:
            return
        try:
            part = next(self._iterator)
        except StopIteration:
            self._finish(None)
            return
        except BaseException as error:
            self._finish(error)
            return
        if isinstance(part, Task):
            if self.slot is not None:
                self.slot.task, self.prefilling = part, True
            return
        self.id = self.id or part.get("id", "")
        self._put(part)

    def _finish(self, error: BaseException | None) -> None:
        slot, self.slot = self.slot, None
        if slot is not None and slot.task is not None:
            if isinstance(slot.task, Stream):
                self._metrics.count_stream(slot.task, self.cancelled)
            slot.task.close()
            slot.task = None
        self._iterator = None
        self._put(error)


class Engine:
    """n_slots contexts, a queue of at most n_queue jobs, and the thread that runs them."""

    def __init__(self, model: Model, *, n_slots: int = 4, n_queue: int = 64) -> None:
        self.model, self.n_slots, self.n_queue = model, n_slots, n_queue
        self.metrics = Metrics()
        # On a GPU the bits of a prompt depend on how it is cut: there it is cut as it is alone.
        self._piece = PROMPT_PIECE if model.info.backend == "cpu" else model._n_batch
        self._free = [Slot(model) for _ in range(n_slots)]
        self._slots = list(self._free)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._wake = threading.Condition()
        self._bell: Bell | None = None  # of the loop that submits
        self._closing = False
        self._turn = 0
        self._thread = threading.Thread(target=self._run, name="pywina-engine", daemon=True)
        self._thread.start()

    @property
    def n_busy(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, work: Work, n_ahead: int = 0) -> Job:
        """Queues work, whose first n_ahead parts need no evaluated prompt; Busy if there is no
        room."""
        loop = asyncio.get_running_loop()
        if self._bell is None or self._bell.loop is not loop:
            self.hang_up()
            self._bell = Bell(loop)
        job = Job(work, self.metrics, self._bell, n_ahead)
        with self._wake:
            if len(self._waiting) >= self.n_queue + len(self._free) or self._closing:
                self.metrics.rejected += 1
                raise Busy
            self._waiting.append(job)
            self._wake.notify()
        return job

    def find(self, reply_id: str) -> Job | None:
        """The running job whose reply has this id."""
        with self._wake:
            return next((job for job in self._running if job.id == reply_id), None)

    def _admit(self) -> bool:
        """Moves waiting jobs into free slots; waits while there is nothing to do."""
        with self._wake:
            while not (self._waiting or self._running or self._closing):
                self._wake.wait()
            if self._closing:
                return False
            while self._waiting and self._free:
                job = self._waiting.popleft()
                if job.cancelled:
                    job._finish(CancelledError("the client has left"))
                    continue
                job.slot = self._free.pop()
                self._running.append(job)
            return True

    def _run(self) -> None:
        while self._admit():
            started, running = time.perf_counter(), [(job, job.slot) for job in self._running]
            self._round([job for job, _ in running])
            self.metrics.busy_s += time.perf_counter() - started
            with self._wake:
                for job, slot in running:
                    if job.slot is None and slot is not None:
                        self._running.remove(job)
                        self._free.append(slot)

    def _round(self, jobs: list[Job]) -> None:
        """A piece of a prompt or text, and a token of every answer under way."""
        for job in jobs:
            job.prepare()
        new = [job for job in jobs if job.prefilling and job.slot is not None]
        old = [job for job in jobs if not job.prefilling and job.slot is not None]
        if new:
            # In turn: a short prompt does not wait for a long one, nor the other way round.
            job = min(new, key=lambda job: job.turn)
            self._turn += 1
            job.turn = self._turn
            job.prefill(self._piece if len(jobs) > 1 else self.model._n_batch)
        streams = [job.slot.stream for job in old if job.slot is not None]
        with contextlib.suppress(WinaError):  # whose turn fails is told the reason in its own step
            decode_together([stream for stream in streams if stream is not None])
        for job in old:
            job.step()

    def hang_up(self) -> None:
        """When the loop is not asked any more: after close, on its thread."""
        if self._bell is not None:
            self._bell.close()

    def close(self) -> None:
        """Ends everything that runs or waits, and frees the contexts (not the model)."""
        with self._wake:
            self._closing = True
            jobs = [*self._running, *self._waiting]
            self._wake.notify()
        for job in jobs:
            job.cancel()
        self._thread.join()
        for job in jobs:
            job._finish(CancelledError("the server is stopping"))
        for slot in self._slots:
            slot.model.close()
