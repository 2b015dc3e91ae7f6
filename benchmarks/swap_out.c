/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a swap-out costs the guest that runs meanwhile, and how long it takes.
 *
 *	swap_out live|freeze|private|private-huge|staging MIB SWAP_DIR [idle]
 *
 * live, freeze: the engine's two ways with shared memory. private, private-huge: guest memory is private, and
 * a thread of the guest moves it; in pages of 4 KiB, or in huge ones as far as the kernel gives them.
 * staging: the way of crosvm's HEAD, the smallest that could do it: freeze, copy all to a staging memfd with
 * all CPUs, punch, thaw (and nothing of it written to disk).
 *
 * The guest has two threads (none with `idle`): `hot` writes to 2 % of its memory over and over, `all` reads
 * one random page after the other. Printed as one line of JSON: total_ms of the swap-out; the longest gap of
 * each thread meanwhile; hot_ratio, the hot thread's throughput during the swap-out over that before it;
 * swap_in_ms; and net_freed_ratio, what the host got back of guest memory after all that the engine needs. */
#include "rig.h"

#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "freeze/freeze.h"

#include "../engine/tests/guest_mover.h"

/* memfd -1: guest memory is private, and the mailbox is there. */
struct guest {
	int memfd, mailbox;
	size_t pages;
	bool idle, huge;
};

struct shared {
	_Atomic uint64_t addr;
	_Atomic int uffd;
	_Atomic uint32_t measure; /* counts up: reset the longest gaps */
	_Atomic uint64_t hot_rounds, all_rounds;
	_Atomic uint64_t hot_gap_us, all_gap_us;
};

struct toucher {
	struct shared *shared;
	char *guest;
	size_t pages;
	bool hot;
};

static void *touch(void *argument)
{
	struct toucher *self = argument;
	_Atomic uint64_t *gap_us = self->hot ? &self->shared->hot_gap_us : &self->shared->all_gap_us;
	_Atomic uint64_t *rounds = self->hot ? &self->shared->hot_rounds : &self->shared->all_rounds;
	size_t pages = self->hot ? self->pages / 50 : self->pages;
	uint32_t measure = 0;
	double last_us = now_us();
	uint64_t state = self->hot ? 7 : 11;

	for (;;) {
		double since_us;

		state = state * 6364136223846793005 + 1442695040888963407;
		volatile uint64_t *word = (uint64_t *)(self->guest + (state >> 33) % pages * PAGE);
		if (self->hot)
			word[1]++;
		else
			(void)word[1];
		since_us = now_us();
		if (self->shared->measure != measure) {
			measure = self->shared->measure;
			*gap_us = 0;
		} else if ((uint64_t)(since_us - last_us) > *gap_us) {
			*gap_us = (uint64_t)(since_us - last_us);
		}
		last_us = since_us;
		(*rounds)++;
		if (!self->hot)
			usleep(50); /* it looks around, it does not fetch everything back at full speed */
		if (!self->hot)
			last_us = now_us();
	}
	return NULL;
}

static void *map_guest(const struct guest *guest)
{
	size_t size_bytes = guest->pages * PAGE;
	void *at;

	if (guest->memfd >= 0)
		return mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, guest->memfd, 0);
	at = (void *)mover_map(size_bytes, 0);
	need(madvise(at, size_bytes, MADV_DONTFORK) == 0, "MADV_DONTFORK");
	need(madvise(at, size_bytes, guest->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0, "huge pages");
	return at;
}

static void start_mover(const struct guest *guest, uint64_t addr)
{
	static struct vmmswap_mover mover;

	mover.ranges[mover.ranges_n++] = (struct vmmswap_mover_range){ addr, guest->pages * PAGE };
	mover_start(&mover, guest->mailbox);
}

static void be_guest(struct shared *shared, const struct guest *guest)
{
	char *at = map_guest(guest);
	struct toucher touchers[2] = { { shared, at, guest->pages, true },
				       { shared, at, guest->pages, false } };
	pthread_t thread;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(at != MAP_FAILED, "guest");
	fill((uint64_t *)at, guest->pages);
	shared->uffd = open_uffd();
	if (guest->memfd < 0)
		start_mover(guest, (uintptr_t)at);
	for (int i = 0; i < 2 && !guest->idle; i++)
		need(pthread_create(&thread, NULL, touch, &touchers[i]) == 0, "thread");
	shared->addr = (uintptr_t)at;
	for (;;)
		pause();
}

static int list_guest(void *pid, struct pid_list *out)
{
	return pid_list_add(out, *(pid_t *)pid);
}

struct copier {
	int from, to;
	size_t start, end; /* bytes */
};

static void *copy(void *argument)
{
	struct copier *self = argument;
	size_t piece = 2 << 20;
	char *buffer = malloc(piece);

	for (size_t at = self->start; at < self->end; at += piece)
		need(pread(self->from, buffer, piece, (off_t)at) > 0 &&
			     pwrite(self->to, buffer, piece, (off_t)at) > 0,
		     "copy");
	free(buffer);
	return NULL;
}

/* The guest runs into holes after this and is not served: the caller kills it. */
static double run_staging(pid_t pid, int memfd, size_t pages)
{
	int staging = memfd_create("staging", MFD_CLOEXEC), cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	struct copier copiers[64];
	pthread_t threads[64];
	struct freeze *freeze;
	struct error err;
	double since_us;

	cpus = cpus < 64 ? cpus : 64;
	need(staging >= 0 && ftruncate(staging, (off_t)(pages * PAGE)) == 0, "staging");
	since_us = now_us();
	need(freeze_create(list_guest, &pid, 10000, &freeze, &err) == 0, "freeze");
	for (int i = 0; i < cpus; i++) {
		copiers[i] = (struct copier){ memfd, staging, pages * PAGE / (size_t)cpus * (size_t)i,
					      pages * PAGE / (size_t)cpus * (size_t)(i + 1) };
		need(pthread_create(&threads[i], NULL, copy, &copiers[i]) == 0, "thread");
	}
	for (int i = 0; i < cpus; i++)
		pthread_join(threads[i], NULL);
	need(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(pages * PAGE)) == 0,
	     "punch");
	since_us = now_us() - since_us;
	kill(pid, SIGKILL);
	freeze_destroy(freeze);
	close(staging);
	return since_us;
}

static uint64_t status_bytes(pid_t pid, const char *field)
{
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *status;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	status = fopen(path, "r");
	need(status != NULL, path);
	while (fgets(line, sizeof line, status))
		if (strncmp(line, field, strlen(field)) == 0)
			kib = strtoul(line + strlen(field), NULL, 10);
	fclose(status);
	return kib * 1024;
}

static uint64_t blocks_of(int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}

/* Guest memory with its page tables, and what we ourselves need for it. */
static uint64_t host_bytes(pid_t pid, const struct guest *guest, const struct engine *engine)
{
	uint64_t guest_bytes = guest->memfd < 0 ? status_bytes(pid, "RssAnon:") : blocks_of(guest->memfd);

	return guest_bytes + status_bytes(pid, "VmPTE:") + status_bytes(getpid(), "RssAnon:") +
	       status_bytes(getpid(), "VmPTE:") + (engine ? blocks_of(engine_page_map_fd(engine)) : 0);
}

static double rate_of(struct shared *shared, double span_us)
{
	uint64_t before = shared->hot_rounds;
	double since_us = now_us();

	usleep((useconds_t)span_us);
	return (double)(shared->hot_rounds - before) / (now_us() - since_us);
}

static struct engine *engine_of(const struct guest *guest, struct shared *shared, pid_t pid,
				const char *swap_dir)
{
	struct engine_config config = {
		.swap_dir = swap_dir, .workers = 3, .page_map_fd = -1, .store_fd = -1
	};

	if (guest->memfd < 0) {
		config.mover_pid = pid;
		config.mailbox_fd = guest->mailbox;
		config.pagemap_fd = -1;
	}
	return engine_with(&config, guest->memfd, guest->pages, fetch_fd(pid, shared->uffd), shared->addr);
}

static void run_engine(struct shared *shared, pid_t pid, const struct guest *guest, const char *dir,
		       uint32_t mode)
{
	uint64_t had_bytes = host_bytes(pid, guest, NULL), left_bytes;
	struct engine *engine = engine_of(guest, shared, pid, dir);
	bool idle = guest->idle;
	size_t pages = guest->pages;
	struct engine_stats stats;
	double before = rate_of(shared, 300000), took_us, during, in_us;
	uint64_t rounds, hot_gap_us, all_gap_us;

	shared->measure++;
	rounds = shared->hot_rounds;
	took_us = run_job(engine, JOB_SWAP_OUT, mode);
	during = (double)(shared->hot_rounds - rounds) / took_us;
	rounds = shared->all_rounds; /* a gap is known when it is over */
	while (!idle && shared->all_rounds < rounds + 3)
		usleep(100);
	hot_gap_us = shared->hot_gap_us;
	all_gap_us = shared->all_gap_us;
	engine_read_stats(engine, &stats);
	left_bytes = host_bytes(pid, guest, engine);
	in_us = run_job(engine, JOB_SWAP_IN, MODE_NONE);
	printf("{\"total_ms\": %.1f, \"mib_per_s\": %.0f, \"hot_gap_us\": %llu, \"all_gap_us\": %llu, \"hot_ratio\": %.3f, "
	       "\"pause_us\": %llu, \"resident_pages\": %llu, \"swap_in_ms\": %.1f, \"swap_in_mib_per_s\": %.0f, \"net_freed_ratio\": %.4f}\n",
	       took_us / 1e3, (double)pages / 256 / took_us * 1e6, (unsigned long long)hot_gap_us,
	       (unsigned long long)all_gap_us, idle ? 1 : during / before, (unsigned long long)stats.pause_us,
	       (unsigned long long)stats.resident_pages, in_us / 1e3,
	       (double)stats.swap_pages / 256 / in_us * 1e6,
	       ((double)had_bytes - (double)left_bytes) / (double)(pages * PAGE));
	engine_destroy(engine);
}

int main(int argc, char **argv)
{
	struct guest guest = { .memfd = -1, .mailbox = -1 };
	struct shared *shared;
	int status;
	pid_t pid;

	guest.idle = argc == 5 && strcmp(argv[4], "idle") == 0;
	guest.huge = argc >= 4 && strcmp(argv[1], "private-huge") == 0;
	guest.pages = argc == 4 || guest.idle ? strtoul(argv[2], NULL, 10) * 256 : 0;
	if (!guest.pages) {
		fprintf(stderr,
			"usage: swap_out live|freeze|private|private-huge|staging MIB SWAP_DIR [idle]\n");
		return 2;
	}
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (strncmp(argv[1], "private", 7) == 0)
		guest.mailbox = mover_mailbox();
	else
		guest.memfd = memfd_create("guest", MFD_CLOEXEC);
	need(shared != MAP_FAILED && (guest.mailbox >= 0 || guest.memfd >= 0), "memory");
	need(guest.memfd < 0 || ftruncate(guest.memfd, (off_t)(guest.pages * PAGE)) == 0, "memory");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0)
		be_guest(shared, &guest);
	while (!shared->addr)
		usleep(1000);
	if (strcmp(argv[1], "staging") == 0) {
		double took_us = run_staging(pid, guest.memfd, guest.pages);

		printf("{\"total_ms\": %.1f, \"mib_per_s\": %.0f, \"hot_gap_us\": %.0f, \"all_gap_us\": %.0f}\n",
		       took_us / 1e3, (double)guest.pages / 256 / took_us * 1e6, took_us, took_us);
	} else {
		run_engine(shared, pid, &guest, argv[3],
			   strcmp(argv[1], "freeze") == 0 ? MODE_FREEZE : MODE_LIVE);
		kill(pid, SIGKILL);
	}
	need(waitpid(pid, &status, 0) == pid, "the guest's end");
	return 0;
}
