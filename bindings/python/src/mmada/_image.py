"""Pictures: from and to numpy arrays, PIL images, files and bytes."""

import os
from typing import TYPE_CHECKING, Any, Tuple, Union

import numpy as np
import numpy.typing as npt

from ._errors import ArgumentError, ImageError
from ._native import ffi, invoke, lib, produce, take_bytes

if TYPE_CHECKING:
    import PIL.Image

#: What is taken for a picture: an `Image`, a PIL image, an array of uint8 [height, width, 3], the path of a PNG, JPEG or
#: GIF file, or the bytes of one.
ImageLike = Union[
    "Image", "PIL.Image.Image", npt.NDArray[np.uint8], str, "os.PathLike[str]", bytes, bytearray, memoryview
]

_FORMATS = {"png": lib.MMADA_IMAGE_PNG, "jpeg": lib.MMADA_IMAGE_JPEG, "jpg": lib.MMADA_IMAGE_JPEG}


class Image:
    """A picture of 8-bit RGB pixels that does not change.

    ``numpy.asarray(image)`` is its pixels, ``image.pil()`` a PIL image, and a notebook shows it as it is.
    """

    __slots__ = ("_pixels",)
    _pixels: "npt.NDArray[np.uint8]"

    def __init__(self, source: ImageLike):
        """A picture of an array of uint8 [height, width, 3], a PIL image, a file's path or its bytes."""
        if isinstance(source, Image):
            self._pixels = source._pixels
        elif isinstance(source, (str, os.PathLike)):
            path = os.fsencode(source)
            self._pixels = _take(produce("mmada_image", lib.mmada_image_load, path, len(path)))
        elif isinstance(source, (bytes, bytearray, memoryview)):
            data = ffi.from_buffer("uint8_t[]", source)
            self._pixels = _take(produce("mmada_image", lib.mmada_image_decode, data, len(data)))
        elif isinstance(source, np.ndarray):
            self._pixels = _checked(source).copy()
        elif hasattr(source, "convert") and hasattr(source, "getbands"):  # a PIL image, without importing PIL
            self._pixels = _checked(np.array(source.convert("RGB")))
        else:
            raise TypeError(
                "a picture is an mmada.Image, a PIL image, an array of uint8 [height, width, 3], a path or the bytes "
                f"of a file, not {type(source).__name__}"
            )
        self._pixels.setflags(write=False)

    @property
    def width(self) -> int:
        """Pixels in a row."""
        return int(self._pixels.shape[1])

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return int(self._pixels.shape[0])

    @property
    def size(self) -> Tuple[int, int]:
        """Width and height, as PIL has them."""
        return self.width, self.height

    def numpy(self) -> "npt.NDArray[np.uint8]":
        """The pixels: uint8 [height, width, 3], red, green, blue from the top left. Read only; copy it to draw."""
        return self._pixels

    def __array__(self, dtype: Any = None, copy: Any = None) -> "npt.NDArray[Any]":
        if dtype is not None and np.dtype(dtype) != self._pixels.dtype:
            if copy is False:
                raise ValueError("pixels of another type are a copy")
            return self._pixels.astype(dtype)
        return self._pixels.copy() if copy else self._pixels

    def pil(self) -> "PIL.Image.Image":
        """The picture as a PIL image; needs Pillow (``pip install mmada[pil]``)."""
        import PIL.Image

        return PIL.Image.fromarray(self._pixels)

    def save(self, path: "Union[str, os.PathLike[str]]") -> None:
        """Writes a file whose name ends in .png, .jpg or .jpeg. It appears whole or not at all."""
        name = os.fsencode(path)
        with NativeImage(self) as image:
            invoke(lib.mmada_image_save, image, name, len(name))

    def encode(self, format: str = "png") -> bytes:
        """The bytes of a file: "png", or "jpeg" of quality 95."""
        if format not in _FORMATS:
            raise ArgumentError(f"format must be png or jpeg, not {format!r}")
        with NativeImage(self) as image:
            return take_bytes(produce("mmada_buffer", lib.mmada_image_encode, image, _FORMATS[format]))

    def _repr_png_(self) -> bytes:
        return self.encode("png")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self._pixels.shape == other._pixels.shape and bool((self._pixels == other._pixels).all())

    def __hash__(self) -> int:
        return hash((self._pixels.shape, self._pixels.tobytes()))

    def __repr__(self) -> str:
        return f"<mmada.Image {self.width}x{self.height}>"


class NativeImage:
    """A picture of the library's, for as long as a `with` lasts."""

    def __init__(self, source: ImageLike):
        self._pixels = Image(source).numpy()
        self._image = ffi.NULL

    def __enter__(self) -> Any:
        height, width, _ = self._pixels.shape
        pixels = ffi.from_buffer("uint8_t[]", self._pixels)
        self._image = produce("mmada_image", lib.mmada_image_from_rgb, pixels, width, height, 0)
        return self._image

    def __exit__(self, *_: object) -> None:
        lib.mmada_image_free(self._image)


def _checked(pixels: "npt.NDArray[Any]") -> "npt.NDArray[np.uint8]":
    if pixels.dtype != np.uint8:
        raise ArgumentError(f"the pixels of a picture must be uint8, not {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ArgumentError(f"the pixels of a picture must be [height, width, 3], not {list(pixels.shape)}")
    if 0 in pixels.shape:
        raise ImageError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels is empty")
    return np.ascontiguousarray(pixels)


def take_image(image: Any) -> Image:
    """A picture of the library's, which is freed."""
    result = Image.__new__(Image)
    result._pixels = _take(image)
    result._pixels.setflags(write=False)
    return result


def _take(image: Any) -> "npt.NDArray[np.uint8]":
    try:
        height, width = lib.mmada_image_height(image), lib.mmada_image_width(image)
        pixels = ffi.buffer(lib.mmada_image_pixels(image), height * width * 3)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()
    finally:
        lib.mmada_image_free(image)
