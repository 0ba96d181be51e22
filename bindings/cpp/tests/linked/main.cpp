// Several translation units that include the header, one of them without exceptions, in one program: linked MODEL.gguf
#include <cstdio>

#include "parts.hpp"

int main(int, char **argv) {
    const bool ok = throws_once(argv[1]) == "42" && throws_again(argv[1]) == "thrown through another unit" &&
                    has_results(argv[1]) == "42" && has_results("missing").find("missing") != std::string::npos;
    if (!ok) std::printf("the translation units disturb each other\n");
    return ok ? 0 : 1;
}
