// Asks a question, about a picture if one is given: ask MODEL.gguf QUESTION [PICTURE]
#include <iostream>
#include <mmada.hpp>

int main(int argc, char **argv) try {
    if (argc < 3) {
        std::cerr << "usage: ask MODEL.gguf QUESTION [PICTURE]\n";
        return 2;
    }
    mmada::model model(argv[1]);
    mmada::context context(model);
    if (argc > 3) {
        const auto picture = mmada::image::load(argv[3]);
        std::cout << context.ask(argv[2], picture) << "\n";
    } else {
        std::cout << context.ask(argv[2]) << "\n";
    }
} catch (const std::exception &error) {
    std::cerr << "ask: " << error.what() << "\n";
    return 1;
}
