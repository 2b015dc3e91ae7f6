/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All of an idle guest's memory out to one kind of store and in again; or what else could be done with it.
 *
 *	tier_job STORE CONTENTS MIB DIR
 *
 * STORE: `file`, one file of raw pages in DIR, as without RamTierMax=; `ram`, the RAM tier alone; `disk`,
 * compressed and encrypted segments in DIR, and RAM only on the way there; `clear`, the same without
 * encryption; `lz4`, WORKERS threads that run LZ4 over each page once and do nothing else; `zram`, the pages
 * in a zram device with LZ4 of the running kernel. CONTENTS: contents.h.
 *
 * Printed as one line of JSON. out_ms, in_ms: of the swap-out and the swap-in; out_cpu_ms, in_cpu_ms: the
 * processor time of all threads meanwhile. net_freed_ratio: by how much the pages that were resident shrank,
 * as a part of them, with all that the store and this process had to take for it, by the kernel's figures.
 * own_bytes_a_page: of memory that is not the RAM tier's own (tables, the page map, page tables), for each
 * page that is out. */
#include "rig.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <lz4.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "contents.h"
#include "zram.h"

#define WORKERS 3 /* as Workers= has it */

struct shared {
	_Atomic uint64_t addr;
	_Atomic int uffd;
};

static double cpu_ms(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return (double)used.tv_sec * 1e3 + (double)used.tv_nsec / 1e6;
}

static uint64_t blocks_of(int fd)
{
	struct stat st;

	return fd < 0 || fstat(fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static uint64_t status_bytes(const char *key)
{
	FILE *status = fopen("/proc/self/status", "r");
	unsigned long kib = 0;
	char line[256];

	need(status != NULL, "/proc/self/status");
	while (fgets(line, sizeof line, status))
		if (!strncmp(line, key, strlen(key)))
			kib = strtoul(line + strlen(key), NULL, 10);
	fclose(status);
	return (uint64_t)kib << 10;
}

/* What this process takes, without the RAM tier. */
static uint64_t own_bytes(const struct engine *engine)
{
	return status_bytes("RssAnon:") + status_bytes("VmPTE:") + blocks_of(engine_page_map_fd(engine)) +
	       blocks_of(engine_tier_fds(engine).segments);
}

static void be_guest(struct shared *shared, int memfd, size_t pages, const char *contents)
{
	char *guest = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(guest != MAP_FAILED, "guest");
	fill_contents(guest, pages, contents);
	shared->uffd = open_uffd();
	shared->addr = (uintptr_t)guest;
	for (;;)
		pause();
}

static struct engine_config config_of(const char *store, const char *dir)
{
	bool file = !strcmp(store, "file"), ram = !strcmp(store, "ram");

	return (struct engine_config){ .swap_dir = file || !ram ? dir : NULL,
				       .workers = WORKERS,
				       .page_map_fd = -1,
				       .store_fd = -1,
				       .tiers = !file,
				       .segments_fd = -1,
				       .ram_fd = -1,
				       .disk_fd = -1,
				       .key_fd = -1,
				       .ram_max_bytes = ram ? UINT64_MAX : 0,
				       .has_disk = !ram,
				       .compress = true,
				       .encrypt = !strcmp(store, "disk") };
}

/* What is still on its way to the disk when a swap-out ends counts too. */
static void flush(struct engine *engine, const char *store)
{
	struct error err;

	while (strcmp(store, "file") && strcmp(store, "ram") && engine_flush_step(engine, &err) == 1)
		;
}

static void run_engine(const char *store, const char *contents, size_t pages, const char *dir)
{
	struct shared *shared =
		mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int memfd = memfd_create("guest", MFD_CLOEXEC);
	struct engine_config config = config_of(store, dir);
	struct engine *engine;
	struct engine_stats stats;
	uint64_t resident_bytes, left_bytes, own, ram_bytes;
	double out_cpu_ms, in_cpu_ms, out_us, in_us;
	pid_t pid;

	need(shared != MAP_FAILED && memfd >= 0 && ftruncate(memfd, (off_t)(pages * PAGE)) == 0, "memory");
	pid = fork();
	need(pid >= 0, "fork");
	if (pid == 0)
		be_guest(shared, memfd, pages, contents);
	while (!shared->addr)
		usleep(1000);
	engine = engine_with(&config, memfd, pages, fetch_fd(pid, shared->uffd), shared->addr);
	resident_bytes = blocks_of(memfd);
	own = own_bytes(engine);
	out_cpu_ms = cpu_ms();
	out_us = now_us();
	run_job(engine, JOB_SWAP_OUT, MODE_LIVE);
	flush(engine, store);
	out_us = now_us() - out_us;
	out_cpu_ms = cpu_ms() - out_cpu_ms;
	engine_read_stats(engine, &stats);
	own = own_bytes(engine) - own;
	left_bytes = blocks_of(memfd);
	ram_bytes = blocks_of(engine_tier_fds(engine).ram);
	in_cpu_ms = cpu_ms();
	in_us = run_job(engine, JOB_SWAP_IN, MODE_NONE);
	in_cpu_ms = cpu_ms() - in_cpu_ms;
	printf("{\"out_ms\": %.1f, \"out_cpu_ms\": %.1f, \"out_mib_per_s\": %.0f, \"in_ms\": %.1f, \"in_cpu_ms\": %.1f, "
	       "\"in_mib_per_s\": %.0f, \"pause_us\": %llu, \"written_mib\": %.1f, \"net_freed_ratio\": %.4f, "
	       "\"own_bytes_a_page\": %.1f}\n",
	       out_us / 1e3, out_cpu_ms, (double)resident_bytes / 1048576 / out_us * 1e6, in_us / 1e3,
	       in_cpu_ms, (double)stats.swap_pages / 256 / in_us * 1e6, (unsigned long long)stats.pause_us,
	       (double)stats.written_bytes / 1048576,
	       ((double)resident_bytes - (double)left_bytes - (double)ram_bytes - (double)own) /
		       (double)resident_bytes,
	       (double)own / (double)stats.swap_pages);
	engine_destroy(engine);
	kill(pid, SIGKILL);
	need(waitpid(pid, NULL, 0) == pid, "the guest's end");
}

struct packer {
	pthread_t thread;
	const char *pages;
	size_t from, end;
};

static void *pack(void *argument)
{
	struct packer *self = argument;
	char out[LZ4_COMPRESSBOUND(4096)];

	for (size_t i = self->from; i < self->end; i++)
		LZ4_compress_default(self->pages + i * PAGE, out, (int)PAGE, (int)sizeof out);
	return NULL;
}

static void run_lz4(const char *contents, size_t pages)
{
	char *guest = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct packer packers[WORKERS];
	double used_ms, took_us;

	need(guest != MAP_FAILED, "guest");
	fill_contents(guest, pages, contents);
	used_ms = cpu_ms();
	took_us = now_us();
	for (size_t i = 0; i < WORKERS; i++) {
		packers[i] = (struct packer){ .pages = guest,
					      .from = pages * i / WORKERS,
					      .end = pages * (i + 1) / WORKERS };
		need(pthread_create(&packers[i].thread, NULL, pack, &packers[i]) == 0, "thread");
	}
	for (size_t i = 0; i < WORKERS; i++)
		pthread_join(packers[i].thread, NULL);
	took_us = now_us() - took_us;
	printf("{\"out_ms\": %.1f, \"out_cpu_ms\": %.1f, \"out_mib_per_s\": %.0f}\n", took_us / 1e3,
	       cpu_ms() - used_ms, (double)pages / 256 / took_us * 1e6);
}

static void run_zram(const char *contents, size_t pages)
{
	int memfd = memfd_create("guest", MFD_CLOEXEC);
	uint64_t resident_bytes, used_bytes;
	char *guest;

	need(memfd >= 0 && ftruncate(memfd, (off_t)(pages * PAGE)) == 0, "memory");
	guest = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	need(guest != MAP_FAILED, "guest");
	fill_contents(guest, pages, contents);
	resident_bytes = blocks_of(memfd);
	used_bytes = zram_bytes_of(memfd, pages);
	printf("{\"net_freed_ratio\": %.4f}\n",
	       ((double)resident_bytes - (double)used_bytes) / (double)resident_bytes);
}

int main(int argc, char **argv)
{
	size_t pages = argc == 5 ? strtoul(argv[3], NULL, 10) * 256 : 0;

	if (!pages) {
		fprintf(stderr, "usage: tier_job file|ram|disk|clear|lz4|zram CONTENTS MIB DIR\n");
		return 2;
	}
	if (!strcmp(argv[1], "lz4"))
		run_lz4(argv[2], pages);
	else if (!strcmp(argv[1], "zram"))
		run_zram(argv[2], pages);
	else
		run_engine(argv[1], argv[2], pages, argv[4]);
	return 0;
}
