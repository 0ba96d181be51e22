"""Models: opened files, and what can be asked of them without computing."""

import os
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, Union

import numpy as np
import numpy.typing as npt

from . import _options
from ._errors import NotFoundError
from ._native import (
    Handle, Ids, Share, assign, c_text, callback, ffi, filled, id_array, initialized, lib, number, produce, take_ids, take_text
)
from ._options import ImageOptions, Messages, NativeMessages, TextOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._context import Context, ContextOptions
    from ._options import ImageChanges, TextChanges

#: Told how many bytes have come over, and how many there are: of a model file that is read, of weights that are copied to a
#: graphics card. What it raises ends that.
OpenProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class ModelInfo:
    """What a model is."""

    #: Size of the file.
    file_bytes: int
    #: Most positions of one sequence, prompt and answer together.
    context_length: int
    layers: int
    #: Width of the residual stream.
    d_model: int
    #: Ids are below this.
    vocabulary: int
    #: Ids below this are text; the tokenizer knows these.
    text_vocabulary: int
    #: The id of image code 0.
    image_offset: int
    #: Size of the codebook; 0 for a model without pictures.
    image_codes: int
    #: Pixels of a side of the pictures that the model was trained on; 0 without an image tokenizer.
    image_size: int
    #: Pixels of a side of one image code: widths and heights are multiples of it.
    image_downsampling: int
    #: Whether the model can see and draw pictures.
    has_images: bool
    #: Begins a prompt.
    bos_id: int
    #: Ends a text.
    eos_id: int
    #: Ends a turn of a chat.
    eot_id: int
    #: What is to be filled in.
    mask_id: int


@dataclass(frozen=True)
class Estimate:
    """What a request will take. Bounds: an answer may end early."""

    #: Bytes of the model file: mapped, shared with other processes, given back under pressure.
    weight_bytes: int
    #: Bytes of buffers that the context allocates for the request.
    scratch_bytes: int
    #: Multiply-adds of all steps together.
    multiply_adds: int
    #: Tokens that run through the network, over all steps.
    tokens: int


@dataclass(frozen=True)
class Device:
    """A device that the library can run on."""

    #: Bytes of memory that it works in; 0 where the system does not tell.
    memory_bytes: int
    #: The backend that runs it: "cpu" or "cuda".
    backend: str
    #: What its maker calls it.
    name: str
    #: The instruction sets that there are kernels for, the slowest first.
    instruction_sets: Tuple[str, ...]
    #: What the option `device` of a context takes: "cpu", "cuda:0".
    id: str
    #: A graphics card's compute capability, major and minor; None for a processor.
    compute_capability: Optional[Tuple[int, int]]
    #: Why models do not run on it; None where they do.
    refusal: Optional[str]


def devices() -> List[Device]:
    """The devices that this build of the library finds on this machine."""
    found = []
    for index in range(number("size_t", lib.mmada_device_count)):
        info = filled("mmada_device_info", lib.mmada_device_get_info, index)
        sets = tuple(c_text(info.instruction_sets).split())
        capability = (info.compute_capability_major, info.compute_capability_minor)
        found.append(
            Device(
                memory_bytes=info.memory_bytes,
                backend=c_text(info.backend),
                name=c_text(info.name),
                instruction_sets=sets,
                id=c_text(info.id),
                compute_capability=capability if any(capability) else None,
                refusal=c_text(info.refusal) or None,
            )
        )
    return found


def unavailable(backend: str) -> Optional[str]:
    """Why a backend ("cpu", "cuda") finds no devices on this machine; None if it finds some.

    `NotFoundError` for another name.
    """
    name = backend.encode()
    return take_text(produce("mmada_buffer", lib.mmada_backend_unavailable, name, len(name)))


@callback("mmada_progress_callback", error=1)
def on_progress(done: int, total: int, user_data: Any) -> int:
    ffi.from_handle(user_data)(done, total)
    return 0


def no_progress(done: int, total: int) -> None:
    """Being called at all gives Python the opportunity to see a Ctrl-C."""


class Model:
    """An opened and checked model file. It never changes: any number of threads and contexts may use it at once.

    ``with Model(path) as model:`` closes it at the end. Contexts and generations made with it go on, and a model that is
    forgotten is closed by itself.
    """

    _handle: Union[Handle, Share]
    _name: str

    def __init__(
        self, path: "Union[str, os.PathLike[str]]", *, mmap: bool = True, progress: Optional[OpenProgress] = None
    ):
        """Opens a GGUF file; of a split file any part may be named.

        A mapped file (`mmap`) is open in milliseconds and shared with other processes; nobody may change or cut it off
        meanwhile. Without, all of it is read into memory, and `progress` is told how far that has come.
        """
        name = os.fsencode(path)
        with _OpenOptions(mmap, progress) as options:
            pointer = produce("mmada_model", lib.mmada_model_open, name, len(name), options)
        self._set_up(pointer, os.fspath(path))

    @classmethod
    def from_fd(
        cls, fd: int, *, name: str = "model", mmap: bool = True, progress: Optional[OpenProgress] = None
    ) -> "Model":
        """Opens the file behind a descriptor, which stays the caller's. `name` stands for the path in messages."""
        label = name.encode()
        with _OpenOptions(mmap, progress) as options:
            pointer = produce("mmada_model", lib.mmada_model_open_fd, fd, label, len(label), options)
        return cls.__new__(cls)._set_up(pointer, name)

    @classmethod
    def from_buffer(cls, data: Any, *, name: str = "model") -> "Model":
        """Opens a model file that is in memory: bytes, an mmap, a numpy array, any contiguous buffer.

        It is used where it lies if it is aligned to 32 bytes (an mmap is), otherwise copied once. It is kept for as long
        as needed, and must not be changed meanwhile. `name` stands for the path in messages.
        """
        label = name.encode()
        view = ffi.from_buffer("uint8_t[]", data)
        if int(ffi.cast("uintptr_t", view)) % 32:
            room = np.empty(len(view) + 31, np.uint8)
            begin = -room.ctypes.data % 32
            aligned = room[begin : begin + len(view)]
            aligned[:] = np.frombuffer(ffi.buffer(view), np.uint8)
            view = ffi.from_buffer("uint8_t[]", aligned)
        pointer = produce("mmada_model", lib.mmada_model_open_memory, view, len(view), label, len(label))
        return cls.__new__(cls)._set_up(pointer, name, (view,))

    def _set_up(self, pointer: Any, name: str, keep: Tuple[Any, ...] = ()) -> "Model":
        self._handle = Handle("model", "mmada_model", pointer, keep)
        self._name = name
        return self

    @classmethod
    def _shared(cls, share: Share, name: str) -> "Model":
        """The same model for a context's own use."""
        model = cls.__new__(cls)
        model._handle, model._name = share, name
        return model

    def context(self, **options: "Unpack[ContextOptions]") -> "Context":
        """Makes a `Context`, which runs the model; the options are those of `Context`."""
        from ._context import Context

        return Context(self, **options)

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        with self._handle as model:
            info = filled("mmada_model_info", lib.mmada_model_get_info, model)
        values = {name: getattr(info, name) for name in ModelInfo.__dataclass_fields__}
        values["has_images"] = bool(values["has_images"])
        return ModelInfo(**values)

    @property
    def metadata(self) -> "Metadata":
        """The file's metadata, such as ``model.metadata["general.name"]``."""
        return Metadata(self)

    def tokenize(self, text: str, *, parse_special: bool = False) -> Ids:
        """The ids of a text, without any that begin or end it.

        Text that looks like a special token is ordinary text, as befits what a user supplies, unless `parse_special`.
        """
        data = text.encode()
        with self._handle as model:
            arguments = model, data, len(data), bool(parse_special)
            return take_ids(produce("mmada_buffer", lib.mmada_model_tokenize, *arguments))

    def detokenize(self, ids: "Union[Sequence[int], npt.NDArray[Any]]", *, skip_special: bool = False) -> str:
        """The text of ids. Ids that are no text are left out, and with `skip_special` so are special tokens."""
        pointer, count = id_array(ids)
        with self._handle as model:
            arguments = model, pointer, count, bool(skip_special)
            return take_text(produce("mmada_buffer", lib.mmada_model_detokenize, *arguments)) or ""

    def prompt_ids(self, messages: Messages, *, thinking: bool = False) -> Ids:
        """The ids of a chat without a picture, up to where the answer begins."""
        with self._handle as model, NativeMessages(messages) as (array, count):
            arguments = model, array, count, bool(thinking)
            return take_ids(produce("mmada_buffer", lib.mmada_model_prompt_ids, *arguments))

    def text_options(self, *, thinking: bool = False, about_image: bool = False) -> TextOptions:
        """What the model's file recommends for an answer, every field filled in."""
        with self._handle as model:
            return _options.default_text(model, thinking, about_image)

    def image_options(self, *, thinking: bool = False) -> ImageOptions:
        """What the model's file recommends for drawing, every field filled in."""
        with self._handle as model:
            return _options.default_image(model, thinking)

    def description_options(self) -> TextOptions:
        """What the model's file recommends for the description that is thought out before a picture."""
        with self._handle as model:
            return _options.default_description(model)

    def estimate_text(
        self, prompt_tokens: int, options: Optional[TextOptions] = None, **changes: "Unpack[TextChanges]"
    ) -> Estimate:
        """What answering takes after a prompt of so many tokens, a picture's among them."""
        options = _options.changed(options, TextOptions(), changes)
        with self._handle as model:
            struct, keep = _options.text_struct(model, options, False)
            return _estimate(lib.mmada_model_estimate_text, model, prompt_tokens, struct)

    def estimate_image(
        self, prompt_tokens: int, options: Optional[ImageOptions] = None, **changes: "Unpack[ImageChanges]"
    ) -> Estimate:
        """What drawing takes after a prompt of so many tokens, without the thinking that may come first."""
        options = _options.changed(options, ImageOptions(), changes)
        with self._handle as model:
            struct = _options.image_struct(model, options)
            return _estimate(lib.mmada_model_estimate_image, model, prompt_tokens, struct)

    @property
    def closed(self) -> bool:
        """Whether the model has been closed."""
        return self._handle.closed

    def close(self) -> None:
        """Frees the model once no call uses it. Contexts and generations made with it go on."""
        self._handle.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<mmada.Model {self._name!r}{' closed' if self.closed else ''}>"


class Metadata(Mapping[str, str]):
    """The metadata of a model file, in the file's order: a string as it is, anything else as JSON."""

    def __init__(self, model: Model):
        self._model = model

    def __getitem__(self, key: str) -> str:
        data = key.encode() if isinstance(key, str) else None
        if data is None:
            raise KeyError(key)
        with self._model._handle as model:
            try:
                buffer = produce("mmada_buffer", lib.mmada_model_metadata, model, data, len(data))
            except NotFoundError:
                raise KeyError(key) from None
        return take_text(buffer) or ""

    def __len__(self) -> int:
        with self._model._handle as model:
            return int(number("size_t", lib.mmada_model_metadata_count, model))

    def __iter__(self) -> Iterator[str]:
        for index in range(len(self)):
            with self._model._handle as model:
                key = take_text(produce("mmada_buffer", lib.mmada_model_metadata_key, model, index))
            yield key or ""

    def __repr__(self) -> str:
        return f"<mmada.Metadata of {len(self)} keys>"


class _OpenOptions:
    """The struct of options for opening, for as long as a `with` lasts."""

    def __init__(self, mmap: bool, progress: Optional[OpenProgress]):
        self._function = ffi.new_handle(progress or no_progress)
        self._struct = initialized("mmada_open_options", lib.mmada_open_options_init)
        self._struct.use_mmap = bool(mmap)
        self._struct.progress = on_progress
        self._struct.progress_user_data = self._function

    def __enter__(self) -> Any:
        return self._struct

    def __exit__(self, *_: object) -> None:
        pass


def _estimate(function: Any, model: Any, prompt_tokens: int, options: Any) -> Estimate:
    estimate = filled("mmada_estimate", function, model, prompt_tokens, options)
    return Estimate(**{name: getattr(estimate, name) for name in Estimate.__dataclass_fields__})


def estimate_struct(estimate: Estimate) -> Any:
    """An estimate as the library takes it."""
    struct = initialized("mmada_estimate", lib.mmada_estimate_init)
    for name in Estimate.__dataclass_fields__:
        assign(struct, name, getattr(estimate, name))
    return struct
