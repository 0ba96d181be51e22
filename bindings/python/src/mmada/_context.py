"""Contexts: the threads and buffers that run a model."""

import logging
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence, Tuple, Type, TypeVar, Union

import numpy as np
import numpy.typing as npt

from . import _options
from ._errors import ArgumentError
from ._generation import Generation, Progress
from ._image import Image, ImageLike, NativeImage, take_image
from ._model import Estimate, Model, OpenProgress, estimate_struct, no_progress, on_progress
from ._native import (
    Handle, Ids, Share, assign, c_text, callback, ffi, filled, id_array, initialized, integers, interruptible, invoke, lib,
    number, produce, take_ids
)
from ._options import ImageOptions, Messages, NativeMessages, TextOptions

Logger = Union[logging.Logger, "logging.LoggerAdapter[Any]"]
T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    from ._options import ImageChanges, TextChanges

    class ContextOptions(TypedDict, total=False):
        """The options of a context as keyword arguments."""

        threads: int
        memory_limit: int
        instruction_set: Optional[str]
        compute: str
        pack: bool
        device: str
        gpu_layers: Optional[int]
        progress: Optional[OpenProgress]
        logger: Optional[Logger]


logger = logging.getLogger("mmada")
logger.addHandler(logging.NullHandler())

_LEVELS = {
    lib.MMADA_LOG_ERROR: logging.ERROR,
    lib.MMADA_LOG_WARN: logging.WARNING,
    lib.MMADA_LOG_INFO: logging.INFO,
    lib.MMADA_LOG_DEBUG: logging.DEBUG,
}


@callback("mmada_log_callback")
def _on_log(level: int, message: Any, length: int, user_data: Any) -> None:
    target: Logger = ffi.from_handle(user_data)
    severity = _LEVELS.get(level, logging.INFO)
    if target.isEnabledFor(severity):
        target.log(severity, "%s", ffi.buffer(message, length)[:].decode("utf-8", "replace"))


@dataclass(frozen=True)
class ContextInfo:
    """What a context is."""

    #: Threads that it has.
    threads: int
    #: Bytes of buffers that it and its generations have now.
    memory_used: int
    #: The instruction set in use.
    instruction_set: str
    #: "fast" or "exact".
    compute: str
    #: Bytes that its weights take when they are packed, whether or not they are.
    packed_bytes: int
    #: What it runs on: "cpu", or a graphics card with its name, such as "cuda:0 (NVIDIA H100 80GB HBM3)".
    device: str
    #: How many of the network's blocks run on a graphics card; 0 on the processor.
    gpu_layers: int


@dataclass(frozen=True)
class Answer:
    """An answer. ``str(answer)`` is the answer without the thinking."""

    #: What the model wrote, without special tokens: with thinking <think>...</think>answer.
    text: str
    #: What the model thought; None if it did not.
    thinking: Optional[str]
    #: The answer without the thinking.
    answer: str
    #: The ids of the text.
    ids: "npt.NDArray[np.uint32]"
    #: What a user should be told.
    warnings: List[str]

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class Drawing:
    """What was drawn."""

    #: The pictures.
    images: List[Image]
    #: The description that they were drawn from, with thinking.
    description: Optional[str]
    #: What a user should be told: that the prompt was cut.
    warnings: List[str]

    @property
    def image(self) -> Image:
        """The first picture."""
        return self.images[0]


@dataclass(frozen=True)
class Score:
    """How likely an answer is."""

    #: The estimate of a lower bound on ln p(answer | prompt), in nats; at most 0.
    log_likelihood: float
    #: The same divided by the answer's tokens.
    per_token: float
    #: How many maskings were averaged.
    samples: int


class Canceller:
    """Stops the calls that it is given to, `Context.score` and `Context.forward`, and every later one."""

    def __init__(self) -> None:
        pointer = produce("mmada_canceller", lib.mmada_canceller_new)
        self._handle = Handle("canceller", "mmada_canceller", pointer)

    def cancel(self) -> None:
        """Stops the calls within one layer of the network; they raise `CancelledError`. For any thread."""
        with self._handle as canceller:
            lib.mmada_canceller_cancel(canceller)


class Context:
    """The threads and buffers that run a model. One call at a time uses them; another meanwhile raises `BusyError`.

    Generations of one context may take turns, step by step. ``with`` closes the context at its end; generations made
    with it go on.
    """

    def __init__(
        self,
        model: Model,
        *,
        threads: int = 0,
        memory_limit: int = 0,
        instruction_set: Optional[str] = None,
        compute: str = "fast",
        pack: bool = False,
        device: str = "cpu",
        gpu_layers: Optional[int] = None,
        progress: Optional[OpenProgress] = None,
        logger: Optional[Logger] = logger,
    ):
        """Makes a context, which starts its threads; buffers are made when the first request needs them.

        Args:
            model: What it runs.
            threads: Of the context's own; 0 for one per core. Results do not depend on it.
            memory_limit: Bytes of buffers that the context and its generations may have at a time (the mapped model is
                not counted); a request that needs more raises `OutOfMemoryError`. 0 for no limit.
            instruction_set: One of `Device.instruction_sets`; None for the best that the processor has.
            compute: "fast", or "exact" for 32-bit arithmetic wherever weights are floats.
            pack: Keep the weights unpacked in memory (`ContextInfo.packed_bytes`, which count against `memory_limit`):
                several times as fast where few tokens run at a time, with the same answers. Making the context then
                takes the time to read the whole file.
            device: Where the model runs: "cpu", "cuda" or "cuda:0" for the first graphics card of NVIDIA's, "cuda:1" for the
                second, "auto" for the first card that can, or else the processor, which the logger is told.
            gpu_layers: How many of the network's blocks run on the graphics card, the last ones and the output; None for
                as many as there is memory for.
            progress: Told how many bytes of weights have been copied to a graphics card, and how many there are. What it
                raises ends the copying.
            logger: Who is told what happens: the logger "mmada" by default, None for nobody. What a handler or filter
                of it raises cancels the generation that the message is about, and comes out of the step. Messages of
                steps that the main thread runs are logged by a thread of this package.
        """
        options = initialized("mmada_context_options", lib.mmada_context_options_init)
        assign(options, "threads", threads)
        assign(options, "memory_limit", memory_limit)
        options.compute = _options.chosen("compute", compute, _options.COMPUTES)
        options.pack = bool(pack)
        if instruction_set is not None:
            data = instruction_set.encode()
            name = ffi.from_buffer("char[]", data)
            options.instruction_set, options.instruction_set_length = name, len(data)
        device_data = device.encode()
        device_name = ffi.from_buffer("char[]", device_data)
        options.device, options.device_length = device_name, len(device_data)
        if gpu_layers is not None:
            assign(options, "gpu_layers", gpu_layers)
        upload = ffi.new_handle(progress or no_progress)
        options.progress, options.progress_user_data = on_progress, upload
        keep: Tuple[Any, ...] = ()
        if logger is not None:
            options.log = _on_log
            options.log_user_data = user_data = ffi.new_handle(logger)
            options.log_level = lib.MMADA_LOG_DEBUG  # the logger's level may change at any time: it decides
            keep = (user_data,)
        share = Share(model._handle)
        with share as pointer:
            context = produce("mmada_context", lib.mmada_context_new, pointer, options)
        self._handle = Handle("context", "mmada_context", context, (*keep, *share.keep))
        self._model = model
        # The context can be used after the model has been closed.
        self._shared_model = Model._shared(share, model._name)

    @property
    def model(self) -> Model:
        """What the context runs."""
        return self._model

    @property
    def info(self) -> ContextInfo:
        """What the context is."""
        with self._handle as context:
            info = filled("mmada_context_info", lib.mmada_context_get_info, context)
        compute = next(name for name, value in _options.COMPUTES.items() if value == info.compute)
        return ContextInfo(
            threads=info.threads,
            memory_used=info.memory_used,
            instruction_set=c_text(info.instruction_set),
            compute=compute,
            packed_bytes=info.packed_bytes,
            device=c_text(info.device),
            gpu_layers=info.gpu_layers,
        )

    def ask(
        self,
        messages: Messages,
        *,
        image: Optional[ImageLike] = None,
        progress: Optional[Progress] = None,
        options: Optional[TextOptions] = None,
        **changes: "Unpack[TextChanges]",
    ) -> Answer:
        """Answers a question or a chat, about a picture if one is given. See `begin_text` for the arguments."""
        with self.begin_text(messages, image=image, options=options, **changes) as generation:
            generation.run(progress)
            text, thinking, answer = generation.text, generation.thinking, generation.answer
            return Answer(text, thinking, answer, generation.ids, generation.warnings)

    def draw(
        self,
        prompt: str,
        *,
        progress: Optional[Progress] = None,
        options: Optional[ImageOptions] = None,
        description: Optional[TextOptions] = None,
        **changes: "Unpack[ImageChanges]",
    ) -> Drawing:
        """Draws what a prompt says. See `begin_image` for the arguments."""
        with self.begin_image(prompt, options=options, description=description, **changes) as generation:
            generation.run(progress)
            return Drawing(generation.images(), generation.description, generation.warnings)

    def begin_text(
        self,
        messages: Messages,
        *,
        image: Optional[ImageLike] = None,
        options: Optional[TextOptions] = None,
        **changes: "Unpack[TextChanges]",
    ) -> Generation:
        """Begins an answer. Nothing is computed before its first step.

        Args:
            messages: A question, or the messages of a chat: `Message` or mappings with role and content.
            image: The picture that the last message of the user is about.
            options: How it is sampled; what the model's file recommends by default.
            changes: Fields of `TextOptions` as keyword arguments, such as ``thinking=True``.
        """
        options = _options.changed(options, TextOptions(), changes)
        chat = NativeMessages(messages, image)
        with self._handle as context, chat as (array, count):
            struct, keep = self._with_model(lambda model: _options.text_struct(model, options, chat.about_image))
            arguments = context, struct, array, count
            return self._generation(produce("mmada_generation", lib.mmada_context_begin_text, *arguments))

    def begin_text_ids(
        self,
        prompt: "Union[Sequence[int], npt.NDArray[Any]]",
        *,
        options: Optional[TextOptions] = None,
        **changes: "Unpack[TextChanges]",
    ) -> Generation:
        """Begins an answer to a prompt of ids (see `Model.prompt_ids`). Its options cannot have `thinking`."""
        options = _options.changed(options, TextOptions(), changes)
        pointer, count = id_array(prompt, "prompt")
        with self._handle as context:
            struct, keep = self._with_model(lambda model: _options.text_struct(model, options, False))
            arguments = context, struct, pointer, count
            return self._generation(produce("mmada_generation", lib.mmada_context_begin_text_ids, *arguments))

    def begin_image(
        self,
        prompt: str,
        *,
        options: Optional[ImageOptions] = None,
        description: Optional[TextOptions] = None,
        **changes: "Unpack[ImageChanges]",
    ) -> Generation:
        """Begins a picture, or several, of what a prompt says. Nothing is computed before the first step.

        Args:
            prompt: What to draw.
            options: How it is sampled; what the model's file recommends by default.
            description: With thinking: how the description is sampled that is thought out first.
            changes: Fields of `ImageOptions` as keyword arguments, such as ``seed=2``.
        """
        options = _options.changed(options, ImageOptions(), changes)
        data = prompt.encode()
        with self._handle as context:
            struct = self._with_model(lambda model: _options.image_struct(model, options))
            text, keep = ffi.NULL, None
            if description is not None:
                sampled = description
                text, keep = self._with_model(lambda model: _options.description_struct(model, sampled))
            arguments = context, struct, text, data, len(data)
            return self._generation(produce("mmada_generation", lib.mmada_context_begin_image, *arguments))

    def begin_image_ids(
        self,
        prompt: "Union[Sequence[int], npt.NDArray[Any]]",
        unconditional: "Union[Sequence[int], npt.NDArray[Any]]",
        *,
        options: Optional[ImageOptions] = None,
        **changes: "Unpack[ImageChanges]",
    ) -> Generation:
        """Begins a picture from prompts that are ids already.

        `prompt` is everything before the picture, `unconditional` the same of the empty prompt, which is not looked at
        without guidance. The options cannot have `thinking`.
        """
        options = _options.changed(options, ImageOptions(), changes)
        pointer, count = id_array(prompt, "prompt")
        empty, empty_count = id_array(unconditional, "unconditional")
        with self._handle as context:
            struct = self._with_model(lambda model: _options.image_struct(model, options))
            arguments = context, struct, pointer, count, empty, empty_count
            return self._generation(produce("mmada_generation", lib.mmada_context_begin_image_ids, *arguments))

    def _generation(self, pointer: Any) -> Generation:
        return Generation(pointer, self._handle.keep)

    def _with_model(self, make: Callable[[Any], T]) -> T:
        """Options that begin with what the model's file recommends."""
        with self._shared_model._handle as model:
            return make(model)

    def forward(
        self,
        ids: "Union[Sequence[int], npt.NDArray[Any]]",
        *,
        rows: "Union[Sequence[int], npt.NDArray[Any], None]" = None,
        vocab: Optional[Tuple[int, int]] = None,
        canceller: Optional[Canceller] = None,
    ) -> "npt.NDArray[np.float32]":
        """Runs the network once on a sequence of ids, masks (`ModelInfo.mask_id`) included.

        Args:
            ids: The sequence.
            rows: The positions whose logits are wanted, in this order; None for all.
            vocab: The range of ids whose logits are wanted, without its end; None for the whole vocabulary.
            canceller: Stops the call. Ctrl-C does, too.

        Returns:
            The logits, float32 [rows, ids].
        """
        pointer, count = id_array(ids)
        positions = integers(np.arange(count) if rows is None else rows, np.uintp, "rows")
        if positions.ndim != 1:
            raise ArgumentError(f"rows must have one dimension, not {positions.ndim}")
        begin, end = (0, self._shared_model.info.vocabulary) if vocab is None else vocab
        if not 0 <= begin <= end < 2**32:
            raise ArgumentError(f"vocab must be a range of ids, not {begin}..{end}")
        logits = np.empty((positions.size, end - begin), np.float32)
        arguments = (
            pointer, count, ffi.from_buffer("size_t[]", positions), positions.size, begin, end,
            ffi.from_buffer("float[]", logits), logits.size,
        )
        stop = canceller or Canceller()
        with self._handle as context, stop._handle as stopping:
            call = lambda: invoke(  # noqa: E731
                lib.mmada_context_forward, context, *arguments, stopping, cancel=stop.cancel
            )
            interruptible(call, stop.cancel)
        return logits

    def score(
        self,
        prompt: "Union[Messages, npt.NDArray[Any], Sequence[int]]",
        answer: "Union[str, Sequence[int], npt.NDArray[Any]]",
        *,
        samples: Optional[int] = None,
        seed: Optional[int] = None,
        cfg_scale: Optional[float] = None,
        canceller: Optional[Canceller] = None,
    ) -> Score:
        """How likely an answer is.

        Args:
            prompt: A chat as in `ask`, or the ids of one (`Model.prompt_ids`).
            answer: A text or ids.
            samples: How many random maskings of the answer are averaged; 128 by default. One is enough for an answer of
                one token.
            seed: Of the maskings: the same seed gives the same score.
            cfg_scale: Classifier-free guidance against the masked prompt; 0 by default, which is none.
            canceller: Stops the call. Ctrl-C does, too.
        """
        ids, count = id_array(prompt if _is_ids(prompt) else self._shared_model.prompt_ids(prompt), "prompt")  # type: ignore
        scored, scored_count = id_array(self._shared_model.tokenize(answer) if isinstance(answer, str) else answer, "answer")
        options = initialized("mmada_score_options", lib.mmada_score_options_init)
        for name, value in (("samples", samples), ("seed", seed), ("cfg_scale", cfg_scale)):
            if value is not None:
                assign(options, name, value)
        stop = canceller or Canceller()
        with self._handle as context, stop._handle as stopping:
            options.canceller = stopping
            arguments = context, options, ids, count, scored, scored_count
            call: Callable[[], Any] = lambda: filled(  # noqa: E731
                "mmada_score", lib.mmada_context_score, *arguments, cancel=stop.cancel
            )
            result = interruptible(call, stop.cancel)
        return Score(result.log_likelihood, result.per_token, result.samples)

    def encode_image(self, image: ImageLike) -> Ids:
        """The codes of a picture, [rows, columns]. Its sides must be multiples of the model's `image_downsampling`."""
        picture = Image(image)
        with self._handle as context, NativeImage(picture) as native:
            codes = take_ids(produce("mmada_buffer", lib.mmada_context_encode_image, context, native))
        side = self._shared_model.info.image_downsampling
        return codes.reshape(picture.height // side, picture.width // side)

    def decode_image(self, codes: "Union[Sequence[Sequence[int]], npt.NDArray[Any]]") -> Image:
        """The picture of codes, [rows, columns]."""
        array = integers(codes, np.uint32, "codes")
        if array.ndim != 2:
            raise ArgumentError(f"codes must be [rows, columns], not of {array.ndim} dimensions")
        rows, columns = array.shape
        with self._handle as context:
            arguments = context, ffi.from_buffer("uint32_t[]", array), array.size, columns, rows
            return take_image(produce("mmada_image", lib.mmada_context_decode_image, *arguments))

    def estimate_seconds(self, estimate: Estimate) -> float:
        """About how many seconds an estimate takes on the context's threads. Measures now, for up to a second."""
        with self._handle as context:
            return float(number("double", lib.mmada_context_estimate_seconds, context, estimate_struct(estimate)))

    @property
    def closed(self) -> bool:
        """Whether the context has been closed."""
        return self._handle.closed

    def close(self) -> None:
        """Frees the context once no call uses it. Its generations go on; its threads end with the last of them."""
        self._handle.close()

    def __enter__(self) -> "Context":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<mmada.Context of {self._model!r}{' closed' if self.closed else ''}>"


def _is_ids(prompt: Any) -> bool:
    """Whether a prompt is ids rather than messages."""
    if isinstance(prompt, np.ndarray):
        return True
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    return is_list and len(prompt) > 0 and not hasattr(prompt[0], "keys") and not hasattr(prompt[0], "role")
