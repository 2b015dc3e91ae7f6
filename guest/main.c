/* SPDX-License-Identifier: GPL-2.0-or-later */
/* vmmswap-guest: a small VMM whose guest knows what each byte of its memory must be. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "control.h"
#include "device.h"
#include "options.h"
#include "report.h"

#define OUT_BYTES (2u << 20) /* `threads` with all that there can be: 2048 lines of up to 400 bytes */

void die(int err, const char *format, ...)
{
	va_list args;

	fputs("vmmswap-guest: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	if (err)
		fprintf(stderr, ": %s", strerror(err));
	fputc('\n', stderr);
	_exit(1);
}

static void *map_shared(uint64_t bytes)
{
	void *at =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		die(errno, "cannot map %llu bytes for the records", (unsigned long long)bytes);
	return at;
}

static void *first_thread_main(void *arg)
{
	device_first_thread(arg);
}

/* The control thread must not wait for fork(), which waits for the monitor to read its event. */
static void start_forker(struct guest *guest)
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, first_thread_main, guest);

	if (err)
		die(err, "cannot start a thread");
	pthread_detach(thread);
}

static void start_main_process(struct guest *guest)
{
	struct process_slot *slot = &guest->shared->process[0];
	int rc = memory_map(&guest->memory);

	if (rc < 0)
		die(-rc, "cannot map guest memory");
	for (unsigned i = 0; i < guest->memory.regions; i++)
		atomic_store(&slot->base[i], (uint64_t)(uintptr_t)guest->memory.region[i].base);
	atomic_store(&slot->kind, KIND_MAIN);
	atomic_store(&slot->pid, getpid());
	atomic_store(&slot->state, PROCESS_RUNNING);
	rc = workers_start(guest, guest->workers);
	if (rc < 0)
		die(-rc, "cannot start the workers");
	start_forker(guest);
}

int main(int argc, char **argv)
{
	static struct guest guest;
	static struct control control;
	static char out[OUT_BYTES];

	if (argc == 2 && !strcmp(argv[1], "--idle"))
		return idle_main();
	if (sysconf(_SC_PAGESIZE) != PAGE_BYTES)
		die(0, "needs pages of 4096 bytes, this kernel has %ld", sysconf(_SC_PAGESIZE));
	options_parse(argc, argv, &guest, &control.handoff);
	signal(SIGPIPE, SIG_IGN);
	workers_catch_bus_errors();

	guest.shared = map_shared(sizeof(*guest.shared));
	guest.words = map_shared(guest.memory.pages * sizeof(*guest.words));
	guest.notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (guest.notify_fd < 0)
		die(errno, "eventfd");
	atomic_store(&guest.uffd, -1);
	atomic_store(&guest.socket_fd, -1);
	memory_create(&guest.memory);
	zygote_start(&guest);
	start_main_process(&guest);

	control.guest = &guest;
	control.out = (struct text){ .data = out, .size = sizeof(out) };
	control.handoff.guest = &guest;
	control.handoff.asked = -1;
	report_regions(control_event(&control, "started"), &guest);
	control_send(&control);
	control_run(&control);
	device_kill_all(&guest);
	_exit(0); /* threads that wait for a page end with the process */
}
