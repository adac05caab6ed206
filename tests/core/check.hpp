// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// check.hpp - what a test of the core needs: named tests, checks, a watchdog, child processes.
//
// A test is `TEST(a_sentence_as_a_name) { ... }`; a program ends with
// `int main(int n, char** v) { return check::run(n, v); }` and runs all of its tests, or those
// whose names contain its argument. A check that fails prints and the test goes on.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace check {

inline std::atomic<int> failures{0};
inline const char* current = "start";

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

template <class T>
std::string show(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return std::to_string(static_cast<long long>(value));
  } else {
    std::ostringstream out;
    out << std::boolalpha << value;
    return out.str();
  }
}

inline void fail(const char* file, int line, const std::string& what) {
  if (++failures > 50) return;  // the first ones tell
  std::fprintf(stderr, "%s:%d: in %s: %s\n", file, line, current, what.c_str());
}

template <class A, class B>
void equal(const A& expected, const B& actual, const char* file, int line, const char* text) {
  if (!(expected == static_cast<A>(actual)))
    fail(file, line, std::string(text) + " is " + show(actual) + ", not " + show(expected));
}

#define CHECK(condition) \
  ((condition) ? void() : ::check::fail(__FILE__, __LINE__, "not true: " #condition))
#define CHECK_EQ(expected, actual) ::check::equal((expected), (actual), __FILE__, __LINE__, #actual)
#define TEST(name)                                             \
  static void name();                                          \
  static const ::check::Register register_##name(#name, name); \
  static void name()

inline constexpr bool kThreadSanitizer =
#ifdef __SANITIZE_THREAD__
    true;
#else
    false;
#endif
inline constexpr bool kSanitized =
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    true;
#else
    false;
#endif

/// Ends the program, loudly, if one test hangs: a hang is the failure that matters most.
inline void watchdog(unsigned seconds) {
  struct sigaction action{};
  action.sa_handler = [](int) {
    const char text[] = "watchdog: this test hangs: ";
    (void)!::write(2, text, sizeof text - 1);
    (void)!::write(2, current, std::strlen(current));
    (void)!::write(2, "\n", 1);
    ::_exit(124);
  };
  ::sigaction(SIGALRM, &action, nullptr);
  ::alarm(seconds);
}

/// Runs `body` in a process that dies with us; it ends with 1 if a check failed there.
template <class Body>
pid_t in_child(Body&& body) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::alarm(60);  // alarms are not inherited
    failures = 0;
    body();
    std::fflush(nullptr);
    ::_exit(failures == 0 ? 0 : 1);
  }
  return pid;
}
/// How a process ended: its exit code, or the signal as a negative number.
inline int end_of(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
inline int kill_and_wait(pid_t pid) {
  ::kill(pid, SIGKILL);
  return end_of(pid);
}

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// A small generator: the same numbers everywhere for a seed.
struct Random {
  std::uint64_t state;
  std::uint64_t next() noexcept {
    state += 0x9E3779B97F4A7C15;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) noexcept { return next() % n; }
};

inline int run(int count, char** arguments, unsigned seconds_each = 60) {
  for (const Test& test : tests()) {
    if (count > 1 && std::strstr(test.name, arguments[1]) == nullptr) continue;
    current = test.name;
    watchdog(kSanitized ? 3 * seconds_each : seconds_each);
    const int before = failures;
    const auto start = std::chrono::steady_clock::now();
    test.body();
    std::printf("%s %-70s %6.2f s\n", failures == before ? "ok  " : "FAIL", test.name,
                seconds_since(start));
    std::fflush(stdout);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace check
