// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// main.cpp - runs a fuzz target without libFuzzer: the inputs in the files and folders named on
// the command line, then so many seeded random changes of them.
//
//   fuzz_attach [--runs N] [--seed N] FILE-OR-FOLDER...
//
// An input that ends the program, or takes longer than 10 s, is written to ./crash-input.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size);
extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));
extern std::uint64_t fuzz_deep_inputs;

namespace {

using Bytes = std::vector<unsigned char>;
Bytes current;

void keep_input() {
  const int fd = ::open("crash-input", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  (void)!::write(fd, current.data(), current.size());
  ::close(fd);
  const char text[] = "the input is in ./crash-input\n";
  (void)!::write(2, text, sizeof text - 1);
}

void on_signal(int signal) {
  const char* text = signal == SIGALRM ? "an input hangs\n" : "killed by a signal\n";
  (void)!::write(2, text, std::strlen(text));
  keep_input();
  ::_exit(1);
}

void run_one(Bytes input) {
  current = std::move(input);
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    state += 0x9E3779B97F4A7C15;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t n) { return next() % n; }
};

/// One input in eight goes deep; each has a few changes of its own, behind those of a seed.
Bytes mutated(const std::vector<Bytes>& corpus, Random& random) {
  Bytes bytes(2);
  const bool deep = random.below(8) == 0;
  if (!corpus.empty() && random.below(4) == 0) {
    const Bytes& seed = corpus[random.below(corpus.size())];
    if (seed.size() >= 2) bytes.assign(seed.begin(), seed.end());
    if (bytes.size() > 2 && random.below(2) == 0)
      bytes[2 + random.below(bytes.size() - 2)] = static_cast<unsigned char>(random.next());
  }
  bytes[0] = static_cast<unsigned char>(deep ? 0 : 1 + random.below(7));
  bytes[1] = static_cast<unsigned char>(random.below(16) == 0 ? random.next() : 0);
  for (std::size_t n = 1 + random.below(deep ? 5 : 3) * 12; n > 0; --n)
    bytes.push_back(static_cast<unsigned char>(random.next()));
  bytes.resize(2 + (bytes.size() - 2 + 11) / 12 * 12);
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t runs = 0;
  std::uint64_t seed =
      static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::vector<Bytes> corpus;
  const auto read = [&](const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  };
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--runs" && i + 1 < argc) {
      runs = std::strtoull(argv[++i], nullptr, 10);
    } else if (word == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (std::filesystem::is_directory(word)) {
      for (const auto& entry : std::filesystem::directory_iterator(word)) read(entry.path());
    } else {
      read(word);
    }
  }
  std::sort(corpus.begin(), corpus.end());
  for (const int signal : {SIGALRM, SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGILL})
    if (signal == SIGALRM || &__sanitizer_set_death_callback == nullptr)
      ::signal(signal, on_signal);
  if (&__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(keep_input);

  const auto start = std::chrono::steady_clock::now();
  std::printf("seed %llu, %zu inputs in files, %llu runs\n", static_cast<unsigned long long>(seed),
              corpus.size(), static_cast<unsigned long long>(runs));
  std::fflush(stdout);
  run_one({});  // the base image as it is
  for (const Bytes& input : corpus) {
    ::alarm(10);
    run_one(input);
  }
  Random random{seed};
  for (std::uint64_t n = 0; n < runs; ++n) {
    if (n % 1024 == 0) ::alarm(10);
    run_one(mutated(corpus, random));
  }
  ::alarm(0);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%llu inputs, %llu of them attached, %.1f s: no crash, no hang\n",
              static_cast<unsigned long long>(runs + corpus.size() + 1),
              static_cast<unsigned long long>(fuzz_deep_inputs), seconds);
  return 0;
}
