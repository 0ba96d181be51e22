/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * libmmada in C++17 and later: MMaDA, the unified multimodal diffusion language model, which answers questions, looks
 * at pictures and draws them. This header is all of it: it needs mmada.h beside it and the library.
 *
 *     #include <mmada.hpp>
 *     #include <iostream>
 *
 *     int main(int, char **argv) {
 *         mmada::model model(argv[1]);
 *         mmada::context context(model);
 *         auto generation = context.begin_text("What is 17 + 25?");
 *         for (const auto &step : generation.steps()) {
 *             std::cout << step.index << "/" << step.total << " " << generation.text() << "\n";
 *         }
 *         context.draw("a red circle").save("circle.png");
 *     }
 *
 * The rules, which hold wherever a comment does not say otherwise:
 *
 * - Errors. What can fail is declared as `fallible<T>`. That is T itself, and failures are thrown as `mmada::error`; or,
 *   where MMADA_NO_EXCEPTIONS is defined before this header is included, or exceptions are off, it is `result<T>`,
 *   which holds a T or an `mmada::error`. An error has a status and a sentence. Translation units with and without
 *   exceptions can be linked to one program (their types differ: the namespaces are `mmada::exceptions` and
 *   `mmada::results...`, both inline).
 * - Ownership. `model`, `context`, `generation`, `image`, `canceller` and `logits` own something, can be moved and not
 *   be copied, and may be destroyed in any order: contexts keep their model, generations their context. What is empty
 *   (default-constructed, moved from, or reset) answers every call with `status::null_pointer`. Views (`span`,
 *   `image_view`, `step::changes`) own nothing.
 * - Threads. Const members may be called by any number of threads at once. Of the others, one call at a time is served,
 *   and others meanwhile fail with `status::busy`. Moving, resetting and destroying must not meet any other use.
 * - Callbacks may throw: that stops the call that they are called by, and what was thrown leaves it.
 * - Texts are UTF-8. What is passed in is copied before a call returns.
 *
 * What a number means in detail stands in mmada.h, at the field or function of the same name.
 */
#ifndef MMADA_HPP
#define MMADA_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>
#if defined(__cpp_lib_ranges) && __cpp_lib_ranges >= 201911L
#include <ranges>
#endif

#include "mmada.h"

// Whether the compiler knows exceptions, and whether this header throws them. Code that differs by that is in different
// namespaces, so that the linker cannot take one for the other.
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define MMADA_HPP_CATCHES 1
#else
#define MMADA_HPP_CATCHES 0
#endif
#if MMADA_HPP_CATCHES && !defined(MMADA_NO_EXCEPTIONS)
#define MMADA_HPP_THROWS 1
#define MMADA_HPP_NAMESPACE exceptions
#elif MMADA_HPP_CATCHES
#define MMADA_HPP_THROWS 0
#define MMADA_HPP_NAMESPACE results
#else
#define MMADA_HPP_THROWS 0
#define MMADA_HPP_NAMESPACE results_only
#endif

// Inside a function that returns fallible<...>: runs what may fail; takes a value that may be missing; fails.
#if MMADA_HPP_THROWS
#define MMADA_HPP_TRY(expression) (expression)
#define MMADA_HPP_GET(name, expression) auto name = (expression)
#define MMADA_HPP_FAIL(failure) throw failure
#else
#define MMADA_HPP_TRY(expression) \
    if (auto tried = (expression); !tried) return std::move(tried).error()
#define MMADA_HPP_GET(name, expression)                        \
    auto name##_or_error = (expression);                       \
    if (!name##_or_error) return std::move(name##_or_error).error(); \
    auto &name = *name##_or_error
#define MMADA_HPP_FAIL(failure) return failure
#endif

/// libmmada, see the top of this file.
namespace mmada {
inline namespace MMADA_HPP_NAMESPACE {

class image;
class context;
class generation;

/// A token, or an image code plus `model_info::image_offset`.
using token_id = std::uint32_t;

/// In a canvas: a position that has not been decided.
inline constexpr token_id masked = MMADA_MASKED;

/// Why a call failed. Later versions may have others: treat unknown ones as a failure.
enum class status : int {
    ok = MMADA_OK,
    io_error = MMADA_IO_ERROR,
    bad_format = MMADA_BAD_FORMAT,
    unsupported = MMADA_UNSUPPORTED,
    invalid_argument = MMADA_INVALID_ARGUMENT,
    context_overflow = MMADA_CONTEXT_OVERFLOW,
    bad_image = MMADA_BAD_IMAGE,
    out_of_memory = MMADA_OUT_OF_MEMORY,
    cancelled = MMADA_CANCELLED,
    busy = MMADA_BUSY,
    internal_error = MMADA_INTERNAL_ERROR,
    forked = MMADA_FORKED,
    device_error = MMADA_DEVICE_ERROR,
    null_pointer = MMADA_NULL_POINTER,
    struct_size = MMADA_STRUCT_SIZE,
    invalid_utf8 = MMADA_INVALID_UTF8,
    invalid_handle = MMADA_INVALID_HANDLE,
    done = MMADA_DONE,
    not_found = MMADA_NOT_FOUND,
    panic = MMADA_PANIC,
};

/// The name of a status, such as "MMADA_BUSY".
inline const char *status_name(status code) noexcept { return mmada_status_name(static_cast<int>(code)); }

/// Who says a message.
enum class role : std::uint32_t {
    system = MMADA_ROLE_SYSTEM,
    user = MMADA_ROLE_USER,
    assistant = MMADA_ROLE_ASSISTANT,
};

/// Which candidates of a step of text are kept.
enum class remasking : std::uint32_t {
    low_confidence = MMADA_REMASKING_LOW_CONFIDENCE,
    random = MMADA_REMASKING_RANDOM,
};

/// How many positions of a picture stay masked after every step.
enum class schedule : std::uint32_t {
    cosine = MMADA_SCHEDULE_COSINE,
    linear = MMADA_SCHEDULE_LINEAR,
    power = MMADA_SCHEDULE_POWER,
    sigmoid = MMADA_SCHEDULE_SIGMOID,
};

/// What makes a sampled image code worth keeping.
enum class confidence : std::uint32_t {
    probability = MMADA_CONFIDENCE_PROBABILITY,
    margin = MMADA_CONFIDENCE_MARGIN,
};

/// How exact products are.
enum class compute : std::uint32_t { fast = MMADA_COMPUTE_FAST, exact = MMADA_COMPUTE_EXACT };

/// How much a message of the log matters.
enum class log_level : std::uint32_t {
    error = MMADA_LOG_ERROR,
    warn = MMADA_LOG_WARN,
    info = MMADA_LOG_INFO,
    debug = MMADA_LOG_DEBUG,
};

/// What a step is about.
enum class stage : std::uint32_t { text = MMADA_STAGE_TEXT, image = MMADA_STAGE_IMAGE };

/// Formats that pictures are encoded in.
enum class image_format : std::uint32_t { png = MMADA_IMAGE_PNG, jpeg = MMADA_IMAGE_JPEG };

/// Why a call failed: a status, and a sentence that names the file, tensor, option or size at fault.
class error : public std::runtime_error {
  public:
    error(mmada::status code, const std::string &message) : std::runtime_error(message), status_(code) {}

    /// What kind of failure it is. The sentence is `what()`.
    mmada::status status() const noexcept { return status_; }

  private:
    mmada::status status_;
};

/// A T, or why there is none. Looking at the one that is not there is a mistake that ends the program (`value()`
/// throws the error instead, where there are exceptions).
template <class T>
class [[nodiscard]] result {
  public:
    using value_type = T;

    template <class U = T, class = std::enable_if_t<std::is_constructible_v<T, U &&> &&
                                                    !std::is_same_v<std::decay_t<U>, result> &&
                                                    !std::is_same_v<std::decay_t<U>, mmada::error>>>
    result(U &&value) : held_(std::in_place_index<0>, std::forward<U>(value)) {}
    result(mmada::error failure) : held_(std::in_place_index<1>, std::move(failure)) {}

    bool has_value() const noexcept { return held_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    T &operator*() & { return must(std::get_if<0>(&held_)); }
    const T &operator*() const & { return must(std::get_if<0>(&held_)); }
    T &&operator*() && { return std::move(must(std::get_if<0>(&held_))); }
    T *operator->() { return &**this; }
    const T *operator->() const { return &**this; }

    T &value() & { return checked(), **this; }
    const T &value() const & { return checked(), **this; }
    T &&value() && { return checked(), std::move(**this); }
    template <class U>
    T value_or(U &&other) const & { return has_value() ? **this : static_cast<T>(std::forward<U>(other)); }
    template <class U>
    T value_or(U &&other) && { return has_value() ? std::move(**this) : static_cast<T>(std::forward<U>(other)); }

    const mmada::error &error() const & { return must(std::get_if<1>(&held_)); }
    mmada::error &&error() && { return std::move(must(std::get_if<1>(&held_))); }

    /// `function(value)`, which returns a result; or this error.
    template <class F>
    auto and_then(F &&function) && -> std::invoke_result_t<F, T &&> {
        if (!has_value()) return std::move(*this).error();
        return std::forward<F>(function)(std::move(**this));
    }

  private:
    template <class P>
    static auto &must(P *pointer) {
        if (pointer == nullptr) std::abort();
        return *pointer;
    }
    void checked() const {
#if MMADA_HPP_CATCHES
        if (!has_value()) throw error();
#endif
    }

    std::variant<T, mmada::error> held_;
};

/// Success, or why not.
template <>
class [[nodiscard]] result<void> {
  public:
    using value_type = void;

    result() = default;
    result(mmada::error failure) : failure_(std::move(failure)) {}

    bool has_value() const noexcept { return !failure_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }

    void value() const {
        if (has_value()) return;
#if MMADA_HPP_CATCHES
        throw *failure_;
#else
        std::abort();
#endif
    }
    const mmada::error &error() const & {
        if (has_value()) std::abort();
        return *failure_;
    }
    mmada::error &&error() && {
        if (has_value()) std::abort();
        return std::move(*failure_);
    }

  private:
    std::optional<mmada::error> failure_;
};

/// What functions return that can fail: T, failures being thrown; or result<T>, see the top of this file.
#if MMADA_HPP_THROWS
template <class T>
using fallible = T;
#else
template <class T>
using fallible = result<T>;
#endif

/// A view of elements that lie in a row, which others own: what std::span is in C++20 (each converts to the other).
template <class T>
class span {
  public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using iterator = T *;

    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    /// Of a std::vector, std::array, std::string, std::span...
    template <class C, class E = std::remove_pointer_t<decltype(std::declval<C &>().data())>,
              class = decltype(std::declval<C &>().size()),
              class = std::enable_if_t<std::is_convertible_v<E (*)[], T (*)[]> && !std::is_same_v<std::decay_t<C>, span>>>
    constexpr span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    /// Element `index`, which must be below `size()`.
    constexpr T &operator[](std::size_t index) const noexcept { return data_[index]; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/// One pixel.
struct rgb {
    std::uint8_t red = 0, green = 0, blue = 0;

    friend constexpr bool operator==(rgb a, rgb b) noexcept {
        return a.red == b.red && a.green == b.green && a.blue == b.blue;
    }
    friend constexpr bool operator!=(rgb a, rgb b) noexcept { return !(a == b); }
};

/// A view of 8-bit RGB pixels that others own: rows of `width` times three bytes, from the top left, which begin
/// `stride` bytes apart. Coordinates are not checked.
class image_view {
  public:
    constexpr image_view() noexcept = default;
    /// `stride` 0 stands for `3 * width`.
    constexpr image_view(const std::uint8_t *data, std::size_t width, std::size_t height, std::size_t stride = 0) noexcept
        : data_(data), width_(width), height_(height), stride_(stride == 0 ? 3 * width : stride) {}

    constexpr const std::uint8_t *data() const noexcept { return data_; }
    constexpr std::size_t width() const noexcept { return width_; }
    constexpr std::size_t height() const noexcept { return height_; }
    constexpr std::size_t stride() const noexcept { return stride_; }
    constexpr bool empty() const noexcept { return width_ == 0 || height_ == 0; }

    /// The `3 * width()` bytes of row `y`, which must be below `height()`.
    constexpr span<const std::uint8_t> row(std::size_t y) const noexcept { return {data_ + y * stride_, 3 * width_}; }
    /// All bytes from the first to the last pixel, with what lies between the rows if `stride()` is more than a row.
    constexpr span<const std::uint8_t> bytes() const noexcept {
        return {data_, empty() ? 0 : (height_ - 1) * stride_ + 3 * width_};
    }
    /// The pixel at column `x` and row `y`.
    constexpr rgb operator()(std::size_t x, std::size_t y) const noexcept {
        const std::uint8_t *pixel = data_ + y * stride_ + 3 * x;
        return {pixel[0], pixel[1], pixel[2]};
    }
    /// The part of `width` times `height` pixels whose top left corner is (x, y), which must lie inside.
    constexpr image_view part(std::size_t x, std::size_t y, std::size_t width, std::size_t height) const noexcept {
        return {data_ + y * stride_ + 3 * x, width, height, stride_};
    }

  private:
    const std::uint8_t *data_ = nullptr;
    std::size_t width_ = 0, height_ = 0, stride_ = 0;
};

namespace detail {

/// Owns a handle of the C interface.
template <class T, void (*Free)(T *)>
class handle {
  public:
    handle() noexcept = default;
    explicit handle(T *raw) noexcept : raw_(raw) {}
    handle(handle &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    handle &operator=(handle &&other) noexcept {
        if (this != &other) {
            reset();
            raw_ = std::exchange(other.raw_, nullptr);
        }
        return *this;
    }
    ~handle() { Free(raw_); }

    T *get() const noexcept { return raw_; }
    void reset() noexcept { Free(std::exchange(raw_, nullptr)); }
    /// For a function that writes a handle on success.
    T **out() noexcept {
        reset();
        return &raw_;
    }

  private:
    T *raw_ = nullptr;
};

using error_handle = handle<mmada_error, mmada_error_free>;
using buffer_handle = handle<mmada_buffer, mmada_buffer_free>;
using image_handle = handle<mmada_image, mmada_image_free>;
using canceller_handle = handle<mmada_canceller, mmada_canceller_free>;
using model_handle = handle<mmada_model, mmada_model_free>;
using context_handle = handle<mmada_context, mmada_context_free>;
using generation_handle = handle<mmada_generation, mmada_generation_free>;

/// A call that this thread is in: what stops it if a callback throws, and what was thrown.
class running {
  public:
    explicit running(const mmada_generation *generation = nullptr, const mmada_canceller *canceller = nullptr) noexcept
        : generation_(generation), canceller_(canceller), outer_(std::exchange(innermost(), this)) {}
    running(const running &) = delete;
    running &operator=(const running &) = delete;
    ~running() { innermost() = outer_; }

    /// Callbacks are called by the thread that called the library, so that this is who called it.
    static running *&innermost() noexcept {
        static thread_local running *call = nullptr;
        return call;
    }

    /// Runs a callback, which must not unwind into the library. False if it threw, now or earlier in this call.
    template <class F>
    static bool guarded(F &&callback) noexcept {
#if MMADA_HPP_CATCHES
        running *call = innermost();
        if (call != nullptr && call->thrown_) return false;
        try {
            callback();
        } catch (...) {
            if (call != nullptr) call->stop(std::current_exception());
            return false;
        }
#else
        callback();
#endif
        return true;
    }

    void rethrow() const {
#if MMADA_HPP_CATCHES
        if (thrown_) std::rethrow_exception(thrown_);
#endif
    }

  private:
#if MMADA_HPP_CATCHES
    void stop(std::exception_ptr thrown) noexcept {
        thrown_ = std::move(thrown);
        if (generation_ != nullptr) mmada_generation_cancel(generation_);
        if (canceller_ != nullptr) mmada_canceller_cancel(canceller_);
    }

    std::exception_ptr thrown_;
#endif
    [[maybe_unused]] const mmada_generation *generation_;
    [[maybe_unused]] const mmada_canceller *canceller_;
    running *outer_;
};

inline mmada::error make_error(mmada_status code, const mmada_error *raw) {
    const char *message = raw != nullptr ? mmada_error_message(raw) : mmada_status_name(code);
    return {static_cast<status>(code), message};
}

/// What an empty object or a missing pointer is answered with.
inline mmada::error empty(const char *what) {
    return {status::null_pointer, std::string("the ") + what + " is empty: it was moved from, or never made"};
}

inline fallible<void> success() {
#if !MMADA_HPP_THROWS
    return {};
#endif
}

/// Calls the library: `function(mmada_error **)`. If that fails with DONE and `done` is given, sets it instead.
template <class F>
fallible<void> attempt(F &&function, const mmada_generation *generation = nullptr,
                       const mmada_canceller *canceller = nullptr, bool *done = nullptr) {
    mmada_error *raw = nullptr;
    mmada_status code;
    {
        running call(generation, canceller);
        code = std::forward<F>(function)(&raw);
        const error_handle owned(raw);
        call.rethrow();
        if (code == MMADA_DONE && done != nullptr) {
            *done = true;
        } else if (code != MMADA_OK) {
            MMADA_HPP_FAIL(make_error(code, raw));
        }
    }
    return success();
}

/// A struct of the C interface, initialized by `init(&value, sizeof value)`.
template <class T>
fallible<T> initialized(mmada_status (*init)(T *, std::size_t)) {
    T value{};
    MMADA_HPP_TRY(attempt([&](mmada_error **) { return init(&value, sizeof value); }));
    return value;
}

/// Has the library fill a struct that says of itself how large it is.
template <class T, class F>
fallible<T> filled(F &&function) {
    T value{};
    value.struct_size = sizeof value;
    MMADA_HPP_TRY(attempt([&](mmada_error **failure) { return function(&value, failure); }));
    return value;
}

/// The library wants no NULL, not even for an empty text or array.
inline const char *data_of(std::string_view text) noexcept { return text.data() == nullptr ? "" : text.data(); }
template <class T>
T *data_of(span<T> elements) noexcept {
    static std::remove_const_t<T> none{};
    return elements.data() == nullptr ? &none : elements.data();
}

inline std::string encoded(const std::filesystem::path &path) {
#if defined(_WIN32)
    const auto text = path.u8string();
    return {text.begin(), text.end()};
#else
    return path.native();
#endif
}

inline std::string text_of(const buffer_handle &buffer) {
    const char *text = mmada_buffer_text(buffer.get());
    return text == nullptr ? std::string() : std::string(text, mmada_buffer_length(buffer.get()));
}

inline std::vector<token_id> ids_of(const buffer_handle &buffer) {
    const std::uint32_t *ids = mmada_buffer_ids(buffer.get());
    if (ids == nullptr) return {};
    return {ids, ids + mmada_buffer_length(buffer.get())};
}

template <class F>
fallible<std::string> text_from(F &&function) {
    buffer_handle buffer;
    MMADA_HPP_TRY(attempt([&](mmada_error **failure) { return function(buffer.out(), failure); }));
    return text_of(buffer);
}

template <class F>
fallible<std::optional<std::string>> optional_text_from(F &&function) {
    buffer_handle buffer;
    MMADA_HPP_TRY(attempt([&](mmada_error **failure) { return function(buffer.out(), failure); }));
    return buffer.get() == nullptr ? std::nullopt : std::optional<std::string>(text_of(buffer));
}

template <class F>
fallible<std::vector<token_id>> ids_from(F &&function) {
    buffer_handle buffer;
    MMADA_HPP_TRY(attempt([&](mmada_error **failure) { return function(buffer.out(), failure); }));
    return ids_of(buffer);
}

}  // namespace detail

/// The version of the library that is running, such as "0.1.0" (MMADA_VERSION is that of the header).
inline std::string_view version() noexcept { return mmada_version(); }

/// What the library was built as: version, platform, "release" or "debug", optional parts.
inline std::string_view build_info() noexcept { return mmada_build_info(); }

/// A device that the library can run on.
struct device_info {
    std::string backend;           ///< "cpu" or "cuda"
    std::string name;              ///< What its maker calls it.
    std::string instruction_sets;  ///< Those that `context_options::instruction_set` takes, with spaces between.
    std::uint64_t memory_bytes = 0;  ///< 0 where the system does not tell.
    std::string id;                  ///< What `context_options::device` takes: "cpu", "cuda:0".
    std::uint32_t compute_capability_major = 0;  ///< Of a graphics card; 0 for a processor.
    std::uint32_t compute_capability_minor = 0;
    std::string refusal;  ///< Why models do not run on it; empty where they do.
};

/// The devices that this build of the library finds on this machine.
inline fallible<std::vector<device_info>> devices() {
    std::size_t count = 0;
    MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) { return mmada_device_count(&count, failure); }));
    std::vector<device_info> found;
    for (std::size_t index = 0; index < count; index++) {
        MMADA_HPP_GET(raw, detail::filled<mmada_device_info>([&](auto *info, mmada_error **failure) {
                          return mmada_device_get_info(index, info, failure);
                      }));
        found.push_back({raw.backend, raw.name, raw.instruction_sets, raw.memory_bytes, raw.id,
                         raw.compute_capability_major, raw.compute_capability_minor, raw.refusal});
    }
    return found;
}

/// Why a backend ("cpu", "cuda") finds no devices on this machine; nothing if it finds some. Fails with
/// `status::not_found` for another name.
inline fallible<std::optional<std::string>> unavailable(std::string_view backend) {
    return detail::optional_text_from([&](mmada_buffer **out, mmada_error **failure) {
        return mmada_backend_unavailable(detail::data_of(backend), backend.size(), out, failure);
    });
}

/// A picture of 8-bit RGB pixels that does not change once it is made.
class image {
  public:
    /// Empty: no picture.
    image() noexcept = default;

    /// Reads a PNG, JPEG or GIF (its first frame) file.
    static fallible<image> load(const std::filesystem::path &path) {
        const std::string name = detail::encoded(path);
        return made([&](mmada_image **out, mmada_error **failure) {
            return mmada_image_load(name.data(), name.size(), out, failure);
        });
    }

    /// Decodes a PNG, JPEG or GIF (its first frame) file in memory.
    static fallible<image> decode(span<const std::uint8_t> file) {
        return made([&](mmada_image **out, mmada_error **failure) {
            return mmada_image_decode(detail::data_of(file), file.size(), out, failure);
        });
    }

    /// A copy of pixels.
    static fallible<image> from_rgb(image_view pixels) {
        return made([&](mmada_image **out, mmada_error **failure) {
            return mmada_image_from_rgb(pixels.data(), pixels.width(), pixels.height(), pixels.stride(), out, failure);
        });
    }

    std::size_t width() const noexcept { return mmada_image_width(get()); }
    std::size_t height() const noexcept { return mmada_image_height(get()); }

    /// The pixels, valid until this picture is destroyed or reset; moving it keeps them.
    image_view pixels() const & noexcept { return {mmada_image_pixels(get()), width(), height()}; }
    image_view pixels() const && = delete;
    operator image_view() const & noexcept { return pixels(); }

    /// Writes a file whose name ends in .png, .jpg or .jpeg. It appears whole or not at all.
    fallible<void> save(const std::filesystem::path &path) const {
        const std::string name = detail::encoded(path);
        return detail::attempt([&](mmada_error **failure) {
            return mmada_image_save(get(), name.data(), name.size(), failure);
        });
    }

    /// The bytes of a file of this picture.
    fallible<std::vector<std::uint8_t>> encode(image_format format = image_format::png) const {
        detail::buffer_handle buffer;
        MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) {
            return mmada_image_encode(get(), static_cast<std::uint32_t>(format), buffer.out(), failure);
        }));
        const std::uint8_t *bytes = mmada_buffer_bytes(buffer.get());
        return std::vector<std::uint8_t>(bytes, bytes + mmada_buffer_length(buffer.get()));
    }

    /// The handle of the C interface, which stays this object's.
    const mmada_image *get() const noexcept { return raw_.get(); }
    explicit operator bool() const noexcept { return get() != nullptr; }
    /// Frees the picture.
    void reset() noexcept { raw_.reset(); }

  private:
    friend class context;
    friend class generation;

    template <class F>
    static fallible<image> made(F &&function, const mmada_generation *generation = nullptr) {
        image picture;
        MMADA_HPP_TRY(detail::attempt(
            [&](mmada_error **failure) { return function(picture.raw_.out(), failure); }, generation));
        return picture;
    }

    detail::image_handle raw_;
};

/// Stops a call that it is given to: a score, a forward. (A generation has its own `cancel`.)
class canceller {
  public:
    /// Empty; `create` makes one that works.
    canceller() noexcept = default;

    static fallible<canceller> create() {
        canceller made;
        MMADA_HPP_TRY(detail::attempt(
            [&](mmada_error **failure) { return mmada_canceller_new(made.raw_.out(), failure); }));
        return made;
    }

    /// Stops the calls that have this canceller within one layer of the network, and every later one: they fail with
    /// `status::cancelled`. May be called by any thread, and by signal handlers.
    void cancel() const noexcept { mmada_canceller_cancel(get()); }

    /// The handle of the C interface, which stays this object's.
    const mmada_canceller *get() const noexcept { return raw_.get(); }
    explicit operator bool() const noexcept { return get() != nullptr; }

  private:
    detail::canceller_handle raw_;
};

/// How a model file is brought into memory.
struct open_options {
    /// Map the file: opening takes milliseconds, and nobody may change the file meanwhile. Otherwise read all of it.
    bool use_mmap = true;
    /// Told how far reading has come, in bytes, by the thread that opens. False, or an exception, stops.
    std::function<bool(std::uint64_t done, std::uint64_t total)> progress = {};
};

/// How a context runs its model.
struct context_options {
    /// Threads of the context's own; 0 for one per core. Results do not depend on it.
    std::size_t threads = 0;
    /// Most bytes of buffers at a time; 0 for no limit.
    std::uint64_t memory_limit = 0;
    /// "portable", "avx2", "avx512"; empty for the best that the processor has.
    std::string instruction_set = {};
    mmada::compute compute = mmada::compute::fast;
    /// Keeps the weights unpacked in memory (`context_info::packed_bytes`, which count against `memory_limit`): several
    /// times as fast where few tokens run at a time, with the same answers. Making the context then takes the time to
    /// read the whole file.
    bool pack = false;
    /// "cpu", "cuda" or "cuda:0" for the first graphics card of NVIDIA's, "cuda:1" for the second, or "auto" for the first
    /// card that can run the model, or else the processor.
    std::string device = "cpu";
    /// How many of the network's blocks run on the graphics card, the last ones and the output; by default as many as
    /// there is memory for.
    std::optional<std::size_t> gpu_layers = {};
    /// Told how far copying the weights to a graphics card has come, in bytes, by the thread that makes the context. False,
    /// or an exception, stops.
    std::function<bool(std::uint64_t done, std::uint64_t total)> progress = {};
    /// Told what happens, in lines; nothing by default. Called by whichever thread calls the context or one of its
    /// generations, which it must not call itself. It is kept until the context and all its generations are gone.
    /// If it throws, the call ends with what was thrown, and a generation whose call it was is cancelled.
    std::function<void(mmada::log_level level, std::string_view message)> log = {};
    /// The least important messages that `log` gets.
    mmada::log_level log_level = mmada::log_level::warn;
};

/// A position of an answer that is given from the start.
struct pin {
    std::size_t position = 0;  ///< Counted from 0 at the beginning of the answer.
    token_id id = 0;           ///< The token that stands there.
};

/// How text is sampled. What is not set is what the model's file recommends (see `model::text_defaults`).
struct text_options {
    /// Ask the model to think first.
    bool thinking = false;
    std::uint64_t seed = 0;
    /// Tokens of the answer: a multiple of `block_length`.
    std::optional<std::size_t> gen_length = {};
    /// Denoising steps over the whole answer: a multiple of the number of blocks.
    std::optional<std::size_t> steps = {};
    /// Tokens that are unmasked together, block after block.
    std::optional<std::size_t> block_length = {};
    /// 0 takes the most probable token.
    std::optional<double> temperature = {};
    /// Classifier-free guidance; 0 is none.
    std::optional<double> cfg_scale = {};
    std::optional<mmada::remasking> remasking = {};
    /// The answer is cut before the first of these texts.
    std::vector<std::string> stop = {};
    /// Ids that must not be chosen.
    std::vector<token_id> forbid = {};
    /// The ids that alone may be chosen.
    std::optional<std::vector<token_id>> allow_only = {};
    /// Positions of the answer that are given.
    std::vector<pin> pinned = {};
    /// A picture that is no square is resized to one; otherwise it is cropped.
    bool squash = false;
};

/// How pictures are sampled. What is not set is what the model's file recommends (see `model::image_defaults`).
struct image_options {
    /// Of the first picture.
    std::uint64_t seed = 0;
    /// How many pictures: picture i is the one that the seed plus i draws alone.
    std::size_t count = 1;
    /// Think out a detailed description first, then draw that.
    bool thinking = false;
    /// In pixels, multiples of `model_info::image_downsampling`.
    std::optional<std::size_t> width = {}, height = {};
    std::optional<std::size_t> steps = {};
    /// Tokens that a longer prompt is cut to.
    std::optional<std::size_t> max_text_length = {};
    /// With `thinking`: tokens of prompt and description together.
    std::optional<std::size_t> text_length = {};
    /// Classifier-free guidance; 0 is none.
    std::optional<float> guidance = {};
    std::optional<float> temperature = {};
    std::optional<float> schedule_power = {};
    std::optional<mmada::schedule> schedule = {};
    std::optional<mmada::confidence> confidence = {};
    /// With `thinking`: how the description is sampled.
    std::optional<text_options> description = {};
};

/// One turn of a chat.
struct message {
    mmada::role role = mmada::role::user;
    std::string content = {};
    /// The picture that the chat is about: of all messages only one may have one. Not owned.
    const mmada::image *image = nullptr;

    static message user(std::string content) { return {mmada::role::user, std::move(content), nullptr}; }
    static message user(std::string content, const mmada::image &picture) {
        return {mmada::role::user, std::move(content), &picture};
    }
    static message user(std::string content, mmada::image &&picture) = delete;
    static message assistant(std::string content) { return {mmada::role::assistant, std::move(content), nullptr}; }
    static message system(std::string content) { return {mmada::role::system, std::move(content), nullptr}; }
};

/// What a model is.
struct model_info {
    std::size_t file_bytes = 0;          ///< Size of the file.
    std::size_t context_length = 0;      ///< Most positions of one sequence, prompt and answer together.
    std::size_t layers = 0;
    std::size_t d_model = 0;             ///< Width of the residual stream.
    std::size_t vocabulary = 0;          ///< Ids are below this.
    std::size_t text_vocabulary = 0;     ///< Ids below this are text.
    std::size_t image_offset = 0;        ///< The id of image code 0.
    std::size_t image_codes = 0;         ///< Size of the codebook; 0 for a model without pictures.
    std::size_t image_size = 0;          ///< Pixels of a side of the pictures that it was trained on.
    std::size_t image_downsampling = 0;  ///< Pixels of a side of one image code.
    bool has_images = false;             ///< Whether it can see and draw pictures.
    token_id bos_id = 0, eos_id = 0, eot_id = 0, mask_id = 0;
};

/// What a request will take. Bounds: an answer may end early.
struct estimate {
    std::uint64_t weight_bytes = 0;   ///< Of the model file: mapped, shared with other processes.
    std::uint64_t scratch_bytes = 0;  ///< Of buffers that the context allocates.
    std::uint64_t multiply_adds = 0;  ///< Of all steps together.
    std::uint64_t tokens = 0;         ///< That run through the network, over all steps.
};

/// How a score is estimated.
struct score_options {
    /// How many random maskings of the answer are averaged, each of which runs the network; 128 by default.
    std::optional<std::size_t> samples = {};
    std::uint64_t seed = 0;
    /// Classifier-free guidance against the masked prompt; 0 is none.
    double cfg_scale = 0;
    /// What stops the call.
    const mmada::canceller *canceller = nullptr;
};

/// How likely an answer is.
struct score {
    double log_likelihood = 0;  ///< The estimate of a lower bound on ln p(answer | prompt), in nats; at most 0.
    double per_token = 0;       ///< The same divided by the answer's tokens.
    std::size_t samples = 0;    ///< How many maskings were averaged.
};

/// What a forward is asked for.
struct forward_options {
    /// The positions whose logits are wanted, in this order; all if not set.
    std::optional<std::vector<std::size_t>> rows = {};
    /// The ids whose logits are wanted: from `vocab_begin` up to and without `vocab_end`, the whole vocabulary if not
    /// set.
    token_id vocab_begin = 0;
    std::optional<token_id> vocab_end = {};
    /// What stops the call.
    const mmada::canceller *canceller = nullptr;
};

/// What the network says: a number for every wanted position (row) and id (column).
class logits {
  public:
    std::size_t rows() const noexcept { return rows_; }
    std::size_t columns() const noexcept { return columns_; }
    /// The numbers of row `index`, which must be below `rows()`.
    span<const float> operator[](std::size_t index) const noexcept { return {values_.get() + index * columns_, columns_}; }
    /// All numbers, row by row.
    span<const float> values() const noexcept { return {values_.get(), rows_ * columns_}; }

  private:
    friend class context;
    logits(std::unique_ptr<float[]> values, std::size_t rows, std::size_t columns) noexcept
        : values_(std::move(values)), rows_(rows), columns_(columns) {}

    std::unique_ptr<float[]> values_;
    std::size_t rows_, columns_;
};

/// A position that a step has decided: `sequence` (which picture; 0 for text), `position`, `id`.
using change = mmada_change;

/// What a step did.
struct step {
    std::size_t index = 0;         ///< Steps of this stage that are done,
    std::size_t total = 0;         ///< and how many there are at most.
    std::size_t prefix = 0;        ///< Text: how many tokens stand before its first mask; these will not change.
    span<const change> changes = {};  ///< What was decided for good. Valid until the generation's next step or its end.
    mmada::stage stage = mmada::stage::text;
    bool done = false;             ///< Whether the generation is complete.
};

/// What a generation is.
struct generation_info {
    std::size_t total_steps = 0;    ///< Of all stages together; an answer that ends early takes fewer.
    std::size_t image_count = 0;    ///< How many pictures are drawn.
    std::size_t image_columns = 0;  ///< Width of the pictures in image codes.
    std::size_t image_rows = 0;     ///< Height of the pictures in image codes.
    bool done = false;              ///< Whether every stage is complete.
    bool has_text = false;          ///< Whether there is text: an answer, or a description before a picture.
};

/// What a context is.
struct context_info {
    std::size_t threads = 0;
    std::uint64_t memory_used = 0;  ///< Bytes of buffers that it and its generations have now.
    std::string instruction_set;
    mmada::compute compute = mmada::compute::fast;
    std::uint64_t packed_bytes = 0; ///< Bytes that its weights take when they are packed, whether or not they are.
    std::size_t gpu_layers = 0;     ///< How many of the network's blocks run on a graphics card; 0 on the processor.
    std::string device;             ///< "cpu", or a graphics card with its name: "cuda:0 (NVIDIA H100 80GB HBM3)".
};

namespace detail {

/// What a log callback is given as its user data. Contexts and generations share it.
class log_sink {
  public:
    explicit log_sink(std::function<void(log_level, std::string_view)> function) : function_(std::move(function)) {}

    static void receive(std::uint32_t level, const char *message, std::size_t length, void *self) noexcept {
        running::guarded([&] {
            static_cast<log_sink *>(self)->function_(static_cast<log_level>(level), {message, length});
        });
    }

  private:
    std::function<void(log_level, std::string_view)> function_;
};

/// What a generation is made of, in the order in which it may not be destroyed.
struct generation_state {
    std::shared_ptr<log_sink> log;
    generation_handle raw;

    ~generation_state() {
        const running call;  // whatever is logged now can stop nothing
        raw.reset();
    }
};

/// The progress callback of options that have a function `progress`.
template <class Options>
int tell_progress(std::uint64_t done, std::uint64_t total, void *options) noexcept {
    bool go_on = false;
    running::guarded([&] { go_on = static_cast<const Options *>(options)->progress(done, total); });
    return go_on ? 0 : 1;
}

struct open_arguments {
    static fallible<mmada_open_options> make(const open_options &options) {
        MMADA_HPP_GET(raw, initialized(mmada_open_options_init));
        raw.use_mmap = options.use_mmap ? 1 : 0;
        if (options.progress) {
            raw.progress = tell_progress<open_options>;
            raw.progress_user_data = const_cast<open_options *>(&options);
        }
        return raw;
    }
};

/// Text options as the library takes them. They point into themselves and into the options that they are made of.
struct text_arguments {
    mmada_text_options raw{};
    std::vector<mmada_string> stop;
    std::vector<mmada_pin> pinned;

    void set(const text_options &options) {
        raw.thinking = options.thinking ? 1 : 0;
        raw.seed = options.seed;
        raw.squash = options.squash ? 1 : 0;
        raw.gen_length = options.gen_length.value_or(raw.gen_length);
        raw.steps = options.steps.value_or(raw.steps);
        raw.block_length = options.block_length.value_or(raw.block_length);
        raw.temperature = options.temperature.value_or(raw.temperature);
        raw.cfg_scale = options.cfg_scale.value_or(raw.cfg_scale);
        if (options.remasking) raw.remasking = static_cast<std::uint32_t>(*options.remasking);
        for (const std::string &text : options.stop) stop.push_back({text.data(), text.size()});
        raw.stop = stop.data();
        raw.stop_count = stop.size();
        raw.forbid = options.forbid.data();
        raw.forbid_count = options.forbid.size();
        if (options.allow_only) {
            raw.allow_only = data_of(span<const token_id>(*options.allow_only));
            raw.allow_only_count = options.allow_only->size();
        }
        for (const pin &given : options.pinned) pinned.push_back({given.position, given.id, 0});
        raw.pinned = pinned.data();
        raw.pinned_count = pinned.size();
    }

    static fallible<text_arguments> make(const mmada_model *model, const text_options &options, bool about_image) {
        text_arguments made;
        MMADA_HPP_TRY(attempt([&](mmada_error **failure) {
            return mmada_text_options_init(&made.raw, sizeof made.raw, model, options.thinking ? 1 : 0,
                                           about_image ? 1 : 0, failure);
        }));
        made.set(options);
        return made;
    }

    static fallible<text_arguments> description(const mmada_model *model, const text_options *options) {
        text_arguments made;
        MMADA_HPP_TRY(attempt([&](mmada_error **failure) {
            return mmada_description_options_init(&made.raw, sizeof made.raw, model, failure);
        }));
        if (options != nullptr) {
            const auto thinking = made.raw.thinking;
            made.set(*options);
            made.raw.thinking = thinking;
        }
        return made;
    }
};

inline text_options text_options_of(const mmada_text_options &raw) {
    text_options options;
    options.thinking = raw.thinking != 0;
    options.seed = raw.seed;
    options.gen_length = raw.gen_length;
    options.steps = raw.steps;
    options.block_length = raw.block_length;
    options.temperature = raw.temperature;
    options.cfg_scale = raw.cfg_scale;
    options.remasking = static_cast<remasking>(raw.remasking);
    options.squash = raw.squash != 0;
    return options;
}

inline fallible<mmada_image_options> image_arguments(const mmada_model *model, const image_options &options) {
    mmada_image_options raw{};
    MMADA_HPP_TRY(attempt([&](mmada_error **failure) {
        return mmada_image_options_init(&raw, sizeof raw, model, options.thinking ? 1 : 0, failure);
    }));
    raw.seed = options.seed;
    raw.count = options.count;
    raw.width = options.width.value_or(raw.width);
    raw.height = options.height.value_or(raw.height);
    raw.steps = options.steps.value_or(raw.steps);
    raw.max_text_length = options.max_text_length.value_or(raw.max_text_length);
    raw.text_length = options.text_length.value_or(raw.text_length);
    raw.guidance = options.guidance.value_or(raw.guidance);
    raw.temperature = options.temperature.value_or(raw.temperature);
    raw.schedule_power = options.schedule_power.value_or(raw.schedule_power);
    if (options.schedule) raw.schedule = static_cast<std::uint32_t>(*options.schedule);
    if (options.confidence) raw.confidence = static_cast<std::uint32_t>(*options.confidence);
    return raw;
}

/// Messages as the library takes them. They point into those that they are made of.
inline fallible<std::vector<mmada_message>> messages_of(const std::vector<message> &messages) {
    std::vector<mmada_message> raw;
    for (const message &said : messages) {
        if (said.image != nullptr && !*said.image) MMADA_HPP_FAIL(empty("picture of a message"));
        const mmada_image *picture = said.image != nullptr ? said.image->get() : nullptr;
        raw.push_back({said.content.data(), said.content.size(), picture, static_cast<std::uint32_t>(said.role), 0});
    }
    return raw;
}

inline bool about_image(const std::vector<message> &messages) {
    for (const message &said : messages) {
        if (said.image != nullptr) return true;
    }
    return false;
}

inline estimate estimate_of(const mmada_estimate &raw) {
    return {raw.weight_bytes, raw.scratch_bytes, raw.multiply_adds, raw.tokens};
}

}  // namespace detail

/// An opened and checked model file. It never changes: any number of threads and contexts may use it at once.
class model {
  public:
    /// Empty; `open` makes one that works.
    model() noexcept = default;
    model(model &&) noexcept = default;
    model &operator=(model &&) noexcept = default;
    model(const model &) = delete;
    model &operator=(const model &) = delete;

#if MMADA_HPP_THROWS
    /// The same as `open`.
    explicit model(const std::filesystem::path &path, const open_options &options = {}) : model(open(path, options)) {}
#endif

    /// Opens a GGUF file and checks it. Of a split file any part may be named.
    static fallible<model> open(const std::filesystem::path &path, const open_options &options = {}) {
        const std::string name = detail::encoded(path);
        MMADA_HPP_GET(raw, detail::open_arguments::make(options));
        return made([&](mmada_model **out, mmada_error **failure) {
            return mmada_model_open(name.data(), name.size(), &raw, out, failure);
        });
    }

    /// Opens the model file behind a file descriptor, from its beginning; Unix only. The descriptor stays the caller's.
    /// `name` stands for the path in messages.
    static fallible<model> open_fd(int fd, std::string_view name, const open_options &options = {}) {
        MMADA_HPP_GET(raw, detail::open_arguments::make(options));
        return made([&](mmada_model **out, mmada_error **failure) {
            return mmada_model_open_fd(fd, detail::data_of(name), name.size(), &raw, out, failure);
        });
    }

    /// Opens a model file in memory without copying it. `file`, aligned to 32 bytes, must stay as it is until the model
    /// and all its contexts and generations are gone.
    static fallible<model> open_memory(span<const std::uint8_t> file, std::string_view name) {
        return made([&](mmada_model **out, mmada_error **failure) {
            return mmada_model_open_memory(file.data(), file.size(), detail::data_of(name), name.size(), out, failure);
        });
    }

    fallible<model_info> info() const {
        MMADA_HPP_GET(raw, detail::filled<mmada_model_info>([&](auto *out, mmada_error **failure) {
                          return mmada_model_get_info(get(), out, failure);
                      }));
        model_info info;
        info.file_bytes = raw.file_bytes;
        info.context_length = raw.context_length;
        info.layers = raw.layers;
        info.d_model = raw.d_model;
        info.vocabulary = raw.vocabulary;
        info.text_vocabulary = raw.text_vocabulary;
        info.image_offset = raw.image_offset;
        info.image_codes = raw.image_codes;
        info.image_size = raw.image_size;
        info.image_downsampling = raw.image_downsampling;
        info.has_images = raw.has_images != 0;
        info.bos_id = raw.bos_id;
        info.eos_id = raw.eos_id;
        info.eot_id = raw.eot_id;
        info.mask_id = raw.mask_id;
        return info;
    }

    /// The keys of the file's metadata, in its order, such as "general.name".
    fallible<std::vector<std::string>> metadata_keys() const {
        std::size_t count = 0;
        MMADA_HPP_TRY(detail::attempt(
            [&](mmada_error **failure) { return mmada_model_metadata_count(get(), &count, failure); }));
        std::vector<std::string> keys;
        for (std::size_t index = 0; index < count; index++) {
            MMADA_HPP_GET(key, detail::text_from([&](mmada_buffer **out, mmada_error **failure) {
                              return mmada_model_metadata_key(get(), index, out, failure);
                          }));
            keys.push_back(std::move(key));
        }
        return keys;
    }

    /// The value of a metadata key: a string as it is, anything else as JSON. `status::not_found` for a missing key.
    fallible<std::string> metadata(std::string_view key) const {
        return detail::text_from([&](mmada_buffer **out, mmada_error **failure) {
            return mmada_model_metadata(get(), detail::data_of(key), key.size(), out, failure);
        });
    }

    /// The ids of a text. With `parse_special`, text that looks like a special token becomes that token: nothing for
    /// what a user supplies.
    fallible<std::vector<token_id>> tokenize(std::string_view text, bool parse_special = false) const {
        return detail::ids_from([&](mmada_buffer **out, mmada_error **failure) {
            return mmada_model_tokenize(get(), detail::data_of(text), text.size(), parse_special ? 1 : 0, out, failure);
        });
    }

    /// The text of ids. Those that are no text are left out, and with `skip_special` so are special tokens.
    fallible<std::string> detokenize(span<const token_id> ids, bool skip_special = false) const {
        return detail::text_from([&](mmada_buffer **out, mmada_error **failure) {
            return mmada_model_detokenize(get(), detail::data_of(ids), ids.size(), skip_special ? 1 : 0, out, failure);
        });
    }

    /// The ids of a chat without pictures, up to where the answer begins.
    fallible<std::vector<token_id>> prompt_ids(const std::vector<message> &messages, bool thinking = false) const {
        MMADA_HPP_GET(raw, detail::messages_of(messages));
        return detail::ids_from([&](mmada_buffer **out, mmada_error **failure) {
            return mmada_model_prompt_ids(get(), raw.data(), raw.size(), thinking ? 1 : 0, out, failure);
        });
    }

    /// What the file recommends for a text: with thinking or without, about a picture or not. Everything is set.
    fallible<text_options> text_defaults(bool thinking = false, bool about_image = false) const {
        if (!*this) MMADA_HPP_FAIL(detail::empty("model"));
        text_options wanted;
        wanted.thinking = thinking;
        MMADA_HPP_GET(arguments, detail::text_arguments::make(get(), wanted, about_image));
        return detail::text_options_of(arguments.raw);
    }

    /// What the file recommends for pictures, with thinking first or without. Everything is set, the description's
    /// options only with thinking.
    fallible<image_options> image_defaults(bool thinking = false) const {
        if (!*this) MMADA_HPP_FAIL(detail::empty("model"));
        image_options options;
        options.thinking = thinking;
        MMADA_HPP_GET(raw, detail::image_arguments(get(), options));
        options.width = raw.width;
        options.height = raw.height;
        options.steps = raw.steps;
        options.max_text_length = raw.max_text_length;
        options.text_length = raw.text_length;
        options.guidance = raw.guidance;
        options.temperature = raw.temperature;
        options.schedule_power = raw.schedule_power;
        options.schedule = static_cast<schedule>(raw.schedule);
        options.confidence = static_cast<confidence>(raw.confidence);
        if (thinking) {
            MMADA_HPP_GET(description, detail::text_arguments::description(get(), nullptr));
            options.description = detail::text_options_of(description.raw);
        }
        return options;
    }

    /// What answering takes after a prompt of that many tokens (a picture's among them), before anything is loaded.
    fallible<estimate> estimate_text(std::size_t prompt_tokens, const text_options &options = {},
                                     bool about_image = false) const {
        if (!*this) MMADA_HPP_FAIL(detail::empty("model"));
        MMADA_HPP_GET(arguments, detail::text_arguments::make(get(), options, about_image));
        MMADA_HPP_GET(raw, detail::filled<mmada_estimate>([&](auto *out, mmada_error **failure) {
                          return mmada_model_estimate_text(get(), prompt_tokens, &arguments.raw, out, failure);
                      }));
        return detail::estimate_of(raw);
    }

    /// What drawing takes after a prompt of that many tokens, without the thinking that may come first.
    fallible<estimate> estimate_image(std::size_t prompt_tokens, const image_options &options = {}) const {
        if (!*this) MMADA_HPP_FAIL(detail::empty("model"));
        MMADA_HPP_GET(arguments, detail::image_arguments(get(), options));
        MMADA_HPP_GET(raw, detail::filled<mmada_estimate>([&](auto *out, mmada_error **failure) {
                          return mmada_model_estimate_image(get(), prompt_tokens, &arguments, out, failure);
                      }));
        return detail::estimate_of(raw);
    }

    /// The handle of the C interface, which stays this object's.
    const mmada_model *get() const noexcept { return raw_ ? raw_->get() : nullptr; }
    explicit operator bool() const noexcept { return get() != nullptr; }
    /// Frees the model, once its last context is gone.
    void reset() noexcept { raw_.reset(); }

  private:
    friend class context;

    template <class F>
    static fallible<model> made(F &&function) {
        detail::model_handle raw;
        MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) { return function(raw.out(), failure); }));
        model opened;
        opened.raw_ = std::make_shared<const detail::model_handle>(std::move(raw));
        return opened;
    }

    std::shared_ptr<const detail::model_handle> raw_;  // contexts look up what their model recommends
};

/// Cancels a generation that may have ended and gone: see `generation::cancel_handle`.
class cancel_handle {
  public:
    cancel_handle() noexcept = default;

    /// As `generation::cancel`; nothing happens if the generation is gone. Any thread, but no signal handlers.
    void cancel() const noexcept {
        if (const auto state = state_.lock()) mmada_generation_cancel(state->raw.get());
    }

  private:
    friend class generation;
    explicit cancel_handle(const std::shared_ptr<detail::generation_state> &state) noexcept : state_(state) {}

    std::weak_ptr<detail::generation_state> state_;
};

/// Walks over the steps of a generation, which are taken by this. An input iterator.
class step_iterator {
  public:
    using iterator_category = std::input_iterator_tag;
    using value_type = fallible<step>;
    using difference_type = std::ptrdiff_t;
    using pointer = const value_type *;
    using reference = const value_type &;

    /// The end.
    step_iterator() noexcept = default;

    reference operator*() const noexcept { return *current_; }
    pointer operator->() const noexcept { return &*current_; }
    inline step_iterator &operator++();
    void operator++(int) { ++*this; }

    friend bool operator==(const step_iterator &a, const step_iterator &b) noexcept { return a.over_ == b.over_; }
    friend bool operator!=(const step_iterator &a, const step_iterator &b) noexcept { return a.over_ != b.over_; }

  private:
    friend class step_range;
    explicit step_iterator(generation *over) : over_(over) { advance(); }
    inline void advance();

    generation *over_ = nullptr;
    std::optional<value_type> current_;
};

/// The steps of a generation that are still to be taken.
class step_range {
  public:
    /// Takes the first step.
    step_iterator begin() const { return step_iterator(over_); }
    step_iterator end() const noexcept { return {}; }

  private:
    friend class generation;
    explicit step_range(generation *over) noexcept : over_(over) {}

    generation *over_;
};

/// An answer or pictures in the making. May be destroyed at any time, complete or not.
class generation {
    /// What a function of the C interface that reads something out of a generation is called by.
    template <class F, class... Index>
    auto reads(F function, Index... index) const {
        return [this, function, index...](auto **out, mmada_error **failure) {
            return function(get(), index..., out, failure);
        };
    }

  public:
    /// Empty; a context's `begin_...` makes one that works.
    generation() noexcept = default;
    generation(generation &&) noexcept = default;
    generation &operator=(generation &&) noexcept = default;
    generation(const generation &) = delete;
    generation &operator=(const generation &) = delete;

    /// Takes a step. Fails with `status::done` if the generation is complete. A step that failed changed nothing and
    /// can be tried again, except after `status::cancelled`, which lasts.
    fallible<mmada::step> step() {
        MMADA_HPP_GET(raw, detail::initialized(mmada_step_init));
        MMADA_HPP_TRY(attempt([&](mmada_error **failure) { return mmada_generation_step(get(), &raw, failure); }));
        return step_of(raw);
    }

    /// Takes a step; nothing if the generation is complete.
    fallible<std::optional<mmada::step>> next() {
        bool done = false;
        MMADA_HPP_GET(raw, detail::initialized(mmada_step_init));
        MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) { return mmada_generation_step(get(), &raw, failure); },
                                      get(), nullptr, &done));
        return done ? std::nullopt : std::optional<mmada::step>(step_of(raw));
    }

    /// The steps that are still to be taken: `for (const auto &step : generation.steps())` takes them one by one. A
    /// loop that is left can be taken up by another. The generation must stay where it is meanwhile. With results
    /// instead of exceptions, what the loop sees is a `result<step>`, and an error is the last of them.
    step_range steps() & noexcept { return step_range(this); }
    step_range steps() && = delete;

    /// Takes all steps that are left.
    fallible<void> run() {
        return run([](const mmada::step &) {});
    }

    /// Takes all steps that are left, and calls `on_step(const step &)` after each. What that throws leaves this call,
    /// and the generation can go on.
    template <class F>
    fallible<void> run(F &&on_step) {
        for (;;) {
            MMADA_HPP_GET(taken, next());
            if (!taken) return detail::success();
            on_step(static_cast<const mmada::step &>(*taken));
        }
    }

    /// Stops the step that is running within one layer of the network: it and every later one fail with
    /// `status::cancelled`. Results so far can still be had, except pictures. May be called by any thread, and by
    /// signal handlers, while the generation is there; see `cancel_handle` for threads that cannot know.
    void cancel() const noexcept { mmada_generation_cancel(get()); }

    /// What other threads can cancel this with even when it may be gone.
    mmada::cancel_handle cancel_handle() const noexcept { return mmada::cancel_handle(state_); }

    fallible<generation_info> info() const {
        MMADA_HPP_GET(raw, detail::filled<mmada_generation_info>([&](auto *out, mmada_error **failure) {
                          return mmada_generation_get_info(get(), out, failure);
                      }));
        generation_info info;
        info.total_steps = raw.total_steps;
        info.image_count = raw.image_count;
        info.image_columns = raw.image_columns;
        info.image_rows = raw.image_rows;
        info.done = raw.done != 0;
        info.has_text = raw.has_text != 0;
        return info;
    }

    /// The answer as the model wrote it, thinking included, or a drawing's description. While it is being made, what
    /// stands before its first mask: that part will not change any more.
    fallible<std::string> text() const { return detail::text_from(reads(mmada_generation_text)); }
    /// The answer without the thinking.
    fallible<std::string> answer() const { return detail::text_from(reads(mmada_generation_answer)); }
    /// What the model thought, if it did.
    fallible<std::optional<std::string>> thinking() const {
        return detail::optional_text_from(reads(mmada_generation_thinking));
    }
    /// The description that a picture with thinking is drawn from.
    fallible<std::optional<std::string>> description() const {
        return detail::optional_text_from(reads(mmada_generation_description));
    }
    /// What a user should be told, such as that a prompt was cut: sentences.
    fallible<std::vector<std::string>> warnings() const {
        MMADA_HPP_GET(lines, detail::optional_text_from(reads(mmada_generation_warnings)));
        std::vector<std::string> sentences;
        if (!lines) return sentences;
        for (std::size_t begin = 0, end; begin < lines->size(); begin = end + 1) {
            end = std::min(lines->find('\n', begin), lines->size());
            sentences.push_back(lines->substr(begin, end - begin));
        }
        return sentences;
    }
    /// The ids of the text, up to the token that ended it or to the first mask.
    fallible<std::vector<token_id>> ids() const { return detail::ids_from(reads(mmada_generation_ids)); }
    /// The positions of the text (of the first picture where there is no text): ids, `masked` where nothing has been
    /// decided.
    fallible<std::vector<token_id>> canvas() const { return detail::ids_from(reads(mmada_generation_canvas)); }

    /// Picture `index`: the result or, midway, a preview of it. Computed by every call.
    fallible<mmada::image> image(std::size_t index = 0) const {
        return mmada::image::made(reads(mmada_generation_image, index), get());
    }
    /// The codes that picture `index` has now, row by row.
    fallible<std::vector<std::uint32_t>> codes(std::size_t index = 0) const {
        return detail::ids_from(reads(mmada_generation_codes, index));
    }
    /// The positions of picture `index`, row by row: ids, `masked` where nothing has been decided.
    fallible<std::vector<token_id>> image_canvas(std::size_t index = 0) const {
        return detail::ids_from(reads(mmada_generation_image_canvas, index));
    }

    /// The handle of the C interface, which stays this object's.
    const mmada_generation *get() const noexcept { return state_ ? state_->raw.get() : nullptr; }
    mmada_generation *get() noexcept { return state_ ? state_->raw.get() : nullptr; }
    explicit operator bool() const noexcept { return get() != nullptr; }
    /// Frees the generation.
    void reset() noexcept { state_.reset(); }

  private:
    friend class context;

    template <class F>
    fallible<void> attempt(F &&function) const {
        return detail::attempt(std::forward<F>(function), get());
    }

    static mmada::step step_of(const mmada_step &raw) noexcept {
        mmada::step taken;
        taken.index = raw.index;
        taken.total = raw.total;
        taken.prefix = raw.prefix;
        taken.changes = {raw.changes, raw.change_count};
        taken.stage = static_cast<mmada::stage>(raw.stage);
        taken.done = raw.done != 0;
        return taken;
    }

    std::shared_ptr<detail::generation_state> state_;
};

inline void step_iterator::advance() {
#if MMADA_HPP_THROWS
    current_ = over_->next();
    if (!current_) over_ = nullptr;
#else
    auto taken = over_->next();
    if (!taken) {
        current_.emplace(std::move(taken).error());
    } else if (*taken) {
        current_.emplace(**taken);
    } else {
        over_ = nullptr;
    }
#endif
}

inline step_iterator &step_iterator::operator++() {
#if MMADA_HPP_THROWS
    const bool last = (*current_).done;
#else
    const bool last = !*current_ || (*current_)->done;
#endif
    if (last) {
        over_ = nullptr;
    } else {
        advance();
    }
    return *this;
}

/// The threads and buffers that run a model. One call at a time uses the buffers: a second one meanwhile fails with
/// `status::busy`. Generations of one context may take turns, step by step.
class context {
  public:
    /// Empty; `create` makes one that works.
    context() noexcept = default;
    context(context &&) noexcept = default;
    context &operator=(context &&other) noexcept {
        raw_ = std::move(other.raw_);  // before its log
        log_ = std::move(other.log_);
        model_ = std::move(other.model_);
        return *this;
    }
    context(const context &) = delete;
    context &operator=(const context &) = delete;

#if MMADA_HPP_THROWS
    /// The same as `create`.
    explicit context(const model &of, const context_options &options = {}) : context(create(of, options)) {}
#endif

    /// Makes a context, which starts its threads.
    static fallible<context> create(const model &of, const context_options &options = {}) {
        MMADA_HPP_GET(raw, detail::initialized(mmada_context_options_init));
        context made;
        made.model_ = of.raw_;
        raw.threads = options.threads;
        raw.memory_limit = options.memory_limit;
        if (!options.instruction_set.empty()) {
            raw.instruction_set = options.instruction_set.data();
            raw.instruction_set_length = options.instruction_set.size();
        }
        raw.compute = static_cast<std::uint32_t>(options.compute);
        raw.pack = options.pack ? 1 : 0;
        raw.device = options.device.data();
        raw.device_length = options.device.size();
        raw.gpu_layers = options.gpu_layers.value_or(MMADA_ALL_LAYERS);
        if (options.progress) {
            raw.progress = detail::tell_progress<context_options>;
            raw.progress_user_data = const_cast<context_options *>(&options);
        }
        if (options.log) {
            made.log_ = std::make_shared<detail::log_sink>(options.log);
            raw.log = detail::log_sink::receive;
            raw.log_user_data = made.log_.get();
            raw.log_level = static_cast<std::uint32_t>(options.log_level);
        }
        MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) {
            return mmada_context_new(of.get(), &raw, made.raw_.out(), failure);
        }));
        return made;
    }

    fallible<context_info> info() const {
        MMADA_HPP_GET(raw, detail::filled<mmada_context_info>([&](auto *out, mmada_error **failure) {
                          return mmada_context_get_info(get(), out, failure);
                      }));
        return context_info{raw.threads, raw.memory_used, raw.instruction_set, static_cast<compute>(raw.compute),
                            raw.packed_bytes, raw.gpu_layers, raw.device};
    }

    /// About how many seconds an estimate takes on the context's threads. Measures a product, which takes up to a
    /// second on a large model.
    fallible<double> estimate_seconds(const estimate &of) const {
        MMADA_HPP_GET(raw, detail::initialized(mmada_estimate_init));
        raw.weight_bytes = of.weight_bytes;
        raw.scratch_bytes = of.scratch_bytes;
        raw.multiply_adds = of.multiply_adds;
        raw.tokens = of.tokens;
        double seconds = 0;
        MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) {
            return mmada_context_estimate_seconds(get(), &raw, &seconds, failure);
        }));
        return seconds;
    }

    /// The answer to a question, all at once.
    fallible<std::string> ask(std::string_view question, const text_options &options = {}) const {
        MMADA_HPP_GET(made, begin_text(question, options));
        MMADA_HPP_TRY(made.run());
        return made.answer();
    }

    /// The answer to a question about a picture, all at once.
    fallible<std::string> ask(std::string_view question, const image &picture, const text_options &options = {}) const {
        MMADA_HPP_GET(made, begin_text(question, picture, options));
        MMADA_HPP_TRY(made.run());
        return made.answer();
    }

    /// The (first) picture of what `prompt` says, all at once.
    fallible<image> draw(std::string_view prompt, const image_options &options = {}) const {
        MMADA_HPP_GET(made, begin_image(prompt, options));
        MMADA_HPP_TRY(made.run());
        return made.image();
    }

    /// Begins an answer to a chat. Nothing is computed before the first step.
    fallible<generation> begin_text(const std::vector<message> &messages, const text_options &options = {}) const {
        MMADA_HPP_GET(said, detail::messages_of(messages));
        MMADA_HPP_GET(arguments, detail::text_arguments::make(model(), options, detail::about_image(messages)));
        return begun([&](mmada_generation **out, mmada_error **failure) {
            return mmada_context_begin_text(get(), &arguments.raw, said.data(), said.size(), out, failure);
        });
    }

    /// Begins an answer to a question.
    fallible<generation> begin_text(std::string_view question, const text_options &options = {}) const {
        return begin_text({message::user(std::string(question))}, options);
    }

    /// Begins an answer to a question about a picture.
    fallible<generation> begin_text(std::string_view question, const image &picture,
                                    const text_options &options = {}) const {
        return begin_text({message::user(std::string(question), picture)}, options);
    }

    /// Begins an answer to a prompt of ids (see `model::prompt_ids`). The options must not ask for thinking, which
    /// would shape the prompt.
    fallible<generation> begin_text_ids(span<const token_id> prompt, const text_options &options = {}) const {
        MMADA_HPP_GET(arguments, detail::text_arguments::make(model(), options, false));
        return begun([&](mmada_generation **out, mmada_error **failure) {
            return mmada_context_begin_text_ids(get(), &arguments.raw, detail::data_of(prompt), prompt.size(), out,
                                                failure);
        });
    }

    /// Begins a picture, or several, of what `prompt` says. Nothing is computed before the first step.
    fallible<generation> begin_image(std::string_view prompt, const image_options &options = {}) const {
        MMADA_HPP_GET(arguments, detail::image_arguments(model(), options));
        const text_options *wanted = options.description ? &*options.description : nullptr;
        MMADA_HPP_GET(description, detail::text_arguments::description(model(), wanted));
        return begun([&](mmada_generation **out, mmada_error **failure) {
            return mmada_context_begin_image(get(), &arguments, wanted != nullptr ? &description.raw : nullptr,
                                             detail::data_of(prompt), prompt.size(), out, failure);
        });
    }

    /// Begins a picture, or several, from prompts that are ids: everything before the picture, and the same of the
    /// empty prompt, which is not looked at without guidance.
    fallible<generation> begin_image_ids(span<const token_id> prompt, span<const token_id> unconditional,
                                         const image_options &options = {}) const {
        MMADA_HPP_GET(arguments, detail::image_arguments(model(), options));
        return begun([&](mmada_generation **out, mmada_error **failure) {
            return mmada_context_begin_image_ids(get(), &arguments, detail::data_of(prompt), prompt.size(),
                                                 detail::data_of(unconditional), unconditional.size(), out, failure);
        });
    }

    /// Runs the network once on a sequence of ids, masks (`model_info::mask_id`) included.
    fallible<logits> forward(span<const token_id> ids, const forward_options &options = {}) {
        mmada_model_info info{};
        info.struct_size = sizeof info;
        MMADA_HPP_TRY(
            detail::attempt([&](mmada_error **failure) { return mmada_model_get_info(model(), &info, failure); }));
        std::vector<std::size_t> all;
        if (!options.rows) {
            for (std::size_t row = 0; row < ids.size(); row++) all.push_back(row);
        }
        const std::vector<std::size_t> &rows = options.rows ? *options.rows : all;
        const std::size_t end = options.vocab_end ? std::size_t{*options.vocab_end} : info.vocabulary;
        // The library says what is wrong with a range that cannot be; it has no size to be allocated.
        const bool fits = options.vocab_begin <= end && end <= info.vocabulary;
        const std::size_t columns = fits ? end - options.vocab_begin : 0;
        std::unique_ptr<float[]> values;
        if (columns == 0 || rows.size() <= std::numeric_limits<std::size_t>::max() / sizeof(float) / columns) {
            values.reset(new (std::nothrow) float[rows.size() * columns + 1]);
        }
        if (!values) MMADA_HPP_FAIL(mmada::error(status::out_of_memory, "the logits do not fit into memory"));
        MMADA_HPP_TRY(forward(ids, rows, options.vocab_begin, static_cast<token_id>(end),
                              {values.get(), rows.size() * columns}, options.canceller));
        return logits(std::move(values), rows.size(), columns);
    }

    /// Runs the network once, and writes the logits of the positions `rows` for the ids from `vocab_begin` up to and
    /// without `vocab_end` to `out`, row by row, which must be of that size. After a failure it holds anything.
    fallible<void> forward(span<const token_id> ids, span<const std::size_t> rows, token_id vocab_begin,
                           token_id vocab_end, span<float> out, const canceller *stop = nullptr) {
        MMADA_HPP_GET(stopper, stopper_of(stop));
        return detail::attempt(
            [&](mmada_error **failure) {
                return mmada_context_forward(get(), detail::data_of(ids), ids.size(), detail::data_of(rows), rows.size(),
                                             vocab_begin, vocab_end, detail::data_of(out), out.size(), stopper.used,
                                             failure);
            },
            nullptr, stopper.used);
    }

    /// How likely the ids of an answer are after those of a prompt (see `model::prompt_ids`).
    fallible<mmada::score> score(span<const token_id> prompt, span<const token_id> answer,
                                 const score_options &options = {}) {
        MMADA_HPP_GET(stopper, stopper_of(options.canceller));
        MMADA_HPP_GET(arguments, detail::initialized(mmada_score_options_init));
        arguments.samples = options.samples.value_or(arguments.samples);
        arguments.seed = options.seed;
        arguments.cfg_scale = options.cfg_scale;
        arguments.canceller = stopper.used;
        MMADA_HPP_GET(raw, detail::initialized(mmada_score_init));
        MMADA_HPP_TRY(detail::attempt(
            [&](mmada_error **failure) {
                return mmada_context_score(get(), &arguments, detail::data_of(prompt), prompt.size(),
                                           detail::data_of(answer), answer.size(), &raw, failure);
            },
            nullptr, stopper.used));
        return mmada::score{raw.log_likelihood, raw.per_token, raw.samples};
    }

    /// The codes of a picture, row by row; a code plus `model_info::image_offset` is an id. Its sides must be multiples
    /// of `model_info::image_downsampling`.
    fallible<std::vector<std::uint32_t>> encode_image(const image &picture) const {
        return detail::ids_from([&](mmada_buffer **out, mmada_error **failure) {
            return mmada_context_encode_image(get(), picture.get(), out, failure);
        });
    }

    /// The picture of `columns` times `rows` codes, given row by row.
    fallible<image> decode_image(span<const std::uint32_t> codes, std::size_t columns, std::size_t rows) const {
        return image::made([&](mmada_image **out, mmada_error **failure) {
            return mmada_context_decode_image(get(), detail::data_of(codes), codes.size(), columns, rows, out, failure);
        });
    }

    /// The handle of the C interface, which stays this object's.
    const mmada_context *get() const noexcept { return raw_.get(); }
    mmada_context *get() noexcept { return raw_.get(); }
    explicit operator bool() const noexcept { return get() != nullptr; }
    /// Frees the context. Its generations go on.
    void reset() noexcept { *this = context(); }

  private:
    /// What stops a call: what the caller gave, or, for a log that throws, one of our own.
    struct stopper_for_call {
        canceller own;
        const mmada_canceller *used = nullptr;
    };

    fallible<stopper_for_call> stopper_of(const canceller *given) const {
        stopper_for_call made;
        if (given != nullptr) {
            if (!*given) MMADA_HPP_FAIL(detail::empty("canceller"));
            made.used = given->get();
        } else if (log_) {
            MMADA_HPP_GET(own, canceller::create());
            made.own = std::move(own);
            made.used = made.own.get();
        }
        return made;
    }

    template <class F>
    fallible<generation> begun(F &&function) const {
        auto state = std::make_shared<detail::generation_state>();
        state->log = log_;
        MMADA_HPP_TRY(detail::attempt([&](mmada_error **failure) { return function(state->raw.out(), failure); }));
        generation made;
        made.state_ = std::move(state);
        return made;
    }

    const mmada_model *model() const noexcept { return model_ ? model_->get() : nullptr; }

    std::shared_ptr<const detail::model_handle> model_;
    std::shared_ptr<detail::log_sink> log_;
    detail::context_handle raw_;  // goes first
};

}  // inline namespace
}  // namespace mmada

#if defined(__cpp_lib_ranges) && __cpp_lib_ranges >= 201911L
template <class T>
inline constexpr bool std::ranges::enable_borrowed_range<mmada::span<T>> = true;
template <class T>
inline constexpr bool std::ranges::enable_view<mmada::span<T>> = true;
#endif

#undef MMADA_HPP_TRY
#undef MMADA_HPP_GET
#undef MMADA_HPP_FAIL

#endif  // MMADA_HPP
