// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// sole_user.cpp - U1 and U2 of core/sole_user.hpp under Relacy: three threads, of which the first
// to come enters by a plain store, change a plain variable inside.
#include "ipcbuf/sole_user.hpp"

#include "simulate.hpp"

namespace {

using namespace ipcbuf;

struct SoleUserTest : rl::test_suite<SoleUserTest, 3> {
  static constexpr std::uint32_t kMe = 5;
  SoleUser<RelacyAtomics> user;
  rl::var<int> inside;

  void before() { inside($) = 0; }
  void thread(unsigned index) {
    for (int i = 0; i < 2; ++i) {
      if (!user.enter(16 + index, kMe, true)) continue;
      RL_ASSERT(inside($) == 0);
      inside($) = 1;
      inside($) = 0;
      user.leave();
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  return exit_code(is_sound<SoleUserTest>("sole_user", executions_of(argc, argv, 100'000)));
}
