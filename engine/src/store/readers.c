/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/readers.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/held.h"
#include "store/read_file.h"

#define IDLE_S 10
#define STACK_BYTES ((size_t)256 << 10)

/* All of it, and all inboxes, under the lock. */
struct readers {
	pthread_mutex_t lock;
	pthread_cond_t asked; /* something is in the queue, or they must leave */
	pthread_cond_t left;  /* the last thread has left */
	struct file_read *first, **end;
	size_t queued_n, threads_n, idle_n;
	bool stopping;
	bool has_cpus;
	cpu_set_t cpus; /* where they may run: a thread that asks for a read may be bound to one CPU */
};

int readers_create(struct readers **out)
{
	struct readers *readers = calloc(1, sizeof *readers);
	pthread_condattr_t attr;

	if (!readers)
		return -ENOMEM;
	pthread_mutex_init(&readers->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&readers->asked, &attr);
	pthread_cond_init(&readers->left, NULL);
	pthread_condattr_destroy(&attr);
	readers->end = &readers->first;
	readers->has_cpus = sched_getaffinity(0, sizeof readers->cpus, &readers->cpus) == 0;
	*out = readers;
	return 0;
}

void readers_destroy(struct readers *readers)
{
	if (!readers)
		return;
	pthread_mutex_lock(&readers->lock);
	readers->stopping = true;
	pthread_cond_broadcast(&readers->asked);
	while (readers->threads_n)
		pthread_cond_wait(&readers->left, &readers->lock);
	pthread_mutex_unlock(&readers->lock);
	pthread_cond_destroy(&readers->asked);
	pthread_cond_destroy(&readers->left);
	pthread_mutex_destroy(&readers->lock);
	free(readers);
}

static void add(struct readers *readers, struct file_read *file)
{
	file->next = NULL;
	*readers->end = file;
	readers->end = &file->next;
	readers->queued_n++;
}

static struct file_read *take(struct readers *readers)
{
	struct file_read *file = readers->first;

	readers->first = file->next;
	if (!readers->first)
		readers->end = &readers->first;
	readers->queued_n--;
	return file;
}

static void deliver(struct file_read *file)
{
	struct inbox *inbox = file->inbox;

	file->next = inbox->first;
	inbox->first = file;
	if (!atomic_exchange(&inbox->has_some, true))
		eventfd_write(inbox->event_fd, 1);
}

static void read_all(struct file_read *file)
{
	struct pieces pieces;

	pieces_of_one(&pieces, file->bytes, file->size_bytes);
	file->result = read_file(file->fd, &pieces, file->offset_bytes);
}

/* Wait for a read to be asked for. False: leave. */
static bool await(struct readers *readers)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_S;
	while (!readers->queued_n && !readers->stopping) {
		int code;

		readers->idle_n++;
		code = pthread_cond_timedwait(&readers->asked, &readers->lock, &until);
		readers->idle_n--;
		if (code == ETIMEDOUT)
			break;
	}
	return readers->queued_n > 0;
}

static void *read_for_others(void *argument)
{
	struct readers *readers = argument;

	pthread_mutex_lock(&readers->lock);
	while (await(readers)) {
		struct file_read *file = take(readers);

		pthread_mutex_unlock(&readers->lock);
		read_all(file);
		pthread_mutex_lock(&readers->lock);
		deliver(file);
	}
	if (--readers->threads_n == 0)
		pthread_cond_signal(&readers->left);
	pthread_mutex_unlock(&readers->lock);
	return NULL;
}

static bool start_one(struct readers *readers)
{
	pthread_attr_t attr;
	pthread_t thread;
	bool started;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (readers->has_cpus)
		pthread_attr_setaffinity_np(&attr, sizeof readers->cpus, &readers->cpus);
	started = pthread_create(&thread, &attr, read_for_others, readers) == 0;
	pthread_attr_destroy(&attr);
	readers->threads_n += started;
	return started;
}

void readers_begin(struct readers *readers, struct file_read *file)
{
	bool alone;

	pthread_mutex_lock(&readers->lock);
	alone = readers->queued_n >= readers->idle_n && readers->threads_n < READERS_MAX &&
		!start_one(readers) && !readers->threads_n;
	if (!alone) {
		add(readers, file);
		pthread_cond_signal(&readers->asked);
	}
	pthread_mutex_unlock(&readers->lock);
	if (!alone)
		return;
	read_all(file);
	pthread_mutex_lock(&readers->lock);
	deliver(file);
	pthread_mutex_unlock(&readers->lock);
}

struct file_read *inbox_take(struct inbox *inbox)
{
	struct file_read *file;
	eventfd_t value;

	if (!atomic_load_explicit(&inbox->has_some, memory_order_relaxed))
		return NULL;
	pthread_mutex_lock(&inbox->readers->lock);
	file = inbox->first;
	inbox->first = file->next;
	if (!inbox->first) {
		eventfd_read(inbox->event_fd, &value);
		atomic_store(&inbox->has_some, false);
	}
	pthread_mutex_unlock(&inbox->readers->lock);
	return file;
}
