// What the PTX in hopper.cuh does, from the PTX manual (ISA 8.0 on; sections as in ISA 9.2): products of warpgroups, which are
// asynchronous (9.7.15), barriers in shared memory (mbarrier) and registers that move (setmaxnreg).
//
// A product reads shared memory at some time between its start and the end of the wait for it: its operands are read at the
// start, and must still be the same at the end, when the last thread has waited. Its accumulators hold bytes of ones in the
// meantime, which nobody may have written to.
#include "warpgroups.h"

#include <list>
#include <map>
#include <vector>

namespace {

constexpr int WARPGROUP = 128;
constexpr int SLICE = 32;  // bytes of a row that one product takes
constexpr uint32_t ON_ITS_WAY = 0xffffffffu;

struct Phases {
    uint32_t count, missing, phase = 0;
    char ordered[2];  // for ThreadSanitizer, of phases by parity
};

/// An accumulator of a thread, and what it will hold.
struct Accumulator {
    uint32_t* registers;
    std::vector<uint32_t> value;
    uint64_t group;  // of the last product
};

struct Thread {
    bool fenced = false;
    uint64_t groups = 0, waited = 0;  // committed, and waited for
    std::vector<Accumulator> accumulators;
};

struct Operand {
    uint64_t descriptor;
    int rows;
    std::vector<unsigned char> seen;
};

struct Product {
    Operand a, b;
    uint64_t group;
    int threads = WARPGROUP;  // that have not waited for it
};

std::map<uint32_t, Phases> barriers;
std::map<unsigned, Thread> threads;
std::map<unsigned, std::list<Product>> products;  // of warpgroups
std::map<unsigned, int> registers;                // of threads of warpgroups

/// Registers of a thread before setmaxnreg: a processor has 65536, and a thread a multiple of 8.
int registers_at_start() { return int(65536 / standin::block_size().x / 8 * 8); }

void begin_block() {
    const standin::Unseen unseen;
    barriers.clear();
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

Phases& phases(uint64_t* barrier) {
    auto found = barriers.find(shared_address(barrier));
    if (found == barriers.end()) standin::fail("an mbarrier that was never initialized");
    return found->second;
}

/// Every 16 bytes of an operand, as the matrix descriptor has them: address, offset from eight rows to the next, base offset,
/// swizzle. K-major with the swizzle of 128 bytes, where bits 4 to 6 of an address change with bits 7 to 9.
template <class Piece>
void for_pieces(const Operand& operand, const Piece& piece) {
    const uint64_t d = operand.descriptor;
    const auto start = uint32_t(d & 0x3fff) << 4, eight_rows = uint32_t(d >> 32 & 0x3fff) << 4;
    if (d >> 62 != 1) standin::fail("an operand of wgmma without the swizzle of 128 bytes, which is all that there is here");
    if (d & ~0xc0003fff3fff3fffull) standin::fail("an operand of wgmma with a base offset, or with reserved bits");
    if (start % 1024 >= 128) standin::fail("an operand of wgmma that does not begin where the swizzle does");
    for (int row = 0; row < operand.rows; row++) {
        for (int at = 0; at < SLICE; at += 16) {
            const uint32_t plain = start + uint32_t(row / 8) * eight_rows + uint32_t(row % 8 * 128 + at);
            piece(size_t(row * SLICE + at), standin::shared_at(plain ^ (plain >> 7 & 7) << 4, 16));
        }
    }
}

std::vector<unsigned char> read(const Operand& operand) {
    for_pieces(operand, [](size_t, const void* from) { standin::reads_16(from); });
    const standin::Unseen unseen;
    std::vector<unsigned char> bytes(size_t(operand.rows) * SLICE);
    for_pieces(operand, [&](size_t at, const void* from) { memcpy(&bytes[at], from, 16); });
    return bytes;
}

struct Call {
    uint32_t* registers;
    int count;
    uint64_t a, b;
    bool add;
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

/// The product of a warpgroup, all of whose threads have come. Register `i` of thread `t` is of row 16 (t / 32) + t % 32 / 4
/// and 8 more for odd i / 2, and of column 8 (i / 4) + 2 (t % 4) + i % 2.
template <class T>
void multiply(void* const (&all)[WARPGROUP], unsigned first) {
    const Call& call = *static_cast<const Call*>(all[0]);
    const uint64_t group = threads[first].groups;
    for (unsigned t = 0; t < WARPGROUP; t++) {
        const Call& other = *static_cast<const Call*>(all[t]);
        if (other.a != call.a || other.b != call.b || other.add != call.add || threads[first + t].groups != group) {
            standin::fail("threads of a warpgroup do not ask for the same product");
        }
        if (!threads[first + t].fenced) standin::fail("a wgmma without wgmma.fence, though its registers may have been used");
    }
    Product product{{call.a, 64, {}}, {call.b, 2 * call.count, {}}, group};
    product.a.seen = read(product.a);
    product.b.seen = read(product.b);
    const standin::Unseen unseen;
    for (int t = 0; t < WARPGROUP; t++) {
        Accumulator& to = accumulator(threads[first + unsigned(t)], *static_cast<const Call*>(all[t]));
        to.group = group;
        for (int i = 0; i < call.count; i++) {
            const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
            uint32_t& d = to.value[size_t(i)];
            d = T::dot(call.add ? d : 0, &product.a.seen[size_t(row * SLICE)], &product.b.seen[size_t(column * SLICE)]);
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

}  // namespace

void set_registers(int count) {
    if (count % 8 || count < 24 || count > 256) standin::fail("setmaxnreg of a number that is not 24, 32 .. 256");
    standin::together_in_group(20, nullptr, [](void* const (&)[WARPGROUP], unsigned) {});
    const standin::Unseen unseen;
    registers[warpgroup()] = count;
}

void mbarrier_init(uint64_t* barrier, uint32_t count) {
    const standin::Unseen unseen;
    if (uintptr_t(barrier) % 8) standin::fail("an mbarrier at an address that is no multiple of 8");
    if (!barriers.emplace(shared_address(barrier), Phases{count, count, 0, {}}).second) {
        standin::fail("an mbarrier that is initialized twice");
    }
}
void mbarrier_arrive(uint64_t* barrier) {
    if (standin::copied_unfenced()) standin::fail("copies are announced without fence.proxy.async, and wgmma may not see them");
    Phases& p = phases(barrier);
    standin::release(&p.ordered[p.phase % 2]);
    if (--p.missing) return;
    p.missing = p.count;
    p.phase++;
    standin::wake(&p);
}
void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    Phases& p = phases(barrier);
    while (p.phase % 2 == parity) standin::wait_for(&p);
    standin::acquire(&p.ordered[parity]);
}

void cp_async_4(void* shared, const void* global, bool there) {
    if (uintptr_t(shared) % 4 || (there && uintptr_t(global) % 4)) {
        standin::fail("cp.async of 4 bytes from or to an address that is no multiple of 4");
    }
    standin::start_copy(shared, there ? global : nullptr, 4);
}
void fence_async_proxy() { standin::copied_unfenced() = false; }

void wgmma_fence() { self().fenced = true; }
void wgmma_commit() { self().groups++; }
void wgmma_wait_all_but(int groups) {
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
void wgmma_s8(int (&d)[64], uint64_t a, uint64_t b, bool add) {
    Call call{reinterpret_cast<uint32_t*>(d), 64, a, b, add};
    standin::together_in_group(23, &call, multiply<Int8>);
}
