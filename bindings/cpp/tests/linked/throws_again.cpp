#include <mmada.h>
#include <mmada.hpp>

#include "parts.hpp"

std::string throws_again(const char *path) {
    mmada::model model(path);
    mmada::context_options options;
    options.log_level = mmada::log_level::debug;
    options.log = [](mmada::log_level, std::string_view) { throw std::string("thrown through another unit"); };
    try {
        return mmada::context(model, options).ask("What is 17 + 25?");
    } catch (const std::string &thrown) {
        return thrown;
    }
}
