// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/ticket.hpp"

#include <atomic>

#include "ipcbuf/hold_list.hpp"
#include "ipcbuf/thread_heap.hpp"

namespace ipcbuf {

using A = Atomics;

namespace {

constexpr std::uint64_t kIsTicket = 1ULL << 32;  // BlockHeader::ticket, above the entry's id
constexpr std::uint64_t kOffered = 1;            // BlockHeader::state

Hold cell_of(std::uint64_t ticket) noexcept {
  return {HoldKind::kTicket, static_cast<std::uint32_t>(ticket / kCacheLine), 1};
}

/// The entry a ticket names, if it is (still) that one.
bool entry_of(Segment& s, std::uint64_t ticket, std::uint32_t& index, EntryWord& word) noexcept {
  const auto id = static_cast<std::uint32_t>(A::load_relaxed(s.block(ticket).ticket));
  index = index_of(id);
  if (index >= s.entries_high()) {
    (void)s.poison(__LINE__);
    return false;
  }
  word = EntryWord::unpack(A::load_acquire(s.entry(index).state));
  return word.state == EntryState::kActive && word.generation == generation_of_id(id);
}

/// The id of the entry that a view's block is shared through; it is shared from here on.
Status share_through(Segment& s, std::uint64_t held, std::uint32_t& id) noexcept {
  if (is_ticket(s, held)) {
    id = static_cast<std::uint32_t>(A::load_relaxed(s.block(held).ticket));
    return Status::kOk;
  }
  // A fork in another thread shares the blocks of views too.
  const std::lock_guard lock(s.mutex());
  if (const Status status = share_block(s, held, 0); status != Status::kOk) return status;
  BlockPlace p{};
  Holder holder{};
  if (!s.place(held, p) || !read_holder(s, p, holder) || holder.kind != HolderKind::kEntry)
    return s.poison(__LINE__);
  id = holder.id;
  return Status::kOk;
}

}  // namespace

Status make_ticket(Segment& s, std::uint64_t held, std::uint64_t& ticket, Failure& why) {
  static std::atomic<std::uint64_t> made = 0;
  std::uint32_t id = 0;
  if (const Status status = share_through(s, held, id); status != Status::kOk)
    return why.status = status;
  std::uint64_t offset = 0;
  const Status allocated = ThreadHeap::of(s).allocate(sizeof(TicketText), offset, why);
  if (allocated != Status::kOk) return allocated;
  *reinterpret_cast<TicketText*>(s.payload(offset)) = {offset, ++made, s.token(), id};
  // T1: a ticket first, then the cell; without one, freeing it finds nothing to drop.
  A::store_release(s.block(offset).ticket, kIsTicket | id);
  const Status added = add_hold(s, s.entry(index_of(id)).holds, cell_of(offset));
  if (added != Status::kOk) {
    (void)free_block(s, offset);
    return why.status = added;
  }
  ticket = offset;
  return Status::kOk;
}

Status read_ticket(Segment& s, std::uint64_t ticket, std::uint64_t& block,
                   std::uint64_t& length) noexcept {
  std::uint32_t index = 0;
  EntryWord word{};
  BlockPlace p{};
  Holder holder{};
  if (!entry_of(s, ticket, index, word) || !s.place(word.value * kCacheLine, p) ||
      !read_holder(s, p, holder) || holder != by_entry(make_id(index, word.generation)))
    return s.poison(__LINE__);
  block = p.offset;
  length = A::load_relaxed(s.block(p.offset).length);
  return length <= p.size() - sizeof(BlockHeader) ? Status::kOk : s.poison(__LINE__);
}

void offer_ticket(Segment& s, std::uint64_t ticket) noexcept {
  A::store_release(s.block(ticket).state, kOffered);  // T4 release
}

Status adopt_ticket(Segment& s, const TicketText& text) noexcept {
  BlockPlace p{};
  const auto is_it = [&] {
    return A::load_relaxed(s.block(p.offset).ticket) == (kIsTicket | text.entry) &&
           reinterpret_cast<const TicketText*>(s.payload(p.offset))->number == text.number &&
           A::load_acquire(s.block(p.offset).state) == kOffered;  // T4 acquire
  };
  if (!s.place(text.offset, p) || !is_it()) return Status::kNotFound;
  const Token me = s.token();
  if (text.maker == me) {
    std::uint64_t offered = kOffered;
    return A::compare_exchange(s.block(p.offset).state, offered, 0) ? Status::kOk
                                                                    : Status::kNotFound;
  }
  note_slot(s, p);
  if (!change_holder(s, p, by_process(text.maker), by_process(me))) return Status::kNotFound;
  if (!is_it()) {  // it was another's by then
    (void)change_holder(s, p, by_process(me), by_process(text.maker));
    return Status::kNotFound;
  }
  A::store_release(s.block(p.offset).state, 0);
  return Status::kOk;
}

void drop_ticket(Segment& s, std::uint64_t ticket) noexcept {
  std::uint32_t index = 0;
  EntryWord word{};
  // Another generation: the maker died before the ticket had its cell.
  if (entry_of(s, ticket, index, word) &&
      drop_hold(s, s.entry(index).holds, HoldKind::kTicket, cell_of(ticket).id, false))
    finish_entry(s, index);
  A::store_relaxed(s.block(ticket).ticket, 0);  // relaxed: K1 carries it
}

}  // namespace ipcbuf
