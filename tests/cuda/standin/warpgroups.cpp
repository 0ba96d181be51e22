// What the PTX in hopper.cuh does, from the PTX manual (ISA 8.0 on; sections as in ISA 9.2): products of warpgroups, which are
// asynchronous (9.7.15), and registers that move (setmaxnreg).
//
// A product reads shared memory at some time between its start and the end of the wait for it: its operands are read at the
// start, and must still be the same at the end, when the last thread has waited. Its accumulators hold bytes of ones in the
// meantime, which nobody may have written to, and a first operand in registers must stay as it was.
#include "warpgroups.h"

#include <list>
#include <map>
#include <vector>

#include "mbarriers.h"

namespace {

constexpr int WARPGROUP = 128;
constexpr int SLICE = 32;  // bytes of a row that one product takes
constexpr uint32_t ON_ITS_WAY = 0xffffffffu;

/// An accumulator of a thread, and what it will hold.
struct Accumulator {
    uint32_t* registers;
    std::vector<uint32_t> value;
    uint64_t group;  // of the last product
};

/// The part of a first operand that a thread has in registers, while a product reads it.
struct Fragment {
    const uint32_t* registers;
    uint32_t seen[4];
    uint64_t group;
};

struct Thread {
    bool fenced = false;
    uint64_t groups = 0, waited = 0;  // committed, and waited for
    std::vector<Accumulator> accumulators;
    std::vector<Fragment> fragments;
};

/// In shared memory: `rows` rows of A, or columns of B, by a slice of k; none of an A that is in registers. `transposed`:
/// M-major, or N-major.
struct Operand {
    uint64_t descriptor;
    int rows;
    bool transposed;
    std::vector<unsigned char> seen;
};

struct Product {
    Operand a, b;
    uint64_t group;
    int threads = WARPGROUP;  // that have not waited for it
};

std::map<unsigned, Thread> threads;
std::map<unsigned, std::list<Product>> products;  // of warpgroups
std::map<unsigned, int> registers;                // of threads of warpgroups

/// Registers of a thread before setmaxnreg: a processor has 65536, and a thread a multiple of 8.
int registers_at_start() { return int(65536 / standin::block_size().x / 8 * 8); }

void begin_block() {
    const standin::Unseen unseen;
    threads.clear();
    products.clear();
    registers.clear();
}

void end_block() {
    for (const auto& [warpgroup, left] : products) {
        if (!left.empty()) standin::fail("a warpgroup ends while its products are on their way");
    }
    int sum = 0;
    for (const auto& [warpgroup, count] : registers) sum += count;
    if (sum > int(registers.size()) * registers_at_start()) standin::fail("warpgroups ask for more registers than there are");
}
const standin::Blocks hooks(begin_block, end_block);

Thread& self() {
    const standin::Unseen unseen;
    return threads[standin::number()];
}
unsigned warpgroup() { return standin::number() / WARPGROUP; }

/// What a descriptor has (9.7.15.5.1.2, "Matrix descriptor"), of operands with the swizzle of 128 bytes.
struct Fields {
    uint32_t start, leading, stride;
    explicit Fields(uint64_t d)
        : start(uint32_t(d & 0x3fff) << 4), leading(uint32_t(d >> 16 & 0x3fff) << 4), stride(uint32_t(d >> 32 & 0x3fff) << 4) {
        if (d >> 62 != 1) standin::fail("an operand of wgmma without the swizzle of 128 bytes, which is all that there is here");
        if (d & ~0xc0003fff3fff3fffull) standin::fail("an operand of wgmma with a base offset, or with reserved bits");
    }
};

/// 16 bytes of shared memory at an address before the swizzle, by which its bits 4 to 6 change with bits 7 to 9.
const void* swizzled(uint32_t plain) { return standin::shared_at(plain ^ (plain >> 7 & 7) << 4, 16); }

/// Every 16 bytes of a K-major operand: rows of a slice of k. The stride is from eight rows to the next, and a row of 128
/// bytes holds all of k that a swizzle atom has; the leading offset is not used.
template <class Piece>
void for_pieces_k_major(const Operand& operand, const Piece& piece) {
    const Fields at(operand.descriptor);
    if (at.start % 1024 >= 128) standin::fail("an operand of wgmma that does not begin where the swizzle does");
    for (int row = 0; row < operand.rows; row++) {
        for (int k = 0; k < SLICE; k += 16) {
            piece(size_t(row * SLICE + k), swizzled(at.start + uint32_t(row / 8) * at.stride + uint32_t(row % 8 * 128 + k)));
        }
    }
}

/// Every 16 bytes of an MN-major operand of 16-bit elements: for each of the 16 of k, 8 rows of M or N after the other. A
/// swizzle atom is 64 of M or N, which lie side by side, by 8 of k (9.7.15.5.1.2, table of atoms: 8x8 of 128 bits). By
/// "Strides" there, the leading offset is from the first 8 of 128 bits along M or N to the next, and the stride from
/// the first 8 of k to the next. With elements of 128 bits that is ((8,n),(8,k)):((1,leading),(8,stride)).
template <class Piece>
void for_pieces_mn_major(const Operand& operand, const Piece& piece) {
    const Fields at(operand.descriptor);
    const bool aligned = at.stride % 1024 == 0 && (operand.rows <= 64 || at.leading % 1024 == 0);
    if (at.start % 1024 || !aligned) standin::fail("an operand of wgmma whose atoms do not begin where the swizzle does");
    for (int k = 0; k < SLICE / 2; k++) {
        for (int unit = 0; unit < operand.rows / 8; unit++) {
            const uint32_t along_rows = uint32_t(unit / 8) * at.leading + uint32_t(unit % 8 * 16);
            const uint32_t along_k = uint32_t(k / 8) * at.stride + uint32_t(k % 8 * 128);
            piece(size_t(k * operand.rows * 2 + unit * 16), swizzled(at.start + along_rows + along_k));
        }
    }
}

template <class Piece>
void for_pieces(const Operand& operand, const Piece& piece) {
    if (operand.transposed) {
        for_pieces_mn_major(operand, piece);
    } else {
        for_pieces_k_major(operand, piece);
    }
}

std::vector<unsigned char> read(const Operand& operand) {
    if (operand.rows == 0) return {};
    for_pieces(operand, [](size_t, const void* from) {
        if (standin::is_unfenced(from)) standin::fail("wgmma reads what cp.async has written, without fence.proxy.async");
        standin::reads_16(from);
    });
    const standin::Unseen unseen;
    std::vector<unsigned char> bytes(size_t(operand.rows) * SLICE);
    for_pieces(operand, [&](size_t at, const void* from) { memcpy(&bytes[at], from, 16); });
    return bytes;
}

/// An operand as rows of a slice of k.
std::vector<unsigned char> rows_of(const Operand& operand) {
    if (!operand.transposed) return operand.seen;
    std::vector<unsigned char> rows(operand.seen.size());
    for (int k = 0; k < SLICE / 2; k++) {
        for (int row = 0; row < operand.rows; row++) {
            memcpy(&rows[size_t(row * SLICE + 2 * k)], &operand.seen[size_t((k * operand.rows + row) * 2)], 2);
        }
    }
    return rows;
}

struct Call {
    uint32_t* registers;
    int count;
    uint64_t a, b;
    bool add;
    const uint32_t* fragment = nullptr;  // a in registers
    bool transposed = false;             // b
};

/// Sums of products, element after element.
struct Bfloat16 {
    static uint32_t dot(uint32_t start, const unsigned char* a, const unsigned char* b) {
        float sum = __uint_as_float(start);
        for (int k = 0; k < SLICE; k += 2) sum += at(a + k) * at(b + k);
        return __float_as_uint(sum);
    }
    static float at(const unsigned char* p) { return __uint_as_float(unsigned(p[0]) << 16 | unsigned(p[1]) << 24); }
};
struct Int8 {
    static uint32_t dot(uint32_t start, const unsigned char* a, const unsigned char* b) {
        uint32_t sum = start;
        for (int k = 0; k < SLICE; k++) sum += uint32_t(int(int8_t(a[k])) * int(int8_t(b[k])));
        return sum;
    }
};

/// The accumulator of a thread: the one that is on its way, or what the registers hold.
Accumulator& accumulator(Thread& thread, const Call& call) {
    for (Accumulator& on_its_way : thread.accumulators) {
        if (on_its_way.registers == call.registers) return on_its_way;
    }
    thread.accumulators.push_back({call.registers, {call.registers, call.registers + call.count}, 0});
    for (int i = 0; i < call.count; i++) call.registers[i] = ON_ITS_WAY;
    return thread.accumulators.back();
}

/// A first operand of 16-bit elements that is in registers (9.7.15.5.1.1.1): element `i` of the eight of thread `t` is of row
/// 16 (t / 32) + t % 32 / 4, 8 more where bit 1 of i is set, and of k 2 (t % 4) + i % 2, 8 more where bit 2 is set.
std::vector<unsigned char> rows_of_fragments(void* const (&all)[WARPGROUP]) {
    std::vector<unsigned char> rows(64 * SLICE);
    for (int t = 0; t < WARPGROUP; t++) {
        const uint32_t* fragment = static_cast<const Call*>(all[t])->fragment;
        for (int i = 0; i < 8; i++) {
            const int row = t / 32 * 16 + t % 32 / 4 + (i & 2 ? 8 : 0), k = t % 4 * 2 + i % 2 + (i & 4 ? 8 : 0);
            const uint32_t element = fragment[i / 2] >> (i % 2 * 16);
            rows[size_t(row * SLICE + 2 * k)] = static_cast<unsigned char>(element);
            rows[size_t(row * SLICE + 2 * k + 1)] = static_cast<unsigned char>(element >> 8);
        }
    }
    return rows;
}

/// That all threads of the warpgroup ask for the same product, and its group.
uint64_t check(void* const (&all)[WARPGROUP], unsigned first) {
    const Call& call = *static_cast<const Call*>(all[0]);
    const uint64_t group = threads[first].groups;
    for (unsigned t = 0; t < WARPGROUP; t++) {
        const Call& other = *static_cast<const Call*>(all[t]);
        if (other.a != call.a || other.b != call.b || other.add != call.add || threads[first + t].groups != group) {
            standin::fail("threads of a warpgroup do not ask for the same product");
        }
        if (!threads[first + t].fenced) standin::fail("a wgmma without wgmma.fence, though its registers may have been used");
    }
    return group;
}

/// The product of a warpgroup, all of whose threads have come. Register `i` of thread `t` is of row 16 (t / 32) + t % 32 / 4
/// and 8 more for odd i / 2, and of column 8 (i / 4) + 2 (t % 4) + i % 2.
template <class T>
void multiply(void* const (&all)[WARPGROUP], unsigned first) {
    const Call& call = *static_cast<const Call*>(all[0]);
    Product product{{call.a, call.fragment ? 0 : 64, false, {}}, {call.b, 2 * call.count, call.transposed, {}}, check(all, first)};
    product.a.seen = read(product.a);
    product.b.seen = read(product.b);
    const standin::Unseen unseen;
    const auto a = call.fragment ? rows_of_fragments(all) : rows_of(product.a), b = rows_of(product.b);
    for (int t = 0; t < WARPGROUP; t++) {
        const Call& mine = *static_cast<const Call*>(all[t]);
        Thread& thread = threads[first + unsigned(t)];
        if (const uint32_t* f = mine.fragment) thread.fragments.push_back({f, {f[0], f[1], f[2], f[3]}, product.group});
        Accumulator& to = accumulator(thread, mine);
        to.group = product.group;
        for (int i = 0; i < call.count; i++) {
            const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
            uint32_t& d = to.value[size_t(i)];
            d = T::dot(call.add ? d : 0, &a[size_t(row * SLICE)], &b[size_t(column * SLICE)]);
        }
    }
    products[first / WARPGROUP].push_back(std::move(product));
}

void finish(const Product& product) {
    const auto a = read(product.a), b = read(product.b);
    const standin::Unseen unseen;
    if (a != product.a.seen || b != product.b.seen) {
        standin::fail("shared memory was written while wgmma was reading it");
    }
}

/// What all threads of a warpgroup have to do at once (".aligned"), whether or not it is one thing for all of them.
void aligned(int operation) {
    standin::together_in_group(operation, nullptr, [](void* const (&)[WARPGROUP], unsigned) {});
}

}  // namespace

void set_registers(int count) {
    if (count % 8 || count < 24 || count > 256) standin::fail("setmaxnreg of a number that is not 24, 32 .. 256");
    aligned(20);
    const standin::Unseen unseen;
    registers[warpgroup()] = count;
}

void trap_if(bool condition) {
    if (condition) standin::fail("trap");
}

void cp_async_4(void* shared, const void* global, bool there) {
    if (uintptr_t(shared) % 4 || (there && uintptr_t(global) % 4)) {
        standin::fail("cp.async of 4 bytes from or to an address that is no multiple of 4");
    }
    standin::start_copy(shared, there ? global : nullptr, 4);
}

void wgmma_fence() {
    aligned(22);
    self().fenced = true;
}
void wgmma_commit() {
    aligned(23);
    self().groups++;
}
void wgmma_wait_all_but(int groups) {
    aligned(24 + groups);
    Thread& thread = self();
    const uint64_t until = thread.groups < uint64_t(groups) ? 0 : thread.groups - uint64_t(groups);
    std::list<Product> ended;
    {
        const standin::Unseen unseen;
        auto& on_their_way = products[warpgroup()];
        for (auto product = on_their_way.begin(); product != on_their_way.end();) {
            const auto next = std::next(product);
            const bool waits_now = product->group >= thread.waited && product->group < until;
            if (waits_now && --product->threads == 0) ended.splice(ended.end(), on_their_way, product);
            product = next;
        }
    }
    for (const Product& product : ended) finish(product);
    const standin::Unseen unseen;
    ended.clear();
    if (until > thread.waited) thread.waited = until;
    auto& fragments = thread.fragments;
    for (size_t i = 0; i < fragments.size();) {
        const Fragment& read = fragments[i];
        if (read.group >= until) {
            i++;
            continue;
        }
        if (memcmp(read.registers, read.seen, sizeof(read.seen)) != 0) {
            standin::fail("a first operand of wgmma in registers was written while it was on its way");
        }
        fragments.erase(fragments.begin() + long(i));
    }
    auto& accumulators = thread.accumulators;
    for (size_t i = 0; i < accumulators.size();) {
        Accumulator& done = accumulators[i];
        if (done.group >= until) {
            i++;
            continue;
        }
        for (size_t r = 0; r < done.value.size(); r++) {
            if (done.registers[r] != ON_ITS_WAY) standin::fail("an accumulator of wgmma was written while it was on its way");
            done.registers[r] = done.value[r];
        }
        accumulators.erase(accumulators.begin() + long(i));
        thread.fenced = false;
    }
}

void wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b) {
    Call call{reinterpret_cast<uint32_t*>(d), 128, a, b, true};
    standin::together_in_group(21, &call, multiply<Bfloat16>);
}
void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b) {
    Call call{reinterpret_cast<uint32_t*>(d), 64, a, b, true};
    standin::together_in_group(22, &call, multiply<Bfloat16>);
}
void wgmma_bf16_new(float (&d)[64], uint64_t a, uint64_t b) {
    Call call{reinterpret_cast<uint32_t*>(d), 64, a, b, false};
    standin::together_in_group(24, &call, multiply<Bfloat16>);
}
void wgmma_bf16_transposed(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    Call call{reinterpret_cast<uint32_t*>(d), 64, 0, b, true, a, true};
    standin::together_in_group(25, &call, multiply<Bfloat16>);
}
void wgmma_bf16_transposed(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    Call call{reinterpret_cast<uint32_t*>(d), 32, 0, b, true, a, true};
    standin::together_in_group(26, &call, multiply<Bfloat16>);
}
void wgmma_s8(int (&d)[64], uint64_t a, uint64_t b, bool add) {
    Call call{reinterpret_cast<uint32_t*>(d), 64, a, b, add};
    standin::together_in_group(23, &call, multiply<Int8>);
}
