// Streams, events, and the recording of graphs.
#include <chrono>
#include <deque>

#include "driver.h"

namespace driver {

namespace {
constexpr int GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2;  // modes of capturing
typedef std::chrono::steady_clock Clock;
}  // namespace

/// What has been captured of a stream so far.
struct Capture {
    int mode;
    std::thread::id thread;
    std::shared_ptr<Recorded> work = std::make_shared<Recorded>();
    bool failed = false;
};

struct Stream {
    Context* context;
    bool blocking;  // in order with the legacy stream
    std::deque<Work> queue;
    uint64_t queued = 0, done = 0;
    std::optional<Capture> capture;
};

struct Event {
    Context* context;
    bool timed;
    bool captured = false;
    // where in the order of which stream it stands, if it was ever recorded; and when that was reached
    std::shared_ptr<Stream> stream;
    uint64_t after = 0;
    std::shared_ptr<std::optional<Clock::time_point>> reached;

    bool is_done() const { return !stream || stream->done >= after; }
};

namespace {

/// Runs one piece of work; an error that stays drops all that the context has queued.
void step(Stream& stream) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    Context& context = *stream.context;
    if (!context.error) {
        try {
            work();
        } catch (const standin::Failure& failure) {
            explain(failure.message);
            context.error = LAUNCH_FAILED;
        } catch (const Lost& lost) {
            context.error = lost.error;
        }
    }
    stream.done++;
}

void run(Stream& stream, uint64_t until) {
    while (stream.done < until) step(stream);
}

void push(Stream& stream, Work work) {
    stream.queue.push_back(std::move(work));
    stream.queued++;
}

/// Queues that `stream` goes on when `other` has done what it has been given so far.
void wait_for(Stream& stream, const std::shared_ptr<Stream>& other) {
    if (other->done < other->queued) push(stream, [other, until = other->queued] { run(*other, until); });
}

template <class F>
void each_stream(Context& context, F f) {
    if (context.legacy) f(context.legacy);
    state().streams.each([&](const std::shared_ptr<Stream>& stream) {
        if (stream->context == &context) f(stream);
    });
}

/// The legacy stream and those that are in order with it wait for each other.
void keep_order(Context& context, const std::shared_ptr<Stream>& stream) {
    if (!stream->blocking) return;
    each_stream(context, [&](const std::shared_ptr<Stream>& other) {
        const bool legacy = stream == context.legacy || other == context.legacy;
        if (legacy && other != stream && other->blocking) wait_for(*stream, other);
    });
}

CUresult refuse(Stream& stream, const std::string& what, CUresult status) {
    explain(what + ", which ends the capture");
    stream.capture->failed = true;
    return status;
}

template <class F>
CUresult on_event(CUhandle handle, F body) {
    return in_context([&](Context& context) -> CUresult {
        const auto event = state().events.find(handle);
        if (!event || event->context != &context) return INVALID_HANDLE;
        return body(context, *event);
    });
}

template <class F>
CUresult on_stream(CUhandle handle, F body) {
    return in_context([&](Context& context) -> CUresult {
        const auto stream = stream_of(context, handle);
        return stream ? body(context, stream) : INVALID_HANDLE;
    });
}

}  // namespace

std::shared_ptr<Stream> stream_of(Context& context, CUhandle handle) {
    if (!handle) {
        if (!context.legacy) context.legacy.reset(new Stream{&context, true, {}, 0, 0, {}});
        return context.legacy;
    }
    auto stream = state().streams.find(handle);
    return stream && stream->context == &context ? stream : nullptr;
}

CUresult enqueue(Context& context, const std::shared_ptr<Stream>& stream, Work work) {
    if (stream->capture) {
        if (stream->capture->failed) return STREAM_CAPTURE_INVALIDATED;
        stream->capture->work->push_back(std::move(work));
        return SUCCESS;
    }
    CUresult status = SUCCESS;
    if (stream == context.legacy) {
        each_stream(context, [&](const std::shared_ptr<Stream>& other) {
            if (!other->capture || !other->blocking) return;
            status = refuse(*other, "work on the legacy stream while one in order with it is captured",
                            STREAM_CAPTURE_IMPLICIT);
        });
    }
    if (status) return status;
    keep_order(context, stream);
    push(*stream, std::move(work));
    return SUCCESS;
}

CUresult launch_or_fail(Context& context, const std::shared_ptr<Stream>& stream, Work work) {
    if (!is_to_fail(settings().fail_launch)) return enqueue(context, stream, std::move(work));
    // errors that stay are found while kernels run, others by the call
    const CUresult error = settings().launch_error;
    if (!is_sticky(error)) return error;
    return enqueue(context, stream, [error] { throw Lost{error}; });
}

CUresult unsafe_while_capturing(Context& context, const char* call) {
    CUresult status = SUCCESS;
    each_stream(context, [&](const std::shared_ptr<Stream>& stream) {
        const auto& capture = stream->capture;
        if (!capture) return;
        const bool own = capture->thread == std::this_thread::get_id();
        if (capture->mode == GLOBAL || (capture->mode == THREAD_LOCAL && own)) {
            status = refuse(*stream, std::string(call) + " while a stream is captured", STREAM_CAPTURE_UNSUPPORTED);
        }
    });
    return status;
}

CUresult refuse_pageable(Stream& stream) {
    if (!stream.capture) return SUCCESS;
    return refuse(stream, "a copy of pageable memory on a stream that is captured", STREAM_CAPTURE_UNSUPPORTED);
}

CUresult finish(Context& context, Stream& stream) {
    run(stream, stream.queued);
    return context.error;
}

CUresult finish_all(Context& context) {
    each_stream(context, [&](const std::shared_ptr<Stream>& stream) { run(*stream, stream->queued); });
    return context.error;
}

void drop_streams(Context& context) {
    context.legacy.reset();
    state().events.forget([&](const Event& event) { return event.context == &context; });
    state().streams.forget([&](const Stream& stream) { return stream.context == &context; });
}

}  // namespace driver

using namespace driver;

EXPORT CUresult cuStreamCreate(CUhandle* handle, unsigned flags) {
    return in_context([&](Context& context) -> CUresult {
        if (!handle || flags > 1) return INVALID_VALUE;
        const bool blocking = flags == 0;
        *handle = state().streams.add(std::shared_ptr<Stream>(new Stream{&context, blocking, {}, 0, 0, {}}));
        return SUCCESS;
    });
}

/// What is queued is finished first.
EXPORT CUresult cuStreamDestroy_v2(CUhandle handle) {
    return on_stream(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!handle) return INVALID_HANDLE;
        const CUresult status = finish(context, *stream);
        state().streams.remove(handle);
        return status;
    });
}

EXPORT CUresult cuStreamSynchronize(CUhandle handle) {
    return on_stream(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (stream->capture) {
            return refuse(*stream, "a wait for a stream that is captured", STREAM_CAPTURE_UNSUPPORTED);
        }
        counters().waits++;
        return finish(context, *stream);
    });
}

EXPORT CUresult cuCtxSynchronize() {
    return in_context([&](Context& context) -> CUresult {
        CUresult status = SUCCESS;
        each_stream(context, [&](const std::shared_ptr<Stream>& stream) {
            if (!stream->capture) return;
            status = refuse(*stream, "a wait for the context while a stream is captured", STREAM_CAPTURE_UNSUPPORTED);
        });
        if (status) return status;
        counters().waits++;
        return finish_all(context);
    });
}

/// No other stream can join a capture here: one stream is all that is recorded.
EXPORT CUresult cuStreamWaitEvent(CUhandle handle, CUhandle event_handle, unsigned flags) {
    return on_stream(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        const auto event = state().events.find(event_handle);
        if (!event) return INVALID_HANDLE;
        if (flags) return INVALID_VALUE;
        if (stream->capture && !(event->captured && event->stream == stream)) {
            return refuse(*stream, "a captured stream waits for what is not captured", STREAM_CAPTURE_ISOLATION);
        }
        if (event->captured && event->stream != stream) {
            explain("a stream that joins the capture of another is not supported");
            return NOT_SUPPORTED;
        }
        if (event->captured || event->is_done()) return SUCCESS;
        return enqueue(context, stream, [other = event->stream, after = event->after] { run(*other, after); });
    });
}

EXPORT CUresult cuStreamBeginCapture_v2(CUhandle handle, int mode) {
    return on_stream(handle, [&](Context&, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!handle) return STREAM_CAPTURE_UNSUPPORTED;
        if (stream->capture) return ILLEGAL_STATE;
        if (mode < GLOBAL || mode > RELAXED) return INVALID_VALUE;
        stream->capture = Capture{mode, std::this_thread::get_id()};
        return SUCCESS;
    });
}

EXPORT CUresult cuStreamEndCapture(CUhandle handle, CUhandle* graph) {
    return on_stream(handle, [&](Context&, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!graph) return INVALID_VALUE;
        *graph = nullptr;
        if (!stream->capture) return ILLEGAL_STATE;
        if (stream->capture->mode != RELAXED && stream->capture->thread != std::this_thread::get_id()) {
            return STREAM_CAPTURE_WRONG_THREAD;
        }
        const Capture capture = *std::exchange(stream->capture, std::nullopt);
        if (capture.failed) return STREAM_CAPTURE_INVALIDATED;
        *graph = state().graphs.add(capture.work);
        return SUCCESS;
    });
}

/// 0, 1 for yes, or 2 for a capture that has failed.
EXPORT CUresult cuStreamIsCapturing(CUhandle handle, int* status) {
    return on_stream(handle, [&](Context&, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!status) return INVALID_VALUE;
        *status = !stream->capture ? 0 : stream->capture->failed ? 2 : 1;
        return SUCCESS;
    });
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUhandle* handle, CUhandle graph, unsigned long long flags) {
    return in_context([&](Context&) -> CUresult {
        const auto recorded = state().graphs.find(graph);
        if (!recorded) return INVALID_HANDLE;
        if (!handle || flags) return INVALID_VALUE;
        if (is_to_fail(settings().fail_graph)) return OUT_OF_MEMORY;
        *handle = state().executables.add(recorded);
        return SUCCESS;
    });
}

EXPORT CUresult cuGraphLaunch(CUhandle handle, CUhandle stream_handle) {
    return on_stream(stream_handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        const auto graph = state().executables.find(handle);
        if (!graph) return INVALID_HANDLE;
        counters().graph_launches++;
        return launch_or_fail(context, stream, [graph] {
            for (const Work& work : *graph) work();
        });
    });
}

EXPORT CUresult cuGraphExecDestroy(CUhandle handle) {
    return in_context([&](Context&) -> CUresult { return state().executables.remove(handle) ? SUCCESS : INVALID_HANDLE; });
}

EXPORT CUresult cuGraphDestroy(CUhandle handle) {
    return in_context([&](Context&) -> CUresult { return state().graphs.remove(handle) ? SUCCESS : INVALID_HANDLE; });
}

EXPORT CUresult cuEventCreate(CUhandle* handle, unsigned flags) {
    return in_context([&](Context& context) -> CUresult {
        if (!handle || flags > 3) return INVALID_VALUE;
        const bool timed = !(flags & 2);
        *handle = state().events.add(std::shared_ptr<Event>(new Event{&context, timed, false, nullptr, 0, nullptr}));
        return SUCCESS;
    });
}

EXPORT CUresult cuEventDestroy_v2(CUhandle handle) {
    return in_context([&](Context&) -> CUresult { return state().events.remove(handle) ? SUCCESS : INVALID_HANDLE; });
}

EXPORT CUresult cuEventRecord(CUhandle handle, CUhandle stream_handle) {
    return on_event(handle, [&](Context& context, Event& event) -> CUresult {
        const auto stream = stream_of(context, stream_handle);
        if (!stream) return INVALID_HANDLE;
        auto reached = std::make_shared<std::optional<Clock::time_point>>();
        const CUresult status = enqueue(context, stream, [reached] { *reached = Clock::now(); });
        if (status) return status;
        event.captured = stream->capture.has_value();
        event.stream = stream;
        event.after = stream->queued;
        event.reached = reached;
        return SUCCESS;
    });
}

EXPORT CUresult cuEventSynchronize(CUhandle handle) {
    return on_event(handle, [&](Context& context, Event& event) -> CUresult {
        if (event.captured) return CAPTURED_EVENT;
        counters().waits++;
        if (event.stream) run(*event.stream, event.after);
        return context.error;
    });
}

/// Time passes for those who only look: one piece of work for each look.
EXPORT CUresult cuEventQuery(CUhandle handle) {
    return on_event(handle, [&](Context& context, Event& event) -> CUresult {
        if (event.captured) return CAPTURED_EVENT;
        if (event.is_done()) return SUCCESS;
        step(*event.stream);
        return context.error ? context.error : NOT_READY;
    });
}

EXPORT CUresult cuEventElapsedTime(float* milliseconds, CUhandle from, CUhandle to) {
    return on_event(from, [&](Context&, Event& start) -> CUresult {
        const auto end = state().events.find(to);
        if (!end || !start.stream || !end->stream || !start.timed || !end->timed) return INVALID_HANDLE;
        if (!milliseconds) return INVALID_VALUE;
        if (start.captured || end->captured) return CAPTURED_EVENT;
        if (!start.is_done() || !end->is_done()) return NOT_READY;
        *milliseconds = std::chrono::duration<float, std::milli>(**end->reached - **start.reached).count();
        return SUCCESS;
    });
}
EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, CUhandle from, CUhandle to) {
    return cuEventElapsedTime(milliseconds, from, to);
}
