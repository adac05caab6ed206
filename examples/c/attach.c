/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program at the other end of a channel. It knows docs/layout.md and nothing else of ipcbuf.
 *
 *   cc -std=c11 -O2 -o attach examples/c/attach.c
 *   ./attach FILE                   say what the segment is, and list its channels
 *   ./attach FILE receive KEY [N]   print N messages of a channel as lines; without N, to its end
 *   ./attach FILE send KEY          send each line of the standard input as one message
 *
 * FILE is that of a named segment /dev/shm/ipcbuf-UID/NAME, or /proc/PID/fd/N.
 * KEY is the text of a channel that some process has made; its messages are `send(bytes)`.
 * The program makes no channel, and takes nothing over from the dead: that is left to the others,
 * who also bury this program when it ends, however it ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- the layout (docs/layout.md, "Byte by byte") ---- */

enum { LAYOUT_VERSION = 2, PAGE_SHIFT = 14, HEADER_BYTES = 448 };
#define MAGIC UINT64_C(0x31467542637049)
#define ABI UINT32_C(0x108400E)
#define LIFE_BYTES (INT64_C(1) << 61)

typedef struct {
  uint64_t magic;
  uint32_t version, abi;
  uint8_t uuid[16];
  uint64_t max_size;
  uint32_t max_pages, max_slots, max_channels, max_entries;
  uint64_t slots, channels, entries, runs, pages, index, directory, payload, window, checksum;
} Constants;

typedef struct {
  uint32_t state, reaper, pid, has_life_byte;
  uint64_t pid_namespace, start_time, pidfs_inode, spare[3];
} SlotRow;

typedef struct {
  uint32_t head_back, index_pos, block_units, block_count;
  uint64_t slot_set, returned;
  uint32_t salt, next_returned;
  uint64_t spare[3];
} PageInfo;

typedef struct {
  uint32_t lock, owner, spinner, last_pid;
  uint64_t ring, items, bytes, cached, left_at, spin_until;
} EndRow;

typedef struct {
  uint32_t word, end_state;
  uint32_t sleeper, spare0;
  uint64_t sleeps_since, spare[5];
} BellRow;

typedef struct {
  uint64_t next, cells[7];
} HoldList;

typedef struct {
  uint8_t kind, length, spare[2], text[60];
} ChannelKey;

typedef struct {
  uint64_t state;
  uint32_t flags, bell_kind;
  uint64_t max_items, max_bytes;
  uint32_t type, returned;
  uint64_t value;
  uint32_t ready, give_backs, marks, spare0;
  EndRow sender, receiver;
  BellRow data, room;
  HoldList sender_holds, receiver_holds;
  ChannelKey key;
} ChannelRow;

typedef struct {
  uint32_t capacity, channel;
  uint64_t items_base, bytes_base, next, spare0[4];
  uint64_t write_word, spare1[7];
  uint64_t read_word, spare2[7];
} RingHeader;

_Static_assert(offsetof(Constants, checksum) == 128, "Constants");
_Static_assert(sizeof(SlotRow) == 64 && sizeof(PageInfo) == 64, "rows");
_Static_assert(sizeof(EndRow) == 64 && sizeof(BellRow) == 64, "ends");
_Static_assert(offsetof(ChannelRow, key) == 448 && sizeof(ChannelRow) == 512, "ChannelRow");
_Static_assert(offsetof(RingHeader, read_word) == 128 && sizeof(RingHeader) == 192, "RingHeader");

/* offsets in a block's header, and in the segment's */
enum {
  BLOCK_CREATOR = 24,
  COMMITTED_PAGES = 196,
  POISONED = 256,
  SLOTS_HIGH = 260,
  CHANNELS_HIGH = 264,
  DIRECTORY_LOCK = 384
};

enum { SLOT_FREE = 0, SLOT_CLAIMING = 1, SLOT_ALIVE = 3 };
enum { CHANNEL_ACTIVE = 2, TYPE_RECORD = 0 };
enum { SHARED_ENDS = 1, LEASED = 2, KEYED = 1, REMOVED = 2, KEY_TEXT = 2 };
enum { END_OPEN = 0, END_CLOSED = 1, END_DEAD = 2 };
enum { KIND_SKIP = 0, KIND_RAW = 1, RUN_SLAB = 3, MAX_INLINE = 2048 };
#define WAITERS (UINT32_C(1) << 31)

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_ACQUIRE)
#define STORE(x, value) __atomic_store_n(&(x), value, __ATOMIC_RELEASE)
#define CAS(x, from, to) \
  __atomic_compare_exchange_n(&(x), from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

static Constants constants; /* our private copy: what is shared may be written over */
static char* base;
static uint32_t token;

static _Noreturn void fail(const char* what) {
  fprintf(stderr, "attach: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
  exit(1);
}
static _Noreturn void corrupted(const char* what) {
  errno = 0;
  fail(what);
}

static uint32_t* header_word(size_t offset) { return (uint32_t*)(base + offset); }
static ChannelRow* channel(uint32_t i) { return (ChannelRow*)(base + constants.channels) + i; }
static PageInfo* page(uint64_t i) { return (PageInfo*)(base + constants.pages) + i; }
static uint64_t page_offset(uint64_t i) { return constants.payload + (i << PAGE_SHIFT); }

static uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= UINT64_C(0x9E3779B97F4A7C15);
  x ^= x >> 29;
  x *= UINT64_C(0xBF58476D1CE4E5B9);
  return x ^ x >> 32;
}

/* ---- locks and sleep ---- */

static void futex_wait(uint32_t* word, uint32_t seen, long milliseconds) {
  const struct timespec limit = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
}
static void futex_wake(uint32_t* word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

static void lock(uint32_t* word) {
  uint32_t free = 0, mine = token;
  while (!CAS(*word, &free, mine)) {
    if ((free & WAITERS) || CAS(*word, &free, free | WAITERS)) futex_wait(word, free | WAITERS, 5);
    mine = token | WAITERS; /* others may sleep too: keep the flag for them */
    free = 0;
  }
}
static void unlock(uint32_t* word) {
  if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) & WAITERS) futex_wake(word);
}

/* A bell: flag 1 "somebody sleeps", the sequence from 8 on. */
static void ring_bell(BellRow* bell) {
  uint32_t word = __atomic_fetch_or(&bell->word, 0, __ATOMIC_SEQ_CST); /* behind our publish */
  while (word & 1)
    if (CAS(bell->word, &word, (word + 8) & ~UINT32_C(1))) {
      futex_wake(&bell->word);
      return;
    }
}
/* First half of going to sleep; look once more, then futex_wait for the word. */
static uint32_t announce_sleep(BellRow* bell) {
  const uint32_t word = __atomic_fetch_or(&bell->word, 1, __ATOMIC_SEQ_CST) | 1;
  syscall(SYS_membarrier, 1 << 1 /* MEMBARRIER_CMD_GLOBAL_EXPEDITED */, 0, 0);
  return word;
}

/* ---- attaching ---- */

static int lock_byte(int fd, short type, int64_t byte) {
  struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
  return fcntl(fd, F_OFD_SETLK, &l);
}

static void check_header(int fd) {
  union {
    char bytes[HEADER_BYTES];
    Constants constants;
    uint64_t words[HEADER_BYTES / 8];
  } head = {{0}};
  if (pread(fd, &head, sizeof head, 0) != sizeof head) corrupted("too short for a segment");
  constants = head.constants;
  if (constants.magic != MAGIC) corrupted("not a segment");
  if (constants.version != LAYOUT_VERSION) corrupted("another version of the layout");
  if (constants.abi != ABI) corrupted("made by another kind of machine");
  uint64_t sum = 0;
  for (uint64_t i = 0; i < offsetof(Constants, checksum) / 8; ++i)
    sum = mix(sum ^ head.words[i]) + i;
  if (sum != constants.checksum) corrupted("the checksum of the header is wrong");
  uint32_t committed;
  memcpy(&committed, head.bytes + COMMITTED_PAGES, sizeof committed);
  struct stat file;
  if (fstat(fd, &file) != 0) fail("fstat");
  if (committed > constants.max_pages || constants.payload > constants.window ||
      (uint64_t)file.st_size < constants.payload + ((uint64_t)committed << PAGE_SHIFT))
    corrupted("the file was cut short");
}

static uint64_t start_time(void) {
  char text[1024];
  FILE* file = fopen("/proc/self/stat", "r");
  if (file == NULL) return 0;
  const size_t n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[n] = 0;
  const char* at = strrchr(text, ')'); /* the name before it may hold anything */
  for (int field = 2; at != NULL && field < 22; ++field) at = strchr(at + 1, ' ');
  return at == NULL ? 0 : strtoull(at, NULL, 10);
}

static void take_seat(int fd) {
  SlotRow* rows = (SlotRow*)(base + constants.slots);
  for (uint32_t i = 0; i < constants.max_slots; ++i) {
    uint32_t word = LOAD(rows[i].state);
    if ((word & 0xFFF) != SLOT_FREE || lock_byte(fd, F_WRLCK, LIFE_BYTES + i) != 0) continue;
    const uint32_t generation = word >> 12 == 0 ? 1 : word >> 12;
    rows[i].has_life_byte = 1;
    if (!CAS(rows[i].state, &word, generation << 12 | SLOT_CLAIMING)) {
      lock_byte(fd, F_UNLCK, LIFE_BYTES + i);
      continue;
    }
    uint32_t high = LOAD(*header_word(SLOTS_HIGH));
    while (high <= i && !CAS(*header_word(SLOTS_HIGH), &high, i + 1)) {
    }
    struct stat space;
    rows[i].pid = (uint32_t)getpid();
    rows[i].pid_namespace = stat("/proc/self/ns/pid", &space) == 0 ? space.st_ino : 0;
    rows[i].start_time = start_time();
    rows[i].pidfs_inode = 0;
    STORE(rows[i].state, generation << 12 | SLOT_ALIVE);
    token = generation << 12 | i;
    return;
  }
  corrupted("all slots are taken");
}

static void attach(const char* path) {
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) fail(path);
  struct stat file, named;
  if (fstat(fd, &file) != 0 || lock_byte(fd, F_RDLCK, LIFE_BYTES - 1) != 0) fail("lock");
  if (stat(path, &named) != 0 || named.st_ino != file.st_ino) corrupted("it was removed just now");
  if (!S_ISREG(file.st_mode) || file.st_uid != geteuid() || (file.st_mode & 077) != 0)
    corrupted("not a file of ours alone");
  check_header(fd);
  base = mmap(NULL, constants.window, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) fail("mmap");
  if (LOAD(*header_word(POISONED)) != 0) corrupted("the segment is corrupted, and says so");
  take_seat(fd);
  lock_byte(fd, F_UNLCK, LIFE_BYTES - 1);
} /* the descriptor stays open: its lock says that we live */

/* ---- channels ---- */

static bool is_active(ChannelRow* row) {
  return (LOAD(row->state) & 7) == CHANNEL_ACTIVE &&
         (LOAD(row->marks) & (KEYED | REMOVED)) == KEYED;
}

static void list_channels(void) {
  const uint32_t high = LOAD(*header_word(CHANNELS_HIGH));
  for (uint32_t i = 0; i < high && i < constants.max_channels; ++i) {
    ChannelRow* row = channel(i);
    if (!is_active(row)) continue;
    int64_t number;
    memcpy(&number, row->key.text, sizeof number);
    if (row->key.kind == KEY_TEXT)
      printf("channel '%.*s'", row->key.length > 60 ? 60 : row->key.length, row->key.text);
    else
      printf("channel %" PRId64, number);
    const uint32_t messages =
        (uint32_t)LOAD(row->sender.items) - (uint32_t)LOAD(row->receiver.items);
    printf(": type %u, %u messages\n", row->type, messages);
  }
}

/* Joins as the only sender or receiver, or as one of several. */
static ChannelRow* join(const char* name, bool sends) {
  ChannelKey key = {.kind = KEY_TEXT};
  if (strlen(name) == 0 || strlen(name) > sizeof key.text) corrupted("a key has 1 to 60 bytes");
  key.length = (uint8_t)strlen(name);
  memcpy(key.text, name, key.length);
  const char* refusal = "no such channel";
  ChannelRow* found = NULL;
  lock(header_word(DIRECTORY_LOCK));
  const uint32_t high = LOAD(*header_word(CHANNELS_HIGH));
  for (uint32_t i = 0; i < high && i < constants.max_channels && found == NULL; ++i)
    if (is_active(channel(i)) && memcmp(&channel(i)->key, &key, sizeof key) == 0)
      found = channel(i);
  if (found != NULL) {
    HoldList* holds = sends ? &found->sender_holds : &found->receiver_holds;
    EndRow* end = sends ? &found->sender : &found->receiver;
    const bool exclusive = (found->flags & SHARED_ENDS) == 0;
    refusal = NULL;
    if (found->type != TYPE_RECORD || (found->flags & LEASED) != 0) refusal = "not such a channel";
    bool held = holds->next != 0;
    for (int i = 0; i < 7; ++i) held |= LOAD(holds->cells[i]) != 0;
    if (refusal == NULL && exclusive && held) refusal = "somebody has this end";
    if (refusal == NULL) {
      if (exclusive) STORE(end->owner, 0);
      uint64_t empty = 0;
      int i = 0; /* our cell: token, kind 1, count 1 */
      while (i < 7 &&
             !CAS(holds->cells[i], &empty, token | UINT64_C(1) << 32 | UINT64_C(1) << 34)) {
        empty = 0;
        ++i;
      }
      if (i == 7) refusal = "this end has more users than this program can add itself to";
    }
    if (refusal == NULL) STORE((sends ? &found->room : &found->data)->end_state, END_OPEN);
    if (refusal == NULL && exclusive) STORE(end->owner, token);
  }
  unlock(header_word(DIRECTORY_LOCK));
  if (refusal != NULL) corrupted(refusal);
  return found;
}

/* The ring in the block at `offset`; every number is checked before it is used. */
static RingHeader* ring_at(uint64_t offset, uint32_t* capacity) {
  const uint64_t end = page_offset(LOAD(*header_word(COMMITTED_PAGES)));
  if (offset % 64 != 0 || offset < constants.payload || offset > end - 256) corrupted("no ring");
  RingHeader* ring = (RingHeader*)(base + offset + 64);
  *capacity = ring->capacity;
  if (*capacity % 16 != 0 || *capacity < 64 || *capacity > end - 256 - offset) corrupted("no ring");
  return ring;
}

/* Receivers sleep at `data`, senders at `room`; the state of each end lies there, too. */
static bool is_gone(BellRow* end) {
  const uint32_t state = LOAD(end->end_state);
  return state == END_CLOSED || state == END_DEAD;
}

/* ---- receiving ---- */

/* Takes over the block of a message, prints it, and frees it behind the commit. */
typedef struct {
  uint64_t offset, length, head, index, check;
} Block;

static Block find_block(uint64_t offset, uint64_t length) {
  const uint64_t end = page_offset(LOAD(*header_word(COMMITTED_PAGES)));
  if (offset % 64 != 0 || offset < constants.payload || offset >= end) corrupted("no block");
  const uint64_t at = (offset - constants.payload) >> PAGE_SHIFT;
  const uint32_t back = LOAD(page(at)->head_back);
  if (back > at) corrupted("no slab");
  PageInfo* info = page(at - back);
  const uint64_t size = (uint64_t)LOAD(info->block_units) * 64;
  const uint64_t inside = offset - page_offset(at - back);
  if (size < 128 || inside % size != 0 || offset + size > end || length > size - 64)
    corrupted("no block of a slab");
  uint64_t seed;
  memcpy(&seed, constants.uuid, sizeof seed);
  const uint64_t geometry = (uint64_t)LOAD(info->block_units) << 32 | LOAD(info->salt);
  const uint64_t check = mix(offset ^ seed ^ geometry * UINT64_C(0xD6E8FEB86659FD93));
  return (Block){offset, length, at - back, inside / size, check >> 34 << 34};
}

static void claim_block(const Block* b) {
  uint64_t* holder = (uint64_t*)(base + b->offset);
  if (LOAD(*holder) >> 34 != b->check >> 34) corrupted("no block: its check value is wrong");
  __atomic_fetch_or(&page(b->head)->slot_set, UINT64_C(1) << (token & 63), __ATOMIC_SEQ_CST);
  STORE(*holder, token | UINT64_C(1) << 32 | b->check);
}

static void free_block(const Block* b) {
  const uint64_t* runs = (uint64_t*)(base + constants.runs);
  /* The last block of a slab without owner takes the slab along. That is more than this program
   * knows how to do, so it keeps the block; it is freed when this program is buried. */
  if ((LOAD(runs[b->head]) & 7) == RUN_SLAB && LOAD(runs[b->head]) >> 32 == 0) return;
  STORE(*(uint64_t*)(base + b->offset), b->check);
  __atomic_fetch_or(&page(b->head)->returned, UINT64_C(1) << b->index, __ATOMIC_SEQ_CST);
}

/* The old ring is empty for good: on to the next one (C2), then the old one is free. */
static void move_on(ChannelRow* row, uint64_t old, uint64_t next) {
  const Block block = find_block(old, 0);
  __atomic_fetch_or(&page(block.head)->slot_set, UINT64_C(1) << (token & 63), __ATOMIC_SEQ_CST);
  STORE(*(uint32_t*)(base + old + BLOCK_CREATOR), token); /* its garbage is ours from here on */
  row->receiver.cached = 0;
  STORE(row->receiver.ring, next); /* the commit */
  free_block(&block);
}

/* Prints the next message. False: there is none. */
static bool receive(ChannelRow* row) {
  uint32_t capacity;
  RingHeader* ring;
  uint64_t read;
  for (;;) {
    const uint64_t offset = LOAD(row->receiver.ring);
    ring = ring_at(offset, &capacity);
    read = LOAD(ring->read_word);
    if (LOAD(ring->write_word) >> 32 != read >> 32) break;
    const uint64_t next = LOAD(ring->next);
    if (next == 0) return false;
    /* Behind `next` nothing is written here any more: look once more, then move on. */
    if (LOAD(ring->write_word) >> 32 == read >> 32) move_on(row, offset, next);
  }
  uint32_t at = (uint32_t)read;
  for (int hops = 0;; ++hops) {
    if (at == capacity) at = 0;
    if (at % 16 != 0 || at > capacity - 16 || hops == 2) corrupted("no record");
    if ((*(uint64_t*)((char*)(ring + 1) + at) >> 44 & 0x7F) != KIND_SKIP) break;
    at = 0;
  }
  const char* record = (char*)(ring + 1) + at;
  uint64_t word, bytes;
  memcpy(&word, record, 8);
  memcpy(&bytes, record + 8, 8);
  const uint32_t size = (uint32_t)(word & 0xFFFFF) * 16, payload = word >> 20 & 0xFFFFFF;
  const uint32_t blocks = word >> 52 & 0xFF;
  if (size > capacity - at || size < 16 + blocks * 16 + payload || payload > MAX_INLINE)
    corrupted("no record");
  if ((word >> 44 & 0x7F) != KIND_RAW || blocks > 1)
    corrupted("a Python object, not bytes: only Python reads that");
  if (blocks == 0) {
    printf("%.*s\n", (int)payload, record + 16);
  } else {
    uint64_t ref[2];
    memcpy(ref, record + 16, sizeof ref);
    const Block block = find_block(ref[0], ref[1]);
    claim_block(&block); /* before the commit below: D5 */
    printf("%.*s\n", (int)block.length, base + block.offset + 64);
    STORE(ring->read_word, (at + size) | ((read >> 32) + 1) << 32);
    free_block(&block);
  }
  if (blocks == 0) STORE(ring->read_word, (at + size) | ((read >> 32) + 1) << 32);
  STORE(row->receiver.bytes, bytes);
  STORE(row->receiver.items, (uint32_t)(ring->items_base + (read >> 32) + 1));
  fflush(stdout);
  if ((LOAD(row->max_items) | LOAD(row->max_bytes)) != 0) ring_bell(&row->room);
  return true;
}

static void receive_all(ChannelRow* row, long count) {
  const bool shared = (row->flags & SHARED_ENDS) != 0;
  while (count != 0) {
    const bool ended = is_gone(&row->room); /* D7: first this, then the ring */
    if (shared) lock(&row->receiver.lock);
    const bool received = receive(row);
    if (shared) unlock(&row->receiver.lock);
    if (received) {
      count -= count > 0;
    } else if (ended) {
      return;
    } else {
      const uint32_t word = announce_sleep(&row->data);
      if ((uint32_t)LOAD(row->sender.items) == (uint32_t)LOAD(row->receiver.items) &&
          !is_gone(&row->room))
        futex_wait(&row->data.word, word, 100);
    }
  }
}

/* ---- sending ---- */

/* False: no room in the ring now. (Python would link a larger one.) */
static bool send_inline(ChannelRow* row, const char* text, uint32_t length) {
  uint32_t capacity;
  RingHeader* ring = ring_at(LOAD(row->sender.ring), &capacity);
  char* data = (char*)(ring + 1);
  const uint64_t write = LOAD(ring->write_word), read = LOAD(ring->read_word);
  const uint32_t size = (16 + length + 15) & ~15U;
  const uint32_t begin = (uint32_t)read, inside = (uint32_t)(write >> 32) - (uint32_t)(read >> 32);
  uint32_t at = (uint32_t)write;
  if (at > capacity || at % 16 != 0 || begin > capacity) corrupted("no ring");
  if (LOAD(row->max_items) != 0 && inside >= LOAD(row->max_items)) return false;
  if (inside != 0 && at <= begin) {
    if (size > begin - at) return false;
  } else if (size > capacity - at) {
    if (size > begin) return false;
    if (at < capacity) *(uint64_t*)(data + at) = 1; /* a skip mark of 16 bytes, kind 0 */
    at = 0;
  }
  const uint64_t head = size / 16 | (uint64_t)length << 20 | (uint64_t)KIND_RAW << 44;
  const uint64_t bytes = row->sender.bytes + size;
  memcpy(data + at, &head, 8);
  memcpy(data + at + 8, &bytes, 8);
  memcpy(data + at + 16, text, length);
  STORE(ring->write_word, (at + size) | ((write >> 32) + 1) << 32); /* the commit */
  row->sender.bytes = bytes;
  STORE(row->sender.items, (uint32_t)(ring->items_base + (write >> 32) + 1));
  return true;
}

static void send_lines(ChannelRow* row) {
  const bool shared = (row->flags & SHARED_ENDS) != 0;
  if (row->bell_kind != 0) corrupted("this channel is watched by a descriptor that we do not have");
  char line[MAX_INLINE + 2];
  while (fgets(line, sizeof line, stdin) != NULL) {
    uint32_t length = (uint32_t)strlen(line);
    if (length > 0 && line[length - 1] == '\n') --length;
    for (bool sent = false; !sent;) {
      if (is_gone(&row->data)) corrupted("nobody is left to receive");
      if (shared) lock(&row->sender.lock);
      sent = send_inline(row, line, length);
      if (shared) unlock(&row->sender.lock);
      if (sent)
        ring_bell(&row->data);
      else
        nanosleep(&(struct timespec){0, 1000000}, NULL); /* who receives rings only for limits */
    }
  }
}

/* An end of ours alone is closed for the other side; a shared one closes with its last user. */
static void close_end(ChannelRow* row, BellRow* end) {
  uint32_t open = END_OPEN;
  if ((row->flags & SHARED_ENDS) != 0 || !CAS(end->end_state, &open, END_CLOSED)) return;
  ring_bell(&row->data);
  ring_bell(&row->room);
}

int main(int n, char** words) {
  if (n < 2) {
    fprintf(stderr, "usage: attach FILE [receive KEY [N] | send KEY]\n");
    return 2;
  }
  attach(words[1]);
  if (n > 3 && strcmp(words[2], "receive") == 0) {
    ChannelRow* row = join(words[3], false);
    receive_all(row, n > 4 ? strtol(words[4], NULL, 10) : -1);
    close_end(row, &row->data);
  } else if (n > 3 && strcmp(words[2], "send") == 0) {
    ChannelRow* row = join(words[3], true);
    send_lines(row);
    close_end(row, &row->room);
  } else {
    printf("segment of layout %u, %u of %u pages of 16 KiB committed\n", constants.version,
           LOAD(*header_word(COMMITTED_PAGES)), constants.max_pages);
    list_channels();
  }
  return 0;
}
