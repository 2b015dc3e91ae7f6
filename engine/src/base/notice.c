/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/notice.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct entry {
	struct entry *next;
	struct notice notice;
};

struct notices {
	int fd;
	pthread_mutex_t lock;
	size_t n;
	struct entry *first, **last;
};

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
	pthread_mutex_destroy(&notices->lock);
	close(notices->fd);
	free(notices);
}

int notices_fd(const struct notices *notices)
{
	return notices->fd;
}

void notices_post(struct notices *notices, const struct notice *notice)
{
	struct entry *entry;

	pthread_mutex_lock(&notices->lock);
	entry = notices->n >= NOTICES_MAX && notice->kind == NOTICE_ODD ? NULL : malloc(sizeof *entry);
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
	pthread_mutex_unlock(&notices->lock);
	free(entry);
	return entry != NULL;
}
