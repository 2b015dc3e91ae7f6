/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VMM to attach to that sees for how long its threads stand still.
 *
 *	attached STATS_FD
 *
 * It has private guest memory, as QEMU's, and threads that do nothing but sleep for as short a time as they
 * can. The longest time from one look at the clock to the next is in the first word of the file STATS_FD. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4
#define GUEST_BYTES ((size_t)64 << 20)
#define SLEEP_NS 100000

struct stats {
	_Atomic uint64_t longest_gap_ns; /* the reader sets it back */
	_Atomic uint64_t threads;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void *look(void *argument)
{
	struct stats *stats = argument;
	uint64_t last_ns = now_ns();

	atomic_fetch_add(&stats->threads, 1);
	for (;;) {
		uint64_t gap_ns, longest_ns = atomic_load(&stats->longest_gap_ns);

		nanosleep(&(struct timespec){ .tv_nsec = SLEEP_NS }, NULL);
		gap_ns = now_ns() - last_ns;
		last_ns += gap_ns;
		while (gap_ns > longest_ns &&
		       !atomic_compare_exchange_weak(&stats->longest_gap_ns, &longest_ns, gap_ns))
			;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct stats *stats;
	pthread_t thread;
	void *guest;

	if (argc != 2) {
		fprintf(stderr, "usage: attached STATS_FD\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, 9);
	stats = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
	guest = mmap(NULL, GUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stats == MAP_FAILED || guest == MAP_FAILED || madvise(guest, GUEST_BYTES, MADV_DONTFORK) != 0) {
		perror("memory");
		return 1;
	}
	memset(guest, 1, GUEST_BYTES);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread, NULL, look, stats) != 0) {
			perror("thread");
			return 1;
		}
	for (;;)
		pause();
}
