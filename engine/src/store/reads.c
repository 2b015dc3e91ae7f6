/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/reads.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/units.h"
#include "linux/uring.h"

struct reads {
	struct uring *uring; /* NULL: readers */
	struct inbox inbox;
	struct file_read *failed; /* before they began */
};

int reads_create(struct readers *readers, unsigned most, bool uring, struct reads **out)
{
	struct reads *reads = calloc(1, sizeof *reads);

	if (!reads)
		return -ENOMEM;
	reads->inbox.readers = readers;
	reads->inbox.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (reads->inbox.event_fd < 0) {
		free(reads);
		return -errno;
	}
	if (uring && uring_create(most, &reads->uring) != 0)
		reads->uring = NULL;
	*out = reads;
	return 0;
}

void reads_destroy(struct reads *reads)
{
	if (!reads)
		return;
	uring_destroy(reads->uring);
	close(reads->inbox.event_fd);
	free(reads);
}

int reads_fd(const struct reads *reads)
{
	return reads->uring ? uring_fd(reads->uring) : reads->inbox.event_fd;
}

bool reads_use_uring(const struct reads *reads)
{
	return reads->uring;
}

static void push(struct file_read **list, struct file_read *file)
{
	file->next = *list;
	*list = file;
}

static struct file_read *pop(struct file_read **list)
{
	struct file_read *file = *list;

	if (file)
		*list = file->next;
	return file;
}

/* What is left of it: a read may be cut short. There is a place, as no more are in flight than the ring
 * has. */
static void send(struct reads *reads, struct file_read *file)
{
	if (uring_read(reads->uring, file->fd, file->bytes + file->done_bytes,
		       (uint32_t)(file->size_bytes - file->done_bytes), file->offset_bytes + file->done_bytes,
		       file))
		return;
	file->result = -EBUSY;
	push(&reads->failed, file);
}

void reads_begin(struct reads *reads, struct file_read *file)
{
	file->inbox = &reads->inbox;
	file->done_bytes = 0;
	if (!reads->uring) {
		readers_begin(reads->inbox.readers, file);
		return;
	}
	file->result = FAILPOINT("store.read");
	if (file->result && file->result != -EINTR)
		push(&reads->failed, file);
	else
		send(reads, file);
}

bool reads_submit(struct reads *reads)
{
	return !reads->uring || uring_submit(reads->uring);
}

/* True if the read has ended. As read_file(). */
static bool has_ended(struct file_read *file, int32_t got)
{
	if (got == -EINTR || got == -EAGAIN)
		return false;
	if (got > (int32_t)PAGE_BYTES && FAILPOINT("reads.cut"))
		got = (int32_t)PAGE_BYTES;
	if (got < 0 || (uint64_t)got < PAGE_BYTES) {
		file->result = got < 0 ? got : -EIO;
		return true;
	}
	file->done_bytes += (uint64_t)got & PAGE_MASK;
	file->result = 0;
	return file->done_bytes >= file->size_bytes;
}

struct file_read *reads_take(struct reads *reads)
{
	struct file_read *file = pop(&reads->failed);
	void *token;
	int32_t got;

	if (file)
		return file;
	if (!reads->uring)
		return inbox_take(&reads->inbox);
	while (uring_next(reads->uring, &token, &got)) {
		file = token;
		if (has_ended(file, got))
			return file;
		send(reads, file); /* the rest of it */
	}
	return pop(&reads->failed); /* no event would tell of one whose rest could not be sent */
}
