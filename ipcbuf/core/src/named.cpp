// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#include "ipcbuf/named.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <utility>

#include "ipcbuf/fork.hpp"
#include "ipcbuf/platform.hpp"
#include "ipcbuf/slots.hpp"

namespace ipcbuf {

namespace {

using platform::FileKind;
using platform::FileStatus;
using platform::Gate;

constexpr std::int64_t kPatience = 10'000'000'000;  // ns that others may hold us up
constexpr char kHalfMade[] = ".tmp-";

/// A descriptor that is closed again.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) noexcept : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { platform::close_fd(fd_); }
  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
  void reset(int fd) noexcept { platform::close_fd(std::exchange(fd_, fd)); }

 private:
  int fd_;
};

struct Folder {
  Descriptor fd;
  std::string path;
};

Status refuse(NamedFailure& why, Status status, std::string detail) {
  why.detail = std::move(detail);
  return why.status = status;
}

Status refuse_call(NamedFailure& why, int error, const char* call) {
  why.sys_errno = -error;
  why.reason = call;
  return why.status = Status::kSystem;
}

std::string octal(std::uint32_t mode) {
  char text[16];
  std::snprintf(text, sizeof text, "%04o", mode);
  return text;
}

// ---- the directory ----

/// Ours, nobody else's, and nobody else can put another in its place.
Status check_folder(const std::string& path, const FileStatus& seen, NamedFailure& why) {
  const std::string remedy =
      "; remove it, or set IPCBUF_DIR to a directory that only you may enter";
  why.path = path;
  const std::uint32_t me = platform::effective_user();
  if (seen.owner != me)
    return refuse(why, Status::kPermission,
                  "it belongs to user " + std::to_string(seen.owner) + ", we are user " +
                      std::to_string(me) + remedy);
  if (seen.kind != FileKind::kDirectory)
    return refuse(why, Status::kPermission, "it is not a directory" + remedy);
  if ((seen.mode & 0077) != 0)
    return refuse(why, Status::kPermission,
                  "its mode " + octal(seen.mode) +
                      " lets others in; chmod 700 it, once you know who did that");
  return Status::kOk;
}

Status check_parent(const std::string& path, NamedFailure& why) {
  const std::string parent = path.substr(0, std::max<std::size_t>(path.rfind('/'), 1));
  FileStatus above;
  if (platform::status_at(-1, parent.c_str(), above) != 0) return Status::kOk;
  if (above.kind == FileKind::kLink || (above.mode & 0022) == 0 || (above.mode & 01000) != 0)
    return Status::kOk;
  why.path = parent;
  return refuse(why, Status::kPermission,
                "its mode " + octal(above.mode) +
                    " lets others replace what is in it; chmod +t it, or set IPCBUF_DIR to a "
                    "directory elsewhere");
}

/// kNotFound: this place does not exist here, look at the next.
Status try_folder(const std::string& path, bool create, bool is_asked_for, Folder& out,
                  NamedFailure& why) {
  why.path = path;
  bool made = false;
  if (create) {
    const int r = platform::make_directory(path.c_str());
    made = r == 0;
    const bool no_place = r == -ENOENT || r == -EROFS || r == -EACCES || r == -ENOTDIR;
    if (no_place && !is_asked_for) return Status::kNotFound;
    if (r != 0 && r != -EEXIST) return refuse_call(why, r, "mkdir");
  }
  FileStatus seen;
  int r = platform::status_at(-1, path.c_str(), seen);
  if (r == -ENOENT || r == -ENOTDIR) return Status::kNotFound;
  if (r != 0) return refuse_call(why, r, "stat");
  if (const Status status = check_parent(path, why); status != Status::kOk) return status;
  const int fd = platform::open_directory(path.c_str());
  out.fd.reset(fd < 0 ? -1 : fd);
  // What was opened is what counts; what the name says serves if it could not be opened.
  if (made && fd >= 0) (void)platform::make_private(fd, true);  // whatever the umask left of it
  if (fd >= 0 && (r = platform::file_status(fd, seen)) != 0) return refuse_call(why, r, "fstat");
  if (const Status status = check_folder(path, seen, why); status != Status::kOk) return status;
  if (fd < 0) return refuse_call(why, fd, "open");
  out.path = path;
  return Status::kOk;
}

Status open_folder(bool create, bool allow_disk, Folder& out, NamedFailure& why) {
  struct Place {
    std::string path;
    bool is_asked_for;
  };
  std::vector<Place> places;
  if (const std::string asked = platform::environment("IPCBUF_DIR"); !asked.empty()) {
    why.path = asked;
    if (asked[0] != '/')
      return refuse(why, Status::kMismatch, "IPCBUF_DIR must be an absolute path, not " + asked);
    places.push_back({asked, true});
  } else {
    places.push_back({"/dev/shm/ipcbuf-" + std::to_string(platform::effective_user()), false});
    if (const std::string own = platform::environment("XDG_RUNTIME_DIR"); own[0] == '/')
      places.push_back({own + "/ipcbuf", false});
  }
  for (const Place& place : places) {
    const Status status = try_folder(place.path, create, place.is_asked_for, out, why);
    if (status == Status::kNotFound) continue;
    if (status != Status::kOk) return status;
    platform::FileSystem fs;
    const int r = platform::file_system(out.fd.get(), fs);
    if (r != 0) return refuse_call(why, r, "statfs");
    if (fs.is_memory || allow_disk) return Status::kOk;
    if (!place.is_asked_for) continue;
    why.sys_errno = EOPNOTSUPP;
    return refuse(why, Status::kSystem,
                  "it lies on a disk, not in memory (tmpfs); set IPCBUF_DIR to a directory on a "
                  "tmpfs, or ask for allow_disk=True");
  }
  if (!create) {
    why.path = places[0].path;
    return refuse(why, Status::kNotFound, "there is no such directory");
  }
  why.path = places[0].path;
  why.sys_errno = ENOENT;
  return refuse(why, Status::kSystem,
                "no place for named segments: neither /dev/shm nor XDG_RUNTIME_DIR is a tmpfs "
                "that we may write to; set IPCBUF_DIR to a directory on one");
}

// ---- what a file is ----

bool is_half_made(const std::string& name) { return name.starts_with(kHalfMade); }

std::vector<std::string> names_in(const Folder& folder) {
  std::vector<std::string> names;
  platform::list_directory(
      folder.fd.get(),
      [](void* context, const char* name) {
        static_cast<std::vector<std::string>*>(context)->emplace_back(name);
        return true;
      },
      &names);
  std::sort(names.begin(), names.end());
  return names;
}

bool leads_to(const Folder& folder, const std::string& name, const FileStatus& file) {
  FileStatus now;
  return platform::status_at(folder.fd.get(), name.c_str(), now) == 0 &&
         now.device == file.device && now.inode == file.inode;
}

/// The second name that a creator left who died between two steps.
void drop_half_made_names(const Folder& folder, const FileStatus& file) {
  for (const std::string& name : names_in(folder))
    if (is_half_made(name) && leads_to(folder, name, file))
      (void)platform::unlink_at(folder.fd.get(), name.c_str());
}

Status refuse_open(NamedFailure& why, int error) {
  switch (-error) {
    case ENOENT:
      return refuse(why, Status::kNotFound, "no segment has this name");
    case ELOOP:
      return refuse(why, Status::kPermission, "it is a symbolic link, which is never followed");
    case EISDIR:
    case ENXIO:
    case ENODEV:
      return refuse(why, Status::kNotASegment, "it is not a regular file");
    case EACCES:
    case EPERM:
      return refuse(why, Status::kPermission, "we may not open it for reading and writing");
    default:
      return refuse_call(why, error, "open");
  }
}

/// kSlice: it has lost its name meanwhile, look again.
Status check_file(const Folder& folder, int fd, FileStatus& file, NamedFailure& why) {
  int r = platform::file_status(fd, file);
  if (r != 0) return refuse_call(why, r, "fstat");
  if (file.kind != FileKind::kFile)
    return refuse(why, Status::kNotASegment, "it is not a regular file");
  const std::uint32_t me = platform::effective_user();
  if (file.owner != me)
    return refuse(why, Status::kPermission,
                  "it belongs to user " + std::to_string(file.owner) + ", we are user " +
                      std::to_string(me) + "; remove it, or choose another name");
  if ((file.mode & 0077) != 0)
    return refuse(why, Status::kPermission,
                  "its mode " + octal(file.mode) +
                      " lets others in; remove it, or chmod 600 it once you know who did that");
  if (file.links > 1) {
    drop_half_made_names(folder, file);
    if ((r = platform::file_status(fd, file)) != 0) return refuse_call(why, r, "fstat");
  }
  if (file.links == 0) return Status::kSlice;
  if (file.links > 1)
    return refuse(why, Status::kPermission,
                  "it has " + std::to_string(file.links) +
                      " names (hard links), one of which is not ours; remove it");
  return Status::kOk;
}

/// A row of the slot table as it lies in the file.
struct SlotCopy {
  std::uint32_t state, reaper, pid, has_life_byte;
  std::uint64_t pid_namespace, start_time, pidfs_inode, ward, spare[2];
};
static_assert(sizeof(SlotCopy) == sizeof(SlotRow) &&
              offsetof(SlotCopy, pid) == offsetof(SlotRow, pid) &&
              offsetof(SlotCopy, has_life_byte) == offsetof(SlotRow, has_life_byte) &&
              offsetof(SlotCopy, pidfs_inode) == offsetof(SlotRow, pidfs_inode) &&
              offsetof(SlotCopy, ward) == offsetof(SlotRow, ward));

/// Calls `visit(row)` for every living process but `except` until it says false. False: the table
/// could not be read.
template <class Visit>
bool visit_living(int fd, const FileStatus& file, const Preview& seen, Token except,
                  Visit&& visit) {
  std::vector<SlotCopy> rows(seen.slots_high);
  const std::size_t bytes = rows.size() * sizeof(SlotCopy);
  const Vantage here{fd, platform::pid_namespace(), file.inode};
  if (platform::read_at(fd, rows.data(), bytes, seen.constants.slots) != static_cast<int>(bytes))
    return false;
  for (std::uint32_t i = 0; i < rows.size(); ++i) {
    const SlotCopy& row = rows[i];
    const Ward ward = ward_of(row.state, row.ward);
    const SlotIdentity who{
        slot_state(row.state), row.pid,         row.has_life_byte, row.pid_namespace,
        row.start_time,        row.pidfs_inode, ward.pid,          ward.started};
    if (who.state == SlotState::kFree) continue;
    if (except != 0 && slot_token(i, row.state) == except) continue;
    if (!is_proven_dead(who, i, here) && !visit(row)) break;
  }
  return true;
}

/// Nobody who is alive uses the file, but for `except`. True for good only under the gate (N3).
bool is_stale(int fd, const FileStatus& file, const Preview& seen, Token except = 0) {
  bool found = false;
  const bool is_read = visit_living(fd, file, seen, except, [&](const SlotCopy&) {
    found = true;
    return false;
  });
  return is_read && !found;
}

/// As `is_stale`, for a file whose content may be nonsense; false if it is none of ours.
bool is_waste(int fd, const FileStatus& file, bool damaged_too, Token except = 0) {
  Preview seen{};
  Failure why;
  const Status status = preview_file(fd, seen, why);
  if (status == Status::kOk) return is_stale(fd, file, seen, except);
  const bool was_ours =
      status == Status::kTruncated || status == Status::kCorrupted || file.size == 0;
  return damaged_too && was_ours && platform::test_life_bytes(fd) == 0;
}

// ---- names ----

bool check_name(const std::string& name, NamedFailure& why) {
  const auto wrong = [&](const char* text) {
    (void)refuse(why, Status::kMismatch, text);
    return false;
  };
  if (name.empty()) return wrong("the name of a segment must not be empty");
  if (name.size() > kMaxName) {
    (void)refuse(why, Status::kMismatch,
                 "the name of a segment has at most " + std::to_string(kMaxName) +
                     " bytes as UTF-8; this one has " + std::to_string(name.size()));
    return false;
  }
  if (name[0] == '.') return wrong("the name of a segment must not begin with a dot");
  for (const char c : name) {
    if (c == '/') return wrong("the name of a segment must not contain a '/'");
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      return wrong("the name of a segment must be printable");
  }
  return true;
}

/// One attempt of something that others may get in the way of. `again`: they did.
struct Attempt {
  bool again = false;
  bool at_once = false;  // and what was in the way is gone
};

/// Repeats `once` until it does not say again, or our patience is over.
template <class Once>
auto repeat(NamedFailure& why, Once&& once) {
  const std::int64_t until = platform::monotonic_ns() + kPatience;
  for (int tries = 0;; ++tries) {
    Attempt attempt;
    auto result = once(attempt);
    if (!attempt.again) return result;
    if (platform::monotonic_ns() >= until) {
      (void)refuse_call(why, -ETIMEDOUT, "waiting for others that open or remove this name");
      return result;
    }
    if (!attempt.at_once) platform::pause_ms(std::min(1 + tries, 20));
  }
}

// ---- create or open ----

std::shared_ptr<Segment> finish(std::shared_ptr<Segment> made, const Folder& folder,
                                const std::string& name) {
  made->set_name(folder.path, name);
  made->add_handle();
  ForkHandlers::add(made);
  return made;
}

void explain_no_room(const Folder& folder, NamedFailure& why) {
  platform::FileSystem fs;
  if (why.status != Status::kSystem || platform::file_system(folder.fd.get(), fs) != 0) return;
  if (why.sys_errno == ENOSPC)
    why.detail = "no room in its file system: " + std::to_string(fs.free) + " of " +
                 std::to_string(fs.size) +
                 " bytes are free; make it larger (docker: --shm-size), or free some";
}

std::shared_ptr<Segment> try_create(const Folder& folder, const std::string& name,
                                    const NamedOptions& options, NamedFailure& why,
                                    Attempt& attempt) {
  const int dir = folder.fd.get();
  const int nameless = options.by_random_name ? -EOPNOTSUPP : platform::create_nameless(dir);
  if (nameless >= 0) {
    Descriptor fd(nameless);
    if (const int r = platform::make_private(fd.get(), false); r != 0) {
      (void)refuse_call(why, r, "fchmod");
      return nullptr;
    }
    auto made = Segment::build(fd.release(), options.max_size, false, why);
    if (made == nullptr) {
      explain_no_room(folder, why);
      return nullptr;
    }
    const int r = platform::give_name(made->fd(), dir, name.c_str());  // N1: the commit
    if (r == 0) return finish(std::move(made), folder, name);
    if (r == -EEXIST) {
      attempt = {true, true};
      return nullptr;
    }
    // No /proc and no right to do without: as below.
  } else if (nameless != -EOPNOTSUPP && nameless != -EISDIR && nameless != -EINVAL &&
             nameless != -ENOENT) {
    (void)refuse_call(why, nameless, "open");
    return nullptr;
  }

  std::uint64_t random = 0;
  platform::random_bytes(&random, sizeof random);
  char temporary[32];
  std::snprintf(temporary, sizeof temporary, "%s%016llx", kHalfMade,
                static_cast<unsigned long long>(random));
  Descriptor fd(platform::create_at(dir, temporary));
  if (fd.get() < 0) {
    (void)refuse_call(why, fd.release(), "open");
    return nullptr;
  }
  const auto give_up = [&] { (void)platform::unlink_at(dir, temporary); };
  if (platform::try_gate(fd.get(), Gate::kShared) != 0) {  // a collector has it, and removes it
    attempt.again = true;
    return nullptr;
  }
  if (const int r = platform::make_private(fd.get(), false); r != 0) {
    give_up();
    (void)refuse_call(why, r, "fchmod");
    return nullptr;
  }
  auto made = Segment::build(fd.release(), options.max_size, false, why);
  if (made == nullptr) {
    explain_no_room(folder, why);
    give_up();
    return nullptr;
  }
  const int r = platform::link_at(dir, temporary, name.c_str());  // N1: the commit
  give_up();
  if (r == -EEXIST || r == -ENOENT) {  // somebody was first, or a collector was
    attempt = {true, r == -EEXIST};
    return nullptr;
  }
  if (r != 0) {
    (void)refuse_call(why, r, "link");
    return nullptr;
  }
  platform::leave_gate(made->fd());
  return finish(std::move(made), folder, name);
}

std::shared_ptr<Segment> try_open(const std::string& name, const NamedOptions& options,
                                  NamedFailure& why, Attempt& attempt) {
  why = {};
  Folder folder;
  if (open_folder(options.create, options.allow_disk, folder, why) != Status::kOk) return nullptr;
  why.path = folder.path + "/" + name;
  Descriptor fd(platform::open_at(folder.fd.get(), name.c_str()));
  if (fd.get() == -ENOENT && options.create) {
    (void)fd.release();
    return try_create(folder, name, options, why, attempt);
  }
  if (fd.get() < 0) {
    (void)refuse_open(why, fd.release());
    return nullptr;
  }
  FileStatus file;
  if (const Status status = check_file(folder, fd.get(), file, why); status != Status::kOk) {
    attempt = {status == Status::kSlice, true};
    return nullptr;
  }
  const auto refuse_existing = [&] {
    (void)refuse(why, Status::kExists, "a segment of this name exists and is in use");
    return nullptr;
  };
  if (auto known = ForkHandlers::find(
          [&](const Segment& s) { return s.device() == file.device && s.inode() == file.inode; })) {
    if (!options.exist_ok) return refuse_existing();
    known->set_name(folder.path, name);
    known->add_handle();
    return known;
  }
  if (const int r = platform::try_gate(fd.get(), Gate::kShared); r != 0) {  // N3
    attempt.again = r == -EAGAIN;
    if (r != -EAGAIN) (void)refuse_call(why, r, "fcntl");
    return nullptr;
  }
  if (!leads_to(folder, name, file)) {
    attempt = {true, true};
    return nullptr;
  }
  Preview seen{};
  if (preview_file(fd.get(), seen, why) != Status::kOk) return nullptr;
  if (is_stale(fd.get(), file, seen)) {
    attempt.again = true;
    if (platform::try_gate(fd.get(), Gate::kAlone) != 0) return nullptr;
    if (leads_to(folder, name, file) && is_waste(fd.get(), file, false)) {  // N2
      const int r = platform::unlink_at(folder.fd.get(), name.c_str());
      attempt.at_once = r == 0;
    }
    return nullptr;
  }
  if (!options.exist_ok) return refuse_existing();
  auto made = Segment::adopt(fd.release(), true, seen, why);
  if (made == nullptr) return nullptr;
  platform::leave_gate(made->fd());  // N3: seated
  return finish(std::move(made), folder, name);
}

/// Takes the name away from a file (N2). `only`: from this one, else from any.
Status try_remove(const Folder& folder, const std::string& name, const Segment* only,
                  NamedFailure& why, Attempt& attempt) {
  Descriptor fd(platform::open_at(folder.fd.get(), name.c_str()));
  FileStatus file;
  if (fd.get() < 0) {
    const int error = fd.release();
    // What cannot be opened is nobody's segment.
    if (error == -ENOENT || only != nullptr) return refuse_open(why, -ENOENT);
  } else {
    if (const int r = platform::file_status(fd.get(), file); r != 0)
      return refuse_call(why, r, "fstat");
    if (only != nullptr && (only->device() != file.device || only->inode() != file.inode))
      return refuse(why, Status::kNotFound, "the name leads to another segment now");
    if (platform::try_gate(fd.get(), Gate::kAlone) != 0) {
      attempt.again = true;
      return Status::kSlice;
    }
    if (!leads_to(folder, name, file)) {
      attempt = {true, true};
      return Status::kSlice;
    }
  }
  const int r = platform::unlink_at(folder.fd.get(), name.c_str());
  if (r == -ENOENT) return refuse_open(why, r);
  return r == 0 ? Status::kOk : refuse_call(why, r, "unlink");
}

/// The directory that a segment was opened in, wherever the environment points now.
bool reopen_folder(const Segment& segment, Folder& out) {
  out.path = segment.directory();
  const int fd = platform::open_directory(out.path.c_str());
  if (fd >= 0) out.fd.reset(fd);
  return fd >= 0;
}

}  // namespace

std::shared_ptr<Segment> open_named(const std::string& name, const NamedOptions& options,
                                    NamedFailure& why) {
  if (!check_name(name, why)) return nullptr;
  return repeat(why, [&](Attempt& attempt) {
    const auto lock = ForkHandlers::attach_lock();
    return try_open(name, options, why, attempt);
  });
}

Status unlink_named(const std::string& name, NamedFailure& why) {
  if (!check_name(name, why)) return why.status;
  const Status status = repeat(why, [&](Attempt& attempt) {
    const auto lock = ForkHandlers::attach_lock();
    why = {};
    Folder folder;
    if (const Status s = open_folder(false, true, folder, why); s != Status::kOk) return s;
    why.path = folder.path + "/" + name;
    return try_remove(folder, name, nullptr, why, attempt);
  });
  return status == Status::kSlice ? why.status : status;
}

Status unlink_named(Segment& segment, NamedFailure& why) {
  const Status status = repeat(why, [&](Attempt& attempt) {
    const auto lock = ForkHandlers::attach_lock();
    why = {};
    Folder folder;
    why.path = segment.directory() + "/" + segment.name();
    if (!reopen_folder(segment, folder)) return refuse_open(why, -ENOENT);
    return try_remove(folder, segment.name(), &segment, why, attempt);
  });
  return status == Status::kSlice ? why.status : status;
}

void retire_named(Segment& segment) noexcept try {
  Folder folder;
  FileStatus file;
  const int fd = segment.fd();
  if (!segment.has_name() || !reopen_folder(segment, folder)) return;
  if (platform::file_status(fd, file) != 0 || file.links == 0) return;
  if (platform::try_gate(fd, Gate::kAlone) != 0) return;  // somebody comes in: not the last
  if (leads_to(folder, segment.name(), file) && is_waste(fd, file, true, segment.token()))
    (void)platform::unlink_at(folder.fd.get(), segment.name().c_str());  // N2
  platform::leave_gate(fd);
} catch (...) {  // no memory for a path: the name stays, stale
}

void drop_handle(Segment& segment) noexcept {
  // The lock, so that nobody here gets a new handle while the name is taken away.
  const auto lock = ForkHandlers::attach_lock();
  if (segment.remove_handle()) retire_named(segment);
}

Status list_named(std::vector<NamedInfo>& out, NamedFailure& why) {
  Folder folder;
  const Status status = open_folder(false, true, folder, why);
  if (status == Status::kNotFound) return Status::kOk;
  if (status != Status::kOk) return status;
  for (const std::string& name : names_in(folder)) {
    if (name[0] == '.') continue;
    const auto lock = ForkHandlers::attach_lock();
    NamedInfo info;
    info.name = name;
    NamedFailure problem;
    FileStatus file;
    const Descriptor fd(platform::open_at(folder.fd.get(), name.c_str()));
    if (fd.get() == -ENOENT) continue;
    if (fd.get() < 0) {
      info.status = refuse_open(problem, fd.get());
    } else {
      info.status = check_file(folder, fd.get(), file, problem);
      if (info.status == Status::kSlice) continue;  // gone
    }
    info.memory = file.memory;
    Preview seen{};
    if (info.status == Status::kOk) info.status = preview_file(fd.get(), seen, problem);
    if (info.status == Status::kOk) {
      info.max_size = seen.constants.max_size;
      const bool is_read = visit_living(fd.get(), file, seen, 0, [&](const SlotCopy& row) {
        if (ward_of(row.state, row.ward).pid == 0) info.pids.push_back(row.pid);
        return true;
      });
      info.is_stale = is_read && info.pids.empty();
    } else if (fd.get() >= 0) {
      info.is_stale = is_waste(fd.get(), file, true);
    }
    out.push_back(std::move(info));
  }
  return Status::kOk;
}

Status collect_named(std::vector<std::string>& removed, bool damaged_too, NamedFailure& why) {
  Folder folder;
  const Status status = open_folder(false, true, folder, why);
  if (status == Status::kNotFound) return Status::kOk;
  if (status != Status::kOk) return status;
  for (const std::string& name : names_in(folder)) {
    const auto lock = ForkHandlers::attach_lock();
    const Descriptor fd(platform::open_at(folder.fd.get(), name.c_str()));
    FileStatus file;
    if (fd.get() < 0 || platform::file_status(fd.get(), file) != 0) continue;
    if (file.kind != FileKind::kFile || file.owner != platform::effective_user()) continue;
    // A half-made file's creator holds the gate as long as he lives.
    if (platform::try_gate(fd.get(), Gate::kAlone) != 0) continue;
    if (!leads_to(folder, name, file)) continue;
    if (!is_half_made(name) && !is_waste(fd.get(), file, damaged_too)) continue;
    if (platform::unlink_at(folder.fd.get(), name.c_str()) == 0) removed.push_back(name);  // N2
  }
  return Status::kOk;
}

}  // namespace ipcbuf
