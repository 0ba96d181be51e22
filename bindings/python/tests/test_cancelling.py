"""Everything that stops a call: cancel, Ctrl-C, callbacks that raise, tasks that are cancelled."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading

import mmada
import pytest
from conftest import PROMPT, SEED


def run_in_thread(call):
    """Starts a thread; joining it gives what the call returned or raised."""
    outcome = []

    def work():
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def join():
        thread.join()
        return outcome[0]

    return join


def test_a_cancelled_generation_can_be_followed_by_another(context, endless):
    generation = context.begin_text("Tell me everything.", options=endless)
    two = threading.Event()
    join = run_in_thread(lambda: generation.run(lambda step: step.index == 2 and two.set()))
    two.wait()
    generation.cancel()
    assert isinstance(join(), mmada.CancelledError)
    assert not generation.done
    with pytest.raises(mmada.CancelledError) as raised:
        next(generation)
    assert raised.value.status == mmada.Status.CANCELLED
    assert isinstance(generation.text, str)  # results so far
    assert str(context.ask("What is 17 + 25?")) == "42"


def test_cancelling_reaches_the_middle_of_a_step_of_the_main_thread(context, endless):
    generation = context.begin_text("Tell me everything.", options=endless)
    generation.step()
    timer = threading.Timer(0.02, generation.cancel)
    timer.start()
    with pytest.raises(mmada.CancelledError):
        generation.run()
    timer.join()


def test_a_canceller_stops_scores_and_forwards(context):
    canceller = mmada.Canceller()
    timer = threading.Timer(0.05, canceller.cancel)
    timer.start()
    with pytest.raises(mmada.CancelledError):
        context.score("What is 17 + 25?", "42 " * 300, samples=10**6, canceller=canceller)
    with pytest.raises(mmada.CancelledError):
        context.forward([1, 2, 3], canceller=canceller)
    timer.join()
    assert context.forward([1, 2, 3]).shape[0] == 3


class Alarm(Exception):
    pass


@pytest.fixture
def alarm():
    """A signal whose handler raises, 50 ms from when it is called."""

    def ring(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.05)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_that_raises_ends_a_step_midway(context, alarm):
    """One score that would take hours: without an interrupt the test would not end."""
    info = context.model.info
    masks = [info.mask_id] * 4000
    alarm()
    with pytest.raises(Alarm):
        while True:
            context.forward(masks)
    alarm()
    with pytest.raises(Alarm):
        context.score("What is 17 + 25?", "42 " * 300, samples=10**6)
    assert str(context.ask("What is 17 + 25?")) == "42"


def test_a_signal_handler_that_raises_cancels_the_generation(context, endless, alarm):
    generation = context.begin_text("Tell me everything.", options=endless)
    alarm()
    with pytest.raises(Alarm):
        generation.run()
    assert str(context.ask("What is 17 + 25?")) == "42"


def test_a_signal_handler_may_cancel(context, endless):
    generation = context.begin_text("Tell me everything.", options=endless)
    before = signal.signal(signal.SIGALRM, lambda number, frame: generation.cancel())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(mmada.CancelledError):
            generation.run()
    finally:
        signal.signal(signal.SIGALRM, before)


PROGRAM = """
import signal, sys, mmada
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
with mmada.Model(sys.argv[1]) as model, model.context() as context:
    info = model.info
    print("ready", flush=True)
    try:
        # one call that would take hours
        context.score("What is 17 + 25?", "42 " * 300, samples=10**6)
    except KeyboardInterrupt:
        print("interrupted", context.ask("What is 17 + 25?"), flush=True)
        raise
"""


def test_ctrl_c_ends_a_program(model_path):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, model_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert out == "interrupted 42\n" and process.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt") and "During handling" not in err


def test_ctrl_c_ends_reading_a_model(model_path):
    def interrupt(done, total):
        if done < total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        mmada.Model(model_path, mmap=False, progress=interrupt)


class Refused(Exception):
    pass


@pytest.mark.parametrize("mmap", [False, True])
def test_an_exception_of_the_opening_callback_comes_out(model_path, mmap):
    def refuse(done, total):
        raise Refused(done)

    with pytest.raises(Refused) as raised:
        mmada.Model(model_path, mmap=mmap, progress=refuse)
    assert any(entry.name == "refuse" for entry in raised.traceback)


def test_an_exception_of_the_progress_callback_comes_out(context):
    seen = []

    def refuse(step):
        seen.append(step.index)
        if len(seen) == 3:
            raise Refused

    with pytest.raises(Refused):
        context.draw(PROMPT, progress=refuse)
    assert seen == [1, 2, 3]
    assert str(context.ask("What is 17 + 25?")) == "42"


@pytest.mark.parametrize("in_thread", [False, True])
def test_an_exception_of_a_log_filter_comes_out(model, in_thread):
    def refuse(record):
        if armed:
            raise Refused
        return True

    armed = []
    logger = logging.Logger("raises", logging.DEBUG)
    logger.addFilter(refuse)
    with model.context(logger=logger) as context:
        with context.begin_text("What is 17 + 25?") as generation:
            generation.step()
            armed.append(True)
            if in_thread:
                assert isinstance(run_in_thread(generation.run)(), Refused)
            else:
                with pytest.raises(Refused):
                    generation.run()
            armed.clear()
            with pytest.raises(mmada.CancelledError):
                generation.step()
        assert str(context.ask("What is 17 + 25?")) == "42"


def test_messages_go_to_the_logger_of_the_context(model, caplog):
    long = "a yellow star above a purple ring " * 20
    with model.context() as context:
        assert context.draw(long, steps=2).warnings
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert caplog.records[0].name == "mmada" and "prompt" in caplog.text
        caplog.set_level(logging.DEBUG, logger="mmada")  # levels may change at any time
        context.ask("What is 17 + 25?")
        assert "DEBUG" in {record.levelname for record in caplog.records}
    caplog.clear()
    other = logging.LoggerAdapter(logging.getLogger("other"), {})
    with model.context(logger=other) as context, model.context(logger=None) as silent:
        silent.draw(long, steps=2)
        assert caplog.records == []
        context.draw(long, steps=2)
        assert {record.name for record in caplog.records} == {"other"}


def test_nothing_is_printed_without_logging(model_path):
    program = "import sys, mmada; mmada.Model(sys.argv[1]).context().draw('a star ' * 99, steps=2)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program, model_path], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


def test_steps_are_awaited(context, picture_path):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        with context.begin_image(PROMPT, seed=SEED) as generation:
            steps = [step.index async for step in generation]
            assert steps == list(range(1, 13)) and ticks > len(steps)
            assert generation.image() == mmada.Image(picture_path)
        ticking.cancel()
        with context.begin_text("What is 17 + 25?") as generation:
            seen = []
            assert (await generation.run_async(seen.append)).answer == "42" and seen[-1].done

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_generation(context, endless):
    async def main():
        with context.begin_text("Tell me everything.", options=endless) as generation:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(generation.run_async(), timeout=0.1)
            with pytest.raises(mmada.CancelledError):
                generation.step()
        assert str(context.ask("What is 17 + 25?")) == "42"  # the step has ended: nothing is busy

    asyncio.run(main())
