"""Ways to open a model, life and death of objects, threads, forks."""

import gc
import mmap
import os
import threading
import time
import warnings
import weakref

import mmada
import numpy as np
import pytest
from conftest import PROMPT, SEED


def test_a_file_is_read_with_progress(model_path):
    calls = []
    with mmada.Model(model_path, mmap=False, progress=lambda done, total: calls.append((done, total))) as model:
        size = os.path.getsize(model_path)
        assert calls[-1] == (size, size) and calls == sorted(calls)
        with model.context() as context:
            assert str(context.ask("What is 17 + 25?")) == "42"


def test_a_model_is_opened_by_its_descriptor(model_path):
    with open(model_path, "rb") as file:
        model = mmada.Model.from_fd(file.fileno(), name="by descriptor")
    with model, model.context() as context:
        assert str(context.ask("What is 17 + 25?")) == "42"
    with pytest.raises(mmada.ArgumentError, match="-1"):
        mmada.Model.from_fd(-1)


@pytest.mark.parametrize("offset", [None, 0, 1, 16])
def test_a_model_in_memory_lives_as_long_as_it_is_used(model_path, offset):
    with open(model_path, "rb") as file:
        if offset is None:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:  # at every alignment
            content = file.read()
            room = np.zeros(len(content) + 64, np.uint8)
            begin = -room.ctypes.data % 32 + offset
            room[begin : begin + len(content)] = np.frombuffer(content, np.uint8)
            data = memoryview(room)[begin : begin + len(content)]
            del content, room
    model = mmada.Model.from_buffer(data, name="in memory")
    if offset in (None, 0):  # in place: the buffer is in use
        with pytest.raises(BufferError):
            data.close() if offset is None else data.release()
    del data
    context = model.context()
    model.close()
    del model
    generation = context.begin_image(PROMPT, seed=SEED)
    context.close()
    del context
    gc.collect()
    assert generation.run().image() == mmada.Image(os.environ["MMADA_PICTURE"])
    with pytest.raises(mmada.FormatError, match="broken"):
        mmada.Model.from_buffer(b"no model", name="broken")


def test_what_was_made_with_a_closed_object_goes_on(model_path):
    model = mmada.Model(model_path)
    context = model.context()
    model.close()
    assert str(context.ask("What is 17 + 25?")) == "42"
    assert context.score("What is 17 + 25?", "42", samples=2).samples == 2
    assert context.forward([1, 2]).shape[0] == 2
    generation = context.begin_text("What is 17 + 25?")
    context.close()
    assert generation.run().answer == "42"
    generation.close()


def test_use_after_close_is_an_error(model_path):
    model = mmada.Model(model_path)
    context = model.context()
    generation = context.begin_text("What is 17 + 25?")
    generation.step()
    canceller = mmada.Canceller()
    for _ in range(2):  # closing twice is harmless
        generation.close()
        context.close()
        model.close()
    assert model.closed and context.closed and generation.closed
    assert "closed" in repr(model) and "closed" in repr(context) and "closed" in repr(generation)
    uses = [
        lambda: model.info, lambda: model.tokenize("a"), lambda: model.detokenize([1]), lambda: model.context(),
        lambda: model.metadata["general.name"], lambda: len(model.metadata), lambda: model.text_options(),
        lambda: model.prompt_ids("a"), lambda: model.estimate_text(1), lambda: context.ask("a"),
        lambda: context.draw("a"), lambda: context.info, lambda: context.forward([1]), lambda: context.score("a", "b"),
        lambda: context.decode_image([[1]]), lambda: context.begin_text_ids([1]), generation.step, generation.cancel,
        lambda: next(generation), lambda: generation.text, lambda: generation.canvas, lambda: generation.run(),
    ]
    for use in uses:
        with pytest.raises(mmada.ClosedError, match="is closed") as raised:
            use()
        assert raised.value.status == mmada.Status.INVALID_HANDLE and isinstance(raised.value, ValueError)
    canceller.cancel()


def _threads():
    return set(os.listdir("/proc/self/task"))


def _ended(threads):
    """Whether all of them have gone; the kernel lists a thread for a moment after it was joined."""
    until = time.monotonic() + 30
    while threads & _threads() and time.monotonic() < until:
        time.sleep(0.01)
    return not threads & _threads()


def test_what_is_forgotten_is_freed(model_path):
    before = _threads()
    model = mmada.Model(model_path)
    context = model.context(threads=3)
    generation = context.begin_text("What is 17 + 25?")
    generation.step()
    started = _threads() - before
    assert started
    watched = [weakref.ref(thing) for thing in (model, context, generation)]
    handles = [weakref.ref(thing._handle) for thing in (model, context, generation)]
    gc.disable()  # no cycles: counting references is enough
    try:
        del model, context, generation
        assert [watch() for watch in watched + handles] == [None] * 6
    finally:
        gc.enable()
    assert _ended(started)


def test_what_is_forgotten_in_a_cycle_is_freed(model_path):
    before = _threads()
    context = mmada.Model(model_path).context(threads=3)
    generation = context.begin_text("What is 17 + 25?")
    generation.step()
    started = _threads() - before
    assert started
    generation.owner = context.owner = [generation, context]  # type: ignore[attr-defined]
    watch = weakref.ref(generation)
    del generation, context
    gc.collect()
    assert watch() is None and _ended(started)


def test_a_failed_call_leaves_nothing_behind(context):
    import tracemalloc

    def fail():
        with pytest.raises(mmada.ArgumentError):
            context.begin_text("a", steps=7, gen_length=24, block_length=12)
        with pytest.raises(mmada.ImageError):
            mmada.Image(b"no picture")

    fail()
    gc.collect()
    tracemalloc.start()
    try:
        fail()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            fail()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow(model):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    def once():
        with model.context() as context:
            drawing = context.draw(PROMPT, seed=SEED, steps=2)
            context.ask("What?", image=drawing.image, gen_length=8, block_length=8, steps=2)

    for _ in range(10):
        once()
    before = resident()
    for _ in range(40):
        once()
    assert resident() - before < 16 * 2**20


def test_threads_share_a_model_with_a_context_each(model, picture_path):
    expected = mmada.Image(picture_path)
    results, failures = [], []

    def work():
        try:
            with model.context(threads=1) as context:
                for _ in range(3):
                    results.append(context.draw(PROMPT, seed=SEED).image == expected)
                    results.append(str(context.ask("What is 17 + 25?")) == "42")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and results == [True] * 48


def test_a_context_in_use_is_busy(context, endless):
    """And the lock of the interpreter is free meanwhile: otherwise the main thread would not get to try."""
    first = context.begin_text("Tell me everything.", options=endless)
    second = context.begin_text("What is 17 + 25?")
    ended = []

    def work():
        while not ended:
            try:
                first.step()
            except mmada.BusyError:
                pass  # the main thread was faster
            except mmada.CancelledError as error:
                ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    busy = set()
    while not busy >= {"step", "same", "forward"}:
        for name, call in (("step", second.step), ("same", first.step), ("forward", lambda: context.forward([1]))):
            try:
                call()
            except mmada.BusyError:
                busy.add(name)
            except mmada.DoneError:
                second = context.begin_text("What is 17 + 25?")
    first.cancel()
    thread.join()
    assert len(ended) == 1
    assert str(context.ask("What is 17 + 25?")) == "42"


def test_closing_what_another_thread_uses_is_safe(model, endless):
    for _ in range(5):
        context = model.context(threads=2)
        generation = context.begin_text("Tell me everything.", options=endless)
        started, ended = threading.Event(), []

        def work():
            try:
                for _ in generation:
                    started.set()
            except mmada.MmadaError as error:
                ended.append(type(error))

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        context.close()
        generation.close()
        thread.join()
        assert ended in ([mmada.CancelledError], [mmada.ClosedError])


def test_a_forked_child_is_told(model, context):
    context.ask("What is 17 + 25?")
    generation = context.begin_text("What is 17 + 25?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            for use in (lambda: context.ask("a"), lambda: generation.run()):
                try:
                    use()
                except mmada.ForkedError:
                    code += 1
            generation.close()
            context.close()
            with model.context() as fresh:
                code += str(fresh.ask("What is 17 + 25?")) == "42"
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert generation.run().answer == "42"
