// SPDX-License-Identifier: GPL-2.0-or-later
#include "pins/pins_bpf.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "pins/pins_bpf_program.h"

#define SCRATCH_BYTES ((size_t)1 << PINS_SCRATCH_SHIFT)
#define MAP_BYTES (SCRATCH_BYTES * PINS_SCRATCHES)
#define LOG_BYTES 65536
#define LOAD_TRIES 1000
#define LOOKS_MAX 8 /* the tree's top changes only when the file's end is filled or punched */

struct pins_bpf {
	struct pins_layout layout;
	int map_fd;
	int prog_fd;
	uint8_t *map; /* PINS_SCRATCHES snapshots */
	atomic_bool trust_large;
	atomic_uint turn;
	pthread_mutex_t scratch_locks[PINS_SCRATCHES];
};

static int sys_bpf(int cmd, union bpf_attr *attr)
{
	long rc = syscall(SYS_bpf, cmd, attr, sizeof *attr);

	return rc < 0 ? -errno : (int)rc;
}

static int create_map(void)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof attr);
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = 4;
	attr.value_size = MAP_BYTES;
	attr.max_entries = 1;
	attr.map_flags = BPF_F_MMAPABLE;
	memcpy(attr.map_name, "vmmswap_pins", 12);
	return sys_bpf(BPF_MAP_CREATE, &attr);
}

static int load_program(const struct bpf_insn *insns, size_t insns_n, char *log, uint32_t log_bytes)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof attr);
	attr.prog_type = BPF_PROG_TYPE_SYSCALL;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = (uint32_t)insns_n;
	attr.license = (uintptr_t)"GPL"; /* bpf_probe_read_kernel is for GPL programs only */
	attr.prog_flags = BPF_F_SLEEPABLE;
	attr.log_buf = (uintptr_t)log;
	attr.log_size = log_bytes;
	attr.log_level = log ? 1 : 0;
	memcpy(attr.prog_name, "vmmswap_pins", 12);
	return sys_bpf(BPF_PROG_LOAD, &attr);
}

/* The verifier gives up with EAGAIN while the thread has something to do on its way back to user space: a
 * signal, or the end of a read by io_uring. Where many monitors start at once, that happens often. */
static int load_in_the_end(const struct bpf_insn *insns, size_t insns_n, char *log, uint32_t log_bytes)
{
	int rc = -EAGAIN;

	for (unsigned tries = 0; rc == -EAGAIN && tries < LOAD_TRIES; tries++) {
		rc = FAILPOINT("pins.load");
		if (!rc)
			rc = load_program(insns, insns_n, log, log_bytes);
	}
	return rc;
}

/* The verifier's log ends with its complaint and two lines of statistics. */
static const char *last_complaint(char *log)
{
	char *stats = strstr(log, "\nprocessed ");
	char *line;

	if (stats)
		*stats = 0;
	line = strrchr(log, '\n');
	return line ? line + 1 : log;
}

static int load(struct pins_bpf *bpf, struct error *err)
{
	struct bpf_insn insns[PINS_PROGRAM_INSNS];
	size_t insns_n;
	char *log;
	int rc;

	bpf->map_fd = create_map();
	if (bpf->map_fd == -EPERM)
		return error_set(err, EPERM, "bpf() is not permitted: CAP_BPF and CAP_PERFMON are needed");
	if (bpf->map_fd < 0)
		return error_set(err, -bpf->map_fd, "bpf() cannot make a map: %s", strerror(-bpf->map_fd));
	insns_n = pins_bpf_program(&bpf->layout, bpf->map_fd, insns);
	bpf->prog_fd = load_in_the_end(insns, insns_n, NULL, 0);
	if (bpf->prog_fd >= 0)
		return 0;
	if (bpf->prog_fd == -EPERM)
		return error_set(
			err, EPERM,
			"bpf() may not load programs: CAP_BPF and CAP_PERFMON are needed, and no lockdown");
	log = calloc(1, LOG_BYTES);
	rc = load_in_the_end(insns, insns_n, log, log ? LOG_BYTES : 0);
	if (rc >= 0) /* the failure was a temporary one */
		bpf->prog_fd = rc;
	else /* of the first try: with a log, ENOSPC may only say that the log has no room */
		error_set(err, -bpf->prog_fd,
			  "the kernel refuses the page check (without CAP_PERFMON, or locked down?): %s: %s",
			  strerror(-bpf->prog_fd), log ? last_complaint(log) : "");
	free(log);
	return rc >= 0 ? 0 : bpf->prog_fd;
}

int pins_bpf_create(struct pins_bpf **out, struct error *err)
{
	struct pins_bpf *bpf = calloc(1, sizeof *bpf);
	int rc;

	if (!bpf)
		return error_set(err, ENOMEM, "no memory for the page check");
	bpf->map_fd = bpf->prog_fd = -1;
	bpf->map = MAP_FAILED;
	for (int i = 0; i < PINS_SCRATCHES; i++)
		pthread_mutex_init(&bpf->scratch_locks[i], NULL);
	rc = pins_layout_read(&bpf->layout, err);
	if (!rc)
		rc = load(bpf, err);
	if (!rc) {
		bpf->map = mmap(NULL, MAP_BYTES, PROT_READ, MAP_SHARED, bpf->map_fd, 0);
		if (bpf->map == MAP_FAILED)
			rc = error_set(err, errno, "cannot map the page check's results: %s",
				       strerror(errno));
	}
	if (rc) {
		pins_bpf_destroy(bpf);
		return rc;
	}
	*out = bpf;
	return 0;
}

void pins_bpf_destroy(struct pins_bpf *bpf)
{
	if (!bpf)
		return;
	if (bpf->map != MAP_FAILED)
		munmap(bpf->map, MAP_BYTES);
	if (bpf->prog_fd >= 0)
		close(bpf->prog_fd);
	if (bpf->map_fd >= 0)
		close(bpf->map_fd);
	for (int i = 0; i < PINS_SCRATCHES; i++)
		pthread_mutex_destroy(&bpf->scratch_locks[i]);
	free(bpf);
}

void pins_bpf_trust_large(struct pins_bpf *bpf, bool trust)
{
	atomic_store(&bpf->trust_large, trust && (bpf->layout.folio_large_mapcount != PINS_NONE ||
						  bpf->layout.folio_entire_mapcount != PINS_NONE));
}

static int run(const struct pins_bpf *bpf, int memfd, uint64_t first_page, uint32_t scratch_idx)
{
	struct pins_bpf_args args = { .fd = (uint64_t)memfd,
				      .first_page = first_page,
				      .scratch_idx = scratch_idx };
	union bpf_attr attr;
	int rc;

	memset(&attr, 0, sizeof attr);
	attr.test.prog_fd = (uint32_t)bpf->prog_fd;
	attr.test.ctx_in = (uintptr_t)&args;
	attr.test.ctx_size_in = sizeof args;
	rc = sys_bpf(BPF_PROG_TEST_RUN, &attr);
	return rc < 0 ? rc : 0;
}

int pins_bpf_look(struct pins_bpf *bpf, int memfd, const struct pins_place *place, struct pins_verdict *out)
{
	uint32_t scratch_idx = atomic_fetch_add(&bpf->turn, 1) % PINS_SCRATCHES;
	const struct pins_snapshot *snap =
		(const struct pins_snapshot *)(bpf->map + scratch_idx * SCRATCH_BYTES);
	int rc = -EAGAIN;

	pthread_mutex_lock(&bpf->scratch_locks[scratch_idx]);
	for (int look = 0; look < LOOKS_MAX && rc == -EAGAIN; look++) {
		rc = run(bpf, memfd, place->first_page, scratch_idx);
		if (!rc)
			rc = pins_snapshot_judge(snap, &bpf->layout, place, atomic_load(&bpf->trust_large),
						 out);
	}
	pthread_mutex_unlock(&bpf->scratch_locks[scratch_idx]);
	return rc;
}
