// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// doorbell.cpp - D1 of core/doorbell.hpp under Relacy: a publisher counts to kMessages, a sleeper
// waits for each number, and no slice ever wakes it. A lost wake-up is a sleeper that nobody
// wakes: Relacy calls it a livelock.
#include "ipcbuf/doorbell.hpp"

#include "simulate.hpp"

namespace {

using namespace ipcbuf;
using R = RelacyAtomics;

template <bool kAsymmetric>
struct DoorbellTest : rl::test_suite<DoorbellTest<kAsymmetric>, 2> {
  static constexpr std::uint32_t kMessages = 2;
  BellRow row;
  rl::atomic<std::uint32_t> published;
  platform::Futex futex;

  void before() {
    row.word.store(0, rl::mo_relaxed, $);
    published.store(0, rl::mo_relaxed, $);
    futex.reset();
    platform::the_futex = &futex;
  }
  void thread(unsigned index) { index == 0 ? publish() : receive(); }

  void publish() {
    Doorbell<R> bell(row, kAsymmetric);
    for (std::uint32_t i = 1; i <= kMessages; ++i) {
      published.store(i, rl::mo_release, $);
      bell.ring_futex();
    }
  }
  void receive() {
    Doorbell<R> bell(row, kAsymmetric);
    for (std::uint32_t i = 1; i <= kMessages; ++i) {
      while (published.load(rl::mo_acquire, $) < i) {
        const std::uint32_t word = bell.announce();
        if (published.load(rl::mo_acquire, $) >= i) break;
        bell.sleep(word, platform::kForever);
      }
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t executions = executions_of(argc, argv, 200'000);
  const bool asymmetric =
      is_sound<DoorbellTest<true>>("doorbell, barrier at the sleeper", executions);
#ifdef IPCBUF_WEAKEN  // without the barrier; a model that does not see this is no proof
  return asymmetric ? 1 : 0;
#else
  return is_sound<DoorbellTest<false>>("doorbell, fence at the publisher", executions) && asymmetric
             ? 0
             : 1;
#endif
}
