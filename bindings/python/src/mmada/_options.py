"""Messages and options, and how they become the library's structs."""

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

import numpy as np

from ._errors import ArgumentError
from ._image import ImageLike, NativeImage
from ._native import assign, ffi, id_array, invoke, lib

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class TextChanges(TypedDict, total=False):
        """The options of a text as keyword arguments."""

        gen_length: Optional[int]
        steps: Optional[int]
        block_length: Optional[int]
        temperature: Optional[float]
        cfg_scale: Optional[float]
        seed: Optional[int]
        stop: Union[str, Sequence[str]]
        forbid: Sequence[int]
        allow_only: Optional[Sequence[int]]
        remasking: Optional[str]
        thinking: bool
        squash: Optional[bool]
        pinned: Mapping[int, int]

    class ImageChanges(TypedDict, total=False):
        """The options of a picture as keyword arguments."""

        width: Optional[int]
        height: Optional[int]
        count: Optional[int]
        steps: Optional[int]
        max_text_length: Optional[int]
        text_length: Optional[int]
        seed: Optional[int]
        guidance: Optional[float]
        temperature: Optional[float]
        schedule_power: Optional[float]
        schedule: Optional[str]
        confidence: Optional[str]
        thinking: bool


ROLES = {"system": lib.MMADA_ROLE_SYSTEM, "user": lib.MMADA_ROLE_USER, "assistant": lib.MMADA_ROLE_ASSISTANT}
REMASKINGS = {"low_confidence": lib.MMADA_REMASKING_LOW_CONFIDENCE, "random": lib.MMADA_REMASKING_RANDOM}
SCHEDULES = {
    "cosine": lib.MMADA_SCHEDULE_COSINE,
    "linear": lib.MMADA_SCHEDULE_LINEAR,
    "power": lib.MMADA_SCHEDULE_POWER,
    "sigmoid": lib.MMADA_SCHEDULE_SIGMOID,
}
CONFIDENCES = {"probability": lib.MMADA_CONFIDENCE_PROBABILITY, "margin": lib.MMADA_CONFIDENCE_MARGIN}
COMPUTES = {"fast": lib.MMADA_COMPUTE_FAST, "exact": lib.MMADA_COMPUTE_EXACT}


def chosen(name: str, value: str, choices: Mapping[str, int]) -> int:
    """The library's number for a name."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}, not {value!r}") from None


@dataclass(frozen=True)
class Message:
    """One turn of a chat. Only one message of a chat may have a picture; the model sees it before the whole chat."""

    #: "system", "user" or "assistant".
    role: str
    #: White space at both ends is dropped. What looks like a special token is ordinary text.
    content: str
    #: A picture, in any form that `Image` takes.
    image: Optional[ImageLike] = None


#: A chat: a question, or the messages of a conversation (a mapping with the keys role, content, and maybe image, too).
Messages = Union[str, Message, Mapping[str, Any], Sequence[Union[Message, Mapping[str, Any]]]]


@dataclass(frozen=True)
class TextOptions:
    """How text is sampled. What is None is what the model's file recommends (see `Model.text_options`)."""

    #: Tokens of the answer: a multiple of `block_length`.
    gen_length: Optional[int] = None
    #: Denoising steps over the whole answer: a multiple of the number of blocks, gen_length / block_length.
    steps: Optional[int] = None
    #: Tokens that are unmasked together, block after block.
    block_length: Optional[int] = None
    #: 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
    temperature: Optional[float] = None
    #: Classifier-free guidance against the answer to a masked prompt; 0 is none. It doubles the work.
    cfg_scale: Optional[float] = None
    #: Of the random numbers: the same seed gives the same answer, with any number of threads.
    seed: Optional[int] = None
    #: Texts; the generation ends, and the answer is cut, before the first of them.
    stop: Union[str, Sequence[str]] = ()
    #: Ids that must not be chosen.
    forbid: Sequence[int] = ()
    #: The ids that alone may be chosen; None for all.
    allow_only: Optional[Sequence[int]] = None
    #: "low_confidence" keeps the most probable candidates of a step, "random" leaves it to chance.
    remasking: Optional[str] = None
    #: Ask the model to think first; thinking and answer then come back apart.
    thinking: bool = False
    #: A picture that is no square is cropped to one (False) or resized to one (True: for diagrams and documents).
    squash: Optional[bool] = None
    #: Positions of the answer that are given, and their ids, such as the frame of a form that is to be filled in.
    pinned: Mapping[int, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class ImageOptions:
    """How pictures are sampled. What is None is what the model's file recommends (see `Model.image_options`)."""

    #: Size in pixels, each a multiple of the model's `image_downsampling`.
    width: Optional[int] = None
    height: Optional[int] = None
    #: How many pictures, drawn together: picture i is the one that the seed plus i draws alone.
    count: Optional[int] = None
    #: Denoising steps.
    steps: Optional[int] = None
    #: A longer prompt is cut to this many tokens, two leading special tokens included. Not used with `thinking`.
    max_text_length: Optional[int] = None
    #: With `thinking`: tokens of prompt and description together.
    text_length: Optional[int] = None
    #: Of the first picture's random numbers.
    seed: Optional[int] = None
    #: Classifier-free guidance against an empty prompt; 0 is none and halves the work.
    guidance: Optional[float] = None
    #: Of the noise in the order in which positions become known; it falls to 0 with the steps.
    temperature: Optional[float] = None
    #: Above 0; used with the schedule "power" only.
    schedule_power: Optional[float] = None
    #: How many positions stay masked after every step: "cosine", "linear", "power" or "sigmoid".
    schedule: Optional[str] = None
    #: What makes a sampled code worth keeping: its "probability", or its "margin" over the second best.
    confidence: Optional[str] = None
    #: Think out a detailed description first, then draw that.
    thinking: bool = False


Options = TypeVar("Options", TextOptions, ImageOptions)

_CHOICES: Dict[str, Mapping[str, int]] = {
    "remasking": REMASKINGS,
    "schedule": SCHEDULES,
    "confidence": CONFIDENCES,
}
_ARRAYS = ("stop", "forbid", "allow_only", "pinned", "thinking")


def changed(options: Optional[Options], default: Options, changes: Mapping[str, Any]) -> Options:
    """Options with changes that came as keyword arguments."""
    return dataclasses.replace(default if options is None else options, **changes)


def _set_plain(struct: Any, options: Union[TextOptions, ImageOptions]) -> None:
    """Sets the numbers and choices that are not None."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None or field.name in _ARRAYS:
            continue
        if field.name in _CHOICES:
            value = chosen(field.name, value, _CHOICES[field.name])
        assign(struct, field.name, int(value) if isinstance(value, bool) else value)


def _plain(struct: Any, kind: "type[Options]") -> Options:
    """The numbers and choices of a struct as options."""
    values: Dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in _ARRAYS:
            continue
        value = getattr(struct, field.name)
        if field.name in _CHOICES:
            value = next(name for name, number in _CHOICES[field.name].items() if number == value)
        values[field.name] = bool(value) if field.name == "squash" else value
    return kind(thinking=bool(struct.thinking), **values)


def default_text(model: Any, thinking: bool, about_image: bool) -> TextOptions:
    """What a model's file recommends for a text."""
    return _plain(_text_defaults(model, thinking, about_image), TextOptions)


def default_image(model: Any, thinking: bool) -> ImageOptions:
    """What a model's file recommends for drawing."""
    return _plain(_image_defaults(model, thinking), ImageOptions)


def default_description(model: Any) -> TextOptions:
    """What a model's file recommends for the description before a picture."""
    return _plain(_description_defaults(model), TextOptions)


def _text_defaults(model: Any, thinking: bool, about_image: bool) -> Any:
    struct = ffi.new("mmada_text_options *")
    size = ffi.sizeof("mmada_text_options")
    invoke(lib.mmada_text_options_init, struct, size, model, bool(thinking), bool(about_image))
    return struct


def _description_defaults(model: Any) -> Any:
    struct = ffi.new("mmada_text_options *")
    invoke(lib.mmada_description_options_init, struct, ffi.sizeof("mmada_text_options"), model)
    return struct


def _image_defaults(model: Any, thinking: bool) -> Any:
    struct = ffi.new("mmada_image_options *")
    invoke(lib.mmada_image_options_init, struct, ffi.sizeof("mmada_image_options"), model, bool(thinking))
    return struct


def text_struct(model: Any, options: TextOptions, about_image: bool) -> Tuple[Any, List[Any]]:
    """Options as a struct, and what must live as long as it is used."""
    return _text_filled(_text_defaults(model, options.thinking, about_image), options)


def description_struct(model: Any, options: TextOptions) -> Tuple[Any, List[Any]]:
    """Options of a description as a struct, and what must live as long as it is used."""
    return _text_filled(_description_defaults(model), options)


def _text_filled(struct: Any, options: TextOptions) -> Tuple[Any, List[Any]]:
    _set_plain(struct, options)
    keep: List[Any] = []
    stop = [options.stop] if isinstance(options.stop, str) else list(options.stop)
    if stop:
        texts = [text.encode() for text in stop]
        data = [ffi.from_buffer("char[]", text) for text in texts]
        struct.stop = array = ffi.new("mmada_string[]", [(d, len(t)) for d, t in zip(data, texts)])
        struct.stop_count = len(stop)
        keep += [data, array]
    for name, ids in (("forbid", options.forbid), ("allow_only", options.allow_only)):
        if ids is not None and (name == "allow_only" or len(ids)):
            pointer, count = id_array(ids, name)
            setattr(struct, name, pointer if count else ffi.new("uint32_t[1]"))
            setattr(struct, f"{name}_count", count)
            keep += [pointer, getattr(struct, name)]
    if options.pinned:
        struct.pinned = array = ffi.new("mmada_pin[]", len(options.pinned))
        struct.pinned_count = len(options.pinned)
        for pin, (position, token) in zip(array, options.pinned.items()):
            assign(pin, "position", position)
            assign(pin, "id", token)
        keep.append(array)
    return struct, keep


def image_struct(model: Any, options: ImageOptions) -> Any:
    """Options as a struct."""
    struct = _image_defaults(model, options.thinking)
    _set_plain(struct, options)
    return struct


class NativeMessages:
    """A chat as the library takes it, for as long as a `with` lasts."""

    def __init__(self, messages: Messages, image: Optional[ImageLike] = None):
        self.messages = _listed(messages)
        if image is not None:
            users = [i for i, message in enumerate(self.messages) if message.role == "user"]
            if not users:
                raise ArgumentError("a picture needs a message of the user that it belongs to")
            self.messages[users[-1]] = dataclasses.replace(self.messages[users[-1]], image=image)
        self.about_image = any(message.image is not None for message in self.messages)
        self._stack = ExitStack()
        self._keep: List[Any] = []

    def __enter__(self) -> Tuple[Any, int]:
        array = ffi.new("mmada_message[]", max(1, len(self.messages)))
        with ExitStack() as stack:
            for struct, message in zip(array, self.messages):
                data = message.content.encode()
                struct.content = content = ffi.from_buffer("char[]", data)
                struct.content_length = len(data)
                struct.role = chosen("role", message.role, ROLES)
                if message.image is not None:
                    struct.image = stack.enter_context(NativeImage(message.image))
                self._keep.append(content)
            self._stack = stack.pop_all()
        return array, len(self.messages)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _listed(messages: Messages) -> List[Message]:
    if isinstance(messages, str):
        return [Message("user", messages)]
    if isinstance(messages, (Message, Mapping)):
        messages = [messages]
    return [message if isinstance(message, Message) else _message(message) for message in messages]


def _message(message: Mapping[str, Any]) -> Message:
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is an mmada.Message or a mapping, not {type(message).__name__}")
    unknown = set(message) - {"role", "content", "image"}
    if unknown or not {"role", "content"} <= set(message):
        raise ArgumentError(f"a message has the keys role, content and maybe image, not {', '.join(map(str, message))}")
    return Message(**message)


CHANGE = np.dtype([("sequence", np.uintp), ("position", np.uintp), ("id", np.uint32), ("reserved", np.uint32)])
