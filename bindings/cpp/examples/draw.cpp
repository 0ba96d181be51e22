// Draws a picture: draw MODEL.gguf PROMPT OUT.png [SEED]
#include <iostream>
#include <mmada.hpp>

int main(int argc, char **argv) try {
    if (argc < 4) {
        std::cerr << "usage: draw MODEL.gguf PROMPT OUT.png [SEED]\n";
        return 2;
    }
    mmada::model model(argv[1]);
    mmada::context context(model);
    mmada::image_options options;
    options.seed = argc > 4 ? std::stoull(argv[4]) : 0;
    auto generation = context.begin_image(argv[2], options);
    for (const auto &step : generation.steps()) {
        std::cerr << "\r" << step.index << "/" << step.total;
    }
    std::cerr << "\n";
    generation.image().save(argv[3]);
} catch (const std::exception &error) {
    std::cerr << "draw: " << error.what() << "\n";
    return 1;
}
