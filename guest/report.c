/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define ULL(value) ((unsigned long long)(value))

const char *const job_names[] = { "fill",   "verify",  "touch", "remove",      "kernel-io", "corrupt",
				  "munmap", "recover", "fork",	"exec-device", "backend",   "work stop" };

static const char *const state_names[] = { "free", "starting", "running", "silent", "dying", "dead" };
static const char *const kind_names[] = { "main", "fork", "backend" };

struct totals {
	uint64_t reads, writes, kernel_ios, verified_bytes, wrong_bytes, wrong_pages, bus_errors;
	uint64_t longest_ns, stuck_ns;
	uint64_t stall_count[STALL_BUCKETS];
	unsigned threads, busy;
};

static void add_worker(struct totals *totals, struct worker_slot *slot, uint64_t now)
{
	uint64_t start_ns = atomic_load(&slot->op_start_ns);
	uint64_t longest_ns = atomic_load(&slot->longest_ns);

	totals->reads += atomic_load(&slot->reads);
	totals->writes += atomic_load(&slot->writes);
	totals->kernel_ios += atomic_load(&slot->kernel_ios);
	totals->verified_bytes += atomic_load(&slot->verified_bytes);
	totals->wrong_bytes += atomic_load(&slot->wrong_bytes);
	totals->wrong_pages += atomic_load(&slot->wrong_pages);
	totals->bus_errors += atomic_load(&slot->bus_errors);
	totals->busy += atomic_load(&slot->busy);
	if (longest_ns > totals->longest_ns)
		totals->longest_ns = longest_ns;
	if (start_ns && start_ns < now && now - start_ns > totals->stuck_ns)
		totals->stuck_ns = now - start_ns;
	for (unsigned i = 0; i < STALL_BUCKETS; i++)
		totals->stall_count[i] += atomic_load(&slot->stall_count[i]);
}

static void add_process(struct totals *totals, struct process_slot *process, uint64_t now)
{
	for (unsigned i = 0; i < MAX_WORKERS; i++)
		add_worker(totals, &process->worker[i], now);
}

static void report_totals(struct text *text, const struct totals *totals)
{
	text_add(text, ",\"reads\":%llu,\"writes\":%llu,\"kernel_ios\":%llu", ULL(totals->reads),
		 ULL(totals->writes), ULL(totals->kernel_ios));
	text_add(text,
		 ",\"verified_bytes\":%llu,\"wrong_bytes\":%llu,\"wrong_pages\":%llu,\"bus_errors\":%llu",
		 ULL(totals->verified_bytes), ULL(totals->wrong_bytes), ULL(totals->wrong_pages),
		 ULL(totals->bus_errors));
	uint64_t longest_ns = totals->longest_ns > totals->stuck_ns ? totals->longest_ns : totals->stuck_ns;
	text_add(text, ",\"longest_stall_us\":%llu,\"stuck_us\":%llu", ULL(longest_ns / 1000),
		 ULL(totals->stuck_ns / 1000));
}

static void report_mismatch(struct text *text, const struct mismatch *mismatch)
{
	text_add(text, ",\"first_wrong\":");
	if (!atomic_load(&mismatch->ready)) {
		text_add(text, "null");
		return;
	}
	text_add(text, "{\"page\":%llu,\"addr\":%llu,\"offset\":%u,\"expected\":%u,\"actual\":%u",
		 ULL(mismatch->page_idx), ULL(mismatch->addr), mismatch->offset_bytes, mismatch->expected,
		 mismatch->actual);
	text_add(text, ",\"expected_version\":%u,\"actual_version\":%u,\"process\":%d,\"worker\":%d}",
		 mismatch->expected_version, mismatch->actual_version, mismatch->process, mismatch->worker);
}

void report_handoff(struct text *text, const struct handoff *handoff)
{
	text_add(text, ",\"handoff\":{\"state\":\"%s\",\"name\":", handoff_state_names[handoff->state]);
	text_add_string(text, handoff->name);
	text_add(text, ",\"error\":");
	text_add_string(text, handoff->error);
	text_add(text, ",\"message\":");
	text_add_string(text, handoff->message);
	text_add(text, "}");
}

void report_regions(struct text *text, struct guest *guest)
{
	const struct memory *memory = &guest->memory;

	text_add(text, ",\"pid\":%d,\"page_size\":%u,\"pages\":%llu,\"regions\":[", (int)getpid(), PAGE_BYTES,
		 ULL(memory->pages));
	for (unsigned i = 0; i < memory->regions; i++) {
		const struct region *region = &memory->region[i];

		text_add(text,
			 "%s{\"addr\":%llu,\"size\":%llu,\"offset\":%llu,\"memfd\":%u,\"first_page\":%llu}",
			 i ? "," : "", ULL((uintptr_t)region->base), ULL(region->size_bytes),
			 ULL(region->offset_bytes), region->memfd_idx, ULL(region->first_page));
	}
	text_add(text, "],\"memfd_fds\":[");
	for (unsigned i = 0; i < memory->memfds; i++)
		text_add(text, "%s%d", i ? "," : "", memory->memfd[i]);
	text_add(text, "],\"dummy_page\":%llu,\"uffd\":%d", ULL((uintptr_t)memory->dummy_page),
		 atomic_load(&guest->uffd));
}

void report_status(struct text *text, struct guest *guest, const struct handoff *handoff)
{
	struct shared *shared = guest->shared;
	struct totals totals = { 0 };
	uint64_t now = now_ns();
	unsigned processes = 0;

	for (int i = 0; i < MAX_PROCESSES; i++) {
		int state = atomic_load(&shared->process[i].state);

		processes += state == PROCESS_RUNNING || state == PROCESS_SILENT;
		add_process(&totals, &shared->process[i], now);
	}
	report_regions(text, guest);
	text_add(text, ",\"processes\":%u,\"working\":%s,\"busy_workers\":%u", processes,
		 atomic_load(&shared->working) ? "true" : "false", totals.busy);
	report_totals(text, &totals);
	text_add(text, ",\"stall_us_log2\":[");
	for (unsigned i = 0; i < STALL_BUCKETS; i++)
		text_add(text, "%s%llu", i ? "," : "", ULL(totals.stall_count[i]));
	text_add(text, "]");
	report_mismatch(text, &shared->first_wrong);
	report_handoff(text, handoff);
}

/* VmRSS of the VMM itself: shared memory that it maps counts while mapped, so it falls when pages leave. */
static unsigned long long rss_kib(void)
{
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	char status[4096] = "";
	unsigned long long kib = 0;

	if (fd < 0)
		return 0;
	if (read(fd, status, sizeof(status) - 1) > 0) {
		const char *line = strstr(status, "\nVmRSS:");

		kib = line ? strtoull(line + strlen("\nVmRSS:"), NULL, 10) : 0;
	}
	close(fd);
	return kib;
}

void report_memory(struct text *text, struct guest *guest)
{
	uint64_t sum = 0;

	text_add(text, ",\"memfds\":[");
	for (unsigned i = 0; i < guest->memory.memfds; i++) {
		uint64_t bytes = memory_resident_bytes(&guest->memory, i);

		sum += bytes;
		text_add(text, "%s%llu", i ? "," : "", ULL(bytes));
	}
	text_add(text, "],\"resident_bytes\":%llu,\"rss_kib\":%llu", ULL(sum), rss_kib());
}

void report_processes(struct text *text, struct guest *guest)
{
	uint64_t now = now_ns();
	const char *comma = "";

	text_add(text, ",\"processes\":[");
	for (int i = 0; i < MAX_PROCESSES; i++) {
		struct process_slot *process = &guest->shared->process[i];
		struct totals totals = { 0 };
		int state = atomic_load(&process->state);

		if (state == PROCESS_FREE)
			continue;
		add_process(&totals, process, now);
		text_add(text, "%s{\"process\":%d,\"pid\":%d,\"kind\":\"%s\",\"parent\":%d,\"state\":\"%s\"",
			 comma, i, atomic_load(&process->pid), kind_names[atomic_load(&process->kind)],
			 atomic_load(&process->parent), state_names[state]);
		report_totals(text, &totals);
		text_add(text, "}");
		comma = ",";
	}
	text_add(text, "]");
}

void report_threads(struct text *text, struct guest *guest)
{
	uint64_t now = now_ns();
	const char *comma = "";

	text_add(text, ",\"threads\":[");
	for (int i = 0; i < MAX_PROCESSES; i++) {
		for (int j = 0; j < MAX_WORKERS; j++) {
			struct worker_slot *slot = &guest->shared->process[i].worker[j];
			struct totals totals = { 0 };

			add_worker(&totals, slot, now);
			if (!totals.reads && !totals.writes && !totals.kernel_ios && !totals.stuck_ns)
				continue;
			text_add(text, "%s{\"process\":%d,\"worker\":%d,\"page\":%llu", comma, i, j,
				 ULL(atomic_load(&slot->op_page)));
			report_totals(text, &totals);
			text_add(text, "}");
			comma = ",";
		}
	}
	text_add(text, "]");
}

/* Processes that a fork or backend job made; the first error of those that did not start. */
static int report_made(struct text *text, struct guest *guest, const struct job *job)
{
	const char *comma = "";
	int error = 0;

	text_add(text, ",\"made\":[");
	for (int i = 1; i < MAX_PROCESSES; i++) {
		struct process_slot *process = &guest->shared->process[i];

		if (atomic_load(&process->job_id) != job->id)
			continue;
		int state = atomic_load(&process->state);
		if (state == PROCESS_RUNNING || state == PROCESS_SILENT) {
			text_add(text, "%s%d", comma, i);
			comma = ",";
		} else {
			int reason = atomic_load(&process->error);

			error = reason ? reason : ECHILD;
		}
	}
	text_add(text, "]");
	return error;
}

void report_job(struct text *text, struct guest *guest, const struct job *job)
{
	int error = atomic_load(&job->error);

	if (job->kind == JOB_FORK || job->kind == JOB_BACKEND) {
		int not_made = report_made(text, guest, job);

		error = error ? error : not_made;
	}
	text_add(text,
		 ",\"pages\":%llu,\"bytes\":%llu,\"wrong_bytes\":%llu,\"wrong_pages\":%llu,\"bus_errors\":%"
		 "llu",
		 ULL(atomic_load(&job->done_pages)), ULL(atomic_load(&job->bytes)),
		 ULL(atomic_load(&job->wrong_bytes)), ULL(atomic_load(&job->wrong_pages)),
		 ULL(atomic_load(&job->bus_errors)));
	text_add(text, ",\"longest_us\":%llu,\"took_us\":%llu,\"lost_processes\":%u",
		 ULL(atomic_load(&job->longest_ns) / 1000), ULL((now_ns() - job->start_ns) / 1000),
		 atomic_load(&job->lost));
	report_mismatch(text, &job->first_wrong);
	text_add(text, ",\"ok\":%s,\"error\":", error ? "false" : "true");
	text_add_string(text, error ? strerror(error) : "");
}

static void reset_worker(struct worker_slot *slot)
{
	atomic_store(&slot->reads, 0);
	atomic_store(&slot->writes, 0);
	atomic_store(&slot->kernel_ios, 0);
	atomic_store(&slot->verified_bytes, 0);
	atomic_store(&slot->wrong_bytes, 0);
	atomic_store(&slot->wrong_pages, 0);
	atomic_store(&slot->bus_errors, 0);
	atomic_store(&slot->longest_ns, 0);
	for (unsigned i = 0; i < STALL_BUCKETS; i++)
		atomic_store(&slot->stall_count[i], 0);
}

void report_reset(struct guest *guest)
{
	struct shared *shared = guest->shared;

	atomic_store(&shared->stats_epoch_ns, now_ns());
	for (int i = 0; i < MAX_PROCESSES; i++)
		for (int j = 0; j < MAX_WORKERS; j++)
			reset_worker(&shared->process[i].worker[j]);
	atomic_store(&shared->first_wrong.ready, 0);
	atomic_store(&shared->first_wrong.claimed, 0);
}
