// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/segment.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include "ipcbuf/channel.hpp"
#include "ipcbuf/fork.hpp"
#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/named.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/reaper.hpp"
#include "ipcbuf/slots.hpp"
#include "ipcbuf/ticket.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

constexpr std::uint64_t kDefaultWindow = 64ULL << 30;
constexpr std::uint64_t kFirstReserve = 2U << 20;

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) noexcept {
  return (n + to - 1) / to * to;
}

std::uint64_t mix(std::uint64_t x) noexcept {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15;
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9;
  x ^= x >> 32;
  return x;
}

std::uint64_t checksum_of(const Constants& h) noexcept {
  const auto* words = reinterpret_cast<const std::uint64_t*>(&h);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < offsetof(Constants, checksum) / 8; ++i) sum = mix(sum ^ words[i]) + i;
  return sum;
}

/// Where each table lies, for a given largest size. The same on both sides by construction.
void lay_out(Constants& h, std::uint64_t max_size) noexcept {
  h.max_size = max_size;
  h.max_pages = static_cast<std::uint32_t>(max_size >> kPageShift);
  h.max_slots = kMaxSlots;
  h.max_channels = std::clamp(h.max_pages, 256U, kMaxChannels);
  h.max_entries = std::clamp(h.max_pages * 4, 1024U, kMaxEntries);
  constexpr std::uint64_t kAlign = 4096;
  std::uint64_t at = kAlign;
  const auto region = [&at](std::uint64_t bytes) {
    const std::uint64_t begin = at;
    at = round_up(at + bytes, kAlign);
    return begin;
  };
  h.slots = region(std::uint64_t{h.max_slots} * sizeof(SlotRow));
  h.channels = region(std::uint64_t{h.max_channels} * sizeof(ChannelRow));
  h.entries = region(std::uint64_t{h.max_entries} * sizeof(SharedEntry));
  h.runs = region(std::uint64_t{h.max_pages} * 8);
  h.pages = region(std::uint64_t{h.max_pages} * sizeof(PageInfo));
  h.index = region(std::uint64_t{h.max_pages} * 4);
  h.directory = region(std::uint64_t{std::bit_ceil(h.max_channels)} * 2 * 4);
  h.payload = round_up(at + kGuardGap, 2U << 20);
  h.window = h.payload + max_size;
}

Status differs(Status status, std::uint64_t found, std::uint64_t expected, Failure& why) noexcept {
  why.found = found;
  why.expected = expected;
  return why.status = status;
}

Status validate(const Constants& h, Failure& why) noexcept {
  if (h.magic == __builtin_bswap64(kMagic))
    return differs(Status::kAbiDiffers, __builtin_bswap32(h.abi), kAbi, why);
  if (h.magic != kMagic) return why.status = Status::kNotASegment;
  if (h.version != kLayoutVersion) return differs(Status::kVersion, h.version, kLayoutVersion, why);
  if (h.abi != kAbi) return differs(Status::kAbiDiffers, h.abi, kAbi, why);
  why.reason = "checksum of the header";
  if (const std::uint64_t sum = checksum_of(h); h.checksum != sum)
    return differs(Status::kCorrupted, h.checksum, sum, why);
  why.reason = "max_size";
  if (h.max_size < kMinSize || h.max_size > kMaxSize || h.max_size % kPageSize != 0)
    return differs(Status::kCorrupted, h.max_size, kMaxSize, why);
  Constants expected = h;
  lay_out(expected, h.max_size);
  why.reason = "places of the tables";
  if (std::memcmp(&expected, &h, offsetof(Constants, checksum)) != 0)
    return differs(Status::kCorrupted, h.payload, expected.payload, why);
  why.reason = "";
  return why.status = Status::kOk;
}

std::uint64_t default_max_size() noexcept {
  const platform::MemoryLimits limits = platform::memory_limits();
  const std::uint64_t physical = limits.physical == 0 ? 1ULL << 30 : limits.physical;
  const std::uint64_t half = std::min(physical, limits.cgroup_limit) / 2;
  return std::clamp(half / kPageSize * kPageSize, kMinSize, kDefaultWindow);
}

}  // namespace

Status preview_file(int fd, Preview& out, Failure& why) noexcept {
  platform::FileId id{};
  if (const int error = platform::file_id(fd, id); error == -EINVAL) {
    return why.status = Status::kNotASegment;
  } else if (error != 0) {
    why = {Status::kSystem, -error, "fstat"};
    return why.status;
  }
  alignas(kCacheLine) std::byte bytes[sizeof(Header)]{};
  const int got = platform::read_at(fd, bytes, sizeof bytes, 0);
  if (got < 0) {
    why = {Status::kSystem, -got, "pread"};
    return why.status;
  }
  std::memcpy(&out.constants, bytes, sizeof out.constants);
  std::memcpy(&out.committed_pages, bytes + offsetof(Header, committed_pages), 4);
  std::memcpy(&out.slots_high, bytes + offsetof(Header, slots_high), 4);
  if (got < static_cast<int>(sizeof out.constants.magic)) return why.status = Status::kNotASegment;
  if (out.constants.magic == kMagic && got < static_cast<int>(sizeof bytes))
    return differs(Status::kTruncated, static_cast<std::uint64_t>(got), sizeof bytes, why);
  if (const Status status = validate(out.constants, why); status != Status::kOk) return status;
  const Constants& c = out.constants;
  why.reason = "committed pages";
  if (out.committed_pages > c.max_pages)
    return differs(Status::kCorrupted, out.committed_pages, c.max_pages, why);
  why.reason = "slots in use";
  if (out.slots_high > c.max_slots)
    return differs(Status::kCorrupted, out.slots_high, c.max_slots, why);
  why.reason = "";
  // Looked up again behind the header: the file is made longer before the header says so.
  if (const int error = platform::file_id(fd, id); error != 0) {
    why = {Status::kSystem, -error, "fstat"};
    return why.status;
  }
  const std::uint64_t least = c.payload + (std::uint64_t{out.committed_pages} << kPageShift);
  if (id.size < least) return differs(Status::kTruncated, id.size, least, why);
  return why.status = Status::kOk;
}

std::uint64_t Segment::check_of(std::uint64_t offset, std::uint32_t units,
                                std::uint32_t salt) const noexcept {
  std::uint64_t seed = 0;
  std::memcpy(&seed, constants_.uuid, sizeof seed);
  return mix(offset ^ seed ^
             (static_cast<std::uint64_t>(units) << 32 | salt) * 0xD6E8FEB86659FD93) &
         kCheckMask;
}

bool Segment::place(std::uint64_t offset, BlockPlace& out) noexcept {
  if (offset < constants_.payload || offset % kCacheLine != 0) return false;
  const std::uint64_t wide = (offset - constants_.payload) >> kPageShift;
  const std::uint32_t committed = committed_pages();
  if (wide >= committed) return false;
  const auto at = static_cast<std::uint32_t>(wide);
  const std::uint32_t back = A::load_acquire(page(at).head_back);
  if (back > at) return false;
  const std::uint32_t head = at - back;
  const Run whole = Run::unpack(A::load_acquire(run(head)));
  if (whole.state != RunState::kSlab || back >= whole.length || whole.length > committed - head)
    return false;
  PageInfo& info = page(head);
  const std::uint32_t units = A::load_acquire(info.block_units);
  const std::uint32_t count = A::load_acquire(info.block_count);
  const std::uint64_t bytes = static_cast<std::uint64_t>(whole.length) << kPageShift;
  const std::uint64_t size = std::uint64_t{units} * kCacheLine;
  if (units < 2 || count == 0 || count > 64 || size * count > bytes) return false;
  const std::uint64_t inside = offset - page_offset(head);
  const std::uint64_t index = inside / size;
  if (index >= count || index * size != inside) return false;
  out = {head,   static_cast<std::uint32_t>(index),
         units,  count,
         offset, check_of(offset, units, A::load_acquire(info.salt))};
  return true;
}

Status Segment::poison(std::uint32_t line) noexcept {
  std::uint32_t expected = 0;
  // The zeros that a shortened file reads as are impossible, too; they are nobody else's business.
  if (!is_truncated()) A::compare_exchange(header().poisoned, expected, line);
  return fault();
}

bool Segment::is_whole() noexcept {
  platform::FileId id{};
  if (!may_shrink_ || is_lost() || platform::file_id(fd_, id) != 0) return !is_truncated();
  const std::uint64_t committed = committed_pages();
  if (id.size < constants_.payload + (committed << kPageShift)) truncated_.store(1);
  return !is_truncated();
}

int Segment::reserve(std::uint64_t offset, std::uint64_t length) noexcept {
  if (offset + length > constants_.window || offset + length < offset) return -EINVAL;
  // Behind a cut this would make the file long again, with zeros where the truth was.
  if (!is_whole()) return -ESTALE;
  if (is_lost()) return -EBADF;  // the number may be another file's by now
  return platform::reserve(fd_, offset, length);
}

int Segment::punch(std::uint64_t offset, std::uint64_t length) noexcept {
  if (offset + length > constants_.window || offset + length < offset) return -EINVAL;
  if (is_lost()) return -EBADF;  // the number may be another file's by now
  return platform::punch(fd_, offset, length);
}

// ---- create, attach, leave ----

Status Segment::map_window(bool may_shrink, Failure& why) {
  int error = 0;
  void* p = platform::map(fd_, constants_.window, error);
  if (p == nullptr) {
    why.sys_errno = -error;
    why.reason = "mmap";
    why.max_size = constants_.max_size;
    return why.status = Status::kSystem;
  }
  base_ = static_cast<std::byte*>(p);
  may_shrink_ = may_shrink;
  if (may_shrink) (void)platform::guard_mapping(p, constants_.window, truncated_);
  platform::protect_gap(base_ + constants_.payload - kGuardGap, kGuardGap);
  asymmetric_ = ForkHandlers::barrier_registered();
  namespace_ = platform::pid_namespace();
  alive_page_ = ForkHandlers::alive_page();
  views_.previous = views_.next = &views_;
  static std::atomic<std::uint64_t> serials{1};
  serial_ = serials.fetch_add(1, std::memory_order_relaxed);
  return Status::kOk;
}

void Segment::remap_window() noexcept {
  if (is_truncated()) return;  // the pages that took the place of the lost ones stay
  if (platform::map_again(base_, fd_, constants_.window) == 0)
    platform::protect_gap(base_ + constants_.payload - kGuardGap, kGuardGap);
}

Status Segment::take_seat() {
  if (const Status why = exclusion(); why != Status::kOk) return why;
  Status status = claim_slot(*this, fd_, own_description_, token_);
  if (status != Status::kOk) return status;
  publish_seat(*this, token_, own_description_);
  if (slot_of(token_) >= constants_.max_slots - kSpareSlots) reap_all(*this);
  reap_some(*this, 4);
  return status;
}

std::shared_ptr<Segment> Segment::create(std::uint64_t max_size, Failure& why) {
  const int fd = platform::create_memfd();
  if (fd < 0) {
    why = {Status::kSystem, -fd, "memfd_create"};
    return nullptr;
  }
  auto made = build(fd, max_size, true, why);
  if (made != nullptr) ForkHandlers::add(made);
  return made;
}

std::shared_ptr<Segment> Segment::build(int fd, std::uint64_t max_size, bool sealed, Failure& why) {
  const auto refuse = [&why](int error, const char* call) {
    why = {Status::kSystem, -error, call};
    return nullptr;
  };
  std::shared_ptr<Segment> made(new Segment);
  Segment& s = *made;
  s.fd_ = fd;
  s.own_description_ = true;
  if (max_size == 0) max_size = default_max_size();
  if (max_size > kMaxSize) {
    why = {Status::kTooLarge, 0, "max_size"};
    why.requested = max_size;
    why.max_size = kMaxSize;
    return nullptr;
  }
  max_size = std::max(round_up(max_size, kPageSize), kMinSize);
  for (;;) {
    lay_out(s.constants_, max_size);
    const Status status = s.map_window(!sealed, why);
    if (status == Status::kOk) break;
    // A limit on address space: a smaller window is better than none.
    if (max_size / 2 < kMinSize) return nullptr;
    max_size = round_up(max_size / 2, kPageSize);
  }
  Constants& c = s.constants_;
  c.magic = kMagic;
  c.version = kLayoutVersion;
  c.abi = kAbi;
  platform::random_bytes(c.uuid, sizeof c.uuid);
  c.checksum = checksum_of(c);
  // Control tables that are used from the start, then the first pages; the file ends behind them.
  int error = platform::reserve(s.fd_, 0, c.slots + std::uint64_t{c.max_slots} * sizeof(SlotRow));
  if (error == 0) {
    const auto pages =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(kFirstReserve, max_size) >> kPageShift);
    error = platform::reserve(s.fd_, c.runs, pages * 8ULL);
    if (error == 0) error = platform::reserve(s.fd_, c.pages, pages * sizeof(PageInfo));
    if (error == 0) error = platform::reserve(s.fd_, c.index, pages * 4ULL);
    if (error == 0)
      error = platform::reserve(s.fd_, c.payload, static_cast<std::uint64_t>(pages) << kPageShift);
    if (error == 0) {
      std::memcpy(s.base_, &c, sizeof c);
      A::store_relaxed(s.run(0), Run{RunState::kFree, pages, 0}.pack());
      A::store_relaxed(s.page(pages - 1).head_back, pages - 1);
      s.run_index()[0] = 0;
      A::store_relaxed(s.header().index_size, 1);
      A::store_relaxed(s.header().free_pages, pages);
      A::store_release(s.header().committed_pages, pages);
    }
  }
  if (error == 0 && sealed) error = platform::seal(s.fd_);
  if (error != 0) return refuse(error, "fallocate");
  platform::FileId id{};
  if (platform::file_id(s.fd_, id) != 0) return refuse(-EBADF, "fstat");
  s.device_ = id.device;
  s.inode_ = id.inode;
  why.status = s.take_seat();
  if (why.status != Status::kOk) return nullptr;
  return made;
}

std::shared_ptr<Segment> Segment::attach(int fd, Failure& why) {
  Preview seen{};
  if (preview_file(fd, seen, why) != Status::kOk) return nullptr;
  platform::FileId id{};
  if (const int error = platform::file_id(fd, id); error != 0) {
    why = {Status::kSystem, -error, "fstat"};
    return nullptr;
  }
  const auto lock = ForkHandlers::attach_lock();
  if (auto known = ForkHandlers::find(
          [&](const Segment& s) { return s.device_ == id.device && s.inode_ == id.inode; }))
    return known;
  // An own description, so that our life byte is ours alone. Without /proc: a plain duplicate.
  int own = platform::reopen(fd);
  const bool own_description = own >= 0;
  if (own < 0) own = platform::duplicate(fd);
  if (own < 0) {
    why = {Status::kSystem, -own, "dup"};
    return nullptr;
  }
  auto made = adopt(own, own_description, seen, why);
  if (made != nullptr) ForkHandlers::add(made);
  return made;
}

std::shared_ptr<Segment> Segment::adopt(int fd, bool own_description, const Preview& seen,
                                        Failure& why) {
  std::shared_ptr<Segment> made(new Segment);
  Segment& s = *made;
  s.fd_ = fd;
  s.own_description_ = own_description;
  s.constants_ = seen.constants;
  platform::FileId id{};
  if (const int error = platform::file_id(fd, id); error != 0) {
    why = {Status::kSystem, -error, "fstat"};
    return nullptr;
  }
  s.device_ = id.device;
  s.inode_ = id.inode;
  if (s.map_window(!platform::cannot_shrink(fd), why) != Status::kOk) return nullptr;
  why.status = s.take_seat();
  if (why.status != Status::kOk) return nullptr;
  return made;
}

std::shared_ptr<Segment> Segment::find(const std::uint8_t (&uuid)[16]) {
  return ForkHandlers::find(
      [&](const Segment& s) { return std::memcmp(s.constants_.uuid, uuid, sizeof uuid) == 0; });
}

Segment::~Segment() {
  ForkHandlers::remove(*this);
  if (base_ != nullptr) {
    const bool is_ours = *alive_page_ != 0;  // not what a raw clone has copied
    if (token_ != 0 && is_ours && !is_truncated()) leave(*this, token_);
    // By hand: a fork that happens now inherits the description, and with it every lock.
    if (token_ != 0 && is_ours && !is_lost()) platform::unlock_life_byte(fd_, slot_of(token_));
    if (is_ours && !is_lost()) retire_named(*this);
    if (may_shrink_) platform::unguard_mapping(base_);
    platform::unmap(base_, constants_.window);
  }
  if (!is_lost()) platform::close_fd(fd_);
}

void Segment::after_raw_fork() noexcept {
  if (!ForkHandlers::is_torn() || std::exchange(torn_, true)) return;
  token_ = 0;
  new (&mutex_) std::mutex;
}

// ---- life and death ----

bool Segment::is_lost() const noexcept {
  platform::FileId id{};
  if (inode_ == 0) return false;  // being made
  const int error = platform::file_id(fd_, id);
  if (error != 0) return error == -EBADF || error == -EINVAL;  // closed, or no file; else unknown
  return id.device != device_ || id.inode != inode_;
}

bool Segment::is_dead(Token token) noexcept {
  if (token == 0) return false;
  if (std::find(assumed_dead_.begin(), assumed_dead_.end(), token) != assumed_dead_.end())
    return true;
  if (token == token_) return false;
  SlotRow& row = slot(slot_of(token));
  const std::uint32_t word = A::load_acquire(row.state);  // L1 acquire, from publish_seat
  const SlotState state = slot_state(word);
  if (slot_token(slot_of(token), word) != token || state == SlotState::kFree) return true;
  // Without our descriptor we cannot look at bytes, and prove by process ids only.
  const Ward ward = ward_of(word, A::load_acquire(row.ward));
  const SlotIdentity who{state,          row.pid,         row.has_life_byte, row.pid_namespace,
                         row.start_time, row.pidfs_inode, ward.pid,          ward.started};
  const bool dead = is_proven_dead(who, slot_of(token), {is_lost() ? -1 : fd_, namespace_, inode_});
  // The row may have changed hands while we looked; then the verdict is about nobody.
  A::load_barrier();
  return dead && A::load_acquire(row.state) == word;
}

// ---- private registries ----

void Segment::add_view(LiveView& view) {
  if (is_torn()) return;
  const std::lock_guard lock(mutex());
  view.previous = &views_;
  view.next = views_.next;
  views_.next->previous = &view;
  views_.next = &view;
}

void Segment::remove_view(LiveView& view) {
  if (is_torn()) return;
  const std::lock_guard lock(mutex());
  if (view.next == nullptr) return;
  view.previous->next = view.next;
  view.next->previous = view.previous;
  view.previous = view.next = nullptr;
}

std::size_t Segment::view_count() {
  const std::lock_guard lock(mutex());
  std::size_t n = 0;
  for (const LiveView* v = views_.next; v != &views_; v = v->next) ++n;
  return n;
}

std::uint64_t Segment::view_bytes() {
  const std::lock_guard lock(mutex());
  std::uint64_t sum = 0;
  for (const LiveView* v = views_.next; v != &views_; v = v->next) {
    if (v->block == 0) continue;
    std::uint64_t length = A::load_relaxed(block(v->block).length);
    std::uint64_t behind = 0;
    if (is_ticket(*this, v->block)) (void)read_ticket(*this, v->block, behind, length);
    sum += length;
  }
  return sum;
}

namespace {
constexpr std::uint64_t endpoint_key(std::uint32_t channel_id, End end) noexcept {
  return std::uint64_t{channel_id} * 2 + static_cast<std::uint64_t>(end);
}
}  // namespace

// The mutex is not held while holds change: what that leads to takes locks of the segment. A fork
// in between gives the child no hold for an object that the child does not have either.
Status Segment::add_endpoint(std::uint32_t channel_id, End end) {
  if (token() == 0) return no_seat();
  const Status status =
      add_hold(*this, hold_list(*this, channel_id, end), Hold{HoldKind::kProcess, token(), 1});
  if (status == Status::kOk) note_endpoint(channel_id, end);
  return status;
}

void Segment::note_endpoint(std::uint32_t channel_id, End end) {
  if (is_torn()) return;
  const std::lock_guard lock(mutex());
  ++endpoints_[endpoint_key(channel_id, end)];
}

void Segment::remove_endpoint(std::uint32_t channel_id, End end) {
  if (is_torn()) return;
  {
    const std::lock_guard lock(mutex());
    const auto it = endpoints_.find(endpoint_key(channel_id, end));
    if (it == endpoints_.end()) return;
    if (--it->second == 0) endpoints_.erase(it);
  }
  drop_endpoint_hold(*this, channel_id, end, HoldKind::kProcess, token());
}

}  // namespace ipcbuf
