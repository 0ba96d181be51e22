"""Generations: answers and pictures in the making, step by step."""

import asyncio
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, AsyncIterator, Callable, Iterator, List, Optional, Tuple, Type

import numpy as np
import numpy.typing as npt

from ._errors import BusyError, ClosedError
from ._image import Image, take_image
from ._native import (
    Handle, Ids, ffi, filled, initialized, interruptible, invoke, lib, produce, take_ids, take_text
)
from ._options import CHANGE

_STAGES = {lib.MMADA_STAGE_TEXT: "text", lib.MMADA_STAGE_IMAGE: "image"}


@dataclass(frozen=True)
class Step:
    """What a step did."""

    #: "text" (an answer, or the description that is thought out before a picture) or "image".
    stage: str
    #: Steps of this stage that are done.
    index: int
    #: How many this stage has at most.
    total: int
    #: Whether the generation is complete.
    done: bool
    #: Text: how many tokens of the answer stand before its first mask; these will not change. 0 for pictures.
    prefix: int
    #: The positions that this step decided for good: an array with the fields sequence (which picture; 0 for text),
    #: position (in the answer, or the place in the picture, row by row) and id.
    changes: "npt.NDArray[np.void]"

    @property
    def fraction(self) -> float:
        """How much of this stage is done, from 0 to 1."""
        return self.index / self.total if self.total else 1.0


#: Told about every step. What it raises ends the run, and reaches the caller.
Progress = Callable[[Step], object]


class Generation:
    """An answer or pictures in the making: an iterator over its steps, which compute when they are asked for.

    Made by `Context.begin_text` and `Context.begin_image`. Results can be had at any time: midway, what is decided.
    One thread at a time may step; `cancel` may be called by any thread and by signal handlers.
    """

    def __init__(self, pointer: Any, keep: Tuple[Any, ...]):
        """Made by a context."""
        self._handle = Handle("generation", "mmada_generation", pointer, keep)
        # Held during a step, and until its changes have been copied.
        self._stepping = threading.Lock()
        info = filled("mmada_generation_info", lib.mmada_generation_get_info, pointer)
        self._done = bool(info.done)
        self._total_steps = int(info.total_steps)
        self._grids = int(info.image_count), int(info.image_rows), int(info.image_columns)
        self._has_text = bool(info.has_text)

    def step(self) -> Step:
        """Runs one step.

        A step that failed changed nothing and can be tried again, unless it was cancelled. Ctrl-C, and whatever a signal
        handler raises, cancels the generation within one layer of the network.

        Raises `DoneError` if the generation is complete, `BusyError` if another thread is using it or its context,
        `CancelledError`, `OutOfMemoryError`.
        """
        with self._handle as generation:
            if not self._stepping.acquire(blocking=False):
                raise BusyError("another thread is running a step of this generation")
            try:
                step = interruptible(lambda: self._step(generation), self._cancel)
            finally:
                self._stepping.release()
        self._done = step.done
        return step

    def _step(self, generation: Any) -> Step:
        step = initialized("mmada_step", lib.mmada_step_init)
        invoke(lib.mmada_generation_step, generation, step, cancel=self._cancel)
        changes = np.empty(0, CHANGE)
        if step.change_count:
            changes = np.frombuffer(ffi.buffer(step.changes, step.change_count * CHANGE.itemsize), CHANGE).copy()
        stage = _STAGES.get(step.stage, "unknown")
        changes = changes[["sequence", "position", "id"]]
        return Step(stage, step.index, step.total, bool(step.done), step.prefix, changes)

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        if self._done and not self.closed:
            raise StopIteration
        return self.step()

    def __aiter__(self) -> AsyncIterator[Step]:
        return self

    async def __anext__(self) -> Step:
        """A step in a thread of the event loop's; a task that is cancelled cancels the generation."""
        if self._done and not self.closed:
            raise StopAsyncIteration
        step = asyncio.get_running_loop().run_in_executor(None, self.step)
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            self._cancel()
            await asyncio.wait([step])  # within one layer
            if not step.cancelled():
                step.exception()  # seen: asyncio need not report it
            raise

    def run(self, progress: Optional[Progress] = None) -> "Generation":
        """Runs all steps that are left, and tells `progress` about each. Returns the generation itself."""
        for step in self:
            if progress is not None:
                progress(step)
        return self

    async def run_async(self, progress: Optional[Progress] = None) -> "Generation":
        """Runs all steps that are left in threads of the event loop's, as ``async for`` does."""
        async for step in self:
            if progress is not None:
                progress(step)
        return self

    def cancel(self) -> None:
        """Ends the step that is running within one layer of the network; it and every later one raise `CancelledError`.

        Results so far can still be had, except pictures, which would have to be computed. The context and its other
        generations go on. For any thread and for signal handlers; harmless for a generation that is complete.
        """
        with self._handle as generation:
            lib.mmada_generation_cancel(generation)

    def _cancel(self) -> None:
        try:
            self.cancel()
        except ClosedError:
            pass  # closing cancels, too

    @property
    def done(self) -> bool:
        """Whether the generation is complete."""
        return self._done

    @property
    def total_steps(self) -> int:
        """Steps of all stages together; an answer that ends early takes fewer."""
        return self._total_steps

    @property
    def image_count(self) -> int:
        """How many pictures are drawn; 0 for an answer."""
        return self._grids[0]

    @property
    def has_text(self) -> bool:
        """Whether there is text: an answer, or a description before a picture."""
        return self._has_text

    @property
    def text(self) -> str:
        """The answer as the model wrote it, without special tokens, or a drawing's description.

        With thinking it is <think>...</think>answer. Midway, what stands before the first mask: that part will not
        change any more. An `ArgumentError` for a drawing without thinking.
        """
        return self._text(lib.mmada_generation_text) or ""

    @property
    def thinking(self) -> Optional[str]:
        """What the model thought: the part between the tags. None if it set none."""
        return self._text(lib.mmada_generation_thinking)

    @property
    def answer(self) -> str:
        """The answer without the thinking."""
        return self._text(lib.mmada_generation_answer) or ""

    @property
    def description(self) -> Optional[str]:
        """The description that a picture with thinking is drawn from; None for anything else."""
        return self._text(lib.mmada_generation_description)

    @property
    def warnings(self) -> List[str]:
        """What a user should be told: that a prompt was cut."""
        return (self._text(lib.mmada_generation_warnings) or "").splitlines()

    @property
    def ids(self) -> Ids:
        """The ids of the text, up to the token that ended it or to the first mask."""
        return self._ids(lib.mmada_generation_ids)

    @property
    def canvas(self) -> Ids:
        """The positions of the text (of the first picture where there is none): ids, `MASKED` where undecided."""
        return self._ids(lib.mmada_generation_canvas)

    def image_canvas(self, index: int = 0) -> Ids:
        """The positions of a picture, [rows, columns]: ids, `MASKED` where nothing has been decided."""
        return self._ids(lib.mmada_generation_image_canvas, index).reshape(self._grids[1:])

    def codes(self, index: int = 0) -> Ids:
        """The codes that a picture has now, [rows, columns]; where it is masked, those that were sampled last."""
        return self._ids(lib.mmada_generation_codes, index).reshape(self._grids[1:])

    def image(self, index: int = 0) -> Image:
        """A picture: the result or, midway, a preview. Computed by every call."""
        with self._handle as generation:
            arguments = generation, self._index(index)
            call: Callable[[], Any] = lambda: produce(  # noqa: E731
                "mmada_image", lib.mmada_generation_image, *arguments, cancel=self._cancel
            )
            return take_image(interruptible(call, self._cancel))

    def images(self) -> List[Image]:
        """All pictures."""
        return [self.image(index) for index in range(self.image_count)]

    def _index(self, index: int) -> int:
        if not 0 <= index < self.image_count:
            raise IndexError(f"there is no picture {index}: this generation draws {self.image_count}")
        return index

    def _text(self, function: Any) -> Optional[str]:
        with self._handle as generation:
            return take_text(produce("mmada_buffer", function, generation))

    def _ids(self, function: Any, *index: int) -> Ids:
        with self._handle as generation:
            return take_ids(produce("mmada_buffer", function, generation, *map(self._index, index)))

    @property
    def closed(self) -> bool:
        """Whether the generation has been closed."""
        return self._handle.closed

    def close(self) -> None:
        """Frees the generation; a step that another thread is running is cancelled, and frees it."""
        self._cancel()
        self._handle.close()

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        what = f"{self.image_count} pictures" if self.image_count else "text"
        state = "closed" if self.closed else "done" if self.done else "running"
        return f"<mmada.Generation of {what}, {state}>"
