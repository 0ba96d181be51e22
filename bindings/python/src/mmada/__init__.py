"""MMaDA, the unified multimodal diffusion language model: answers, questions about pictures, and pictures.

    import mmada

    with mmada.Model("mmada.gguf") as model, model.context() as context:
        print(context.ask("What is 17 + 25?", thinking=True))
        picture = context.draw("a yellow star above a purple ring on a black background", seed=2).image
        picture.save("star.png")
        print(context.ask("What color is the background?", image=picture))

A `Model` is an opened file; any number of threads may share it. A `Context` runs it, one call at a time. A `Generation`
is an answer or pictures in the making: an iterator over its steps, which can be shown and cancelled midway.

Long calls release the interpreter's lock. Ctrl-C ends them within one layer of the network. Failures are `MmadaError`,
with a class for each kind. Messages go to the logger "mmada".
"""

from ._context import Answer, Canceller, Context, ContextInfo, Drawing, Score
from ._errors import (
    ArgumentError,
    BusyError,
    CancelledError,
    ClosedError,
    ContextOverflowError,
    DeviceError,
    DoneError,
    FileError,
    ForkedError,
    FormatError,
    ImageError,
    InternalError,
    MmadaError,
    NotFoundError,
    OutOfMemoryError,
    Status,
    UnsupportedError,
)
from ._generation import Generation, Step
from ._image import Image, ImageLike
from ._model import Device, Estimate, Metadata, Model, ModelInfo, devices, unavailable
from ._native import MASKED, build_info, version
from ._options import ImageOptions, Message, Messages, TextOptions

__version__ = version()

__all__ = [
    "MASKED",
    "Answer",
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "Canceller",
    "ClosedError",
    "Context",
    "ContextInfo",
    "ContextOverflowError",
    "Device",
    "DeviceError",
    "DoneError",
    "Drawing",
    "Estimate",
    "FileError",
    "ForkedError",
    "FormatError",
    "Generation",
    "Image",
    "ImageError",
    "ImageLike",
    "ImageOptions",
    "InternalError",
    "Message",
    "Messages",
    "Metadata",
    "MmadaError",
    "Model",
    "ModelInfo",
    "NotFoundError",
    "OutOfMemoryError",
    "Score",
    "Status",
    "Step",
    "TextOptions",
    "UnsupportedError",
    "build_info",
    "devices",
    "unavailable",
    "version",
]

for _name in __all__:  # so that help() and tracebacks say mmada.Model
    if getattr(globals()[_name], "__module__", "").startswith("mmada."):
        globals()[_name].__module__ = "mmada"
del _name
