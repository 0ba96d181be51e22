// A test program is a list of cases. It prints "test NAME ... ok" for each, and what was expected where one fails.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

struct test_case {
    const char *name;
    void (*run)();
};

inline std::vector<test_case> &cases() {
    static std::vector<test_case> all;
    return all;
}

inline int &failures() {
    static int count = 0;
    return count;
}

struct registered {
    registered(const char *name, void (*run)()) { cases().push_back({name, run}); }
};

#define TEST(name)                                  \
    static void name();                             \
    static const registered registered_##name(#name, name); \
    static void name()

#define CHECK(...)                                                                       \
    do {                                                                                 \
        if (!(__VA_ARGS__)) {                                                            \
            std::printf("%s:%d: this does not hold: %s\n", __FILE__, __LINE__, #__VA_ARGS__); \
            failures()++;                                                                \
        }                                                                                \
    } while (0)

// The arguments: the demo model, and what the command line draws with the prompt and seed below.
inline const char *&model_path() {
    static const char *path = nullptr;
    return path;
}
inline const char *&picture_path() {
    static const char *path = nullptr;
    return path;
}
constexpr const char *drawing = "a yellow star above a purple ring on a black background";
constexpr unsigned drawing_seed = 2;

// `guard` runs a case and says what it threw, if it can throw at all.
inline int run_all(int argc, char **argv, std::string (*guard)(void (*)())) {
    if (argc < 3) {
        std::printf("usage: %s MODEL.gguf PICTURE.png [CASE]\n", argv[0]);
        return 2;
    }
    model_path() = argv[1];
    picture_path() = argv[2];
    int failed = 0;
    for (const test_case &each : cases()) {
        if (argc > 3 && std::string(argv[3]) != each.name) continue;
        const int before = failures();
        const std::string thrown = guard(each.run);
        if (!thrown.empty()) {
            std::printf("%s threw: %s\n", each.name, thrown.c_str());
            failures()++;
        }
        const bool ok = failures() == before;
        std::printf("test %s ... %s\n", each.name, ok ? "ok" : "FAILED");
        std::fflush(stdout);
        failed += ok ? 0 : 1;
    }
    return failed == 0 ? 0 : 1;
}
