#include <mmada.hpp>
#include <mmada.hpp>  // twice does no harm

#include "parts.hpp"

std::string throws_once(const char *path) {
    mmada::model model(path);
    return mmada::context(model).ask("What is 17 + 25?");
}
