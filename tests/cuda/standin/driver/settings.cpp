// What tests decide and count, over two functions that they look up by name.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace driver {
namespace {

uint64_t number(const std::string& text) {
    char* end;
    const uint64_t value = strtoull(text.c_str(), &end, 10);
    if (text.empty() || *end) {
        fprintf(stderr, "the stand-in for the CUDA driver does not take %s for a number\n", text.c_str());
        abort();
    }
    return value;
}

/// Two numbers with something between.
std::pair<uint64_t, uint64_t> numbers(const std::string& text, char between) {
    const size_t at = text.find(between);
    if (at == std::string::npos) return {number(text), number("")};
    return {number(text.substr(0, at)), number(text.substr(at + 1))};
}

struct Setting {
    const char* name;
    void (*set)(Settings& settings, const std::string& value);
};
const Setting SETTINGS[] = {
    {"MMADA_STANDIN_DEVICES", [](Settings& s, const std::string& v) { s.devices = int(number(v)); }},
    {"MMADA_STANDIN_MEMORY", [](Settings& s, const std::string& v) { s.memory = number(v); }},
    {"MMADA_STANDIN_DRIVER", [](Settings& s, const std::string& v) {
         auto [major, minor] = numbers(v, '.');
         s.version = int(1000 * major + 10 * minor);
     }},
    {"MMADA_STANDIN_CAPABILITY", [](Settings& s, const std::string& v) {
         auto [major, minor] = numbers(v, '.');
         s.major = int(major), s.minor = int(minor);
     }},
    {"MMADA_STANDIN_MULTIPROCESSORS", [](Settings& s, const std::string& v) { s.multiprocessors = int(number(v)); }},
    {"MMADA_STANDIN_NAME", [](Settings& s, const std::string& v) { s.name = v; }},
    {"MMADA_STANDIN_QUIET", [](Settings& s, const std::string& v) { s.quiet = number(v) != 0; }},
    {"MMADA_STANDIN_FAIL_LAUNCH", [](Settings& s, const std::string& v) {
         auto [calls, error] = numbers(v, ':');
         s.fail_launch = calls, s.launch_error = CUresult(error);
     }},
    {"MMADA_STANDIN_FAIL_KERNEL", [](Settings& s, const std::string& v) {
         const size_t at = v.find(':');
         s.fail_kernel = v.substr(0, at), s.kernel_error = CUresult(number(at == std::string::npos ? "" : v.substr(at + 1)));
     }},
    {"MMADA_STANDIN_SKIP_KERNEL", [](Settings& s, const std::string& v) { s.skip_kernel = v; }},
    {"MMADA_STANDIN_FAIL_ALLOCATION", [](Settings& s, const std::string& v) { s.fail_allocation = number(v); }},
    {"MMADA_STANDIN_FAIL_MODULE", [](Settings& s, const std::string& v) { s.fail_module = number(v); }},
    {"MMADA_STANDIN_FAIL_GRAPH", [](Settings& s, const std::string& v) { s.fail_graph = number(v); }},
    {"MMADA_STANDIN_RECOVERS", [](Settings& s, const std::string& v) { s.recovers = number(v) != 0; }},
};

struct Counter {
    const char* name;
    uint64_t Counters::* value;
};
const Counter COUNTERS[] = {
    {"launch_calls", &Counters::launch_calls}, {"graph_launches", &Counters::graph_launches},
    {"kernels", &Counters::kernels},           {"waits", &Counters::waits},
    {"bytes_up", &Counters::bytes_up},         {"bytes_down", &Counters::bytes_down},
    {"allocations", &Counters::allocations},   {"bytes", &Counters::bytes},
    {"peak_bytes", &Counters::peak_bytes},     {"pinned", &Counters::pinned},
    {"objects", &Counters::objects},           {"contexts", &Counters::contexts},
};

}  // namespace

Settings settings_of_environment() {
    Settings settings;
    for (const Setting& setting : SETTINGS) {
        if (const char* value = getenv(setting.name)) setting.set(settings, value);
    }
    return settings;
}

Settings& settings() {
    static auto& settings = *new Settings(settings_of_environment());
    return settings;
}

bool is_to_fail(uint64_t& calls) { return calls && --calls == 0; }

Counters& counters() {
    static auto& counters = *new Counters;
    return counters;
}

}  // namespace driver

/// Sets what an environment variable of that name sets at the start; 0 if there is no such setting.
EXPORT int mmada_standin_set(const char* name, const char* value) {
    std::lock_guard<std::mutex> lock(driver::state().lock);
    for (const driver::Setting& setting : driver::SETTINGS) {
        if (strcmp(setting.name, name)) continue;
        setting.set(driver::settings(), value);
        return 1;
    }
    return 0;
}

/// What the driver has last explained; valid until it explains something else.
EXPORT const char* mmada_standin_message() {
    std::lock_guard<std::mutex> lock(driver::state().lock);
    return driver::state().message.c_str();
}

/// A counter, or the largest number if there is none of that name. "peak_bytes" begins anew with each call that asks for it.
/// "ran NAME" is how often the kernel NAME ran.
EXPORT uint64_t mmada_standin_count(const char* name) {
    std::lock_guard<std::mutex> lock(driver::state().lock);
    driver::Counters& counters = driver::counters();
    for (const driver::Counter& counter : driver::COUNTERS) {
        if (strcmp(counter.name, name)) continue;
        const uint64_t value = counters.*counter.value;
        counters.peak_bytes = counter.value == &driver::Counters::peak_bytes ? counters.bytes : counters.peak_bytes;
        return value;
    }
    if (strncmp(name, "ran ", 4) == 0) return counters.ran[name + 4];
    return UINT64_MAX;
}
