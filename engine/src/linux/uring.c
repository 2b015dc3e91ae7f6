/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "linux/uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"

/* Both rings are in one mapping (IORING_FEAT_SINGLE_MMAP, Linux 5.4). Of a pair of head and tail, one is ours
 * and the other the kernel's: io_uring(7). */
struct uring {
	int fd;
	char *rings;
	size_t rings_bytes;
	struct io_uring_sqe *entries;
	size_t entries_bytes;
	struct io_uring_cqe *ended;
	_Atomic uint32_t *submit_head, *submit_tail, *ended_head, *ended_tail;
	uint32_t submit_mask, ended_mask, entries_n;
	uint32_t added; /* in the ring, and not given to the kernel yet */
};

static void *map(int fd, size_t size_bytes, off_t offset)
{
	void *at = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);

	return at == MAP_FAILED ? NULL : at;
}

static _Atomic uint32_t *word_at(const struct uring *uring, uint32_t offset_bytes)
{
	return (_Atomic uint32_t *)(void *)(uring->rings + offset_bytes);
}

static int map_rings(struct uring *uring, const struct io_uring_params *params)
{
	size_t submit_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
	size_t ended_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	uint32_t *order;

	if (!(params->features & IORING_FEAT_SINGLE_MMAP))
		return -ENOSYS;
	uring->rings_bytes = submit_bytes > ended_bytes ? submit_bytes : ended_bytes;
	uring->rings = map(uring->fd, uring->rings_bytes, IORING_OFF_SQ_RING);
	uring->entries_bytes = params->sq_entries * sizeof *uring->entries;
	uring->entries = map(uring->fd, uring->entries_bytes, IORING_OFF_SQES);
	if (!uring->rings || !uring->entries)
		return -ENOMEM;
	uring->submit_head = word_at(uring, params->sq_off.head);
	uring->submit_tail = word_at(uring, params->sq_off.tail);
	uring->submit_mask = *word_at(uring, params->sq_off.ring_mask);
	uring->ended_head = word_at(uring, params->cq_off.head);
	uring->ended_tail = word_at(uring, params->cq_off.tail);
	uring->ended_mask = *word_at(uring, params->cq_off.ring_mask);
	uring->ended = (struct io_uring_cqe *)(void *)(uring->rings + params->cq_off.cqes);
	uring->entries_n = params->sq_entries;
	order = (uint32_t *)(void *)(uring->rings + params->sq_off.array);
	for (uint32_t i = 0; i < params->sq_entries; i++) /* entry i is always at place i */
		order[i] = i;
	return 0;
}

int uring_create(unsigned entries, struct uring **out)
{
	struct uring *uring = calloc(1, sizeof *uring);
	struct io_uring_params params = { 0 };
	int rc;

	if (!uring)
		return -ENOMEM;
	uring->fd = (int)syscall(SYS_io_uring_setup, entries, &params); /* close-on-exec by itself */
	rc = uring->fd < 0 ? -errno : map_rings(uring, &params);
	if (rc) {
		uring_destroy(uring);
		return rc;
	}
	*out = uring;
	return 0;
}

void uring_destroy(struct uring *uring)
{
	if (!uring)
		return;
	if (uring->entries)
		munmap(uring->entries, uring->entries_bytes);
	if (uring->rings)
		munmap(uring->rings, uring->rings_bytes);
	if (uring->fd >= 0)
		close(uring->fd);
	free(uring);
}

int uring_fd(const struct uring *uring)
{
	return uring->fd;
}

bool uring_read(struct uring *uring, int fd, void *bytes, uint32_t size_bytes, uint64_t offset_bytes,
		void *token)
{
	uint32_t tail = atomic_load_explicit(uring->submit_tail, memory_order_relaxed); /* ours */

	if (tail - atomic_load_explicit(uring->submit_head, memory_order_acquire) == uring->entries_n)
		return false;
	uring->entries[tail & uring->submit_mask] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ,
		.fd = fd,
		.addr = (uintptr_t)bytes,
		.len = size_bytes,
		.off = offset_bytes,
		.user_data = (uintptr_t)token,
	};
	atomic_store_explicit(uring->submit_tail, tail + 1, memory_order_release);
	uring->added++;
	return true;
}

bool uring_submit(struct uring *uring)
{
	while (uring->added) {
		long taken = FAILPOINT("uring.submit");

		if (!taken)
			taken = syscall(SYS_io_uring_enter, uring->fd, uring->added, 0, 0, NULL, 0);
		else
			errno = (int)-taken;

		if (taken < 0 && errno == EINTR)
			continue;
		if (taken <= 0)
			return false;
		uring->added -= (uint32_t)taken;
	}
	return true;
}

bool uring_next(struct uring *uring, void **token, int32_t *result)
{
	uint32_t head = atomic_load_explicit(uring->ended_head, memory_order_relaxed); /* ours */
	const struct io_uring_cqe *ended = &uring->ended[head & uring->ended_mask];

	if (head == atomic_load_explicit(uring->ended_tail, memory_order_acquire))
		return false;
	*token = (void *)(uintptr_t)ended->user_data;
	*result = ended->res;
	atomic_store_explicit(uring->ended_head, head + 1, memory_order_release);
	return true;
}
