// A conversation: chat MODEL.gguf, then a line for every message. The answer is written as far as it is settled.
#include <iostream>
#include <mmada.hpp>
#include <string>
#include <vector>

// What stands before the answer's first mask does not change any more.
static std::string stream(mmada::generation generation) {
    std::size_t written = 0;
    for (const auto &step : generation.steps()) {
        static_cast<void>(step);
        const std::string text = generation.text();
        std::cout << text.substr(written) << std::flush;
        written = text.size();
    }
    std::cout << "\n";
    return generation.answer();
}

int main(int argc, char **argv) try {
    if (argc < 2) {
        std::cerr << "usage: chat MODEL.gguf\n";
        return 2;
    }
    mmada::model model(argv[1]);
    mmada::context context(model);
    std::vector<mmada::message> messages;
    for (std::string line; std::getline(std::cin, line);) {
        messages.push_back(mmada::message::user(line));
        messages.push_back(mmada::message::assistant(stream(context.begin_text(messages))));
    }
} catch (const std::exception &error) {
    std::cerr << "chat: " << error.what() << "\n";
    return 1;
}
