/* SPDX-FileCopyrightText: The ipcbuf authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * limits.c - what this machine can do, so that other figures can be read as a share of it.
 *
 *   limits [CORE CORE]      prints one line "name unit value" per limit; two cores, the first and
 * the last one of those that we may use unless they are given
 *
 * Round trips are between two processes pinned to the two cores: of a cache line that both spin on,
 * of a futex each, of a byte through two pipes. Copies are made by one core, within its cache and
 * far beyond every cache.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kSpinTrips = 500000, kSleepTrips = 30000, kCopied = 256 };

struct shared {
  _Alignas(64) _Atomic uint32_t there;
  _Alignas(64) _Atomic uint32_t back;
};

static struct shared* words;
static int pipes[2][2];

static void fail(const char* what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
}

/* Each waits until the word has the number of the trip, and passes the number on. */

static void spin_until(_Atomic uint32_t* word, uint32_t value) {
  while (atomic_load_explicit(word, memory_order_acquire) != value) {
  }
}
static void spin_trip(int here, uint32_t number) {
  if (here) {
    atomic_store_explicit(&words->there, number, memory_order_release);
    spin_until(&words->back, number);
  } else {
    spin_until(&words->there, number);
    atomic_store_explicit(&words->back, number, memory_order_release);
  }
}

static void sleep_until(_Atomic uint32_t* word, uint32_t value) {
  uint32_t seen;
  while ((seen = atomic_load_explicit(word, memory_order_acquire)) != value)
    syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}
static void wake_with(_Atomic uint32_t* word, uint32_t value) {
  atomic_store_explicit(word, value, memory_order_release);
  syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void futex_trip(int here, uint32_t number) {
  if (here) {
    wake_with(&words->there, number);
    sleep_until(&words->back, number);
  } else {
    sleep_until(&words->there, number);
    wake_with(&words->back, number);
  }
}

static void pass_byte(int out, int in, int here) {
  char byte = 1;
  if (here && write(out, &byte, 1) != 1) fail("write");
  if (read(in, &byte, 1) != 1) fail("read");
  if (!here && write(out, &byte, 1) != 1) fail("write");
}
static void pipe_trip(int here, uint32_t number) {
  (void)number;
  if (here)
    pass_byte(pipes[0][1], pipes[1][0], 1);
  else
    pass_byte(pipes[1][1], pipes[0][0], 0);
}

static double seconds_per_trip(void (*trip)(int here, uint32_t number), uint32_t trips,
                               const int* cores) {
  atomic_store(&words->there, 0);
  atomic_store(&words->back, 0);
  if (pipe(pipes[0]) != 0 || pipe(pipes[1]) != 0) fail("pipe");
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(cores[1]);
    for (uint32_t i = 1; i <= trips; ++i) trip(0, i);
    _exit(0);
  }
  pin(cores[0]);
  const uint32_t warm = trips / 10;
  double began = 0;
  for (uint32_t i = 1; i <= trips; ++i) {
    if (i == warm) began = now();
    trip(1, i);
  }
  const double took = now() - began;
  waitpid(child, NULL, 0);
  for (int i = 0; i < 4; ++i) close(pipes[i / 2][i % 2]);
  return took / (trips - warm);
}

/* Bytes per second; `size` bytes at a time, over and over, `kCopied` MiB of them. */
static double copies(size_t size) {
  char* from = malloc(size);
  char* to = malloc(size);
  if (from == NULL || to == NULL) fail("malloc");
  memset(from, 1, size);
  memset(to, 2, size);
  const size_t times = ((size_t)kCopied << 20) / size;
  const double began = now();
  for (size_t i = 0; i < times; ++i) {
    from[i % size] ^= 1;
    memcpy(to, from, size);
    __asm__ volatile("" : : "r"(to) : "memory");
  }
  const double took = now() - began;
  free(from);
  free(to);
  return (double)times * (double)size / took;
}

int main(int argc, char** argv) {
  cpu_set_t set;
  int cores[2] = {-1, -1};
  if (sched_getaffinity(0, sizeof set, &set) != 0) fail("sched_getaffinity");
  for (int c = 0; c < CPU_SETSIZE; ++c) {
    if (!CPU_ISSET(c, &set)) continue;
    if (cores[0] < 0) cores[0] = c;
    cores[1] = c;
  }
  if (argc == 3) {
    cores[0] = atoi(argv[1]);
    cores[1] = atoi(argv[2]);
  }
  words = mmap(NULL, sizeof *words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (words == MAP_FAILED) fail("mmap");
  if (cores[0] != cores[1])
    printf("cache-line ns %.1f\n", 1e9 * seconds_per_trip(spin_trip, kSpinTrips, cores));
  printf("futex µs %.3f\n", 1e6 * seconds_per_trip(futex_trip, kSleepTrips, cores));
  printf("pipe µs %.3f\n", 1e6 * seconds_per_trip(pipe_trip, kSleepTrips, cores));
  printf("copy-64-KiB GB/s %.2f\n", 1e-9 * copies((size_t)64 << 10));
  printf("copy-64-MiB GB/s %.2f\n", 1e-9 * copies((size_t)64 << 20));
  return 0;
}
