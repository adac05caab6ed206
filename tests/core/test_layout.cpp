// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
//
// test_layout.cpp - layout.hpp: the tables of docs/layout.md are what the compiler lays out.
//
// Under a heading `### Name` there is a table whose first three columns are offset, bytes and
// field; what a field means is the page's own. `test_layout --write` corrects the three columns.
#include <cstddef>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "check.hpp"
#include "ipcbuf/layout.hpp"
#include "ipcbuf/ring.hpp"

namespace {

using namespace ipcbuf;

struct Field {
  const char* name;
  std::size_t offset;
  std::size_t size;
};
struct Struct {
  const char* name;
  std::size_t size;
  std::vector<Field> fields;
};

#define FIELD(type, name) {#name, offsetof(type, name), sizeof(type::name)}

std::vector<Struct> structs() {
  return {
      {"Constants",
       sizeof(Constants),
       {FIELD(Constants, magic), FIELD(Constants, version), FIELD(Constants, abi),
        FIELD(Constants, uuid), FIELD(Constants, max_size), FIELD(Constants, max_pages),
        FIELD(Constants, max_slots), FIELD(Constants, max_channels), FIELD(Constants, max_entries),
        FIELD(Constants, slots), FIELD(Constants, channels), FIELD(Constants, entries),
        FIELD(Constants, runs), FIELD(Constants, pages), FIELD(Constants, index),
        FIELD(Constants, directory), FIELD(Constants, payload), FIELD(Constants, window),
        FIELD(Constants, checksum)}},
      {"Header", sizeof(Header), {FIELD(Header, constants),        FIELD(Header, heap_lock),
                                  FIELD(Header, committed_pages),  FIELD(Header, index_size),
                                  FIELD(Header, free_pages),       FIELD(Header, returned_pages),
                                  FIELD(Header, returned_first),   FIELD(Header, least_free),
                                  FIELD(Header, least_since),      FIELD(Header, poisoned),
                                  FIELD(Header, slots_high),       FIELD(Header, channels_high),
                                  FIELD(Header, entries_high),     FIELD(Header, slot_hint),
                                  FIELD(Header, channel_hint),     FIELD(Header, entry_hint),
                                  FIELD(Header, reap_hint),        FIELD(Header, channels_free),
                                  FIELD(Header, death_epoch),      FIELD(Header, reaps),
                                  FIELD(Header, takeovers),        FIELD(Header, growths),
                                  FIELD(Header, returned_bytes),   FIELD(Header, directory_lock),
                                  FIELD(Header, directory_bits),   FIELD(Header, directory_used),
                                  FIELD(Header, directory_changes)}},
      {"SlotRow",
       sizeof(SlotRow),
       {FIELD(SlotRow, state), FIELD(SlotRow, reaper), FIELD(SlotRow, pid),
        FIELD(SlotRow, has_life_byte), FIELD(SlotRow, pid_namespace), FIELD(SlotRow, start_time),
        FIELD(SlotRow, pidfs_inode), FIELD(SlotRow, ward)}},
      {"PageInfo",
       sizeof(PageInfo),
       {FIELD(PageInfo, head_back), FIELD(PageInfo, index_pos), FIELD(PageInfo, block_units),
        FIELD(PageInfo, block_count), FIELD(PageInfo, slot_set), FIELD(PageInfo, returned),
        FIELD(PageInfo, salt), FIELD(PageInfo, next_returned)}},
      {"BlockHeader",
       sizeof(BlockHeader),
       {FIELD(BlockHeader, holder), FIELD(BlockHeader, length), FIELD(BlockHeader, state),
        FIELD(BlockHeader, creator), FIELD(BlockHeader, order), FIELD(BlockHeader, lease),
        FIELD(BlockHeader, ticket)}},
      {"HoldList", sizeof(HoldList), {FIELD(HoldList, next), FIELD(HoldList, cells)}},
      {"SharedEntry", sizeof(SharedEntry), {FIELD(SharedEntry, state), FIELD(SharedEntry, holds)}},
      {"ChannelKey",
       sizeof(ChannelKey),
       {FIELD(ChannelKey, kind), FIELD(ChannelKey, length), FIELD(ChannelKey, text)}},
      {"BellRow",
       sizeof(BellRow),
       {FIELD(BellRow, word), FIELD(BellRow, end_state), FIELD(BellRow, sleeper),
        FIELD(BellRow, sleeps_since)}},
      {"EndRow",
       sizeof(EndRow),
       {FIELD(EndRow, lock), FIELD(EndRow, owner), FIELD(EndRow, spinner), FIELD(EndRow, last_pid),
        FIELD(EndRow, ring), FIELD(EndRow, items), FIELD(EndRow, bytes), FIELD(EndRow, cached),
        FIELD(EndRow, left_at), FIELD(EndRow, spin_until)}},
      {"ChannelRow",
       sizeof(ChannelRow),
       {FIELD(ChannelRow, state), FIELD(ChannelRow, flags), FIELD(ChannelRow, bell_kind),
        FIELD(ChannelRow, max_items), FIELD(ChannelRow, max_bytes), FIELD(ChannelRow, type),
        FIELD(ChannelRow, returned), FIELD(ChannelRow, value), FIELD(ChannelRow, ready),
        FIELD(ChannelRow, give_backs), FIELD(ChannelRow, marks), FIELD(ChannelRow, sender),
        FIELD(ChannelRow, receiver), FIELD(ChannelRow, data), FIELD(ChannelRow, room),
        FIELD(ChannelRow, sender_holds), FIELD(ChannelRow, receiver_holds),
        FIELD(ChannelRow, key)}},
      {"RingHeader",
       sizeof(RingHeader),
       {FIELD(RingHeader, capacity), FIELD(RingHeader, channel), FIELD(RingHeader, items_base),
        FIELD(RingHeader, bytes_base), FIELD(RingHeader, next), FIELD(RingHeader, write_word),
        FIELD(RingHeader, read_word)}},
      {"BlockRef", sizeof(BlockRef), {FIELD(BlockRef, offset), FIELD(BlockRef, length)}},
  };
}

const char* const kPage = IPCBUF_DOCS "/layout.md";

std::vector<std::string> lines_of(const char* path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

/// The name of a table's row, in back quotes; empty if the line is none.
std::string name_in(const std::string& line) {
  const auto begin = line.find("| `");
  const auto end = line.find("` |", begin + 3);
  return line.starts_with("| ") && begin != std::string::npos && end != std::string::npos
             ? line.substr(begin + 3, end - begin - 3)
             : "";
}

std::string row(const Field& field, const std::string& meaning) {
  std::ostringstream out;
  out << "| " << field.offset << " | " << field.size << " | `" << field.name << "` | " << meaning;
  return out.str();
}

/// The page with every table as the compiler says.
std::vector<std::string> corrected(const std::vector<std::string>& lines) {
  std::vector<std::string> out;
  std::map<std::string, Struct> known;
  for (const Struct& s : structs()) known[s.name] = s;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    out.push_back(lines[i]);
    const auto found = lines[i].starts_with("### ") ? known.find(lines[i].substr(4)) : known.end();
    if (found == known.end()) continue;
    while (i + 1 < lines.size() && !lines[i + 1].starts_with("| ")) out.push_back(lines[++i]);
    for (int head = 0; head < 2 && i + 1 < lines.size(); ++head) out.push_back(lines[++i]);
    std::map<std::string, std::string> meanings;
    for (; i + 1 < lines.size() && lines[i + 1].starts_with("| "); ++i) {
      const std::string name = name_in(lines[i + 1]);
      meanings[name] = lines[i + 1].substr(lines[i + 1].find("` |") + 4);
    }
    for (const Field& field : found->second.fields)
      out.push_back(row(field, meanings.contains(field.name) ? meanings[field.name] : "? |"));
    known.erase(found);
  }
  for (const auto& [name, s] : known) check::fail(__FILE__, __LINE__, "no table of " + name);
  return out;
}

TEST(the_tables_of_the_page_are_the_layout) {
  const auto is = lines_of(kPage);
  const auto should = corrected(is);
  CHECK(!is.empty());
  for (std::size_t i = 0; i < should.size() && i < is.size(); ++i) CHECK_EQ(should[i], is[i]);
  CHECK_EQ(should.size(), is.size());
  for (const std::string& line : should) CHECK(!line.ends_with("| ? |"));  // says what it means
}

TEST(the_page_says_how_large_each_structure_is) {
  std::ostringstream all;
  for (const std::string& line : lines_of(kPage)) all << line << '\n';
  for (const Struct& s : structs()) {
    const std::string words =
        std::string("### ") + s.name + "\n\n" + std::to_string(s.size) + " bytes";
    if (all.str().find(words) == std::string::npos)
      check::fail(__FILE__, __LINE__, "missing: " + words);
  }
}

TEST(the_page_names_the_version_and_the_constants_of_attaching) {
  std::ostringstream all, magic, abi;
  for (const std::string& line : lines_of(kPage)) all << line << '\n';
  magic << "0x" << std::uppercase << std::hex << kMagic;
  abi << "0x" << std::uppercase << std::hex << kAbi;
  for (const std::string& words :
       {"Version " + std::to_string(kLayoutVersion) + ".", magic.str(), abi.str()})
    if (all.str().find(words) == std::string::npos)
      check::fail(__FILE__, __LINE__, "missing: " + words);
}

}  // namespace

int main(int n, char** v) {
  if (n == 2 && std::strcmp(v[1], "--write") == 0) {
    const auto lines = corrected(lines_of(kPage));
    std::ofstream file(kPage);
    for (const std::string& line : lines) file << line << '\n';
    return 0;
  }
  return check::run(n, v);
}
