// What the driver looks at in PTX: the versions, and the entry points with their parameters.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace driver {

struct Entry {
    std::vector<size_t> parameters;  // sizes
    size_t most_threads = 1024;      // of a block
    size_t shared = 0;               // declared bytes
};

struct Ptx {
    int version = 0;     // of the instruction set: 10 major + minor
    int capability = 0;  // of the target: 10 major + minor
    char suffix = ' ';   // of the target: 'a' for that processor alone, 'f' for its family
    std::map<std::string, Entry> entries;
};

/// None where something that is needed cannot be read.
std::optional<Ptx> parse_ptx(const std::string& text);

/// The first driver that knows a version of the instruction set (PTX ISA, release notes), none for one that is not known here.
std::optional<int> driver_for(int ptx_version);

}  // namespace driver
