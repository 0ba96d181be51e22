"""What cannot be is an exception with a sentence, of a class that callers know."""

import copy
import pickle

import mmada
import numpy as np
import pytest


@pytest.mark.parametrize(
    "kind, parent",
    [
        (mmada.FileError, OSError),
        (mmada.FormatError, ValueError),
        (mmada.ArgumentError, ValueError),
        (mmada.ContextOverflowError, ValueError),
        (mmada.ImageError, ValueError),
        (mmada.OutOfMemoryError, MemoryError),
        (mmada.NotFoundError, LookupError),
        (mmada.ClosedError, ValueError),
        (mmada.InternalError, RuntimeError),
        (mmada.DeviceError, RuntimeError),
    ],
)
def test_errors_are_what_callers_know(kind, parent):
    assert issubclass(kind, parent) and issubclass(kind, mmada.MmadaError)
    assert str(kind("a sentence")) == "a sentence"
    assert kind.status in mmada.Status


def test_every_status_has_a_class():
    from mmada._errors import from_status
    from mmada._native import c_text, lib

    for status in mmada.Status:
        assert c_text(lib.mmada_status_name(status)) == f"MMADA_{status.name}"
        if status is not mmada.Status.OK:
            error = from_status(status, "a sentence")
            assert type(error) is not mmada.MmadaError and error.status is status
    later = from_status(4711, "from a later version")
    assert type(later) is mmada.MmadaError and later.status == 4711


def test_errors_can_be_pickled():
    from mmada._errors import from_status

    for error in (from_status(1, "a.gguf: no such file"), from_status(103, "no UTF-8"), from_status(4711, "later")):
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(twin), str(twin), twin.status) == (type(error), str(error), error.status)


def test_a_file_that_is_no_model(tmp_path, picture_path, model_path):
    with pytest.raises(mmada.FileError, match="nothing.gguf") as raised:
        mmada.Model(tmp_path / "nothing.gguf")
    assert raised.value.status == mmada.Status.IO_ERROR
    with pytest.raises(mmada.FormatError, match="picture"):
        mmada.Model(picture_path)
    cut = tmp_path / "cut.gguf"
    with open(model_path, "rb") as file:
        cut.write_bytes(file.read(5_000_000))
    with pytest.raises(mmada.FormatError, match="cut.gguf"):
        mmada.Model(cut)
    with pytest.raises(mmada.MmadaError):
        mmada.Model("a\0b")
    with pytest.raises(TypeError):
        mmada.Model(7)


def test_options_that_cannot_be(context):
    for changes, word in [
        ({"steps": 7, "gen_length": 24, "block_length": 12}, "steps"),
        ({"steps": -1}, "steps"),
        ({"gen_length": 0}, "gen_length|length"),
        ({"temperature": float("nan")}, "temperature"),
        ({"remasking": "high"}, "remasking"),
        ({"remasking": 1}, "remasking"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"forbid": [10**6]}, "forbid|vocabulary"),
        ({"forbid": [-1]}, "forbid"),
        ({"forbid": [[1], [2]]}, "forbid"),
        ({"allow_only": []}, "allow"),
        ({"pinned": {10**6: 1}}, "10+"),
        ({"pinned": {-1: 1}}, "position"),
    ]:
        with pytest.raises(mmada.ArgumentError, match=word):
            context.begin_text("a", **changes)
    for changes, word in [
        ({"width": 63}, "63"),
        ({"width": 0}, "0"),
        ({"count": 0}, "count|picture"),
        ({"schedule": "square"}, "schedule"),
        ({"confidence": ""}, "confidence"),
        ({"schedule": "power", "schedule_power": -1.0}, "power"),
        ({"guidance": float("inf")}, "guidance"),
    ]:
        with pytest.raises(mmada.ArgumentError, match=word):
            context.begin_image("a", **changes)
    with pytest.raises(TypeError):
        context.ask("a", no_such_option=1)
    with pytest.raises(TypeError):
        context.ask("a", steps="many")
    with pytest.raises(TypeError):
        context.ask("a", forbid=[1.5])


def test_contexts_that_cannot_be(model):
    for options in (
        {"threads": 5000}, {"threads": -1}, {"compute": "slow"}, {"instruction_set": "abacus"}, {"memory_limit": -1},
    ):
        with pytest.raises(mmada.ArgumentError):
            model.context(**options)
    with model.context(memory_limit=1000) as context, pytest.raises(mmada.OutOfMemoryError) as raised:
        context.ask("What is 17 + 25?")
    assert isinstance(raised.value, MemoryError) and str(raised.value)


def test_chats_that_cannot_be(context, picture_path):
    with pytest.raises(mmada.ArgumentError):
        context.ask([])
    with pytest.raises(mmada.ArgumentError, match="role"):
        context.ask({"role": "wizard", "content": "a"})
    with pytest.raises(mmada.ArgumentError, match="role"):
        context.ask({"content": "a"})
    with pytest.raises(mmada.ArgumentError, match="user"):
        context.ask(mmada.Message("assistant", "a"), image=picture_path)
    with pytest.raises(mmada.UnsupportedError):
        context.ask([mmada.Message("user", "a", picture_path), mmada.Message("user", "b", picture_path)])
    with pytest.raises(mmada.UnsupportedError):
        context.model.prompt_ids(mmada.Message("user", "a", picture_path))
    with pytest.raises(TypeError):
        context.ask([7])
    with pytest.raises(UnicodeEncodeError):
        context.ask("\ud800")
    with pytest.raises(mmada.ContextOverflowError):
        context.ask("a " * 5000)
    assert str(context.ask("What is 17 + 25?")) == "42"


def test_pictures_that_cannot_be(context, tmp_path):
    for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(mmada.ArgumentError, match="picture"):
            mmada.Image(pixels)
    for shape in ((0, 4, 3), (4, 0, 3)):
        with pytest.raises(mmada.ImageError, match="empty"):
            mmada.Image(np.zeros(shape, np.uint8))
    for data in (b"", b"GIF89a", b"no picture"):
        with pytest.raises(mmada.ImageError):
            mmada.Image(data)
    with pytest.raises(mmada.FileError, match="nothing.png"):
        mmada.Image(tmp_path / "nothing.png")
    with pytest.raises(TypeError, match="int"):
        mmada.Image(7)
    image = mmada.Image(np.full((4, 20000, 3), 9, np.uint8))
    with pytest.raises(mmada.ImageError):
        image.encode()
    image = mmada.Image(np.full((12, 16, 3), 9, np.uint8))
    with pytest.raises(mmada.ArgumentError, match="12"):
        context.encode_image(image)
    with pytest.raises(mmada.ArgumentError, match="format"):
        image.encode("bmp")
    with pytest.raises(mmada.ArgumentError):
        image.save(tmp_path / "a.bmp")
    with pytest.raises(mmada.ArgumentError):
        image.save(tmp_path / "no such folder" / "a.png")
    for codes in ([1, 2], [[10**6]], [[-1]], np.empty((0, 3), np.uint32)):
        with pytest.raises(mmada.ArgumentError):
            context.decode_image(codes)


def test_ids_that_cannot_be(context):
    for call in (
        lambda: context.forward([]),
        lambda: context.forward([10**6]),
        lambda: context.forward([2**40]),
        lambda: context.forward([1], rows=[1]),
        lambda: context.forward([1], rows=[-1]),
        lambda: context.forward([1], rows=[[0]]),
        lambda: context.forward([1], vocab=(3, 2)),
        lambda: context.forward([1], vocab=(0, 10**6)),
        lambda: context.score("a", ""),
        lambda: context.score("a", [context.model.info.mask_id]),
        lambda: context.model.tokenize("a" * 2_000_000),
    ):
        with pytest.raises(mmada.ArgumentError) as raised:
            call()
        assert str(raised.value)
    with pytest.raises(TypeError):
        context.forward([0.5])
    with pytest.raises(mmada.ContextOverflowError):
        context.forward([1] * 5000)


def test_a_device_that_is_not_there_is_said_to_be_missing(model, caplog):
    with pytest.raises(mmada.ArgumentError, match="cuda:N"):
        model.context(device="gpu")
    with pytest.raises(mmada.ArgumentError, match="gpu_layers"):
        model.context(gpu_layers=-1)
    with pytest.raises(mmada.NotFoundError, match="vulkan"):
        mmada.unavailable("vulkan")
    assert mmada.unavailable("cpu") is None
    reason = mmada.unavailable("cuda")
    if reason is None:
        pytest.skip("this machine has a card")
    with pytest.raises(mmada.ArgumentError) as caught:
        model.context(device="cuda:7")
    assert "cuda:7" in str(caught.value) and reason in str(caught.value)

    def never(done, total):
        raise AssertionError("told of progress")

    with caplog.at_level("WARNING", "mmada"), model.context(device="auto", gpu_layers=2, progress=never) as context:
        assert (context.info.device, context.info.gpu_layers) == ("cpu", 0)
    assert "running on the cpu" in caplog.text and reason in caplog.text
