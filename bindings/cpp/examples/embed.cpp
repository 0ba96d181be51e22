// How a server or a window embeds the library: a thread of ours steps, the main thread watches and may cancel. Here it
// cancels a long answer after two steps, and asks something else with the same context: embed MODEL.gguf
#include <future>
#include <iostream>
#include <mmada.hpp>

// An answer that cannot end by itself before it is cancelled: no token that would end it may be chosen.
static mmada::text_options endless(const mmada::model &model) {
    const auto info = model.info();
    mmada::text_options options;
    options.forbid = {info.eos_id, info.eot_id};
    options.gen_length = options.block_length = options.steps = 512;
    return options;
}

int main(int argc, char **argv) try {
    if (argc < 2) {
        std::cerr << "usage: embed MODEL.gguf\n";
        return 2;
    }
    mmada::model model(argv[1]);
    mmada::context context(model);

    auto generation = context.begin_text("Tell me everything.", endless(model));
    const auto handle = generation.cancel_handle();  // harmless to use even when the generation is gone
    std::promise<void> two_steps;
    auto answer = std::async(std::launch::async, [&two_steps, generation = std::move(generation)]() mutable {
        generation.run([&](const mmada::step &step) {
            if (step.index == 2) two_steps.set_value();
        });
        return generation.answer();
    });
    two_steps.get_future().wait();
    handle.cancel();
    try {
        std::cout << answer.get() << "\n";
    } catch (const mmada::error &error) {
        if (error.status() != mmada::status::cancelled) throw;
        std::cout << "cancelled\n";
    }
    std::cout << context.ask("What is 17 + 25?") << "\n";
} catch (const std::exception &error) {
    std::cerr << "embed: " << error.what() << "\n";
    return 1;
}
