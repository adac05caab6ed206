// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// segment.hpp - one mapped region of shared memory, and this process's seat in it.
//
// Overview
//   `Segment` owns the mapping, the memory descriptor and the process's slot. It turns
//   offsets into pointers with bounds checks, and holds what is private to the process:
//   the constants of the header (copied once, so no peer can change them under us) and the
//   lists of endpoints and views that a fork has to share with the child.
//
// Life cycle
//   create or attach -> a slot is claimed -> ... -> destructor (the slot is buried by
//   ourselves, as if we had died) or death (a survivor buries it). Interpreter exit does
//   neither: only death frees the slot.
//
//   A segment with a name (named.hpp) lies in a file that cannot be sealed. If somebody cuts it
//   short, what was there reads as zeros from then on and `is_truncated` says so.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ipcbuf/layout.hpp"
#include "ipcbuf/status.hpp"

namespace ipcbuf {

struct BlockPlace {
  std::uint32_t head;   // first page of the slab
  std::uint32_t index;  // which block of the slab
  std::uint32_t units;  // size in cache lines, header included
  std::uint32_t count;  // blocks in the slab
  std::uint64_t offset;
  std::uint64_t check;  // the check bits that this block's holder word must have

  [[nodiscard]] std::uint64_t size() const noexcept { return std::uint64_t{units} * kCacheLine; }
};

/// What decides before a file is mapped, read from the file.
struct Preview {
  Constants constants;
  std::uint32_t committed_pages;
  std::uint32_t slots_high;
};
/// Reads and checks the beginning of a file. Nothing of it is mapped.
[[nodiscard]] Status preview_file(int fd, Preview& out, Failure& why) noexcept;

/// A view that is alive in this process; linked so that a fork can share its block.
struct LiveView {
  LiveView* previous = nullptr;
  LiveView* next = nullptr;
  std::uint64_t block = 0;  // offset; 0 = holds nothing
  bool pinned = false;      // a fork found no shared entry: kept until this process dies
  bool own = false;         // a child does not get it: a lease nobody looks at
};

enum class End : std::uint32_t { kSender = 0, kReceiver = 1 };

class Segment : public std::enable_shared_from_this<Segment> {
 public:
  /// A new anonymous segment. `max_size` 0: half of what the machine and its cgroups allow.
  static std::shared_ptr<Segment> create(std::uint64_t max_size, Failure& why);
  /// Maps the segment behind `fd` (borrowed); the process's existing one if it has it already.
  static std::shared_ptr<Segment> attach(int fd, Failure& why);
  static std::shared_ptr<Segment> find(const std::uint8_t (&uuid)[16]);

  // ---- for named.cpp: under the attach lock, and not yet known to the fork handlers ----
  /// A new segment in an empty file. Takes `fd` over, which is an own description.
  static std::shared_ptr<Segment> build(int fd, std::uint64_t max_size, bool sealed, Failure& why);
  /// Maps a file that `preview_file` has accepted. Takes `fd` over.
  static std::shared_ptr<Segment> adopt(int fd, bool own_description, const Preview& seen,
                                        Failure& why);

  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  // ---- identity ----
  [[nodiscard]] const Constants& constants() const noexcept { return constants_; }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] std::uint64_t device() const noexcept { return device_; }
  [[nodiscard]] std::uint64_t inode() const noexcept { return inode_; }
  [[nodiscard]] std::uint64_t pid_namespace() const noexcept { return namespace_; }
  /// Directory and name of a segment with a name, as it was opened here.
  [[nodiscard]] bool has_name() const noexcept { return has_name_.load(std::memory_order_acquire); }
  [[nodiscard]] const std::string& directory() const noexcept { return directory_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Under the attach lock. Only the first name counts; then it does not change.
  void set_name(std::string directory, std::string name) {
    if (has_name()) return;
    directory_ = std::move(directory);
    name_ = std::move(name);
    has_name_.store(true, std::memory_order_release);
  }
  /// Under the attach lock: who has opened the segment by its name here, and not closed it.
  void add_handle() noexcept { ++handles_; }
  [[nodiscard]] bool remove_handle() noexcept { return handles_ > 0 && --handles_ == 0; }
  [[nodiscard]] std::uint64_t serial() const noexcept { return serial_; }
  /// Our token. After a fork that ran no handlers this takes a seat of our own first.
  [[nodiscard]] Token token() noexcept {
    if (*alive_page_ == 0) [[unlikely]]
      after_raw_fork();
    return token_;
  }
  /// True if we have a slot. A fork while all were taken leaves the child without; it tries again.
  [[nodiscard]] bool is_seated() noexcept { return token() != 0 || take_seat() == Status::kOk; }

  // ---- tables ----
  [[nodiscard]] Header& header() noexcept { return *reinterpret_cast<Header*>(base_); }
  [[nodiscard]] SlotRow& slot(std::uint32_t i) noexcept {
    return table<SlotRow>(constants_.slots)[i];
  }
  [[nodiscard]] ChannelRow& channel(std::uint32_t i) noexcept {
    return table<ChannelRow>(constants_.channels)[i];
  }
  [[nodiscard]] SharedEntry& entry(std::uint32_t i) noexcept {
    return table<SharedEntry>(constants_.entries)[i];
  }
  [[nodiscard]] Atomic<std::uint64_t>& run(std::uint32_t page) noexcept {
    return table<Atomic<std::uint64_t>>(constants_.runs)[page];
  }
  [[nodiscard]] PageInfo& page(std::uint32_t page) noexcept {
    return table<PageInfo>(constants_.pages)[page];
  }
  [[nodiscard]] std::uint32_t* run_index() noexcept {
    return table<std::uint32_t>(constants_.index);
  }
  [[nodiscard]] Atomic<std::uint32_t>* key_table() noexcept {
    return table<Atomic<std::uint32_t>>(constants_.directory);
  }
  // How much of each table is in use. Never more than there is, whatever the header says.
  [[nodiscard]] std::uint32_t committed_pages() noexcept {
    return at_most(constants_.max_pages, header().committed_pages);
  }
  [[nodiscard]] std::uint32_t slots_high() noexcept {
    return at_most(constants_.max_slots, header().slots_high);
  }
  [[nodiscard]] std::uint32_t channels_high() noexcept {
    return at_most(constants_.max_channels, header().channels_high);
  }
  [[nodiscard]] std::uint32_t entries_high() noexcept {
    return at_most(constants_.max_entries, header().entries_high);
  }

  // ---- blocks ----
  [[nodiscard]] std::uint64_t page_offset(std::uint32_t page) const noexcept {
    return constants_.payload + (static_cast<std::uint64_t>(page) << kPageShift);
  }
  /// The only way from an offset read in shared memory to a block; false: it is none.
  [[nodiscard]] bool place(std::uint64_t offset, BlockPlace& out) noexcept;
  [[nodiscard]] BlockHeader& block(std::uint64_t offset) noexcept {
    return *reinterpret_cast<BlockHeader*>(base_ + offset);
  }
  [[nodiscard]] std::byte* payload(std::uint64_t block_offset) noexcept {
    return base_ + block_offset + sizeof(BlockHeader);
  }
  [[nodiscard]] std::uint64_t check_of(std::uint64_t offset, std::uint32_t units,
                                       std::uint32_t salt) const noexcept;

  // ---- life and death ----
  /// Proof, never a time-out. Slow: system calls.
  [[nodiscard]] bool is_dead(Token token) noexcept;
  /// True once somebody in this process closed our descriptor, or put another file in its place.
  /// The others still see us alive, because our mapping keeps the lock on our life byte. A system
  /// call.
  [[nodiscard]] bool is_lost() const noexcept;
  /// For tests and for copies of a segment: treat this token as dead.
  void assume_dead(Token token) { assumed_dead_.push_back(token); }
  /// Marks the segment as impossible; one way. Answers what the caller should answer.
  Status poison(std::uint32_t line) noexcept;
  [[nodiscard]] bool is_poisoned() noexcept {
    // relaxed: flags that never go back and guard nothing
    return is_truncated() || Atomics::load_relaxed(header().poisoned) != 0;
  }
  /// Why a poisoned segment is not used any more.
  [[nodiscard]] Status fault() const noexcept {
    return is_truncated() ? Status::kTruncated : Status::kCorrupted;
  }
  /// The file was cut short under us, and this process has noticed: what it reads may be zeros.
  [[nodiscard]] bool is_truncated() const noexcept {
    // relaxed: set by the handler of a fault of this very thread, or by another one's at any time
    return truncated_.load(std::memory_order_relaxed) != 0;
  }
  /// Looks whether the file still has what was reserved; a system call.
  [[nodiscard]] bool is_whole() noexcept;
  /// We are the child of a raw clone that copied us half changed.
  [[nodiscard]] bool is_torn() noexcept { return token() == 0 && torn_; }
  /// kTorn, kLost, or kOk: no reason why we should not have a seat. A system call.
  [[nodiscard]] Status exclusion() noexcept {
    if (is_torn()) return Status::kTorn;
    return is_lost() ? Status::kLost : Status::kOk;
  }
  /// What to answer if we have none.
  [[nodiscard]] Status no_seat() noexcept {
    const Status why = exclusion();
    return why == Status::kOk ? Status::kTooMany : why;
  }
  /// Whether waiting here makes sense at all: `fault()`, kTorn, kLost or kOk. A system call.
  [[nodiscard]] Status health() noexcept { return is_poisoned() ? fault() : exclusion(); }
  /// Publishers may use a plain load of a waiter's mark: sleepers run a barrier for them.
  [[nodiscard]] bool asymmetric() const noexcept { return asymmetric_; }

  /// Reserves file space for a table row that is used for the first time.
  [[nodiscard]] int reserve(std::uint64_t offset, std::uint64_t length) noexcept;
  /// Gives the memory of free pages back to the system.
  [[nodiscard]] int punch(std::uint64_t offset, std::uint64_t length) noexcept;

  // ---- private registries, shared with a child at fork ----
  void add_view(LiveView& view);
  void remove_view(LiveView& view);
  [[nodiscard]] Status add_endpoint(std::uint32_t channel_id, End end);
  /// Of an end whose hold was added already: a fork is to add the child's.
  void note_endpoint(std::uint32_t channel_id, End end);
  void remove_endpoint(std::uint32_t channel_id, End end);
  [[nodiscard]] std::mutex& mutex() noexcept {
    (void)token();  // behind a raw clone, another thread may have had it
    return mutex_;
  }
  [[nodiscard]] std::size_t view_count();
  /// Bytes that the views of this process keep alive.
  [[nodiscard]] std::uint64_t view_bytes();

 private:
  friend class ForkHandlers;
  Segment() = default;

  static std::uint32_t at_most(std::uint32_t limit, const Atomic<std::uint32_t>& word) noexcept {
    const std::uint32_t n = Atomics::load_acquire(word);
    return n < limit ? n : limit;
  }
  template <class T>
  [[nodiscard]] T* table(std::uint64_t offset) noexcept {
    return reinterpret_cast<T*>(base_ + offset);
  }
  [[nodiscard]] Status map_window(bool may_shrink, Failure& why);
  /// The same again over the same addresses, through the description that `fd_` is now.
  void remap_window() noexcept;
  [[nodiscard]] Status take_seat();
  void after_raw_fork() noexcept;

  Constants constants_{};
  std::byte* base_ = nullptr;
  int fd_ = -1;
  bool own_description_ = false;
  bool asymmetric_ = false;
  std::uint64_t serial_ = 0;
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  std::uint64_t namespace_ = 0;
  Token token_ = 0;
  const std::uint32_t* alive_page_ = nullptr;
  bool torn_ = false;
  bool may_shrink_ = false;
  std::atomic<std::uint32_t> truncated_{0};
  std::string directory_;  // with name_: written once, before has_name_
  std::string name_;
  std::atomic<bool> has_name_{false};
  int handles_ = 0;  // under the attach lock

  std::mutex mutex_;
  LiveView views_;                                              // sentinel of the ring of views
  std::unordered_map<std::uint64_t, std::uint32_t> endpoints_;  // channel id * 2 + end -> objects
  std::vector<Token> assumed_dead_;

  // between the fork handlers
  int child_fd_ = -1;
  std::uint32_t child_slot_ = 0;
  Token child_token_ = 0;
};

}  // namespace ipcbuf
