// Barriers in shared memory (mbarrier) as the PTX manual has them (sections as in ISA 9.2: 9.7.13.15), with the transactions
// of bulk copies and the arrivals of cp.async: both come when somebody waits for the phase, and never before.
#include "mbarriers.h"

#include <algorithm>
#include <list>
#include <map>
#include <vector>

#include "tma.h"

namespace {

constexpr int64_t MOST_BYTES = (1 << 20) - 1;  // of what a phase waits for

struct Operation {
    uint32_t bytes;  // 0: an arrival
    std::function<void()> end;
};

struct Phases {
    uint32_t count, missing;
    unsigned initialized_by;
    bool fenced = false;     // so that the async proxy knows it
    uint32_t phase = 0;
    int64_t bytes = 0;       // expected, and not come
    std::list<Operation> on_their_way{};  // started in this phase
    // for ThreadSanitizer: of phases by parity, and of what is on its way
    char ordered[2]{}, started = 0;
};

std::map<uint32_t, Phases> barriers;
std::vector<bool> unfenced;  // pieces of 16 bytes

void begin_block() {
    const standin::Unseen unseen;
    barriers.clear();
    unfenced.clear();
}

void end_block() {
    for (const auto& [at, p] : barriers) {
        const bool copies = std::any_of(p.on_their_way.begin(), p.on_their_way.end(), [](auto& o) { return o.bytes > 0; });
        if (copies) standin::fail("a block ends while its bulk copies are on their way");
        if (p.bytes) standin::fail("a block ends while an mbarrier waits for bytes of copies");
    }
}
const standin::Blocks hooks(begin_block, end_block);

Phases& phases(uint64_t* barrier) {
    auto found = barriers.find(shared_address(barrier));
    if (found == barriers.end()) standin::fail("an mbarrier that was never initialized");
    return found->second;
}

void end_if_complete(Phases& p) {
    if (p.bytes > MOST_BYTES || p.bytes < -MOST_BYTES) standin::fail("an mbarrier waits for 2^20 bytes or more");
    if (p.missing || p.bytes) return;
    if (!p.on_their_way.empty()) standin::fail("a phase of an mbarrier ends before copies that it waits for");
    p.missing = p.count;
    p.phase++;
    standin::wake(&p);
}

void arrive(Phases& p, uint32_t bytes) {
    standin::release(&p.ordered[p.phase % 2]);
    if (!p.missing) standin::fail("more arrivals than an mbarrier was initialized with");
    p.bytes += bytes;
    p.missing--;
    end_if_complete(p);
}

void start(Phases& p, Operation operation) {
    standin::release(&p.started);
    {
        const standin::Unseen unseen;
        p.on_their_way.push_back(std::move(operation));
    }
    standin::wake(&p);
}

/// Ends the first that is on its way, as the current CUDA thread; false if there is none.
bool end_one(Phases& p) {
    if (p.on_their_way.empty()) return false;
    std::list<Operation> first;
    {
        const standin::Unseen unseen;
        first.splice(first.end(), p.on_their_way, p.on_their_way.begin());
    }
    standin::acquire(&p.started);
    const uint32_t bytes = first.front().bytes;
    first.front().end();
    {
        const standin::Unseen unseen;
        first.clear();
    }
    if (!bytes) {
        arrive(p, 0);
        return true;
    }
    standin::release(&p.ordered[p.phase % 2]);
    p.bytes -= bytes;
    end_if_complete(p);
    return true;
}

void mark(const void* at, size_t bytes, bool value) {
    const standin::Unseen unseen;
    const uint32_t start = standin::shared_offset(at);
    for (size_t piece = start / 16; piece <= (start + bytes - 1) / 16; piece++) {
        if (unfenced.size() <= piece) unfenced.resize(piece + 1);
        unfenced[piece] = value;
    }
}

void copied(void* to, size_t bytes) { mark(to, bytes, true); }

/// Announcing by a thread's own arrival what it has waited for, which wgmma is to read.
void check_fenced() {
    if (standin::copied_unfenced()) standin::fail("copies are announced without fence.proxy.async, and wgmma may not see them");
}

}  // namespace

void standin::transact(uint64_t* barrier, uint32_t bytes, std::function<void()> end) {
    Phases& p = phases(barrier);
    if (!p.fenced) fail("an mbarrier is used by a bulk copy without fence.proxy.async after its initialization");
    start(p, {bytes, std::move(end)});
}

void standin::wrote_async(const void* at, size_t bytes) { mark(at, bytes, false); }

bool standin::is_unfenced(const void* at) {
    const size_t piece = shared_offset(at) / 16;
    return piece < unfenced.size() && unfenced[piece];
}

void mbarrier_init(uint64_t* barrier, uint32_t count) {
    const standin::Unseen unseen;
    if (uintptr_t(barrier) % 8) standin::fail("an mbarrier at an address that is no multiple of 8");
    if (!barriers.emplace(shared_address(barrier), Phases{count, count, standin::number()}).second) {
        standin::fail("an mbarrier that is initialized twice");
    }
}

void mbarrier_arrive(uint64_t* barrier) {
    check_fenced();
    arrive(phases(barrier), 0);
}

void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
    check_fenced();
    arrive(phases(barrier), bytes);
}

void cp_async_mbarrier_arrive(uint64_t* barrier) {
    const unsigned self = standin::number();
    const uint64_t started = standin::copies_started();
    start(phases(barrier), {0, [=] { standin::finish_copies_of(self, started, copied); }});
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    Phases& p = phases(barrier);
    while (p.phase % 2 == parity) {
        if (!end_one(p)) standin::wait_for(&p);
    }
    standin::acquire(&p.ordered[parity]);
}

void fence_async_proxy() {
    standin::copied_unfenced() = false;
    for (auto& [at, p] : barriers) {
        if (p.initialized_by == standin::number()) p.fenced = true;
    }
    const standin::Unseen unseen;
    unfenced.clear();
}
