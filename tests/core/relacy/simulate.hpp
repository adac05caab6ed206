// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// simulate.hpp - runs a model so many times, and says what came of it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "atomics.hpp"

/// The first argument of the program, or `usual`.
inline std::uint64_t executions_of(int argc, char** argv, std::uint64_t usual) {
  return argc > 1 ? std::strtoull(argv[1], nullptr, 10) : usual;
}

/// `depth`: steps of one execution at most, 0: as Relacy has it.
template <class Test>
bool is_sound(const char* name, std::uint64_t executions, unsigned depth = 0) {
  rl::test_params params;
  params.iteration_count = executions;
  params.search_type = rl::sched_random;
  if (depth != 0) params.execution_depth_limit = depth;
  const bool sound = rl::simulate<Test>(params);
  std::printf("%s: %llu executions, %s\n", name,
              static_cast<unsigned long long>(params.iteration_count), sound ? "sound" : "BROKEN");
  return sound;
}

/// What the program ends with: 0 if the model is sound, or, with a fault in it, if it was noticed.
inline int exit_code(bool sound) {
#if defined(IPCBUF_WEAKEN) || defined(IPCBUF_SWAP_D5)
  return sound ? 1 : 0;  // a model that does not see this is no proof
#else
  return sound ? 0 : 1;
#endif
}
