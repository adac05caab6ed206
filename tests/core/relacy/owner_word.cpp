// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// owner_word.cpp - core/owner_word.hpp under Relacy: O1 to O3 and W1. Three processes take turns at
// a plain variable; one of them may die inside, and who takes its lock over recovers first. What
// no release orders is reported as a race, a sleeper that is forgotten as a livelock.
#include "ipcbuf/owner_word.hpp"

#include "simulate.hpp"

namespace {

using namespace ipcbuf;
using R = RelacyAtomics;

template <bool kOneDies>
struct OwnerWordTest : rl::test_suite<OwnerWordTest<kOneDies>, 3> {
  OwnerWord<R> lock;
  rl::atomic<std::uint32_t> dead;  // what the kernel says: behind everything the dead has done
  rl::var<int> guarded;
  rl::var<int> half_done;
  platform::Futex futex;

  void before() {
    lock.reset();
    dead.store(0, rl::mo_relaxed, $);
    guarded($) = 0;
    half_done($) = 0;
    futex.reset();
    futex.has_slices = kOneDies;  // without a death no slice is needed
    platform::the_futex = &futex;
  }

  void thread(unsigned index) {
    const std::uint32_t me = index + 1;
    for (int round = 0; round < 2; ++round) {
      const bool held = lock.acquire(
          me, platform::kForever,
          [&](std::uint32_t owner) { return dead.load(rl::mo_acquire, $) == owner; },
          [&] { half_done($) = 0; });
      RL_ASSERT(held);
      RL_ASSERT(half_done($) == 0);  // O1, O3
      half_done($) = 1;
      guarded($) = guarded($) + 1;
      if (kOneDies && index == 0 && round == 1) {
        dead.store(me, rl::mo_release, $);  // inside
        return;
      }
      half_done($) = 0;
      lock.release();
    }
  }

  void after() { RL_ASSERT(guarded($) == 6); }
};

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t executions = executions_of(argc, argv, 20'000);
  const bool living = is_sound<OwnerWordTest<false>>("owner word, all live", executions, 20'000);
#ifdef IPCBUF_WEAKEN
  return living ? 1 : 0;  // a model that does not see this is no proof
#else
  return is_sound<OwnerWordTest<true>>("owner word, one dies inside", executions, 20'000) && living
             ? 0
             : 1;
#endif
}
