/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The engine killed at every failpoint and at random instants, under a guest that checks every byte.
 *
 * The engine runs in a process of its own that shares our table of fds (CLONE_FILES). So whatever it had open
 * when it died is still open here: we are systemd's fd store and the keeper in one. What it had read from a
 * FORK event and told nobody is found in the table by what it is, as the keeper does it.
 *
 * CHAOS_KILLS in the environment: how often to kill (150; 60 under sanitizers). CHAOS_SEED: the same choices
 * again. */
#include "engine.h"

#include <dirent.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "harness.h"
#include "tiers.h"
#include "vmm.c"

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

#define KILLS_TIERS 60	   /* also of private memory: most points are the same */
#define KILLS_THOROUGH 150 /* enough to have been at every point */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KILLS_DEFAULT 60
#elif defined(__has_feature)
#define KILLS_DEFAULT (__has_feature(thread_sanitizer) ? 60 : KILLS_THOROUGH)
#else
#define KILLS_DEFAULT KILLS_THOROUGH
#endif

#define PAGES_0 1500
#define PAGES_1 700
#define WORKERS 3
#define CHILDREN 3
#define FDS_MAX 1024
#define PATIENCE_MS 400 /* to reach a failpoint; then the engine is killed where it is */
#define HANG_S (60 * test_patience())
#define TRIES 400 /* the rarest point, uffd.continue, is reached in one life of twenty */

/* Points that these runs do not pass: when page faults come one after the other, asked only about pins or
 * poison, or only once in a VM's life, or of a REMOVE that is larger than this guest (test_removal), or of a
 * page that somebody else filled (test_lost). */
static const char *const left_out[] = {
	"event.piece",
	"holders.fdinfo",
	"listeners.nap",
	"listeners.turn",
	"map_read.minute",
	"reads.cut",
	"pins.blind",
	"pins.load",
	"poison.lifted",
	"restore.awaits-removal",
	"shared_look.making",
	"shared_look.waiting",
	"shared_look.fdinfo",
	"uffd.continue-protected",
	"resident.cachestat",
	"store.direct",
	"seal.secret",
	"store.compact.copied",
	"store.compact.relocated",
	"lost.looked",
	"unplug.piece",
	"flush.moved",
};
static const char *const left_out_without_tiers[] = {
	"store.freed",	      "store.headroom", "store.move.placed",
	"store.move.written", "store.ram",	"store.sealed",
};
static const char *const left_out_of_memfds[] = {
	"move.back", "move.discarded", "move.marked", "move.moved",  "move.out",
	"move.read", "move.stored",    "mover.ask",   "mover.asked", "mover.read",
};
/* Nothing is protected, punched or frozen; no copies are kept. */
static const char *const left_out_of_private[] = {
	"evict.checked",  "evict.finished", "evict.marked",   "evict.protected",    "evict.punched",
	"evict.read",	  "evict.selected", "evict.stored",   "freeze.before-thaw", "freeze.seized",
	"freeze.stopped", "incore.find",    "kept.seen",      "mappers.read",	    "memory.punch",
	"memory.read",	  "memory.seek",    "swapper.listed", "swapper.looked",	    "uffd.continue",
	"uffd.minor",	  "uffd.protect",
};
static const char *const left_out_with_tiers[] = { "store.alloc", "store.cut" };

/* In memory shared with the engine's process. */
struct control {
	char arm[96];
	_Atomic bool stop;
	_Atomic uint32_t jobs_max; /* an engine only serves after so many */
	_Atomic bool frozen;	   /* swap out with the guest frozen */
	_Atomic bool around;	   /* neighbours come back with page faults */
	_Atomic int page_map_fd, store_fd, wake_fd;
	struct store_fds tier_fds; /* before page_map_fd */
	_Atomic uint64_t jobs, recoveries, replays;
	_Atomic int code; /* of what went wrong in the engine */
	char message[512];
};

struct chaos {
	struct vmm vmm;
	struct control *control;
	int page_map_fd, store_fd, wake_fd; /* ours; -1 until the first engine has made them */
	struct store_fds tier_fds;
	int uffds[FDS_MAX]; /* the VMM's, and those of its children that still live */
	size_t uffds_n;
	bool known[FDS_MAX]; /* fds that were open here before the engine was started */
	uint64_t seed;
	uint64_t kills, faults_in_flight, gaps;
	size_t points_hit;
	bool hit[128]; /* by the point's number */
};

/* --- in the engine's process */

__attribute__((format(printf, 3, 4), noreturn)) static void give_in(struct control *control, int code,
								    const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(control->message, sizeof control->message, format, args);
	va_end(args);
	atomic_store(&control->code, code ? code : EINVAL);
	_exit(1);
}

static void listen_to(struct control *control, struct engine *engine, uint32_t *jobs)
{
	struct pollfd waiting = { .fd = engine_notices_fd(engine), .events = POLLIN };
	uint64_t until_ns = now_ns() + (uint64_t)HANG_S * 1000000000;
	struct notice notice;
	struct error why;

	while (poll(&waiting, 1, 1) == 0 && now_ns() < until_ns)
		while (engine_housekeep(engine) || engine_tend(engine) ||
		       (getpid() % 2 && engine_flush_step(engine, &why) == 1)) /* half of the lives */
			;
	if (!waiting.revents)
		give_in(control, ETIMEDOUT, "no end of a job within a minute");
	while (engine_take_notice(engine, &notice)) {
		if (notice.kind == NOTICE_ODD)
			give_in(control, EPROTO, "odd: page %lld: %s", (long long)notice.page_idx,
				notice.message);
		if (notice.kind == NOTICE_PAGES_LOST)
			give_in(control, EPROTO, "%llu pages are lost",
				(unsigned long long)engine_take_lost(engine, &(struct lost_incident){ 0 }));
		if (notice.kind == NOTICE_PAGE_POISONED)
			give_in(control, notice.code, "page %lld cannot be read: %s",
				(long long)notice.page_idx, notice.message);
		if (notice.kind == NOTICE_REPLAY_DONE)
			atomic_fetch_add(&control->replays, 1);
		if (notice.kind != NOTICE_JOB_DONE)
			continue;
		if (notice.code)
			give_in(control, notice.code, "job %u: %s", notice.job, notice.message);
		(*jobs)++;
		atomic_fetch_add(&control->jobs, 1);
	}
}

static struct engine *start_engine(struct chaos *chaos)
{
	struct engine_config config = { .swap_dir = test_dir(),
					.workers = 2,
					.fault_threads = 3,
					.fault_around_pages = chaos->control->around ? 16 : 0,
					.page_map_fd = chaos->page_map_fd,
					.store_fd = chaos->store_fd,
					.wake_fd = chaos->wake_fd };
	struct vmm *vmm = &chaos->vmm;
	struct range ranges[VMM_REGIONS];
	struct error err = { 0 };
	struct engine *engine;
	uint64_t page_idx, out_pages;
	uint32_t id, last_job;
	int rc;

	test_use_tiers(&config);
	if (TEST_PRIVATE) {
		config.mover_pid = vmm->pid;
		config.mailbox_fd = vmm->mailbox;
		config.pagemap_fd = -1;
	}
	if (TEST_TIERS) {
		if (getpid() % 4 <
		    2) /* less than is out: segments move to disk, too, and not by a flush alone */
			config.ram_max_bytes = 2 << 20;
		config.segments_fd = chaos->tier_fds.segments;
		config.ram_fd = chaos->tier_fds.ram;
		config.disk_fd = chaos->tier_fds.disk;
		config.key_fd = chaos->tier_fds.key;
	}
	rc = engine_create(&config, &engine, &err);

	for (int i = 0; i < VMM_REGIONS && !rc; i++) {
		rc = TEST_PRIVATE ? engine_add_private_region(engine, vmm->shared->base_addr[i],
							      vmm->pages[i] * 4096, &page_idx, &err) :
				    engine_add_region(engine, vmm->memfds[i], 0, vmm->pages[i] * 4096,
						      &page_idx, &err);
		ranges[i] = (struct range){ vmm->shared->base_addr[i], page_idx, vmm->pages[i] };
	}
	for (size_t i = 0; i < chaos->uffds_n && !rc; i++) {
		rc = engine_add_process(engine, chaos->uffds[i], ranges, VMM_REGIONS, &id, &err);
		if (!rc && i == 0)
			rc = engine_register_dummy(engine, id, vmm->shared->dummy_addr, &err);
	}
	if (!rc && chaos->page_map_fd >= 0) {
		rc = engine_recover(engine, &out_pages, &last_job, &err);
		atomic_fetch_add(&chaos->control->recoveries, 1);
	}
	if (!rc)
		rc = engine_start(engine, &err);
	if (rc)
		give_in(chaos->control, -rc, "start: %s", err.message);
	engine_set_wake_budget(engine, UINT64_MAX);
	return engine;
}

/* It runs beside the guest, and is cancelled by the next job, unless it is what this life is about. EBUSY:
 * the last one has not ended. */
static void replay(struct control *control, struct engine *engine, uint32_t *jobs)
{
	bool to_its_end = strncmp(control->arm, "ahead.", 6) == 0 || strncmp(control->arm, "replay.", 7) == 0;
	uint64_t before = control->replays;
	struct error err = { 0 };

	if (engine_wake(engine, true, &err) && err.code != EBUSY)
		give_in(control, err.code, "wake: %s", err.message);
	while (to_its_end && control->replays == before)
		listen_to(control, engine, jobs);
}

/* Out, in, out, trim, and so on, as often as wanted. */
static void be_engine(struct chaos *chaos)
{
	static const uint32_t order[] = { JOB_SWAP_OUT, JOB_SWAP_IN, JOB_SWAP_OUT, JOB_TRIM };
	struct control *control = chaos->control;
	struct vmm_shared *shared = chaos->vmm.shared;
	struct engine *engine;
	uint32_t done = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0 });
	signal(SIGSEGV, SIG_DFL); /* sanitizers catch it */
	if (failpoint_arm(control->arm))
		give_in(control, EINVAL, "cannot arm %s", control->arm);
	engine = start_engine(chaos);
	control->tier_fds = engine_tier_fds(engine);
	atomic_store(&control->store_fd, engine_store_fd(engine));
	atomic_store(&control->wake_fd, engine_wake_fd(engine));
	atomic_store(&control->page_map_fd, engine_page_map_fd(engine));
	while (!control->stop || done % 4 != 2) { /* ends when all is in */
		if (done >= control->jobs_max) {
			poll(NULL, 0, 1);
			continue;
		}
		struct swap_out_options options = { .mode = control->frozen ? MODE_FREEZE : MODE_LIVE,
						    .max_passes = 1,
						    .freeze_timeout_ms = 10000 };
		uint64_t operations = shared->operations;
		uint32_t started = done;
		struct error err = { 0 };

		if (engine_start_job(engine, order[done % 4], &options, &err))
			give_in(control, err.code, "job: %s", err.message);
		while (done == started)
			listen_to(control, engine, &done);
		if (done < control->jobs_max) /* what the last job took out stays out */
			replay(control, engine, &done);
		while (shared->run && shared->operations < operations + 50)
			sched_yield();
	}
	engine_destroy(engine);
	_exit(0);
}

/* --- in ours */

static ino_t inode_of(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 ? status.st_ino : 0;
}

static bool is_uffd(int fd)
{
	char path[64], target[64] = "";

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return readlink(path, target, sizeof target - 1) > 0 &&
	       strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

/* Call for each fd of our table but the one that lists them. */
static void each_fd(struct chaos *chaos, void (*visit)(struct chaos *chaos, int fd))
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	bool open[FDS_MAX] = { false };

	CHECK(dir != NULL);
	while ((entry = readdir(dir))) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || fd == dirfd(dir))
			continue;
		CHECK(fd < FDS_MAX);
		open[fd] = true;
	}
	closedir(dir);
	for (int fd = 0; fd < FDS_MAX; fd++)
		if (open[fd])
			visit(chaos, fd);
}

static void know(struct chaos *chaos, int fd)
{
	chaos->known[fd] = true;
}

/* What the dead engine left open: a uffd that we do not have is a child's that it told nobody of; all else is
 * not needed. */
static void take_over(struct chaos *chaos, int fd)
{
	bool ours = !is_uffd(fd);

	if (chaos->known[fd])
		return;
	for (size_t i = 0; i < chaos->uffds_n && !ours; i++)
		ours = inode_of(chaos->uffds[i]) == inode_of(fd);
	if (ours) {
		close(fd);
	} else {
		chaos->uffds[chaos->uffds_n++] = fd;
		chaos->known[fd] = true;
	}
}

static void drop_dead_children(struct chaos *chaos)
{
	/* refused, if not for being dead */
	struct uffdio_zeropage nowhere = { .range = { .start = 0x10000, .len = 4096 } };
	size_t living_n = 0;

	for (size_t i = 0; i < chaos->uffds_n; i++) {
		int fd = chaos->uffds[i];

		if (ioctl(fd, UFFDIO_ZEROPAGE, &nowhere) != 0 && errno == ESRCH) {
			chaos->known[fd] = false;
			close(fd);
		} else {
			chaos->uffds[living_n++] = fd;
		}
	}
	chaos->uffds_n = living_n;
}

/* Threads that wait in the kernel for a page, by the uffds' own count. */
static uint64_t waiting_faults(struct chaos *chaos)
{
	uint64_t waiting = 0;

	for (size_t i = 0; i < chaos->uffds_n; i++) {
		char path[64], line[128];
		unsigned long total;
		FILE *info;

		snprintf(path, sizeof path, "/proc/self/fdinfo/%d", chaos->uffds[i]);
		info = fopen(path, "re");
		CHECK(info != NULL);
		while (fgets(line, sizeof line, info))
			if (sscanf(line, "total: %lu", &total) == 1)
				waiting += total;
		fclose(info);
	}
	return waiting;
}

/* Start an engine, or a successor, with a failpoint armed. */
__attribute__((format(printf, 3, 4))) static pid_t start_life(struct chaos *chaos, uint32_t jobs_max,
							      const char *format, ...)
{
	struct control *control = chaos->control;
	va_list args;
	pid_t pid;

	va_start(args, format);
	vsnprintf(control->arm, sizeof control->arm, format, args);
	va_end(args);
	control->jobs_max = jobs_max;
	control->jobs = 0;
	memset(chaos->known, 0, sizeof chaos->known);
	each_fd(chaos, know);
	pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid == 0)
		be_engine(chaos);
	CHECK_SYS(pid);
	return pid;
}

/* Wait for the engine's own death or stop at the failpoint; past the time kill it where it is. True if it was
 * the failpoint. */
static bool wait_for_death(pid_t pid, unsigned patience_ms)
{
	uint64_t until_ns = now_ns() + (uint64_t)patience_ms * 1000000;
	siginfo_t info = { 0 };
	bool by_itself;

	while (info.si_pid == 0 && now_ns() < until_ns) {
		CHECK_SYS(waitid(P_PID, (id_t)pid, &info, WEXITED | WSTOPPED | WNOHANG));
		if (!info.si_pid)
			poll(NULL, 0, 1);
	}
	by_itself = info.si_pid != 0;
	if (!by_itself || info.si_code == CLD_STOPPED) {
		kill(pid, SIGKILL);
		CHECK_SYS(waitid(P_PID, (id_t)pid, &info, WEXITED));
	}
	if (info.si_code == CLD_EXITED)
		return false;
	return by_itself;
}

static void check_engine(struct chaos *chaos)
{
	struct control *control = chaos->control;
	struct vmm_shared *shared = chaos->vmm.shared;

	if (control->code)
		FAIL("after %llu kills, armed %s: the engine gave in: %s (%d)",
		     (unsigned long long)chaos->kills, control->arm, control->message, control->code);
	if (shared->wrong_pages)
		FAIL("after %llu kills, armed %s: %llu wrong pages, first %llu: %#llx instead of %#llx",
		     (unsigned long long)chaos->kills, control->arm, (unsigned long long)shared->wrong_pages,
		     (unsigned long long)shared->first_wrong_page,
		     (unsigned long long)shared->first_wrong_value,
		     (unsigned long long)shared->first_wrong_wanted);
}

static void keep_files(struct chaos *chaos)
{
	chaos->page_map_fd = dup(chaos->control->page_map_fd);
	if (TEST_TIERS) {
		const struct store_fds *fds = &chaos->control->tier_fds;

		chaos->tier_fds = (struct store_fds){ dup(fds->segments), dup(fds->ram), dup(fds->disk),
						      dup(fds->key) };
		CHECK(chaos->tier_fds.segments >= 0 && chaos->tier_fds.ram >= 0 &&
		      chaos->tier_fds.disk >= 0 && chaos->tier_fds.key >= 0);
		chaos->known[chaos->tier_fds.segments] = chaos->known[chaos->tier_fds.ram] = true;
		chaos->known[chaos->tier_fds.disk] = chaos->known[chaos->tier_fds.key] = true;
	} else {
		chaos->store_fd = (int)CHECK_SYS(dup(chaos->control->store_fd));
		chaos->known[chaos->store_fd] = true;
	}
	chaos->wake_fd = dup(chaos->control->wake_fd);
	CHECK(chaos->page_map_fd >= 0 && chaos->wake_fd >= 0);
	chaos->known[chaos->wake_fd] = true;
}

/* Only a frozen swap-out passes these points. */
static bool needs_freeze(const char *arm)
{
	static const char *const points[] = { "freeze.", "mappers.read", "swapper.listed" };

	for (size_t i = 0; i < sizeof points / sizeof *points; i++)
		if (strncmp(arm, points[i], strlen(points[i])) == 0)
			return true;
	return false;
}

/* One engine's life: armed with `arm`, or with "" killed at a random instant. True if it died at its
 * failpoint. */
static bool one_life(struct chaos *chaos, const char *arm)
{
	uint64_t faults = next_random(&chaos->seed);
	size_t before;
	bool reached;
	pid_t pid;

	chaos->control->frozen = needs_freeze(arm) || (!*arm && faults % 8 == 0);
	if (strncmp(arm, "fault.fork", 10) == 0 || faults % 4 == 0)
		chaos->vmm.shared->forks++;
	pid = start_life(chaos, UINT32_MAX, "%s", arm);
	reached = wait_for_death(pid, *arm ? PATIENCE_MS : (unsigned)(faults >> 8) % 60);
	chaos->kills++;
	chaos->faults_in_flight += waiting_faults(chaos);
	before = chaos->uffds_n;
	each_fd(chaos, take_over);
	chaos->gaps += chaos->uffds_n - before;
	check_engine(chaos);
	drop_dead_children(chaos);
	return reached;
}

/* Until the engine has done so many jobs. */
static void wait_for_jobs(struct chaos *chaos, pid_t pid, uint64_t jobs)
{
	uint64_t until_ns = now_ns() + (uint64_t)HANG_S * 1000000000;
	siginfo_t info = { 0 };

	while (chaos->control->jobs < jobs && now_ns() < until_ns) {
		CHECK_SYS(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT));
		check_engine(chaos);
		if (info.si_pid)
			FAIL("the engine died by itself, status %d", info.si_status);
		poll(NULL, 0, 1);
	}
	CHECK(chaos->control->jobs >= jobs);
}

/* An engine that nobody kills makes the files, and the first children. */
static void first_life(struct chaos *chaos)
{
	pid_t pid = start_life(chaos, UINT32_MAX, "%s", "");

	wait_for_jobs(chaos, pid, 4); /* from the second swap-out on, there is something to replay */
	keep_files(chaos);
	chaos->known[chaos->page_map_fd] = true;
	kill(pid, SIGKILL);
	CHECK_SYS(waitpid(pid, NULL, 0));
	each_fd(chaos, take_over);
	chaos->kills++;
}

/* A last successor serves while every byte is looked at, with everything out; nothing is lost any more. */
static void last_life(struct chaos *chaos)
{
	struct vmm_shared *shared = chaos->vmm.shared;
	int status;
	pid_t pid;

	/* Neighbours come back at any time, also between the hole that a balloon punches and its
	 * MADV_DONTNEED: such a page keeps what it held. A swap-in and a replay may do so, too, but hardly
	 * ever meet it. */
	chaos->control->around = false;
	chaos->control->frozen = false;
	pid = start_life(chaos, UINT32_MAX, "%s", "");
	vmm_check(&chaos->vmm); /* the first look at what was given up while engines were killed */
	shared->lossy = false;
	wait_for_jobs(chaos, pid, chaos->control->jobs + 8);
	vmm_idle(&chaos->vmm);
	vmm_check(&chaos->vmm);
	chaos->control->stop = true;
	CHECK_SYS(waitpid(pid, &status, 0));
	vmm_check(&chaos->vmm); /* with nobody to serve: everything is in */
	check_engine(chaos);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static bool is_among(const char *name, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

#define IS_AMONG(name, names) is_among(name, names, sizeof names / sizeof *names)

static bool is_left_out(const char *name)
{
	return IS_AMONG(name, left_out) ||
	       (TEST_PRIVATE ? IS_AMONG(name, left_out_of_private) : IS_AMONG(name, left_out_of_memfds)) ||
	       (TEST_TIERS ? IS_AMONG(name, left_out_with_tiers) : IS_AMONG(name, left_out_without_tiers));
}

static bool killed_at(struct chaos *chaos, size_t point, const char *arm)
{
	bool reached = one_life(chaos, arm);

	chaos->points_hit += reached && !chaos->hit[point];
	chaos->hit[point] = chaos->hit[point] || reached;
	return reached;
}

/* Each point in turn, at its first hit in the first round and later ones at a random one; every third life
 * ends anywhere. */
static void kill_again_and_again(struct chaos *chaos, uint64_t kills)
{
	static const char *const actions[] = { "kill", "kill", "kill", "segv", "stop" };
	uint64_t lives = 0;

	while (chaos->kills < kills) {
		for (size_t i = 0; failpoint_name(i) && chaos->kills < kills; i++) {
			const char *name = failpoint_name(i);
			uint64_t dice = next_random(&chaos->seed);
			unsigned skip = chaos->hit[i] ? (unsigned)(dice >> 8) % (1u << (dice >> 32) % 7) : 0;
			char arm[96];

			if (is_left_out(name))
				continue;
			snprintf(arm, sizeof arm, "%s=%s@%u", name, actions[dice % 5], skip);
			killed_at(chaos, i, arm);
			if (lives++ % 3 == 0)
				one_life(chaos, "");
		}
	}
}

/* Some are passed only by the successor of one that died in the middle of something: store.punch, when a
 * swap-in had emptied a part of the store. */
static void kill_at_the_rest(struct chaos *chaos)
{
	for (size_t i = 0; failpoint_name(i); i++) {
		char arm[96];

		snprintf(arm, sizeof arm, "%s=kill", failpoint_name(i));
		for (unsigned tries = 0; tries < TRIES && !is_left_out(failpoint_name(i)) && !chaos->hit[i];
		     tries++) {
			char middle[96];

			snprintf(middle, sizeof middle, "restore.fetched=kill@%u", tries % 4);
			one_life(chaos, middle);
			killed_at(chaos, i, arm);
		}
	}
}

static size_t points_wanted(void)
{
	size_t n = 0;

	for (size_t i = 0; failpoint_name(i); i++)
		n += !is_left_out(failpoint_name(i));
	return n;
}

static uint64_t number_from_env(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static void report(const struct chaos *chaos)
{
	const struct vmm_shared *shared = chaos->vmm.shared;

	printf("summary: kills %llu (at %zu of %zu points), faults in flight %llu, forks in the gap %llu, bytes verified %llu, "
	       "bytes wrong %llu, longest stall of a guest thread %llu ms\n",
	       (unsigned long long)chaos->kills, chaos->points_hit, points_wanted(),
	       (unsigned long long)chaos->faults_in_flight, (unsigned long long)chaos->gaps,
	       (unsigned long long)shared->verified_pages * 4096,
	       (unsigned long long)shared->wrong_pages * 4096,
	       (unsigned long long)shared->longest_stall_ns / 1000000);
	for (size_t i = 0; failpoint_name(i); i++)
		if (!chaos->hit[i] && !is_left_out(failpoint_name(i)))
			printf("not reached: %s\n", failpoint_name(i));
}

static struct chaos *start_guest(void)
{
	struct chaos *chaos = calloc(1, sizeof *chaos);
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		test_skip("no userfaultfd here: %s", strerror(errno));
	close(uffd);
	if (TEST_PRIVATE && !mover_can_move())
		test_skip("this kernel has no UFFDIO_MOVE, which is since Linux 6.8");
	CHECK(chaos != NULL);
	chaos->page_map_fd = chaos->store_fd = chaos->wake_fd = -1;
	chaos->tier_fds = (struct store_fds){ -1, -1, -1, -1 };
	chaos->seed = number_from_env("CHAOS_SEED", 88172645463325252u) | 1;
	chaos->control =
		mmap(NULL, sizeof *chaos->control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(chaos->control != MAP_FAILED);
	vmm_repeats_words = true;
	vmm_start(&chaos->vmm, PAGES_0, PAGES_1, WORKERS);
	chaos->uffds[chaos->uffds_n++] = chaos->vmm.uffd;
	return chaos;
}

/* A fault that the dead engine had read is in no queue any more: the successor must make the thread fault
 * again. */
TEST(faults_that_were_read_are_raised_again)
{
	struct chaos *chaos = start_guest();
	pid_t pid;

	first_life(chaos);
	for (unsigned round = 0; round < 10; round++) {
		pid = start_life(chaos, 1, "resolve.claimed=kill@%u", round);
		wait_for_jobs(chaos, pid, 1); /* everything is out */
		vmm_run(&chaos->vmm);
		CHECK(wait_for_death(pid, HANG_S * 1000));
		each_fd(chaos, take_over);
		pid = start_life(chaos, 0, "%s", "");
		vmm_idle(&chaos->vmm);
		vmm_check(&chaos->vmm);
		kill(pid, SIGKILL);
		CHECK_SYS(waitpid(pid, NULL, 0));
		each_fd(chaos, take_over);
		check_engine(chaos);
	}
	vmm_stop(&chaos->vmm);
	free(chaos);
}

TEST(chaos)
{
	uint64_t kills =
		number_from_env("CHAOS_KILLS", TEST_TIERS || TEST_PRIVATE ? KILLS_TIERS : KILLS_DEFAULT);
	struct chaos *chaos = start_guest();

	alarm((unsigned)(TEST_TIMEOUT_S + (kills + TRIES) / 2) * test_patience());
	chaos->vmm.shared->children = CHILDREN;
	chaos->vmm.shared->lossy = true;
	chaos->control->around = true;
	chaos->vmm.shared->give_up = true;
	vmm_run(&chaos->vmm);
	first_life(chaos);
	kill_again_and_again(chaos, kills);
	if (kills >= KILLS_THOROUGH)
		kill_at_the_rest(chaos);
	last_life(chaos);
	report(chaos);
	/* A killed engine takes no more with it than what its threads had read: one event of each worker at
	 * most. */
	CHECK(chaos->vmm.shared->returned_pages <= chaos->kills * WORKERS);
	if (kills >= KILLS_THOROUGH && chaos->points_hit < points_wanted())
		FAIL("only %zu of %zu points were reached", chaos->points_hit, points_wanted());
	vmm_stop(&chaos->vmm);
	free(chaos);
}
