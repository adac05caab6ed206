// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// fault_guard.cpp - survives that somebody cuts the file of a mapping short.
//
// Overview
//   A file with a name cannot be sealed, so its owner may shorten it at any time, and a touch
//   behind its new end is a SIGBUS. Our handler puts private zero pages there, from the page that
//   was touched to the end of the mapping, sets the mapping's flag and returns: the instruction
//   runs again and sees zeros. Whoever called into us looks at the flag before it believes them.
//
// Invariants
//   F1  The handler touches the table, the flag and the faulting range, nothing else: no lock, no
//       allocation, no shared memory. All of it may be interrupted anywhere.
//   F2  An entry is found only between the last store of `guard_mapping` (its begin) and the first
//       of `unguard_mapping`. Nobody touches a mapping outside of that.
//   F3  An address that is in no entry is the business of the handler that was there before us.
//
// Other handlers
//   Installed before ours (faulthandler, as pytest and -X faulthandler do): called for what is not
//   ours. Installed after ours: it sees our fault first. faulthandler then prints a traceback, puts
//   our handler back and raises the signal once more; that one carries no address, so we ignore
//   it, and the instruction faults again, to us.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "ipcbuf/platform.hpp"

namespace ipcbuf::platform {

namespace {

struct Guarded {
  std::atomic<std::uintptr_t> begin{0};  // 0 = free entry, 1 = being filled
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::atomic<std::uint32_t>*> flag{nullptr};
};

constexpr int kMostGuarded = 1024;
constexpr std::uintptr_t kBeingFilled = 1;
Guarded guarded[kMostGuarded];
std::atomic<int> guarded_high{0};
struct sigaction previous{};
std::uintptr_t page_size = 4096;

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free, "read in a signal handler");

bool put_zero_pages(std::uintptr_t from, std::uintptr_t to) noexcept {
  return ::mmap(reinterpret_cast<void*>(from), to - from, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

/// True if the address was in one of our mappings and can be read now.
bool is_mended(std::uintptr_t address) noexcept {
  const int high = guarded_high.load(std::memory_order_acquire);
  for (int i = 0; i < high; ++i) {
    const std::uintptr_t begin = guarded[i].begin.load(std::memory_order_acquire);  // F2
    const std::uintptr_t end = guarded[i].end.load(std::memory_order_relaxed);
    if (begin <= kBeingFilled || address < begin || address >= end) continue;
    guarded[i].flag.load(std::memory_order_relaxed)->store(1, std::memory_order_release);
    const std::uintptr_t page = address & ~(page_size - 1);
    return put_zero_pages(page, end) || put_zero_pages(page, page + page_size);
  }
  return false;
}

void pass_on(int signal, siginfo_t* info, void* context) noexcept {
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    if (previous.sa_sigaction != nullptr) previous.sa_sigaction(signal, info, context);
    return;
  }
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
    return;
  }
  const bool sent = info->si_code <= 0;  // by a process, not by a fault
  if (previous.sa_handler == SIG_IGN && sent) return;
  if (sent && info->si_code == SI_TKILL && info->si_pid == ::getpid()) return;  // see above
  struct sigaction end{};
  end.sa_handler = SIG_DFL;
  ::sigaction(signal, &end, nullptr);
  // A fault happens again as soon as we return; a signal that was sent has to be sent again.
  if (sent) ::raise(signal);
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  if (info->si_code <= 0 || !is_mended(reinterpret_cast<std::uintptr_t>(info->si_addr)))
    pass_on(signal, info, context);
  errno = saved;
}

/// Ours on top, once. Whoever installs a handler later has read the note above.
bool install() noexcept {
  const char* wanted = std::getenv("IPCBUF_SIGBUS");
  if (wanted != nullptr && std::strcmp(wanted, "0") == 0) return false;
  page_size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction ours{};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  ::sigemptyset(&ours.sa_mask);
  if (::sigaction(SIGBUS, nullptr, &previous) != 0) return false;
  return ::sigaction(SIGBUS, &ours, nullptr) == 0;
}

}  // namespace

bool guard_mapping(void* address, std::uint64_t length, std::atomic<std::uint32_t>& flag) noexcept {
  static const bool installed = install();
  if (!installed) return false;
  for (int i = 0; i < kMostGuarded; ++i) {
    std::uintptr_t nobody = 0;
    if (!guarded[i].begin.compare_exchange_strong(nobody, kBeingFilled)) continue;
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    guarded[i].end.store(begin + length, std::memory_order_relaxed);
    guarded[i].flag.store(&flag, std::memory_order_relaxed);
    int high = guarded_high.load(std::memory_order_relaxed);
    while (high <= i && !guarded_high.compare_exchange_weak(high, i + 1)) {
    }
    guarded[i].begin.store(begin, std::memory_order_release);  // F2
    return true;
  }
  return false;
}

void unguard_mapping(void* address) noexcept {
  for (Guarded& entry : guarded) {
    if (entry.begin.load(std::memory_order_relaxed) != reinterpret_cast<std::uintptr_t>(address))
      continue;
    entry.begin.store(0, std::memory_order_release);  // F2
    return;
  }
}

}  // namespace ipcbuf::platform
