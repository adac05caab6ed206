// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// layout.hpp - everything that two processes must agree on, byte by byte.
//
// Overview
//   header | slot rows | channel rows | shared entries | run descriptors | page infos |
//   run index | directory | guard gap | payload pages
//   All references are offsets from the segment's start. The tables are as long as the
//   largest size of the segment needs; the file is sparse, so an unused row costs nothing.
//
// Ground truth (everything else is a cache that recovery recomputes)
//   G1  a page run     one descriptor word at its first page; the heap is the walk p -> p + length
//   G2  a block        one holder word in its header
//   G3  a ring         its write word and its read word
//   G4  a process      the state word of its slot row
//   G5  a channel      its state word, `head` and the `next` of its rings
//   G6  a shared entry its state word and its cells
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "ipcbuf/atomics.hpp"
#include "ipcbuf/owner_word.hpp"

namespace ipcbuf {

inline constexpr std::uint64_t kMagic = 0x0031467542637049;  // "IpcBuF1\0"
inline constexpr std::uint32_t kLayoutVersion = 2;
inline constexpr std::uint32_t kCacheLine = 64;
inline constexpr std::uint32_t kPageShift = 14;  // a heap page, not the system's
inline constexpr std::uint32_t kPageSize = 1U << kPageShift;
inline constexpr std::uint32_t kMaxSlots = 4096;
inline constexpr std::uint32_t kMaxChannels = 1U << 20;  // 20 bits of a channel id
inline constexpr std::uint32_t kMaxEntries = 1U << 20;   // 20 bits of a shared entry id
inline constexpr std::uint64_t kMinSize = 1U << 20;
inline constexpr std::uint64_t kMaxSize = 1ULL << 37;  // a block's size is 32 bits of cache lines
inline constexpr std::uint64_t kGuardGap = 1U << 16;

/// Byte order, pointer size, cache line and page: equal or not attachable.
inline constexpr std::uint32_t kAbi = (std::endian::native == std::endian::little ? 1U : 2U) << 24 |
                                      static_cast<std::uint32_t>(sizeof(void*)) << 16 |
                                      kCacheLine << 8 | kPageShift;

// ---- tokens ---------------------------------------------------------------------------------

/// Slot index and generation of a process in 31 bits; 0 is nobody.
using Token = std::uint32_t;
inline constexpr std::uint32_t kSlotBits = 12;
inline constexpr std::uint32_t kGenerationMask = (1U << 19) - 1;

constexpr Token make_token(std::uint32_t slot, std::uint32_t generation) noexcept {
  return (generation & kGenerationMask) << kSlotBits | slot;
}
constexpr std::uint32_t slot_of(Token t) noexcept { return t & (kMaxSlots - 1); }
constexpr std::uint32_t generation_of(Token t) noexcept { return t >> kSlotBits; }
/// The bit of a slot in a slab's slot set.
constexpr std::uint64_t slot_bit(Token t) noexcept { return 1ULL << (slot_of(t) & 63); }

// ---- process slots --------------------------------------------------------------------------

enum class SlotState : std::uint32_t {
  kFree = 0,
  kClaiming = 1,  // identity not yet written; alive while its life byte is held
  kReserved = 2,  // for a child about to be forked; alive while its life byte is held
  kAlive = 3,
};

struct SlotRow {
  Atomic<std::uint32_t> state;  // SlotState | generation << kSlotBits
  OwnerWord<> reaper;           // who buries this process
  std::uint32_t pid;
  std::uint32_t has_life_byte;
  std::uint64_t pid_namespace;  // inode, 0 if unknown
  std::uint64_t start_time;     // clock ticks after boot, 0 if unknown
  std::uint64_t pidfs_inode;    // 0 if unknown
  Atomic<std::uint64_t> ward;   // Ward of a seat for parcels; of another generation: none
  std::uint64_t spare[2];
};
static_assert(sizeof(SlotRow) == 64);

/// Whose death ends a seat that only holds parcels (parcels.hpp). One 64-bit word:
/// pid | start time << 22 | the seat's generation << 44.
struct Ward {
  std::uint32_t generation;
  std::uint32_t started;  // low bits, 0 if unknown
  std::uint32_t pid;

  static constexpr std::uint32_t kBits = 22;  // no process id of Linux has more
  static constexpr std::uint32_t kMask = (1U << kBits) - 1;
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return std::uint64_t{generation} << 2 * kBits | std::uint64_t{started & kMask} << kBits |
           (pid & kMask);
  }
  static constexpr Ward unpack(std::uint64_t word) noexcept {
    return {static_cast<std::uint32_t>(word >> 2 * kBits),
            static_cast<std::uint32_t>(word >> kBits) & kMask,
            static_cast<std::uint32_t>(word) & kMask};
  }
};

// ---- page runs ------------------------------------------------------------------------------

enum class RunState : std::uint32_t {
  kNone = 0,
  kFree = 1,
  kReserved = 2,  // taken, being cut into blocks by the token
  kSlab = 3,      // blocks; the token is the owner's, 0 = orphan
  kReturned = 4,  // free, and its memory was given back: reserve it before use
  kUnbacked = 5,  // taken by the token, which reserves its memory or gives it back
};

/// One 64-bit word: state | length in pages << 3 | token << 32.
struct Run {
  RunState state;
  std::uint32_t length;
  Token token;

  static constexpr Run unpack(std::uint64_t w) noexcept {
    return {static_cast<RunState>(w & 7), static_cast<std::uint32_t>(w >> 3) & ((1U << 28) - 1),
            static_cast<Token>(w >> 32)};
  }
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return static_cast<std::uint64_t>(state) | static_cast<std::uint64_t>(length) << 3 |
           static_cast<std::uint64_t>(token) << 32;
  }
};

struct PageInfo {
  Atomic<std::uint32_t> head_back;  // pages back to the run's first; right at each run's last page
                                    // and at every page of a slab
  std::uint32_t index_pos;          // first page of a free run: its place in the run index;
                                    // of a returned run: the previous one's first page + 1
  // first page of a slab:
  Atomic<std::uint32_t> block_units;  // size of a block in cache lines, header included
  Atomic<std::uint32_t> block_count;  // at most 64
  Atomic<std::uint64_t> slot_set;     // conservative: slots that may hold blocks here
  Atomic<std::uint64_t> returned;     // hint: blocks that were freed since the owner looked
  Atomic<std::uint32_t> salt;         // part of the check value; another one for every slab
  std::uint32_t next_returned;        // first page of a returned run: the next one's + 1, 0 = none
  std::uint64_t spare[3];
};
static_assert(sizeof(PageInfo) == 64);

// ---- blocks ---------------------------------------------------------------------------------

enum class HolderKind : std::uint32_t { kFree = 0, kProcess = 1, kChannel = 2, kEntry = 3 };

/// One 64-bit word: id (token, channel id, entry id) | kind << 32 | check << 34.
struct Holder {
  HolderKind kind;
  std::uint32_t id;

  static constexpr Holder unpack(std::uint64_t w) noexcept {
    return {static_cast<HolderKind>(w >> 32 & 3), static_cast<std::uint32_t>(w)};
  }
  friend constexpr bool operator==(const Holder&, const Holder&) = default;
};
inline constexpr std::uint64_t kCheckMask = ~0ULL << 34;

struct BlockHeader {
  Atomic<std::uint64_t> holder;
  Atomic<std::uint64_t> length;   // exact bytes asked for
  Atomic<std::uint64_t> state;    // of a task: task id << 2 | TaskState
  Atomic<std::uint32_t> creator;  // of a ring: who linked or unlinks it
  Atomic<std::uint32_t> order;    // of a leased message: how many were sent before it
  Atomic<std::uint64_t> lease;    // of a leased message: see Lease; 0 = none, or done with
  Atomic<std::uint64_t> ticket;   // of a ticket: 1 << 32 | id of its shared entry; else 0
  std::uint64_t spare[2];
};
static_assert(sizeof(BlockHeader) == kCacheLine);

/// One 64-bit word: channel id | kind << 32 | tag << 40 | buffers << 48 | taken << 56 | 1 << 63.
struct Lease {
  std::uint32_t channel;  // id
  std::uint8_t kind;      // RecordKind
  std::uint8_t tag;       // of a native message that is one large bytes or str
  std::uint8_t buffers;   // beside the payload; then the block begins with a table of lengths
  bool taken;             // a receiver has claimed it; before that it belongs to its sender

  static constexpr Lease unpack(std::uint64_t w) noexcept {
    return {static_cast<std::uint32_t>(w), static_cast<std::uint8_t>(w >> 32),
            static_cast<std::uint8_t>(w >> 40), static_cast<std::uint8_t>(w >> 48),
            (w >> 56 & 1) != 0};
  }
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return std::uint64_t{channel} | std::uint64_t{kind} << 32 | std::uint64_t{tag} << 40 |
           std::uint64_t{buffers} << 48 | std::uint64_t{taken} << 56 | 1ULL << 63;
  }
};

enum class TaskState : std::uint64_t { kPending = 0, kRunning = 1, kCancelled = 2, kDone = 3 };

// ---- holds: who keeps a channel end or a shared block alive ----------------------------------

/// Id: of kProcess and kTransit a token, of kTicket the ticket's offset / 64.
enum class HoldKind : std::uint32_t { kNone = 0, kProcess = 1, kTicket = 2, kTransit = 3 };

/// One 64-bit cell: id | kind << 32 | count << 34. Changed by compare-and-swap only.
struct Hold {
  HoldKind kind;
  std::uint32_t id;
  std::uint32_t count;

  static constexpr Hold unpack(std::uint64_t w) noexcept {
    return {static_cast<HoldKind>(w >> 32 & 3), static_cast<std::uint32_t>(w),
            static_cast<std::uint32_t>(w >> 34)};
  }
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return static_cast<std::uint64_t>(id) | static_cast<std::uint64_t>(kind) << 32 |
           static_cast<std::uint64_t>(count) << 34;
  }
};

inline constexpr std::uint32_t kInlineHolds = 7;
/// The first cells of a hold list; more follow in shared entries chained by `next`.
struct HoldList {
  Atomic<std::uint64_t> next;  // index + 1 of an entry in state kLinked, 0 = none
  Atomic<std::uint64_t> cells[kInlineHolds];
};
static_assert(sizeof(HoldList) == kCacheLine);

enum class EntryState : std::uint32_t {
  kFree = 0,
  kClaimed = 1,  // value = token of who is building it, or has it as the tail of a hold list
  kActive = 2,   // value = offset / 64 of the shared block
};

/// One 64-bit word: state | generation << 2 | value << 16.
struct EntryWord {
  EntryState state;
  std::uint32_t generation;  // 12 bits
  std::uint64_t value;

  static constexpr EntryWord unpack(std::uint64_t w) noexcept {
    return {static_cast<EntryState>(w & 3), static_cast<std::uint32_t>(w >> 2) & 0xFFF, w >> 16};
  }
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return static_cast<std::uint64_t>(state) | static_cast<std::uint64_t>(generation & 0xFFF) << 2 |
           value << 16;
  }
};

struct SharedEntry {
  Atomic<std::uint64_t> state;
  std::uint64_t spare[7];
  HoldList holds;
};
static_assert(sizeof(SharedEntry) == 128);

// ---- channels -------------------------------------------------------------------------------

enum class ChannelState : std::uint32_t {
  kFree = 0,
  kClaimed = 1,  // being built by the token
  kActive = 2,
  kDestroying = 3,  // being emptied by the token
};

/// One 64-bit word: state | generation << 4 | token << 32.
struct ChannelWord {
  ChannelState state;
  std::uint32_t generation;  // 12 bits
  Token token;

  static constexpr ChannelWord unpack(std::uint64_t w) noexcept {
    return {static_cast<ChannelState>(w & 7), static_cast<std::uint32_t>(w >> 4) & 0xFFF,
            static_cast<Token>(w >> 32)};
  }
  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return static_cast<std::uint64_t>(state) | static_cast<std::uint64_t>(generation & 0xFFF) << 4 |
           static_cast<std::uint64_t>(token) << 32;
  }
};

/// Ids of channels and shared entries: index in the low 20 bits, generation above.
constexpr std::uint32_t make_id(std::uint32_t index, std::uint32_t generation) noexcept {
  return (generation & 0xFFF) << 20 | index;
}
constexpr std::uint32_t index_of(std::uint32_t id) noexcept { return id & ((1U << 20) - 1); }
constexpr std::uint32_t generation_of_id(std::uint32_t id) noexcept { return id >> 20; }

enum class BellKind : std::uint32_t { kFutex = 0, kEventfd = 1, kSocket = 2 };
enum class EndState : std::uint32_t {
  kOpen = 0,
  kClosed = 1,
  kDead = 2,
  kAwaited = 3,  // of a channel with a key: nobody has joined at this end yet
};
/// What a row of the channel table is.
enum class ChannelType : std::uint32_t { kRecord = 0, kStatic = 1, kAtomic = 2 };
enum class KeyKind : std::uint8_t { kNone = 0, kInt = 1, kStr = 2 };
inline constexpr std::uint32_t kMaxKey = 60;

/// The id that a user chose for a channel. All bytes behind `length` are zero.
struct ChannelKey {
  KeyKind kind;
  std::uint8_t length;  // bytes of text; of an int 8
  std::uint8_t spare[2];
  std::uint8_t text[kMaxKey];  // UTF-8, or the int in the machine's byte order
};
static_assert(sizeof(ChannelKey) == kCacheLine);

// ChannelRow::flags
inline constexpr std::uint32_t kSharedEnds = 1;  // many users per end, with a lock
inline constexpr std::uint32_t kLeased = 2;      // what the dead had taken is delivered again
// ChannelRow::marks: set once, never cleared while active.
inline constexpr std::uint32_t kKeyed = 1;       // it has a key
inline constexpr std::uint32_t kRemoved = 2;     // its key was taken away; its users see the end
inline constexpr std::uint32_t kItemsGiven = 4;  // somebody said how many items it may hold
inline constexpr std::uint32_t kBytesGiven = 8;
/// ChannelRow::ready of a static segment.
enum class InitState : std::uint32_t {
  kNever = 0,  // no init function has run: zeros, or what its users wrote
  kDone = 1,
  kBegun = 2,  // one runs, raised, or died: to be zeroed before the next
};

/// What one side sleeps on and the other rings. See doorbell.hpp. While nobody sleeps or leaves
/// nothing here changes, so that each side can look at the other's after every message.
struct BellRow {
  Atomic<std::uint32_t> word;       // kBellWaiting | kBellArmed | kBellToken | sequence << 3
  Atomic<std::uint32_t> end_state;  // EndState of the end whose users sleep here
  Atomic<std::uint32_t> sleeper;    // a hint for people: token of who went to sleep last, 0 = awake
  std::uint32_t spare0;
  Atomic<std::uint64_t> sleeps_since;  // monotonic ns at which that wait began
  std::uint64_t spare[5];
};
static_assert(sizeof(BellRow) == kCacheLine);

/// The words of one end; each side writes its own line.
struct EndRow {
  OwnerWord<> lock;               // of a shared end
  Atomic<std::uint32_t> owner;    // token of the only user of an exclusive end, 0 = not yet claimed
  Atomic<std::uint32_t> spinner;  // token of the waiter that spins; expires
  Atomic<std::uint32_t> last_pid;  // a hint for people: who died or left here last
  Atomic<std::uint64_t> ring;      // sender: last ring of the chain; receiver: first (the truth)
  Atomic<std::uint64_t> items;     // mirror: items ever sent / received, modulo 2^32
  Atomic<std::uint64_t> bytes;     // mirror: bytes ever sent / received
  Atomic<std::uint64_t> cached;    // the other side's word of our ring, as last seen
  Atomic<std::uint64_t> left_at;   // a hint for people: monotonic ns at which `last_pid` was missed
  Atomic<std::uint64_t> spin_until;
};
static_assert(sizeof(EndRow) == kCacheLine);

struct ChannelRow {
  Atomic<std::uint64_t> state;       // ChannelWord
  std::uint32_t flags;               // immutable while active
  BellKind bell_kind;                // immutable while active
  Atomic<std::uint64_t> max_items;   // 0 = unbounded; with a key: whoever gives it first
  Atomic<std::uint64_t> max_bytes;   // 0 = unbounded
  ChannelType type;                  // immutable while active
  Atomic<std::uint32_t> returned;    // leased messages of the dead that wait to be taken again
  Atomic<std::uint64_t> value;       // kAtomic: the value; kStatic: offset of the block
  Atomic<std::uint32_t> ready;       // kStatic: InitState
  Atomic<std::uint32_t> give_backs;  // how often a message was handed back; grows
  Atomic<std::uint32_t> marks;       // kKeyed, kRemoved, kItemsGiven, kBytesGiven
  std::uint32_t spare0;
  EndRow sender;
  EndRow receiver;
  BellRow data;  // receivers sleep here
  BellRow room;  // senders sleep here
  HoldList sender_holds;
  HoldList receiver_holds;
  ChannelKey key;  // immutable while active

  [[nodiscard]] Atomic<std::uint32_t>& sender_state() noexcept { return room.end_state; }
  [[nodiscard]] Atomic<std::uint32_t>& receiver_state() noexcept { return data.end_state; }
};
static_assert(sizeof(ChannelRow) == 512);
static_assert(offsetof(ChannelRow, sender) == 64 && offsetof(ChannelRow, receiver) == 128);

/// In a block whose holder is its channel; behind it `capacity` bytes of records.
struct RingHeader {
  std::uint32_t capacity;    // bytes, a multiple of 16
  std::uint32_t channel;     // id
  std::uint64_t items_base;  // items and bytes sent before this ring was linked
  std::uint64_t bytes_base;
  Atomic<std::uint64_t> next;  // offset of the next ring's block, 0 = none yet: the link's commit
  std::uint64_t spare0[4];
  alignas(kCacheLine) Atomic<std::uint64_t> write_word;  // sender: index | items << 32
  alignas(kCacheLine) Atomic<std::uint64_t> read_word;   // receiver: index | items << 32
};
static_assert(sizeof(RingHeader) == 192);
inline constexpr std::uint64_t kRingOverhead = sizeof(BlockHeader) + sizeof(RingHeader);

// ---- header ---------------------------------------------------------------------------------

/// Immutable after creation; every process keeps a private copy.
struct Constants {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t abi;
  std::uint8_t uuid[16];
  std::uint64_t max_size;  // bytes of payload
  std::uint32_t max_pages;
  std::uint32_t max_slots;
  std::uint32_t max_channels;
  std::uint32_t max_entries;
  std::uint64_t slots;  // offsets of the tables
  std::uint64_t channels;
  std::uint64_t entries;
  std::uint64_t runs;
  std::uint64_t pages;
  std::uint64_t index;
  std::uint64_t directory;
  std::uint64_t payload;
  std::uint64_t window;    // bytes mapped in all
  std::uint64_t checksum;  // of all the above
  std::uint64_t spare[7];
};
static_assert(sizeof(Constants) == 192);

struct Header {
  Constants constants;

  alignas(kCacheLine) OwnerWord<> heap_lock;
  Atomic<std::uint32_t> committed_pages;  // only grows
  Atomic<std::uint32_t> index_size;       // under heap_lock; a cache
  Atomic<std::uint32_t> free_pages;       // in free runs; under heap_lock; a cache
  Atomic<std::uint32_t> returned_pages;   // in returned runs; under heap_lock; a cache
  Atomic<std::uint32_t> returned_first;   // first page of a returned run + 1; under heap_lock
  Atomic<std::uint32_t> least_free;       // the least free_pages since `least_since`
  std::uint32_t spare0;
  Atomic<std::uint64_t> least_since;  // monotonic ns
  std::uint32_t spare1[6];

  alignas(kCacheLine) Atomic<std::uint32_t> poisoned;  // one way; the line of the first finder
  Atomic<std::uint32_t> slots_high;                    // rows below were used once
  Atomic<std::uint32_t> channels_high;
  Atomic<std::uint32_t> entries_high;
  Atomic<std::uint32_t> slot_hint;  // where to look first; never trusted
  Atomic<std::uint32_t> channel_hint;
  Atomic<std::uint32_t> entry_hint;
  Atomic<std::uint32_t> reap_hint;
  Atomic<std::uint32_t> channels_free;  // about so many rows below channels_high; never trusted
  std::uint32_t spare2[7];

  alignas(kCacheLine) Atomic<std::uint32_t> death_epoch;  // grows with every burial
  Atomic<std::uint32_t> spare3;
  Atomic<std::uint64_t> reaps;  // statistics
  Atomic<std::uint64_t> takeovers;
  Atomic<std::uint64_t> growths;
  Atomic<std::uint64_t> returned_bytes;  // given back to the system, in all
  std::uint64_t spare4[3];

  // The directory: from a key's hash to a channel row. A cache, rebuilt from the rows' keys.
  alignas(kCacheLine) OwnerWord<> directory_lock;
  Atomic<std::uint32_t> directory_bits;  // its table has 2^bits places; 0 = none yet
  Atomic<std::uint32_t> directory_used;  // places that are not empty, deleted ones included
  Atomic<std::uint32_t>
      directory_changes;  // grows with every new key; who waits for one sleeps here
  std::uint32_t spare5[12];
};
static_assert(sizeof(Header) <= 4096);

}  // namespace ipcbuf
