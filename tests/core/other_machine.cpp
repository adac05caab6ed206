// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// other_machine.cpp - what a test becomes that knows the registers of another processor.
#include <cstdio>

int main() {
  std::puts("not for this processor");
  return 77;  // skipped, says ctest
}
