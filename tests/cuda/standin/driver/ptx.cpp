#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>

namespace driver {
namespace {

/// Text that is taken word by word: names, numbers, directives, and single other characters. Comments are no words.
class Words {
   public:
    explicit Words(const std::string& text, size_t at = 0) : text(text), at(at) {}

    std::string next() {
        skip();
        const size_t start = at;
        while (at < text.size() && is_word(text[at])) at++;
        if (at == start && at < text.size()) at++;
        return text.substr(start, at - start);
    }
    bool done() {
        skip();
        return at >= text.size();
    }
    size_t position() const { return at; }

   private:
    static bool is_word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '.'; }
    void skip() {
        while (at < text.size()) {
            if (isspace(static_cast<unsigned char>(text[at]))) {
                at++;
            } else if (text.compare(at, 2, "//") == 0) {
                at = std::min(text.find('\n', at), text.size());
            } else if (text.compare(at, 2, "/*") == 0) {
                const size_t end = text.find("*/", at);
                at = end == std::string::npos ? text.size() : end + 2;
            } else {
                break;
            }
        }
    }

    const std::string& text;
    size_t at;
};

size_t number(const std::string& word) { return strtoull(word.c_str(), nullptr, 0); }

/// The size of a type like .u64, 0 for what is no type.
size_t size_of_type(const std::string& word) {
    if (word.size() < 3 || word[0] != '.' || !strchr("bsuf", word[1])) return 0;
    const size_t bits = number(word.substr(2));
    return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
}

/// The bytes of a variable, from its type on: `.align 8 .b8 name[24]`, up to the word `end` behind it.
size_t variable(Words& words, std::string& name, std::string& end) {
    size_t size = 0, count = 1;
    for (std::string word = words.next();; word = words.next()) {
        if (word == "," || word == ")" || word == ";" || word == "=" || word.empty()) {
            end = word;
            return size * count;
        }
        if (word == ".align" || word == ".ptr") {
            if (word == ".align") words.next();
        } else if (word == "[") {
            const std::string length = words.next();
            count *= length == "]" ? 0 : number(length);
        } else if (const size_t bytes = size_of_type(word)) {
            size = bytes;
        } else if (word[0] != '.' && word != "]") {
            name = word;
        }
    }
}

/// Passes the words of a body, behind its brace. Shared variables that are declared or named in it count.
size_t body(Words& words, const std::map<std::string, size_t>& outer) {
    size_t shared = 0;
    std::map<std::string, size_t> seen;
    for (int depth = 1; depth > 0 && !words.done();) {
        const std::string word = words.next();
        depth += word == "{" ? 1 : word == "}" ? -1 : 0;
        if (word == ".shared") {
            std::string name, end;
            shared += variable(words, name, end);
        } else if (auto found = outer.find(word); found != outer.end()) {
            seen.insert(*found);
        }
    }
    for (const auto& [name, bytes] : seen) shared += bytes;
    return shared;
}

void entry(Words& words, Ptx& ptx, const std::map<std::string, size_t>& shared) {
    Entry entry;
    const std::string entry_name = words.next();
    std::string word = words.next(), name;
    if (word == "(") {
        while (word != ")" && !words.done()) {
            word = words.next();
            if (word == ".param") entry.parameters.push_back(variable(words, name, word));
        }
        word = words.next();
    }
    while (word != "{" && !words.done()) {
        if (word == ".maxntid" || word == ".reqntid") {
            entry.most_threads = number(words.next());
            for (word = words.next(); word == ","; word = words.next()) entry.most_threads *= number(words.next());
        } else {
            word = words.next();
        }
    }
    entry.shared = body(words, shared);
    ptx.entries[entry_name] = entry;
}

}  // namespace

std::optional<Ptx> parse_ptx(const std::string& text) {
    Ptx ptx;
    std::map<std::string, size_t> shared;  // variables of the whole module
    Words words(text);
    bool visible = false;
    while (!words.done()) {
        const std::string word = words.next();
        if (word == ".version") {
            const std::string version = words.next();
            const size_t dot = version.find('.');
            if (dot == std::string::npos) return std::nullopt;
            ptx.version = int(10 * number(version.substr(0, dot)) + number(version.substr(dot + 1)));
        } else if (word == ".target") {
            const std::string target = words.next();
            if (target.compare(0, 3, "sm_") != 0) return std::nullopt;
            ptx.capability = int(number(target.substr(3)));
            ptx.suffix = isdigit(static_cast<unsigned char>(target.back())) ? ' ' : target.back();
        } else if (word == ".shared") {
            std::string name, end;
            const size_t bytes = variable(words, name, end);
            if (bytes) shared[name] = bytes;
        } else if (word == ".entry" && visible) {
            entry(words, ptx, shared);
        } else if (word == "{") {
            body(words, {});
        }
        visible = word == ".visible";
    }
    if (!ptx.version || !ptx.capability) return std::nullopt;
    return ptx;
}

std::optional<int> driver_for(int ptx_version) {
    if (ptx_version >= 70 && ptx_version <= 78) return 11000 + 10 * (ptx_version - 70);
    if (ptx_version >= 80 && ptx_version <= 85) return 12000 + 10 * (ptx_version - 80);
    switch (ptx_version) {
        case 86:
            return 12070;
        case 87:
            return 12080;
        case 88:
            return 12090;
        case 90:
            return 13000;
        default:
            return std::nullopt;
    }
}

}  // namespace driver
