// The interface with results instead of exceptions, compiled with -fno-exceptions -fno-rtti or with
// MMADA_NO_EXCEPTIONS: results MODEL.gguf PICTURE.png [CASE]
#include <mmada.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "check.hpp"

using mmada::status;

namespace {

static_assert(std::is_same_v<mmada::fallible<int>, mmada::result<int>>);

// What cannot fail here is taken out of its result; the program ends if it did.
template <class T>
T must(mmada::result<T> &&made) {
    if (!made) std::printf("%s\n", made.error().what());
    return *std::move(made);
}

mmada::model opened() { return must(mmada::model::open(model_path())); }
mmada::context made(const mmada::model &model) { return must(mmada::context::create(model)); }

template <class T>
status failure(const mmada::result<T> &got) {
    return got ? status::ok : got.error().status();
}

}  // namespace

TEST(results_hold_a_value_or_an_error) {
    mmada::result<std::string> value(std::string("text")), none(mmada::error(status::busy, "why"));
    CHECK(value && *value == "text" && value->size() == 4 && value.value() == "text");
    CHECK(!none && none.error().status() == status::busy && std::string(none.error().what()) == "why");
    CHECK(none.value_or("other") == "other" && value.value_or("other") == "text");
    auto length = std::move(value).and_then([](std::string &&text) { return mmada::result<std::size_t>(text.size()); });
    CHECK(length && *length == 4);
    auto still = std::move(none).and_then([](std::string &&text) { return mmada::result<std::size_t>(text.size()); });
    CHECK(!still && still.error().status() == status::busy);
    mmada::result<void> success, failed(mmada::error(status::done, "over"));
    CHECK(success && !failed && failed.error().status() == status::done);
}

TEST(what_cannot_be_opened_says_why) {
    const auto missing = mmada::model::open("missing.gguf");
    CHECK(failure(missing) == status::io_error);
    CHECK(std::string(missing.error().what()).find("missing.gguf") != std::string::npos);
    const auto picture = mmada::model::open(picture_path());
    CHECK(failure(picture) == status::bad_format);
    CHECK(failure(mmada::context::create(mmada::model())) == status::null_pointer);
}

TEST(questions_are_answered) {
    const auto model = opened();
    const auto context = made(model);
    CHECK(must(context.ask("What is 17 + 25?")) == "42");
    mmada::text_options thinking;
    thinking.thinking = true;
    auto generation = must(context.begin_text("What is 17 + 25?", thinking));
    CHECK(generation.run().has_value());
    CHECK(must(generation.answer()) == "42");
    const auto thought = must(generation.thinking());
    CHECK(thought && !thought->empty());
    CHECK(must(generation.description()) == std::nullopt && must(generation.warnings()).empty());
    CHECK(failure(generation.image()) == status::invalid_argument);
}

TEST(a_picture_is_the_one_that_the_command_line_draws) {
    const auto model = opened();
    const auto context = made(model);
    mmada::image_options options;
    options.seed = drawing_seed;
    const auto picture = must(context.draw(drawing, options)), expected = must(mmada::image::load(picture_path()));
    const auto a = picture.pixels().bytes(), b = expected.pixels().bytes();
    CHECK(a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()));
    CHECK(must(context.ask("What color is the background?", picture)) == "black");
    const auto codes = must(context.encode_image(picture));
    CHECK(must(context.decode_image(codes, 8, codes.size() / 8)).width() == 8 * must(model.info()).image_downsampling);
    CHECK(must(mmada::image::decode(must(picture.encode()))).height() == picture.height());
    CHECK(failure(picture.save("picture.tiff")) == status::invalid_argument);
}

TEST(an_error_is_the_last_step_of_the_range) {
    const auto model = opened();
    const auto context = made(model);
    const auto info = must(model.info());
    mmada::text_options endless;
    endless.forbid = {info.eos_id, info.eot_id};
    endless.gen_length = endless.block_length = endless.steps = 256;
    auto generation = must(context.begin_text("Tell me everything.", endless));
    std::size_t good = 0, bad = 0;
    for (const auto &step : generation.steps()) {
        CHECK(bad == 0);
        if (!step) {
            bad++;
            CHECK(step.error().status() == status::cancelled);
        } else if (step->index == 3) {
            good++;
            std::thread([handle = generation.cancel_handle()] { handle.cancel(); }).join();
        } else {
            good++;
        }
    }
    CHECK(good == 3 && bad == 1);
    CHECK(failure(generation.step()) == status::cancelled);
    mmada::generation empty;
    for (const auto &step : empty.steps()) CHECK(failure(step) == status::null_pointer);
    auto short_one = must(context.begin_text("What is 17 + 25?"));
    for (const auto &step : short_one.steps()) CHECK(step.has_value());
    CHECK(must(short_one.answer()) == "42" && !must(short_one.next()));
    CHECK(failure(short_one.step()) == status::done);
    CHECK(failure(empty.run()) == status::null_pointer && failure(empty.next()) == status::null_pointer);
}

TEST(callbacks_are_called) {
    mmada::open_options reading;
    reading.use_mmap = false;
    int calls = 0;
    reading.progress = [&](std::uint64_t, std::uint64_t) { return ++calls > 0; };
    const auto model = must(mmada::model::open(model_path(), reading));
    CHECK(calls > 0);
    reading.progress = [](std::uint64_t, std::uint64_t) { return false; };
    CHECK(failure(mmada::model::open(model_path(), reading)) == status::cancelled);

    std::vector<std::string> lines;
    mmada::context_options options;
    options.log_level = mmada::log_level::debug;
    options.log = [&](mmada::log_level, std::string_view line) { lines.emplace_back(line); };
    CHECK(must(must(mmada::context::create(model, options)).ask("What is 17 + 25?")) == "42");
    CHECK(!lines.empty());
}

#if MMADA_HPP_CATCHES
TEST(what_a_callback_throws_reaches_the_caller_here_too) {
    mmada::open_options reading;
    reading.progress = [](std::uint64_t, std::uint64_t) -> bool { throw 5; };
    int thrown = 0;
    try {
        static_cast<void>(mmada::model::open(model_path(), reading));
    } catch (int number) {
        thrown = number;
    }
    CHECK(thrown == 5);
    try {
        static_cast<void>(mmada::model::open("missing.gguf").value());
    } catch (const mmada::error &error) {
        thrown = static_cast<int>(error.status());
    }
    CHECK(thrown == static_cast<int>(status::io_error));
}
#endif

TEST(logits_and_scores_come_as_results) {
    const auto model = opened();
    auto context = made(model);
    const auto prompt = must(model.prompt_ids({mmada::message::user("What is 17 + 25?")}));
    const auto right = must(model.tokenize("42")), wrong = must(model.tokenize("97"));
    const auto all = must(context.forward(prompt));
    CHECK(all.rows() == prompt.size() && all.columns() == must(model.info()).vocabulary);
    std::array<float, 5> some{};
    const std::array<std::size_t, 1> last{prompt.size() - 1};
    CHECK(context.forward(prompt, last, 7, 12, some).has_value());
    CHECK(std::equal(some.begin(), some.end(), all[prompt.size() - 1].begin() + 7));
    CHECK(failure(context.forward(prompt, last, 7, 13, some)) == status::invalid_argument);
    mmada::score_options options;
    options.samples = 16;
    CHECK(must(context.score(prompt, right, options)).per_token > must(context.score(prompt, wrong, options)).per_token);
    const auto canceller = must(mmada::canceller::create());
    canceller.cancel();
    options.canceller = &canceller;
    CHECK(failure(context.score(prompt, right, options)) == status::cancelled);
    CHECK(must(model.detokenize(right)) == "42");
    CHECK(must(model.estimate_text(9)).tokens > 0 && must(model.image_defaults()).width);
    CHECK(must(context.estimate_seconds(must(model.estimate_image(9)))) > 0);
    CHECK(must(model.metadata_keys()).size() > 3 && failure(model.metadata("nothing")) == status::not_found);
    CHECK(!must(mmada::devices()).empty() && must(context.info()).threads > 0);
}

TEST(a_device_that_is_not_there_is_said_to_be_missing) {
    const auto model = opened();
    mmada::context_options options;
    const auto cpu = must(mmada::devices()).front();
    CHECK(cpu.id == "cpu" && cpu.refusal.empty() && cpu.compute_capability_major == 0);
    options.device = "gpu";
    CHECK(failure(mmada::context::create(model, options)) == status::invalid_argument);
    CHECK(failure(mmada::unavailable("vulkan")) == status::not_found);
    CHECK(!must(mmada::unavailable("cpu")));
    const auto reason = must(mmada::unavailable("cuda"));
    if (!reason) return;  // this machine has a card
    options.device = "cuda:7";
    CHECK(failure(mmada::context::create(model, options)) == status::invalid_argument);
    std::string log;
    options.device = "auto";
    options.gpu_layers = 2;
    options.progress = [](auto, auto) { return false; };
    options.log = [&](auto, std::string_view message) { log += message; };
    const auto context = must(mmada::context::create(model, options));
    const auto info = must(context.info());
    CHECK(info.device == "cpu" && info.gpu_layers == 0 && log.find(*reason) != std::string::npos);
}

TEST(what_is_empty_says_so) {
    mmada::image picture;
    const auto model = opened();
    CHECK(failure(made(model).ask("What?", picture)) == status::null_pointer);
    CHECK(failure(mmada::context().ask("What?")) == status::null_pointer);
    CHECK(failure(mmada::context().forward(std::vector<mmada::token_id>{1})) == status::null_pointer);
    CHECK(failure(mmada::model().text_defaults()) == status::null_pointer);
    CHECK(failure(mmada::generation().text()) == status::null_pointer);
    CHECK(failure(picture.encode()) == status::null_pointer);
}

int main(int argc, char **argv) {
    return run_all(argc, argv, [](void (*run)()) {
        run();
        return std::string();
    });
}
