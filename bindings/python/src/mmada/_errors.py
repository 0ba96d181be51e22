"""The exceptions: one for each kind of failure, all of them `MmadaError`."""

import enum
from typing import Dict, Type, Union


class Status(enum.IntEnum):
    """What the library says about a call; the numbers never change."""

    OK = 0
    IO_ERROR = 1
    BAD_FORMAT = 2
    UNSUPPORTED = 3
    INVALID_ARGUMENT = 4
    CONTEXT_OVERFLOW = 5
    BAD_IMAGE = 6
    OUT_OF_MEMORY = 7
    CANCELLED = 8
    BUSY = 9
    INTERNAL_ERROR = 10
    FORKED = 11
    DEVICE_ERROR = 12
    NULL_POINTER = 101
    STRUCT_SIZE = 102
    INVALID_UTF8 = 103
    INVALID_HANDLE = 104
    DONE = 105
    NOT_FOUND = 106
    PANIC = 107


class MmadaError(Exception):
    """Any failure of the library. Its text is a sentence that names the file, tensor, option or size at fault."""

    #: The library's status: a `Status`, or a plain number that a later version of the library has added.
    status: Union[Status, int] = Status.INTERNAL_ERROR


class FileError(MmadaError, OSError):
    """The operating system refused to open, read or write a file."""

    status = Status.IO_ERROR


class FormatError(MmadaError, ValueError):
    """A model file is damaged, cut off, or not what it claims to be."""

    status = Status.BAD_FORMAT


class UnsupportedError(MmadaError):
    """A well-formed file or request that this version or this model cannot serve."""

    status = Status.UNSUPPORTED


class ArgumentError(MmadaError, ValueError):
    """An option or argument that cannot be, or options that contradict each other."""

    status = Status.INVALID_ARGUMENT


class ContextOverflowError(MmadaError, ValueError):
    """A sequence needs more positions than the model has."""

    status = Status.CONTEXT_OVERFLOW


class ImageError(MmadaError, ValueError):
    """A picture is damaged, empty, or larger than the limits."""

    status = Status.BAD_IMAGE


class OutOfMemoryError(MmadaError, MemoryError):
    """An allocation failed, or would exceed the context's `memory_limit`."""

    status = Status.OUT_OF_MEMORY


class CancelledError(MmadaError):
    """The generation or the call was cancelled."""

    status = Status.CANCELLED


class BusyError(MmadaError):
    """Another call is using the context or the generation. Try again later; nothing has changed."""

    status = Status.BUSY


class ForkedError(MmadaError):
    """The context was made before a fork and is used in the child, where its threads do not exist."""

    status = Status.FORKED


class DeviceError(MmadaError, RuntimeError):
    """A graphics card failed. Contexts on it fail from then on; new ones on the CPU work."""

    status = Status.DEVICE_ERROR


class DoneError(MmadaError):
    """A step of a generation that is complete."""

    status = Status.DONE


class NotFoundError(MmadaError, LookupError):
    """There is nothing by that name or index."""

    status = Status.NOT_FOUND


class ClosedError(MmadaError, ValueError):
    """The model, context, generation or canceller has been closed."""

    status = Status.INVALID_HANDLE


class InternalError(MmadaError, RuntimeError):
    """A defect of the library."""

    status = Status.INTERNAL_ERROR


_CLASSES: Dict[int, Type[MmadaError]] = {
    Status.IO_ERROR: FileError,
    Status.BAD_FORMAT: FormatError,
    Status.UNSUPPORTED: UnsupportedError,
    Status.INVALID_ARGUMENT: ArgumentError,
    Status.CONTEXT_OVERFLOW: ContextOverflowError,
    Status.BAD_IMAGE: ImageError,
    Status.OUT_OF_MEMORY: OutOfMemoryError,
    Status.CANCELLED: CancelledError,
    Status.BUSY: BusyError,
    Status.INTERNAL_ERROR: InternalError,
    Status.FORKED: ForkedError,
    Status.DEVICE_ERROR: DeviceError,
    Status.NULL_POINTER: ArgumentError,
    Status.STRUCT_SIZE: ArgumentError,
    Status.INVALID_UTF8: ArgumentError,
    Status.INVALID_HANDLE: InternalError,
    Status.DONE: DoneError,
    Status.NOT_FOUND: NotFoundError,
    Status.PANIC: InternalError,
}


def from_status(status: int, message: str) -> MmadaError:
    """The exception for a status of the library."""
    error = _CLASSES.get(status, MmadaError)(message)
    try:
        error.status = Status(status)
    except ValueError:
        error.status = status
    return error
