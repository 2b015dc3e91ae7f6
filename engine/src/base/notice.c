/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/notice.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/failpoint.h"

#define NOTICES_SPARE 64

struct entry {
	struct entry *next;
	struct notice notice;
};

struct notices {
	int fd;
	pthread_mutex_t lock;
	size_t n;
	struct entry *first, **last;
	/* For when there is no memory: a notice that is lost is a child that nobody serves, or a job without
	 * an end. */
	struct entry *spare;
	size_t spare_n;
};

static bool add_spare(struct notices *notices, struct entry *entry)
{
	if (!entry || notices->spare_n == NOTICES_SPARE)
		return false;
	entry->next = notices->spare;
	notices->spare = entry;
	notices->spare_n++;
	return true;
}

static struct entry *take_spare(struct notices *notices)
{
	struct entry *entry = notices->spare;

	if (entry) {
		notices->spare = entry->next;
		notices->spare_n--;
	}
	return entry;
}

int notices_create(struct notices **out)
{
	struct notices *notices = calloc(1, sizeof *notices);

	if (!notices)
		return -ENOMEM;
	notices->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (notices->fd < 0) {
		int rc = -errno;

		free(notices);
		return rc;
	}
	pthread_mutex_init(&notices->lock, NULL);
	notices->last = &notices->first;
	while (notices->spare_n < NOTICES_SPARE) {
		if (!add_spare(notices, malloc(sizeof *notices->spare))) {
			notices_destroy(notices);
			return -ENOMEM;
		}
	}
	*out = notices;
	return 0;
}

void notices_destroy(struct notices *notices)
{
	struct notice dropped;

	if (!notices)
		return;
	while (notices_take(notices, &dropped))
		;
	while (notices->spare_n)
		free(take_spare(notices));
	pthread_mutex_destroy(&notices->lock);
	close(notices->fd);
	free(notices);
}

int notices_fd(const struct notices *notices)
{
	return notices->fd;
}

/* Without one there is no way to go on that loses nothing but to let a successor find how things are. */
static struct entry *new_entry(struct notices *notices, const struct notice *notice)
{
	struct entry *entry = NULL;

	if (notice->kind == NOTICE_ODD && notices->n >= NOTICES_MAX)
		return NULL;
	if (!FAILPOINT("notice.alloc"))
		entry = malloc(sizeof *entry);
	if (!entry && notice->kind != NOTICE_ODD) {
		entry = take_spare(notices);
		if (!entry) {
			fprintf(stderr, "no memory to report an event that must not be lost\n");
			abort();
		}
	}
	return entry;
}

void notices_post(struct notices *notices, const struct notice *notice)
{
	struct entry *entry;

	pthread_mutex_lock(&notices->lock);
	entry = new_entry(notices, notice);
	if (entry) {
		entry->notice = *notice;
		entry->next = NULL;
		*notices->last = entry;
		notices->last = &entry->next;
		notices->n++;
		eventfd_write(notices->fd, 1);
	}
	pthread_mutex_unlock(&notices->lock);
}

void notices_odd(struct notices *notices, uint64_t page_idx, const char *format, ...)
{
	struct notice notice = { .kind = NOTICE_ODD, .page_idx = page_idx };
	va_list args;

	va_start(args, format);
	vsnprintf(notice.message, sizeof notice.message, format, args);
	va_end(args);
	notices_post(notices, &notice);
}

int notices_take(struct notices *notices, struct notice *out)
{
	struct entry *entry;
	eventfd_t ignored;
	bool is_spare, found;

	pthread_mutex_lock(&notices->lock);
	entry = notices->first;
	if (entry) {
		*out = entry->notice;
		notices->first = entry->next;
		notices->n--;
		if (!notices->first) {
			notices->last = &notices->first;
			eventfd_read(notices->fd, &ignored);
		}
	}
	is_spare = add_spare(notices, entry);
	pthread_mutex_unlock(&notices->lock);
	found = entry != NULL;
	if (!is_spare)
		free(entry);
	return found;
}
