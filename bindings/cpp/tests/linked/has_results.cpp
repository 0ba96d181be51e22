#include <mmada.hpp>

#include "parts.hpp"

std::string has_results(const char *path) {
    auto model = mmada::model::open(path);
    if (!model) return model.error().what();
    auto context = mmada::context::create(*model);
    if (!context) return context.error().what();
    auto answer = context->ask("What is 17 + 25?");
    return answer ? *answer : answer.error().what();
}
