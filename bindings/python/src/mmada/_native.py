"""The library itself: loading it, calling it, and who frees what.

Everything that can go wrong between two languages is handled here once: statuses become exceptions, exceptions of
callbacks come out of the call they happened in, handles are freed when nothing uses them, and signals are seen while
the library computes.
"""

import contextvars
import os
import threading
import _thread
from types import TracebackType
from typing import Any, Callable, List, Optional, Sequence, Tuple, Type, TypeVar, Union

import numpy as np
import numpy.typing as npt

from ._errors import ArgumentError, ClosedError, from_status

try:
    from . import _ffi
except ImportError as missing:
    raise ImportError(
        "mmada has not been built: this is its source folder. Install it with pip, with PKG_CONFIG_PATH set to where "
        "libmmada's mmada.pc is"
    ) from missing

T = TypeVar("T")
Ids = npt.NDArray[np.uint32]

ffi: Any = _ffi.ffi
lib: Any = ffi.dlopen(os.path.join(os.path.dirname(os.path.abspath(__file__)), _ffi.LIBRARY))
MASKED: int = _ffi.MMADA_MASKED


def version() -> str:
    """The version of the library, such as "0.1.0"."""
    return c_text(lib.mmada_version())


def build_info() -> str:
    """What the library was built as: version, platform, "release" or "debug", optional parts."""
    return c_text(lib.mmada_build_info())


def c_text(pointer: Any) -> str:
    """A NUL-terminated text of the library."""
    text: bytes = ffi.string(pointer)
    return text.decode("utf-8", "replace")


if version().split(".")[:2] != _ffi.MMADA_VERSION.split(".")[:2]:
    raise ImportError(f"{_ffi.LIBRARY} is version {version()}, but its header was of version {_ffi.MMADA_VERSION}")


class _Call:
    """A call of the library that is going on in a thread: where its callbacks leave their exceptions."""

    def __init__(self, cancel: Optional[Callable[[], object]]):
        self.cancel = cancel
        self.exception: Optional[BaseException] = None

    def fail(self, exception: BaseException) -> None:
        if self.exception is None:
            self.exception = exception
        if self.cancel is not None:
            self.cancel()


class _Thread(threading.local):
    call: Optional[_Call] = None


_thread_state = _Thread()


def _callback_failed(kind: Type[BaseException], exception: BaseException, traceback: Optional[TracebackType]) -> None:
    """Called by cffi when a callback has raised: the call it happened in is to end and raise that."""
    call = _thread_state.call
    if call is not None:
        call.fail(exception.with_traceback(traceback))


def callback(kind: str, error: Optional[int] = None) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function one that the library can call; it returns `error` to the library if it raises."""
    if error is None:
        return lambda function: ffi.callback(kind, function, onerror=_callback_failed)
    return lambda function: ffi.callback(kind, function, error=error, onerror=_callback_failed)


def invoke(function: Any, *arguments: Any, cancel: Optional[Callable[[], object]] = None) -> None:
    """Calls a function whose last parameter is an error, and raises what went wrong.

    `cancel` ends the call early; it is used when a callback has raised.
    """
    error = ffi.new("mmada_error **")
    call = _Call(cancel)
    outer, _thread_state.call = _thread_state.call, call
    try:
        status = function(*arguments, error)
    finally:
        _thread_state.call = outer
    failure = None
    if status != lib.MMADA_OK:
        failure = from_status(status, c_text(lib.mmada_error_message(error[0])))
        lib.mmada_error_free(error[0])
    if call.exception is not None:
        raise call.exception
    if failure is not None:
        raise failure


def produce(
    kind: str, function: Any, *arguments: Any, after: Sequence[Any] = (), cancel: Optional[Callable[[], object]] = None
) -> Any:
    """Calls a function that gives an object of type `kind` through its last parameter but `after` and the error."""
    out = ffi.new(f"{kind} **")
    try:
        invoke(function, *arguments, out, *after, cancel=cancel)
    except BaseException:
        getattr(lib, f"{kind}_free")(out[0])  # there if a callback raised and the call succeeded
        raise
    return out[0]


def number(kind: str, function: Any, *arguments: Any) -> Any:
    """Calls a function that gives a number of type `kind` through its last parameter but the error."""
    out = ffi.new(f"{kind} *")
    invoke(function, *arguments, out)
    return out[0]


def filled(kind: str, function: Any, *arguments: Any, cancel: Optional[Callable[[], object]] = None) -> Any:
    """Calls a function that fills a struct of type `kind` through its last parameter but the error."""
    out = ffi.new(f"{kind} *")
    out.struct_size = ffi.sizeof(kind)
    invoke(function, *arguments, out, cancel=cancel)
    return out


def initialized(kind: str, function: Any) -> Any:
    """A struct of options with its defaults, by an init function that takes no model."""
    out = ffi.new(f"{kind} *")
    function(out, ffi.sizeof(kind))
    return out


def take_text(buffer: Any) -> Optional[str]:
    """The text of a buffer, which is freed; None for none."""
    if buffer == ffi.NULL:
        return None
    try:
        text: bytes = ffi.buffer(lib.mmada_buffer_text(buffer), lib.mmada_buffer_length(buffer))[:]
    finally:
        lib.mmada_buffer_free(buffer)
    return text.decode("utf-8")


def take_bytes(buffer: Any) -> bytes:
    """The bytes of a buffer, which is freed."""
    try:
        length = lib.mmada_buffer_length(buffer)
        data: bytes = ffi.buffer(lib.mmada_buffer_bytes(buffer), length)[:] if length else b""
    finally:
        lib.mmada_buffer_free(buffer)
    return data


def take_ids(buffer: Any) -> Ids:
    """The ids of a buffer, which is freed."""
    try:
        length = lib.mmada_buffer_length(buffer)
        if length == 0:
            return np.empty(0, np.uint32)
        return np.frombuffer(ffi.buffer(lib.mmada_buffer_ids(buffer), length * 4), np.uint32).copy()
    finally:
        lib.mmada_buffer_free(buffer)


def integers(values: Any, dtype: Any, what: str) -> "npt.NDArray[Any]":
    """An array of whole numbers of a C type, whatever array or sequence they come in."""
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(dtype)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what} must be whole numbers, not {array.dtype}")
    limit = np.iinfo(dtype).max
    if array.size and (int(array.min()) < 0 or int(array.max()) > limit):
        raise ArgumentError(f"{what} must be from 0 to {limit}, but are from {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype)


def id_array(values: Any, what: str = "ids") -> Tuple[Any, int]:
    """Ids as the library takes them: pointer (which keeps the array) and count."""
    array = integers(values, np.uint32, what)
    if array.ndim != 1:
        raise ArgumentError(f"{what} must have one dimension, not {array.ndim}")
    return ffi.from_buffer("uint32_t[]", array), array.size


def assign(struct: Any, name: str, value: Any) -> None:
    """Sets a field of a struct; a number that does not fit is an `ArgumentError`."""
    try:
        setattr(struct, name, value)
    except OverflowError:
        raise ArgumentError(f"{name} cannot be {value}") from None


class Handle:
    """An object of the library, freed once: when it is closed or forgotten, and no call uses it any more.

    Used by `with handle as pointer:` around every call. `keep` is what must outlive the object.
    """

    def __init__(self, what: str, kind: str, pointer: Any, keep: Tuple[Any, ...] = ()):
        self.keep = keep
        self._what = what
        self._pointer = pointer
        self._free = getattr(lib, f"{kind}_free")
        self._users = 0
        self.closed = False
        # Taken for a moment only. Reentrant, since a signal handler may come in between.
        self._lock = threading.RLock()

    def __enter__(self) -> Any:
        with self._lock:
            if self.closed:
                raise ClosedError(f"the {self._what} is closed")
            self._users += 1
            return self._pointer

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
        self._free_if_unused()

    def close(self) -> None:
        """Lets no new call begin; the last one frees the object. Closing twice is harmless."""
        self.closed = True
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        with self._lock:
            if not self.closed or self._users or self._pointer is None:
                return
            pointer, self._pointer = self._pointer, None
        self._free(pointer)
        self.keep = ()

    def __del__(self) -> None:
        self.closed = True
        self._free_if_unused()


class Share:
    """A use of a handle that lasts: the object is freed when neither the handle nor a share of it needs it."""

    closed = False
    _pointer: Any = None

    def __init__(self, handle: "Union[Handle, Share]"):
        self._handle = handle
        self._pointer = handle.__enter__()

    @property
    def keep(self) -> Tuple[Any, ...]:
        """What must outlive the object."""
        return self._handle.keep

    def __enter__(self) -> Any:
        return self._pointer

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Ends this use."""
        if self._pointer is not None:
            self._pointer = None
            self._handle.__exit__()

    def __del__(self) -> None:
        self.close()


def interruptible(call: Callable[[], T], cancel: Callable[[], object]) -> T:
    """Runs a long call so that signals are seen meanwhile.

    Python runs signal handlers in the main thread, between instructions: not while that thread is inside the library.
    So the main thread has another one make the call, and waits in a way that signals interrupt. If a handler raises,
    as that of Ctrl-C does, the call is cancelled, and the exception goes on once it has returned.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    results: List[Tuple[Optional[T], Optional[BaseException]]] = []
    ended = threading.Lock()
    ended.acquire()

    def work() -> None:
        try:
            results.append((call(), None))
        except BaseException as error:
            results.append((None, error))
        finally:
            ended.release()

    interrupt: Optional[BaseException] = None
    _thread.start_new_thread(contextvars.copy_context().run, (work,))
    while not results:
        try:
            ended.acquire()
        except BaseException as error:
            interrupt = interrupt or error
            cancel()
    result, failure = results.pop()
    try:
        if interrupt is not None:
            raise interrupt
        if failure is not None:
            raise failure
    finally:
        interrupt = failure = None  # a traceback leads to this frame: no cycle
    return result  # type: ignore[return-value]
