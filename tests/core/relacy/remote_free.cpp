// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// remote_free.cpp - K1 and the last one out of a slab, under Relacy. An owner fills the two blocks
// of a slab and leaves it; two others free one block each. A block that comes back may be filled
// again at once; the slab without owner goes back exactly once, whoever is last. The words are
// changed as `allocate`, `free_if_held`, `orphan_slab` and `retire_slab` change them.
#include "simulate.hpp"

namespace {

using namespace ipcbuf;
using R = RelacyAtomics;

constexpr std::uint64_t kFree = 0, kOwner = 1, kRetirer = 9;

struct RemoteFreeTest : rl::test_suite<RemoteFreeTest, 3> {
  rl::atomic<std::uint64_t> holder[2];
  rl::atomic<std::uint64_t> returned;
  rl::atomic<std::uint64_t> run;  // 1: the owner's slab, 0: nobody's, 2: free
  rl::atomic<int> passed[2];      // as a channel passes a block
  rl::var<int> body[2];
  rl::atomic<int> retired;

  void before() {
    for (int i = 0; i < 2; ++i) {
      holder[i].store(kFree, rl::mo_relaxed, $);
      passed[i].store(0, rl::mo_relaxed, $);
    }
    returned.store(0, rl::mo_relaxed, $);
    run.store(1, rl::mo_relaxed, $);
    retired.store(0, rl::mo_relaxed, $);
  }

  void thread(unsigned index) { index == 0 ? own() : use(static_cast<int>(index) - 1); }

  void fill(int i) {
    std::uint64_t nobody = kFree;
    RL_ASSERT(R::compare_exchange(holder[i], nobody, kOwner));  // K1 acquire
    body[i]($) = 7;
    passed[i].store(1, rl::mo_release, $);
  }

  void own() {
    fill(0);
    // A block that came back is taken again: its hint first, then its header.
    if ((R::exchange(returned, 0) & 1) != 0 && passed[0].load(rl::mo_relaxed, $) == 2) fill(0);
    fill(1);
    // orphan_slab
    std::uint64_t mine = 1;
    RL_ASSERT(R::compare_exchange(run, mine, 0));
    if (is_empty()) retire();
  }

  void use(int i) {
    for (int rounds = 0;; ++rounds) {
      for (;;) {
        const bool last = rounds > 0 && R::load_seq(run) != 1;  // then it will not come again
        if (passed[i].load(rl::mo_acquire, $) == 1) break;
        if (last) return;
        rl::yield(1, $);
      }
      RL_ASSERT(body[i]($) == 7);
      body[i]($) = 0;
      passed[i].store(2, rl::mo_relaxed, $);
      // free_if_held
      std::uint64_t held = kOwner;
      RL_ASSERT(R::compare_exchange(holder[i], held, kFree));  // K1 release
      R::fetch_or(returned, std::uint64_t{1} << i);
      if (R::load_seq(run) == 0 && is_empty()) retire();
      if (i == 1) return;
    }
  }

  bool is_empty() {
    for (auto& word : holder)
      if (R::load_seq(word) != kFree) return false;
    return true;
  }

  void retire() {
    for (int i = 0; i < 2;) {
      std::uint64_t nobody = kFree;
      if (R::compare_exchange(holder[i], nobody, kRetirer)) {
        ++i;
        continue;
      }
      while (i-- > 0) {
        std::uint64_t mine = kRetirer;
        RL_ASSERT(R::compare_exchange(holder[i], mine, kFree));
      }
      if (R::load_seq(run) != 0 || !is_empty()) return;
      i = 0;
    }
    RL_ASSERT(R::load_seq(run) == 0);
    run.store(2, rl::mo_relaxed, $);
    retired.fetch_add(1, rl::mo_relaxed, $);
  }

  void after() { RL_ASSERT(retired.load(rl::mo_relaxed, $) == 1); }
};

}  // namespace

int main(int argc, char** argv) {
  return exit_code(is_sound<RemoteFreeTest>("remote free", executions_of(argc, argv, 200'000)));
}
