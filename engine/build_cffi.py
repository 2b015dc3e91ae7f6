# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the engine as two extension modules: vmmswap._engine, and vmmswap._engine_failpoints for tests.

setup.py names `release` and `failpoints`; run as a program this builds both in place.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI

ENGINE = Path(__file__).resolve().parent
sys.path.insert(0, str(ENGINE))  # setup.py runs this file's text alone
from build_planted import generate  # noqa: E402

SOURCES = ENGINE / "src"
HEADERS = (
    "base/error.h",
    "base/failpoint.h",
    "base/notice.h",
    "base/trace.h",
    "keep/keeper.h",
    "linux/collapse.h",
    "linux/holders.h",
    "linux/mapper_watch.h",
    "linux/mappers.h",
    "linux/page_there.h",
    "linux/probe_read.h",
    "linux/shared_look.h",
    "linux/tracee.h",
    "linux/uring_buffers.h",
    "pins/pins.h",
    "store/seal.h",
    "vm/address_space.h",
    "vm/lost.h",
    "jobs/swapper.h",
    "engine.h",
    "../planted/mover_thread.h",
    "../planted/planted.h",
)

# What Python uses, in cffi's subset of C. The compiler checks each line against the headers.
DECLARATIONS = """
#define ERROR_MESSAGE_BYTES ...
struct error { int code; char message[...]; ...; };
struct range { uint64_t addr; uint64_t page_idx; uint64_t pages; ...; };

enum notice_kind {
    NOTICE_PROCESS_FORKED, NOTICE_PROCESS_GONE, NOTICE_PROCESS_MOVED, NOTICE_JOB_DONE,
    NOTICE_PAGE_POISONED, NOTICE_PAGE_HEALED, NOTICE_PAGES_LEFT, NOTICE_PAGES_LOST,
    NOTICE_FAULTS_STARVED, NOTICE_WAKING, NOTICE_REPLAY_DONE, NOTICE_PROTECTED, NOTICE_ODD, ...
};
struct notice {
    uint32_t kind; uint32_t process_id; uint32_t parent_id; int32_t fd; uint32_t job; int32_t code;
    uint32_t cancelled; uint32_t limited_by; uint64_t page_idx; char message[...]; ...;
};

struct lost_range { uint64_t page_idx; uint64_t pages; ...; };
struct lost_incident { uint64_t pages; size_t ranges_n; struct lost_range ranges[...]; ...; };

struct trace_record { uint64_t time_ns; uint64_t addr; uint32_t process_id; uint32_t flags; ...; };

struct pins_config {
    bool allow_bpf; bool allow_collapse; bool qmp_drained; bool promised_unpinned; bool allow_settle;
    uint32_t settle_ms; ...;
};

enum job_kind { JOB_NONE, JOB_SWAP_OUT, JOB_SWAP_IN, JOB_TRIM, JOB_FLUSH, ... };
enum swap_mode { MODE_NONE, MODE_LIVE, MODE_FREEZE, MODE_AUTO, ... };
struct swap_out_options {
    uint32_t mode; uint32_t max_passes; uint64_t until_resident_pages; uint64_t idle_pages_max;
    uint32_t freeze_timeout_ms; uint32_t freeze_limit_ms;
    struct pins_config pins; bool check_pins; ...;
};

struct engine_config {
    const char *swap_dir; uint32_t fault_threads; uint32_t spin_us; uint32_t workers;
    uint32_t fault_around_pages;
    int page_map_fd; int store_fd; int wake_fd; uint64_t store_max_bytes; uint64_t store_keep_free_bytes;
    int32_t mover_pid; int mailbox_fd; int pagemap_fd;
    bool snapshot; bool tiers; int segments_fd; int ram_fd; int disk_fd; int key_fd; uint64_t ram_max_bytes;
    bool has_disk; bool compress; bool encrypt; uint32_t ram_age_s; ...;
};
struct store_fds { int segments; int ram; int disk; int key; ...; };
@ENGINE_STATS@
struct engine;
int engine_create(const struct engine_config *, struct engine **, struct error *);
void engine_destroy(struct engine *);
int engine_add_region(struct engine *, int, uint64_t, uint64_t, uint64_t *, struct error *);
int engine_add_snapshot_region(struct engine *, uint64_t, uint64_t, uint64_t *, struct error *);
int engine_add_private_region(struct engine *, uint64_t, uint64_t, uint64_t *, struct error *);
int engine_remove_region(struct engine *, uint64_t, struct error *);
int engine_undo_add_region(struct engine *, uint64_t, struct error *);
int engine_add_process(struct engine *, int, const struct range *, size_t, uint32_t *, struct error *);
int engine_set_ranges(struct engine *, uint32_t, const struct range *, size_t, struct error *);
void engine_register_again(struct engine *, uint32_t);
bool engine_is_out(struct engine *, uint64_t, uint64_t);
size_t engine_ranges_of(struct engine *, uint32_t, struct range *, size_t);
int engine_remove_process(struct engine *, uint32_t, struct error *);
int engine_release_rest(struct engine *, struct error *);
int engine_register_dummy(struct engine *, uint32_t, uint64_t, struct error *);
int engine_recover(struct engine *, uint64_t *, uint32_t *, struct error *);
int engine_start(struct engine *, struct error *);
void engine_stop(struct engine *);
void engine_release_memory(struct engine *);
bool engine_needs_count(struct engine *);
void engine_count_resident(struct engine *);
int engine_start_job(struct engine *, uint32_t, const struct swap_out_options *, struct error *);
void engine_cancel_job(struct engine *);
void engine_set_budget(struct engine *, uint64_t);
void engine_continue_job(struct engine *);
void engine_forget_job(struct engine *);
bool engine_housekeep(struct engine *);
bool engine_tend(struct engine *);
void engine_host_is_short(struct engine *, bool);
int engine_wake(struct engine *, bool, struct error *);
void engine_cancel_wake(struct engine *);
void engine_set_wake_budget(struct engine *, uint64_t);
bool engine_settle_wake(struct engine *);
bool engine_was_replaying(const struct engine *);
bool engine_wake_is_ordered(const struct engine *);
int engine_wake_fd(const struct engine *);
uint64_t engine_written_bytes(const struct engine *);
void engine_limit_writes(struct engine *, uint64_t);
int engine_notices_fd(const struct engine *);
int engine_take_notice(struct engine *, struct notice *);
uint64_t engine_left_pages(struct engine *, struct lost_incident *);
uint64_t engine_take_lost(struct engine *, struct lost_incident *);
void engine_read_stats(struct engine *, struct engine_stats *);
bool engine_end_starvation(struct engine *);
const char *engine_pin_check(const struct engine *);
int engine_set_trace(struct engine *, bool, struct error *);
size_t engine_drain_trace(struct engine *, struct trace_record *, size_t);
int engine_page_map_fd(const struct engine *);
int engine_store_fd(const struct engine *);
struct store_fds engine_tier_fds(const struct engine *);
bool seal_is_fast(void);

struct mapped_file { dev_t dev; ino_t ino; ...; };
struct mapping {
    pid_t pid; uint64_t addr; uint64_t size_bytes; uint64_t offset_bytes; size_t file_idx; bool is_private;
    ...;
};
struct pid_list { pid_t *pids; size_t pids_n; ...; };
struct mapper_list {
    struct mapping *mappings; size_t mappings_n; struct pid_list pids; struct pid_list unreadable; ...;
};
int mappers_file_of(int, struct mapped_file *);
int mappers_find(const struct mapped_file *, size_t, struct mapper_list *);
int mappers_among(const struct pid_list *, const struct mapped_file *, size_t, struct mapper_list *);
void mappers_free(struct mapper_list *);

struct mapper_watch;
int mapper_watch_create(struct mapper_watch **);
void mapper_watch_destroy(struct mapper_watch *);
int mapper_watch_look(struct mapper_watch *, const struct mapped_file *, size_t, struct mapper_list *);

struct holder { pid_t pid; int fd; size_t file_idx; ...; };
struct holder_list { struct holder *holders; size_t holders_n; struct pid_list unreadable; ...; };
int holders_find(const int *, size_t, struct holder_list *);
void holders_free(struct holder_list *);

struct shared_look { struct holder_list holders; struct pid_list mappers; int unshared; ...; };
enum look_kind { LOOK_FDS, LOOK_MAPS, ... };
int shared_look(int, enum look_kind, const int *, size_t, uint64_t, struct shared_look *);
void shared_look_free(struct shared_look *);

struct uring_range { pid_t pid; uint64_t addr; uint64_t size_bytes; ...; };
struct uring_found { pid_t pid; int fd; uint64_t addr; uint64_t size_bytes; ...; };
int uring_buffers_find(const struct uring_range *, size_t, struct uring_found *, struct error *);

pid_t probe_read_start(pid_t, uint64_t, int);

int page_is_there(pid_t, uint64_t);

enum collapse_holes { COLLAPSE_SPARES_HOLES, COLLAPSE_FILLS_HOLES, COLLAPSE_UNKNOWN, ... };
int collapse_try_holes(struct error *);

enum keeper_kind { KEEPER_NOTHING, KEEPER_FD, KEEPER_VM, KEEPER_MESSAGE, ... };
struct keeper_entry { uint8_t kind; char name[...]; int32_t fd; uint64_t inode; ...; };
struct keeper_plan {
    struct keeper_entry *entries; size_t entries_n; const char *notify_address; const char *orphan_prefix;
    const char *program; const char *const *command; const char *fds_variable; const char *lives_variable;
    int spare_fds[4]; ...;
};
pid_t keeper_start(const struct keeper_plan *);

#define VMMSWAP_MAILBOX_BYTES ...
#define VMMSWAP_SCRATCH_BYTES ...
#define VMMSWAP_WINDOW_BYTES ...
#define VMMSWAP_MAILBOX_MAGIC ...
#define VMMSWAP_MOVER_RANGES_MAX ...
#define VMMSWAP_MAILBOX_IDLE ...
#define VMMSWAP_MAILBOX_ASKED ...
#define VMMSWAP_MAILBOX_DONE ...
#define VMMSWAP_MAILBOX_LEAVE ...
int tracee_write(int, uint64_t, const uint64_t *, size_t);

struct vmmswap_mailbox {
    uint64_t magic; uint64_t scratch_addr; uint32_t tid; uint32_t state; uint32_t call;
    uint64_t windows[...]; ...;
};
struct vmmswap_mover_range { uint64_t addr; uint64_t size_bytes; ...; };
struct vmmswap_mover {
    struct vmmswap_mailbox *mailbox; uint64_t scratch_addr; int uffd; uint32_t ranges_n;
    struct vmmswap_mover_range ranges[...]; ...;
};
void vmmswap_mover_run(struct vmmswap_mover *);
#define VMMSWAP_PLANTING_OFFSET ...
struct vmmswap_planting {
    uint64_t area_addr; uint64_t area_bytes; uint64_t mailbox_addr; int32_t mailbox_fd; int32_t uffd; ...;
};
extern const uint8_t vmmswap_planted_code[];
extern const uint32_t vmmswap_planted_code_bytes;

int failpoint_arm(const char *);
uint64_t failpoint_hits(const char *);
const char *failpoint_name(size_t);
"""

PREAMBLE = "\n".join(f'#include "{name}"' for name in HEADERS)


def _stats_struct() -> str:
    """struct engine_stats as engine.h has it, without comments."""
    text = (SOURCES / "engine.h").read_text()
    found = re.search(r"^struct engine_stats \{.*?^\};", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{SOURCES}/engine.h: struct engine_stats is not there")
    return re.sub(r"/\*.*?\*/", "", found[0], flags=re.DOTALL)


def declarations() -> str:
    """All that Python uses of the engine, for cffi."""
    return DECLARATIONS.replace("@ENGINE_STATS@", _stats_struct())


def _files(pattern: str) -> list[str]:
    found = [*SOURCES.rglob(pattern), *(ENGINE / "planted").glob(pattern)]
    return sorted(str(path.relative_to(ENGINE.parent)) for path in found)


def _builder(module: str, macros: list[tuple[str, str | None]]) -> FFI:
    builder = FFI()
    builder.cdef("typedef int... dev_t; typedef int... ino_t; typedef int... pid_t;" + declarations())
    builder.set_source(
        module,
        PREAMBLE,
        sources=[*_files("*.c"), str(generate().relative_to(ENGINE.parent))],
        depends=_files("*.h"),
        include_dirs=[str(SOURCES.relative_to(ENGINE.parent))],
        define_macros=[("_GNU_SOURCE", None), *macros],
        extra_compile_args=["-std=c11", "-O2", "-g", "-pthread", "-Wall", "-Wextra", *_UNUSED_IN_CFFI],
        libraries=["lz4", "crypto"],
        # now: the keeper unmaps what the dynamic loader would need to bind a function later.
        extra_link_args=["-pthread", "-Wl,-z,now"],
        py_limited_api=True,
    )
    return builder


# cffi's own wrappers have unused parameters and compare signs; the engine itself is compiled without these
# exceptions and with -Werror by engine/Makefile.
_UNUSED_IN_CFFI = ("-Wno-unused-parameter", "-Wno-sign-compare", "-Wno-missing-field-initializers")

release = _builder("vmmswap._engine", [])
failpoints = _builder("vmmswap._engine_failpoints", [("VMMSWAP_FAILPOINTS", None)])


def declared_functions() -> set[str]:
    """Names of the C functions that Python calls."""
    return set(re.findall(r"\b(\w+)\([^()]*\);", declarations()))


if __name__ == "__main__":
    release.compile(verbose=False)
    failpoints.compile(verbose=False)
