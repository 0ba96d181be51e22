// The interface with exceptions: throwing MODEL.gguf PICTURE.png [CASE]
#include <mmada.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <fstream>
#include <future>
#include <iterator>
#include <thread>
#if defined(_POSIX_VERSION) || defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <unistd.h>
#endif
#if __cplusplus >= 202002L
#include <span>
#include <stop_token>
#endif

#include "check.hpp"

using mmada::status;

namespace {

mmada::model opened() { return mmada::model(model_path()); }

// The status that a call fails with; status::ok if it does not.
template <class F>
status failure(F &&call, std::string *sentence = nullptr) {
    try {
        call();
    } catch (const mmada::error &error) {
        if (sentence != nullptr) *sentence = error.what();
        CHECK(std::strlen(error.what()) > 0);
        return error.status();
    }
    return status::ok;
}

// An answer that does not end by itself.
mmada::text_options endless(const mmada::model &model) {
    const auto info = model.info();
    mmada::text_options options;
    options.forbid = {info.eos_id, info.eot_id};
    options.gen_length = options.block_length = options.steps = 256;
    return options;
}

// Thrown by callbacks: nothing that the library knows of.
struct surprise {
    int number;
};

bool same_pixels(mmada::image_view a, mmada::image_view b) {
    if (a.width() != b.width() || a.height() != b.height()) return false;
    for (std::size_t y = 0; y < a.height(); y++) {
        if (!std::equal(a.row(y).begin(), a.row(y).end(), b.row(y).begin())) return false;
    }
    return true;
}

template <class T>
constexpr bool move_only = std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> &&
                           !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(move_only<mmada::model> && move_only<mmada::context> && move_only<mmada::generation>);
static_assert(move_only<mmada::image> && move_only<mmada::canceller> && move_only<mmada::logits>);
static_assert(std::is_base_of_v<std::runtime_error, mmada::error>);
static_assert(std::is_same_v<mmada::fallible<int>, int>);
static_assert(std::is_convertible_v<std::vector<float> &, mmada::span<const float>>);
static_assert(!std::is_convertible_v<const std::vector<float> &, mmada::span<float>>);
static_assert(!std::is_convertible_v<std::vector<int> &, mmada::span<const float>>);
#if __cplusplus >= 202002L
static_assert(std::input_iterator<mmada::step_iterator>);
static_assert(std::ranges::input_range<mmada::step_range>);
static_assert(std::ranges::contiguous_range<mmada::span<int>> && std::ranges::borrowed_range<mmada::span<int>>);
static_assert(std::is_convertible_v<mmada::span<int>, std::span<int>>);
static_assert(std::is_convertible_v<std::span<const int>, mmada::span<const int>>);
#endif

}  // namespace

TEST(the_demo_model_says_what_it_is) {
    CHECK(mmada::version() == MMADA_VERSION);
    CHECK(!mmada::build_info().empty());
    const auto devices = mmada::devices();
    CHECK(!devices.empty() && devices[0].backend == "cpu" && !devices[0].instruction_sets.empty());

    const auto model = opened();
    const auto info = model.info();
    CHECK(info.has_images && info.image_codes > 0 && info.vocabulary >= info.text_vocabulary);
    CHECK(info.image_offset + info.image_codes <= info.vocabulary);
    CHECK(info.file_bytes == std::filesystem::file_size(model_path()));
    const auto keys = model.metadata_keys();
    CHECK(std::find(keys.begin(), keys.end(), "general.architecture") != keys.end());
    CHECK(!model.metadata("general.architecture").empty());
    CHECK(failure([&] { model.metadata("general.nothing"); }) == status::not_found);

    mmada::context_options options;
    options.threads = 2;
    options.instruction_set = "portable";
    options.compute = mmada::compute::exact;
    const auto context = mmada::context(model, options).info();
    CHECK(context.threads == 2 && context.instruction_set == "portable" && context.compute == mmada::compute::exact);
    options.pack = true;
    const mmada::context packed(model, options);
    CHECK(context.packed_bytes > 1000000 && packed.info().memory_used == context.packed_bytes);
    CHECK(packed.ask("What is 17 + 25?") == "42");
}

TEST(a_question_is_answered) {
    const auto model = opened();
    const mmada::context context(model);
    CHECK(context.ask("What is 17 + 25?") == "42");
}

TEST(an_answer_that_was_thought_out_comes_apart_from_the_thinking) {
    const auto model = opened();
    const mmada::context context(model);
    mmada::text_options options;
    options.thinking = true;
    auto generation = context.begin_text("What is 17 + 25?", options);
    generation.run();
    CHECK(generation.answer() == "42");
    const auto thinking = generation.thinking();
    CHECK(thinking && !thinking->empty());
    CHECK(generation.text().find("<think>") == 0);
    CHECK(generation.ids().size() > 5);
    CHECK(!generation.description() && generation.warnings().empty());
    CHECK(generation.info().done && generation.info().has_text);
    CHECK(failure([&] { generation.image(); }) == status::invalid_argument);
}

TEST(a_picture_is_the_one_that_the_command_line_draws) {
    const auto model = opened();
    const mmada::context context(model);
    mmada::image_options options;
    options.seed = drawing_seed;
    const auto picture = context.draw(drawing, options);
    const auto expected = mmada::image::load(picture_path());
    CHECK(picture.width() == model.info().image_size);
    CHECK(same_pixels(picture, expected));
    CHECK(context.ask("What color is the background?", expected) == "black");
    CHECK(context.ask("What color is the background?", context.draw(drawing, options)) == "black");
}

TEST(two_pictures_are_drawn_together) {
    const auto model = opened();
    const mmada::context context(model);
    mmada::image_options options;
    options.seed = drawing_seed - 1;
    options.count = 2;
    auto generation = context.begin_image(drawing, options);
    std::size_t changes = 0;
    for (const auto &step : generation.steps()) {
        CHECK(step.stage == mmada::stage::image);
        for (const auto &change : step.changes) changes += change.sequence < 2 ? 1 : 0;
    }
    const auto info = generation.info();
    CHECK(info.image_count == 2 && changes == 2 * info.image_columns * info.image_rows);
    CHECK(same_pixels(generation.image(1), mmada::image::load(picture_path())));
    CHECK(!same_pixels(generation.image(0), generation.image(1)));
    CHECK(generation.codes(1).size() == info.image_columns * info.image_rows);
    CHECK(generation.image_canvas(1).size() == generation.canvas().size());
    CHECK(same_pixels(context.decode_image(generation.codes(1), info.image_columns, info.image_rows),
                      generation.image(1)));
    CHECK(failure([&] { generation.image(2); }) != status::ok);
    CHECK(failure([&] { generation.text(); }) == status::invalid_argument);
}

TEST(steps_are_a_range_that_can_be_left_and_taken_up_again) {
    const auto model = opened();
    const mmada::context context(model);
    auto generation = context.begin_text("What is 17 + 25?", endless(model));
    std::size_t seen = 0;
    for (const auto &step : generation.steps()) {
        seen++;
        CHECK(step.index == seen && step.total == 256 && step.stage == mmada::stage::text);
        CHECK(!step.changes.empty() && step.changes[0].id < model.info().vocabulary);
        if (seen == 3) break;
    }
    const auto canvas = generation.canvas();
    CHECK(canvas.size() == 256 && std::count(canvas.begin(), canvas.end(), mmada::masked) < 256);
    auto rest = generation.steps();
    auto at = rest.begin();
    CHECK(at->index == 4);
    ++at;
    CHECK((*at).index == 5 && at != rest.end());

    auto short_one = context.begin_text("What is 17 + 25?");
    bool done = false;
    for (const auto &step : short_one.steps()) {
        CHECK(!done);
        done = step.done;
    }
    CHECK(done && short_one.answer() == "42");
    for (const auto &step : short_one.steps()) CHECK(step.index == 0);  // no step is left
    CHECK(!short_one.next());
    CHECK(failure([&] { short_one.step(); }) == status::done);
}

TEST(what_a_step_is_followed_by_may_throw_and_the_generation_goes_on) {
    const auto model = opened();
    const mmada::context context(model);
    auto generation = context.begin_text("What is 17 + 25?");
    int thrown = 0;
    try {
        generation.run([](const mmada::step &) { throw surprise{7}; });
    } catch (const surprise &caught) {
        thrown = caught.number;
    }
    CHECK(thrown == 7);
    generation.run();
    CHECK(generation.answer() == "42");
}

TEST(another_thread_cancels_and_the_context_goes_on) {
    const auto model = opened();
    const mmada::context context(model);
    auto generation = context.begin_text("Tell me everything.", endless(model));
    const auto handle = generation.cancel_handle();
    std::promise<void> begun;
    std::atomic<int> steps{0};
    std::thread canceller([&] {
        begun.get_future().wait();
        generation.cancel();
    });
    CHECK(failure([&] {
              generation.run([&](const mmada::step &) {
                  if (steps++ == 0) begun.set_value();
              });
          }) == status::cancelled);
    canceller.join();
    CHECK(steps >= 1 && steps < 256);
    CHECK(failure([&] { generation.step(); }) == status::cancelled);
    CHECK(generation.canvas().size() == 256);
    generation.reset();
    handle.cancel();  // of what is gone
    mmada::cancel_handle().cancel();
    CHECK(context.ask("What is 17 + 25?") == "42");

    auto by_handle = context.begin_text("Tell me everything.", endless(model));
    const auto copy = by_handle.cancel_handle();
    auto moved = std::move(by_handle);
    std::thread([copy] { copy.cancel(); }).join();
    CHECK(failure([&] { moved.run(); }) == status::cancelled);
#if __cplusplus >= 202002L
    std::stop_source source;
    auto stopped = context.begin_text("Tell me everything.", endless(model));
    std::stop_callback on_stop(source.get_token(), [&] { stopped.cancel(); });
    CHECK(failure([&] { stopped.run([&](const mmada::step &) { source.request_stop(); }); }) == status::cancelled);
#endif
}

TEST(what_is_empty_says_so) {
    const auto whole_model = opened();
    auto model = opened();
    mmada::context context(model);
    auto generation = context.begin_text("Hello.");
    auto picture = mmada::image::load(picture_path());
    auto canceller = mmada::canceller::create();
    {
        const auto a = std::move(model);
        const auto b = std::move(context);
        const auto c = std::move(generation);
        const auto d = std::move(picture);
        const auto e = std::move(canceller);
        CHECK(a && b && c && d && e);
    }
    const std::vector<mmada::token_id> ids{1, 2, 3};
    CHECK(!model && !context && !generation && !picture && !canceller);
    const std::vector<std::function<void()>> calls{
        [&] { model.info(); },
        [&] { model.metadata_keys(); },
        [&] { model.metadata("general.name"); },
        [&] { model.tokenize("text"); },
        [&] { model.detokenize(ids); },
        [&] { model.prompt_ids({mmada::message::user("Hello.")}); },
        [&] { model.text_defaults(); },
        [&] { model.image_defaults(); },
        [&] { model.estimate_text(9); },
        [&] { model.estimate_image(9); },
        [&] { mmada::context made(model); },
        [&] { context.info(); },
        [&] { context.ask("Hello."); },
        [&] { context.draw("a star"); },
        [&] { context.begin_text_ids(ids); },
        [&] { context.begin_image_ids(ids, ids); },
        [&] { context.forward(ids); },
        [&] { context.score(ids, ids); },
        [&] { context.encode_image(mmada::image::load(picture_path())); },
        [&] { context.decode_image(ids, 3, 1); },
        [&] { context.estimate_seconds({}); },
        [&] { generation.step(); },
        [&] { generation.next(); },
        [&] { generation.run(); },
        [&] { generation.steps().begin(); },
        [&] { generation.info(); },
        [&] { generation.text(); },
        [&] { generation.thinking(); },
        [&] { generation.answer(); },
        [&] { generation.ids(); },
        [&] { generation.description(); },
        [&] { generation.warnings(); },
        [&] { generation.codes(); },
        [&] { generation.image(); },
        [&] { generation.canvas(); },
        [&] { generation.image_canvas(); },
        [&] { picture.save("never.png"); },
        [&] { picture.encode(); },
        // What would be done without a picture or a canceller is not done.
        [&] { mmada::context(whole_model).ask("What?", picture); },
        [&] { whole_model.prompt_ids({mmada::message::user("What?", picture)}); },
        [&] {
            mmada::score_options options;
            options.canceller = &canceller;
            mmada::context(whole_model).score(ids, ids, options);
        },
    };
    for (std::size_t i = 0; i < calls.size(); i++) {
        const auto got = failure(calls[i]);
        if (got != status::null_pointer) std::printf("call %zu: %s\n", i, mmada::status_name(got));
        CHECK(got == status::null_pointer);
    }
    CHECK(picture.width() == 0 && picture.pixels().empty());
    generation.cancel();
    canceller.cancel();
    generation.reset();
    context.reset();
    model.reset();
    picture.reset();

    context = mmada::context(whole_model);  // and can be filled again
    CHECK(context.ask("What is 17 + 25?") == "42");
}

TEST(objects_may_go_in_any_order) {
    std::vector<std::string> lines;
    mmada::generation generation;
    {
        const auto model = opened();
        mmada::context_options options;
        options.log_level = mmada::log_level::debug;
        options.log = [&lines](mmada::log_level, std::string_view line) { lines.emplace_back(line); };
        const mmada::context context(model, options);
        options.log = nullptr;  // the context has its own
        generation = context.begin_text("What is 17 + 25?");
    }
    const auto before = lines.size();
    generation.run();
    CHECK(generation.answer() == "42" && lines.size() > before);

    auto model = opened();
    auto context = mmada::context(model);
    model.reset();
    CHECK(context.ask("What is 17 + 25?") == "42");
    CHECK(context.forward(std::vector<mmada::token_id>{1, 2}).rows() == 2);
}

TEST(each_context_logs_for_itself) {
    const auto model = opened();
    std::string first, second;
    mmada::context_options options;
    options.log_level = mmada::log_level::debug;
    options.log = [&](mmada::log_level, std::string_view line) { second.append(line).append("\n"); };
    const mmada::context inner(model, options);
    bool nested = false;
    options.log = [&](mmada::log_level, std::string_view line) {
        first.append(line).append("\n");
        if (!std::exchange(nested, true)) CHECK(inner.ask("What is 17 + 25?") == "42");
    };
    const mmada::context outer(model, options);
    CHECK(outer.ask("What is 17 + 25?") == "42");
    CHECK(nested && !first.empty() && !second.empty());
    CHECK(failure([&] { inner.ask(""); outer.ask(""); }) == status::ok);

    options.log_level = mmada::log_level::warn;
    std::vector<mmada::log_level> levels;
    options.log = [&](mmada::log_level level, std::string_view) { levels.push_back(level); };
    mmada::image_options cut;
    cut.max_text_length = 4;
    cut.steps = 1;
    auto generation = mmada::context(model, options).begin_image(drawing, cut);
    generation.run();
    CHECK(generation.warnings().size() == 1);
    CHECK(!levels.empty() && std::all_of(levels.begin(), levels.end(), [](auto l) { return l == mmada::log_level::warn; }));
}

TEST(a_log_that_throws_stops_the_call_it_is_called_by) {
    const auto model = opened();
    bool throws = false;
    int calls = 0;
    mmada::context_options options;
    options.log_level = mmada::log_level::debug;
    options.log = [&](mmada::log_level, std::string_view) {
        calls++;
        if (throws) throw surprise{calls};
    };
    mmada::context context(model, options);
    const auto caught = [&](auto &&call) {
        calls = 0;
        throws = true;
        int got = 0;
        try {
            call();
        } catch (const surprise &thrown) {
            got = thrown.number;
        }
        throws = false;
        CHECK(calls == 0 || got == 1);  // the first one stops, and no other is asked for
        return got == 1;
    };
    auto generation = context.begin_text("Tell me everything.", endless(model));
    CHECK(caught([&] { generation.step(); }));
    CHECK(failure([&] { generation.step(); }) == status::cancelled);
    auto ranged = context.begin_text("Tell me everything.", endless(model));
    CHECK(caught([&] {
        for (const auto &step : ranged.steps()) CHECK(step.index == 0);  // the first step stops
    }));
    CHECK(caught([&] { context.draw("a red circle"); }));
    const std::vector<mmada::token_id> ids = model.tokenize("What is 17 + 25?");
    caught([&] { context.score(ids, ids); });
    caught([&] { context.forward(ids); });
    const auto canceller = mmada::canceller::create();
    mmada::score_options scoring;
    scoring.samples = 1;
    CHECK(context.score(ids, ids, scoring).samples == 1);
    CHECK(context.ask("What is 17 + 25?") == "42");
}

TEST(progress_is_told_and_may_stop) {
    mmada::open_options options;
    options.use_mmap = false;
    std::uint64_t last = 0, of = 0;
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
        CHECK(done >= last && done <= total);
        last = done;
        of = total;
        return true;
    };
    const mmada::model model(model_path(), options);
    CHECK(of > 0 && last == of);
    CHECK(mmada::context(model).ask("What is 17 + 25?") == "42");

    options.progress = [](std::uint64_t, std::uint64_t) { return false; };
    CHECK(failure([&] { mmada::model::open(model_path(), options); }) == status::cancelled);
    for (const bool use_mmap : {false, true}) {
        options.use_mmap = use_mmap;
        int calls = 0, thrown = 0;
        options.progress = [&](std::uint64_t, std::uint64_t) -> bool { throw surprise{++calls}; };
        try {
            mmada::model::open(model_path(), options);
        } catch (const surprise &caught) {
            thrown = caught.number;
        }
        CHECK(thrown == 1 && calls == 1);
    }
}

TEST(a_second_call_meanwhile_is_told_to_come_later) {
    const auto model = opened();
    std::promise<void> inside, checked;
    std::atomic<bool> waits{false};
    mmada::context_options options;
    options.log_level = mmada::log_level::debug;
    options.log = [&](mmada::log_level, std::string_view) {
        if (waits.exchange(false)) {
            inside.set_value();
            checked.get_future().wait();
        }
    };
    mmada::context context(model, options);
    auto generation = context.begin_text("What is 17 + 25?");
    generation.step();
    waits = true;
    std::thread other([&] { generation.run(); });
    inside.get_future().wait();
    CHECK(failure([&] { generation.step(); }) == status::busy);
    CHECK(failure([&] { generation.text(); }) == status::busy);
    checked.set_value();
    other.join();
    CHECK(generation.answer() == "42");
}

TEST(one_model_serves_contexts_in_many_threads) {
    const auto model = opened();
    std::vector<std::future<std::string>> answers;
    for (int i = 0; i < 6; i++) {
        answers.push_back(std::async(std::launch::async, [&] {
            mmada::context_options options;
            options.threads = 1;
            return mmada::context(model, options).ask("What is 17 + 25?");
        }));
    }
    for (auto &answer : answers) CHECK(answer.get() == "42");
}

TEST(logits_come_for_the_positions_and_ids_that_are_asked_for) {
    const auto model = opened();
    mmada::context context(model);
    const auto info = model.info();
    auto ids = model.prompt_ids({mmada::message::user("What is 17 + 25?")});
    ids.push_back(info.mask_id);
    const auto all = context.forward(ids);
    CHECK(all.rows() == ids.size() && all.columns() == info.vocabulary);
    CHECK(all.values().size() == all.rows() * all.columns());
    const auto row = all[ids.size() - 1];
    const auto best = static_cast<mmada::token_id>(std::max_element(row.begin(), row.end()) - row.begin());
    CHECK(model.detokenize(std::vector<mmada::token_id>{best}).find('4') != std::string::npos);

    mmada::forward_options options;
    options.rows = {ids.size() - 1, 0};
    options.vocab_begin = 11;
    options.vocab_end = 24;
    const auto some = context.forward(ids, options);
    CHECK(some.rows() == 2 && some.columns() == 13);
    CHECK(std::equal(some[0].begin(), some[0].end(), row.begin() + 11));
    CHECK(std::equal(some[1].begin(), some[1].end(), all[0].begin() + 11));
    std::array<float, 13> into{};
    context.forward(ids, std::array<std::size_t, 1>{0}, 11, 24, into);
    CHECK(std::equal(into.begin(), into.end(), some[1].begin()));

    CHECK(failure([&] { context.forward({}); }) == status::invalid_argument);
    CHECK(failure([&] { context.forward(ids, *options.rows, 11, 24, into); }) == status::invalid_argument);
    options.vocab_end = 3;
    CHECK(failure([&] { context.forward(ids, options); }) == status::invalid_argument);
    options.vocab_end = mmada::masked;
    CHECK(failure([&] { context.forward(ids, options); }) == status::invalid_argument);
    options.vocab_end = {};
    options.rows = {ids.size()};
    CHECK(failure([&] { context.forward(ids, options); }) == status::invalid_argument);
    const auto canceller = mmada::canceller::create();
    canceller.cancel();
    options.rows = {};
    options.canceller = &canceller;
    CHECK(failure([&] { context.forward(ids, options); }) == status::cancelled);
}

TEST(the_right_answer_is_likelier) {
    const auto model = opened();
    mmada::context context(model);
    const auto prompt = model.prompt_ids({mmada::message::user("What is 17 + 25?")});
    const auto right = model.tokenize("42"), wrong = model.tokenize("97");
    mmada::score_options options;
    options.samples = 16;
    options.seed = 5;
    const auto high = context.score(prompt, right, options);
    CHECK(high.samples == 16 && high.log_likelihood <= 0);
    CHECK(high.log_likelihood > context.score(prompt, wrong, options).log_likelihood);
    CHECK(high.log_likelihood == context.score(prompt, right, options).log_likelihood);
    CHECK(failure([&] { context.score(prompt, {}, options); }) == status::invalid_argument);
    const auto canceller = mmada::canceller::create();
    options.canceller = &canceller;
    CHECK(context.score(prompt, right, options).samples == 16);
    canceller.cancel();
    CHECK(failure([&] { context.score(prompt, right, options); }) == status::cancelled);
}

TEST(texts_become_ids_and_texts_again) {
    const auto model = opened();
    const auto ids = model.tokenize("What is 17 + 25?");
    CHECK(ids.size() > 4 && model.detokenize(ids) == "What is 17 + 25?");
    CHECK(model.tokenize("").empty() && model.tokenize({}).empty() && model.detokenize({}).empty());
    CHECK(model.tokenize("<|eot_id|>", true) == std::vector<mmada::token_id>{model.info().eot_id});
    CHECK(model.tokenize("<|eot_id|>").size() > 1);
    CHECK(model.detokenize(std::vector<mmada::token_id>{model.info().eot_id}, true).empty());
    CHECK(failure([&] { model.tokenize("\xff"); }) == status::invalid_utf8);

    const mmada::context context(model);
    auto generation = context.begin_text_ids(model.prompt_ids({mmada::message::user("What is 17 + 25?")}));
    generation.run();
    CHECK(generation.answer() == "42");
    mmada::text_options thinking;
    thinking.thinking = true;
    CHECK(failure([&] { context.begin_text_ids(ids, thinking); }) == status::invalid_argument);
    mmada::image_options two_steps;
    two_steps.steps = 2;
    auto picture = context.begin_image_ids(ids, ids, two_steps);
    picture.run();
    CHECK(picture.image().width() == model.info().image_size);
}

TEST(options_that_are_not_set_are_what_the_file_recommends) {
    const auto model = opened();
    const mmada::context context(model);
    const auto plain = model.text_defaults(), thinking = model.text_defaults(true);
    CHECK(plain.gen_length && plain.steps && plain.block_length && plain.temperature && plain.cfg_scale &&
          plain.remasking && !plain.thinking && thinking.thinking);
    CHECK(*thinking.gen_length > *plain.gen_length);
    CHECK(context.ask("What is 17 + 25?", plain) == "42");
    const auto drawing_options = model.image_defaults(true);
    CHECK(drawing_options.width == model.info().image_size && drawing_options.steps && drawing_options.description);
    CHECK(!model.image_defaults().description);
    auto image_options = model.image_defaults();
    image_options.seed = drawing_seed;
    CHECK(same_pixels(context.draw(drawing, image_options), mmada::image::load(picture_path())));

    const auto text = model.estimate_text(20, plain), image = model.estimate_image(20);
    CHECK(text.tokens > 0 && text.weight_bytes > 0 && image.multiply_adds > text.multiply_adds);
    CHECK(context.estimate_seconds(image) > 0);
#if __cplusplus >= 202002L
    CHECK(context.ask("What is 17 + 25?", {.seed = 3, .temperature = 0.0}) == "42");
#endif
}

TEST(options_do_what_they_say) {
    const auto model = opened();
    const mmada::context context(model);
    mmada::text_options options;
    options.stop = {"nowhere", "2"};
    CHECK(context.ask("What is 17 + 25?", options) == "4");
    options.stop = {""};
    CHECK(failure([&] { context.ask("What is 17 + 25?", options); }) == status::invalid_argument);
    options.stop = {};
    const auto seven = model.tokenize("7");
    options.pinned = {{0, seven.at(0)}};
    CHECK(context.ask("What is 17 + 25?", options).rfind("7", 0) == 0);
    options.pinned = {{std::size_t{1} << 40, 1}};
    CHECK(failure([&] { context.ask("What is 17 + 25?", options); }) == status::invalid_argument);
    options.pinned = {};
    options.allow_only = {seven.at(0)};
    CHECK(context.ask("What is 17 + 25?", options).find_first_not_of('7') == std::string::npos);
    options.allow_only.emplace();
    CHECK(failure([&] { context.ask("What is 17 + 25?", options); }) == status::invalid_argument);
    options = {};
    options.steps = 7;
    options.block_length = 5;
    std::string sentence;
    CHECK(failure([&] { context.ask("What is 17 + 25?", options); }, &sentence) == status::invalid_argument);
    CHECK(sentence.find("block_length") != std::string::npos);
    options = {};
    options.remasking = static_cast<mmada::remasking>(99);
    CHECK(failure([&] { context.ask("What is 17 + 25?", options); }) == status::invalid_argument);
    CHECK(failure([&] { context.begin_text(std::vector<mmada::message>{}); }) == status::invalid_argument);

    mmada::context_options small;
    small.memory_limit = 1000;
    CHECK(failure([&] { mmada::context(model, small).ask("What is 17 + 25?"); }) == status::out_of_memory);
    small = {};
    small.instruction_set = "abacus";
    CHECK(failure([&] { mmada::context made(model, small); }, &sentence) == status::invalid_argument);
    CHECK(sentence.find("abacus") != std::string::npos);
}

TEST(a_picture_can_be_thought_out_first) {
    const auto model = opened();
    const mmada::context context(model);
    mmada::image_options options;
    options.thinking = true;
    options.description = *model.image_defaults(true).description;
    auto generation = context.begin_image("a red circle", options);
    bool text = false, image = false;
    for (const auto &step : generation.steps()) {
        text = text || step.stage == mmada::stage::text;
        image = image || step.stage == mmada::stage::image;
    }
    CHECK(text && image && generation.info().has_text);
    const auto description = generation.description();
    CHECK(description && !description->empty());
    options.thinking = false;
    CHECK(failure([&] { context.begin_image("a red circle", options); }) == status::invalid_argument);
}

TEST(pictures_come_from_pixels_and_files) {
    std::vector<std::uint8_t> pixels(7 * 5 * 3);
    for (std::size_t i = 0; i < pixels.size(); i++) pixels[i] = static_cast<std::uint8_t>(31 * i + 5);
    const mmada::image_view whole(pixels.data(), 7, 5);
    CHECK(whole.stride() == 21 && whole.bytes().size() == pixels.size() && !whole.empty());
    const auto part = whole.part(2, 1, 4, 3);
    CHECK(part.bytes().size() == 2 * 21 + 12 && part(3, 2) == whole(5, 3) && part(0, 0) != whole(0, 0));
    const auto copied = mmada::image::from_rgb(part);
    CHECK(copied.width() == 4 && copied.height() == 3 && same_pixels(copied, part));
    const auto png = copied.encode();
    CHECK(png.size() > 8 && png[1] == 'P' && same_pixels(mmada::image::decode(png), part));
    CHECK(copied.encode(mmada::image_format::jpeg).at(0) == 0xff);
    CHECK(failure([&] { copied.encode(static_cast<mmada::image_format>(9)); }) == status::invalid_argument);

    const auto file = std::filesystem::path(std::getenv("MMADA_SCRATCH") != nullptr ? std::getenv("MMADA_SCRATCH") : ".") /
                      "gr\xc3\xbc\xc3\x9f" "e.png";
    copied.save(file);
    CHECK(same_pixels(mmada::image::load(file), part));
    std::filesystem::remove(file);
    CHECK(failure([&] { copied.save("picture.tiff"); }) == status::invalid_argument);
    CHECK(failure([&] { mmada::image::load("missing.png"); }) == status::io_error);
    CHECK(failure([&] { mmada::image::decode({}); }) == status::bad_image);
    CHECK(failure([&] { mmada::image::from_rgb({}); }) != status::ok);
    CHECK(failure([&] { mmada::image::from_rgb({nullptr, 3, 3}); }) == status::null_pointer);
    CHECK(failure([&] { mmada::image::from_rgb({pixels.data(), 7, 5, 20}); }) == status::invalid_argument);

    const auto model = opened();
    const mmada::context context(model);
    const auto picture = mmada::image::load(picture_path());
    const auto side = picture.width() / model.info().image_downsampling;
    CHECK(context.encode_image(picture).size() == side * side);
    CHECK(failure([&] { context.encode_image(copied); }) == status::invalid_argument);
}

TEST(models_come_from_paths_descriptors_and_memory) {
    std::string sentence;
    CHECK(failure([] { mmada::model model("missing.gguf"); }) == status::io_error);
    CHECK(failure([] { mmada::model model(picture_path()); }, &sentence) == status::bad_format);
    CHECK(sentence.find(".png") != std::string::npos);

    std::ifstream stream(model_path(), std::ios::binary);
    const std::vector<char> file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    std::vector<std::uint8_t> room(file.size() + 32);
    const auto offset = (32 - reinterpret_cast<std::uintptr_t>(room.data()) % 32) % 32;
    std::copy(file.begin(), file.end(), room.begin() + static_cast<std::ptrdiff_t>(offset));
    const mmada::span<const std::uint8_t> aligned(room.data() + offset, file.size());
    CHECK(mmada::context(mmada::model::open_memory(aligned, "memory")).ask("What is 17 + 25?") == "42");
    CHECK(failure([&] { mmada::model::open_memory({aligned.data(), 1000}, "cut off"); }, &sentence) != status::ok);
    CHECK(sentence.find("cut off") != std::string::npos);
#if defined(__unix__) || defined(__APPLE__)
    const int fd = ::open(model_path(), O_RDONLY);
    const auto model = mmada::model::open_fd(fd, "descriptor");
    ::close(fd);
    CHECK(mmada::context(model).ask("What is 17 + 25?") == "42");
    CHECK(failure([] { mmada::model::open_fd(-1, "no descriptor"); }) != status::ok);
#endif
}

int main(int argc, char **argv) {
    return run_all(argc, argv, [](void (*run)()) -> std::string {
        try {
            run();
        } catch (const std::exception &error) {
            return error.what();
        }
        return "";
    });
}
