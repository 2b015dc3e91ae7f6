/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "command.h"
#include "control.h"
#include "device.h"
#include "report.h"

#define CHUNK_PAGES 256

const char command_help[] =
	"Orders, one a line on standard input. FIRST and N are pages; by= is all, main or a process number.\n"
	"  status | processes | threads | memory | reset-stats | help | quit\n"
	"  fill [first=F] [pages=N] [by=all]\n"
	"        write what the mix says; the processes share the work\n"
	"  verify [first=F] [pages=N] [by=all] [touched=1]\n"
	"        every process compares every byte; touched=1: not of pages that nobody has written yet\n"
	"  work start [rate=OPS] [writes=PERCENT] [kernel=PERCENT]\n"
	"        read, check and write until work stop; rate= is for each worker and second\n"
	"  work stop\n"
	"        done when every worker has come to rest\n"
	"  hot N [first=F] [stride=S]\n"
	"        work on N pages only; hot 0: on all\n"
	"  touch FIRST N read|write [by=main] [offset=O]\n"
	"        offset=: byte of the page to read first\n"
	"  remove FIRST N madvise|dontneed|fallocate|balloon [zeros|either] [by=main]\n"
	"        give up; zeros: they must read so afterwards (default of madvise and balloon);\n"
	"        either: zeros or as before (default of dontneed and fallocate)\n"
	"  kernel-io FIRST N read|write [by=main]\n"
	"        read() into, write() from guest memory\n"
	"  corrupt PAGE [offset=O] [by=main]\n"
	"        turn a byte around, unknown to the records\n"
	"  fork N [by=main]\n"
	"        child processes, found by UFFD_EVENT_FORK\n"
	"  backend N [silent]\n"
	"        processes with mappings of their own, sent by add-process; silent: they map, and neither "
	"say so\n"
	"        nor touch anything\n"
	"  kill-device I | exec-device I\n"
	"        end process I; replace it by an idle program\n"
	"  register | disconnect\n"
	"        hand over again; close the connection\n"
	"  hostile shrink MEMFD BYTES | nonblock on|off | close-uffd | exec | exit | munmap REGION\n"
	"        what bad VMMs do, unknown to the records\n"
	"Replies: {\"reply\":N,\"ok\":true|false,...}; jobs end with {\"event\":\"done\",\"job\":ID,...}.\n";

static uint64_t guest_pages(const struct command *command)
{
	return command->control->guest->memory.pages;
}

static void start(struct command *command, struct job *job)
{
	if (command->wrong)
		return; /* the slot stays free: a job without id was never started */
	job_start(command->control->guest->shared, job);
	command->job_id = job->id;
}

/* A slot for a job; a spare one, never started, if there is no free slot. */
static struct job *new_job(struct command *command, int kind)
{
	static struct job spare;
	struct job *job = job_new(command->control->guest->shared, kind);

	if (job)
		return job;
	command_refuse(command, "too many jobs run already: wait for one to be done");
	return &spare;
}

static void set_range(struct command *command, struct job *job, uint64_t first_page, uint64_t pages)
{
	if (pages == 0 || first_page >= guest_pages(command) || pages > guest_pages(command) - first_page)
		command_refuse(command, "no such pages: FIRST and N must lie in the guest, N at least 1");
	job->first_page = first_page;
	job->pages = pages;
}

static void set_range_options(struct command *command, struct job *job)
{
	uint64_t first_page = command_number_option(command, "first", 0, UINT64_MAX);
	uint64_t rest = first_page < guest_pages(command) ? guest_pages(command) - first_page : 0;

	set_range(command, job, first_page, command_number_option(command, "pages", rest, UINT64_MAX));
	job->chunk_pages = CHUNK_PAGES;
	job->process = command_by_option(command, ALL_PROCESSES);
}

static void set_range_words(struct command *command, struct job *job)
{
	set_range(command, job, command_number(command, 1, UINT64_MAX),
		  command_number(command, 2, UINT64_MAX));
	job->chunk_pages = job->pages;
	job->process = command_by_option(command, 0);
	job->cursor_is_shared = true;
}

static void run_fill(struct command *command)
{
	struct job *job = new_job(command, JOB_FILL);

	set_range_options(command, job);
	job->cursor_is_shared = job->process == ALL_PROCESSES;
	start(command, job);
}

static void run_verify(struct command *command)
{
	struct job *job = new_job(command, JOB_VERIFY);

	set_range_options(command, job);
	job->skip_untouched = command_number_option(command, "touched", 0, 1);
	start(command, job);
}

static void run_touch(struct command *command)
{
	struct job *job = new_job(command, JOB_TOUCH);

	set_range_words(command, job);
	job->is_write = command_has_word(command, 3, "write");
	if (!job->is_write && !command_has_word(command, 3, "read"))
		command_refuse(command, "touch FIRST N read|write");
	job->offset_bytes = (unsigned)command_number_option(command, "offset", PAGE_BYTES, PAGE_BYTES - 1);
	start(command, job);
}

static void run_kernel_io(struct command *command)
{
	struct job *job = new_job(command, JOB_KERNEL_IO);

	set_range_words(command, job);
	job->is_write = command_has_word(command, 3, "read"); /* read() writes to memory */
	if (!job->is_write && !command_has_word(command, 3, "write"))
		command_refuse(command, "kernel-io FIRST N read|write");
	start(command, job);
}

static void run_remove(struct command *command)
{
	static const char *const how_names[] = { "madvise", "dontneed", "fallocate", "balloon" };
	struct job *job = new_job(command, JOB_REMOVE);
	int how = 0;

	set_range_words(command, job);
	while (how < 4 && !command_has_word(command, 3, how_names[how]))
		how++;
	if (how == 4 || (command->words > 4 && !command_has_word(command, 4, "zeros") &&
			 !command_has_word(command, 4, "either"))) {
		command_refuse(command, "remove FIRST N madvise|dontneed|fallocate|balloon [zeros|either]");
		return;
	}
	job->remove_how = how;
	job->is_either = command->words > 4 ? command_has_word(command, 4, "either") :
					      how == REMOVE_DONTNEED || how == REMOVE_FALLOCATE;
	start(command, job);
}

static void run_corrupt(struct command *command)
{
	struct job *job = new_job(command, JOB_CORRUPT);

	set_range(command, job, command_number(command, 1, UINT64_MAX), 1);
	job->offset_bytes = (unsigned)command_number_option(command, "offset", 0, PAGE_BYTES - 1);
	job->process = command_by_option(command, 0);
	start(command, job);
}

static void work_start(struct command *command)
{
	struct shared *shared = command->control->guest->shared;
	uint64_t rate = command_number_option(command, "rate", 0, 1000000000);
	uint64_t write_percent = command_number_option(command, "writes", 50, 100);
	uint64_t kernel_percent = command_number_option(command, "kernel", 0, 100);

	if (write_percent + kernel_percent > 100)
		command_refuse(command, "writes= and kernel= must not exceed 100 together");
	if (command->wrong)
		return;
	atomic_store(&shared->rate, rate);
	atomic_store(&shared->write_percent, (uint32_t)write_percent);
	atomic_store(&shared->kernel_percent, (uint32_t)kernel_percent);
	atomic_store(&shared->working, 1);
	atomic_fetch_add(&shared->wake, 1);
	futex_wake_all(&shared->wake);
}

static void run_work(struct command *command)
{
	struct shared *shared = command->control->guest->shared;

	if (command_has_word(command, 1, "start")) {
		work_start(command);
		return;
	}
	if (!command_has_word(command, 1, "stop")) {
		command_refuse(command,
			       "work start [rate=OPS] [writes=PERCENT] [kernel=PERCENT], or work stop");
		return;
	}
	struct job *job = new_job(command, JOB_QUIESCE);
	if (command->wrong)
		return;
	atomic_store(&shared->working, 0);
	atomic_fetch_add(&shared->quiesce_waiters, 1);
	start(command, job);
}

static void run_hot(struct command *command)
{
	struct shared *shared = command->control->guest->shared;
	uint64_t pages = command_number(command, 1, guest_pages(command));
	uint64_t first_page = command_number_option(command, "first", 0, guest_pages(command) - 1);
	uint64_t stride = command_number_option(command, "stride", 1, guest_pages(command));

	if (command->wrong)
		return;
	atomic_store(&shared->hot_first, first_page);
	atomic_store(&shared->hot_stride, stride);
	atomic_store(&shared->hot_pages, pages);
}

static void run_fork(struct command *command)
{
	struct job *job = new_job(command, JOB_FORK);

	job->pages = command_number(command, 1, MAX_PROCESSES);
	job->process = command_by_option(command, 0);
	if (!job->pages || job->process == ALL_PROCESSES)
		command_refuse(command, "fork N [by=main|I], N at least 1");
	start(command, job);
}

static bool request_backend(struct guest *guest, enum backend_mode mode, uint64_t job_id)
{
	struct zygote_request request = { .mode = mode };

	request.process = device_slot(guest, KIND_BACKEND, 0, job_id);
	if (request.process < 0)
		return false;
	if (send(guest->zygote_fd, &request, sizeof(request), MSG_NOSIGNAL | MSG_DONTWAIT) ==
	    (ssize_t)sizeof(request))
		return true;
	atomic_store(&guest->shared->process[request.process].error, errno);
	atomic_store(&guest->shared->process[request.process].state, PROCESS_FREE);
	return false;
}

static void run_backend_command(struct command *command)
{
	struct control *control = command->control;
	struct job *job = new_job(command, JOB_BACKEND);
	enum backend_mode mode = control->handoff.path ? BACKEND_ANNOUNCE : BACKEND_PLAIN;
	uint64_t count = command_number(command, 1, MAX_PROCESSES);

	if (command_has_word(command, 2, "silent"))
		mode = BACKEND_SILENT;
	else if (command->words > 2 || !count)
		command_refuse(command, "backend N [silent], N at least 1");
	start(command, job);
	for (uint64_t i = 0; i < count && !command->wrong; i++)
		if (!request_backend(control->guest, mode, job->id))
			atomic_store(&job->error, EAGAIN);
}

static void run_kill_device(struct command *command)
{
	int process = (int)command_number(command, 1, MAX_PROCESSES - 1);

	if (!command->wrong && process == 0)
		command_refuse(command, "process 0 is the VMM itself: use quit or hostile exit");
	if (!command->wrong)
		command->err = device_kill(command->control->guest, process);
}

static void run_exec_device(struct command *command)
{
	struct job *job = new_job(command, JOB_EXEC);

	job->process = (int)command_number(command, 1, MAX_PROCESSES - 1);
	if (!command->wrong &&
	    (job->process == 0 ||
	     atomic_load(&command->control->guest->shared->process[job->process].state) != PROCESS_RUNNING))
		command_refuse(command, "exec-device needs the number of a running process other than 0");
	start(command, job);
}

static void run_hostile(struct command *command)
{
	if (!command_has_word(command, 1, "munmap")) {
		command->err = hostile_run(command->control->guest, command->word + 1, command->words - 1);
		if (command->err == ENOENT)
			command_refuse(
				command,
				"hostile shrink MEMFD BYTES | nonblock on|off | close-uffd | exec | exit | "
				"munmap REGION");
		return;
	}
	struct job *job = new_job(command, JOB_MUNMAP);
	job->first_page = command_number(command, 2, command->control->guest->memory.regions - 1);
	start(command, job);
}

static void run_register(struct command *command)
{
	if (!command->control->handoff.path)
		command_refuse(command, "there is no monitor to register with: start with --socket PATH");
	else if (handoff_start(&command->control->handoff))
		report_handoff(&command->control->out, &command->control->handoff);
}

static void run_disconnect(struct command *command)
{
	handoff_disconnect(&command->control->handoff);
	command->control->handoff.state = HANDOFF_NONE;
}

static void run_reset(struct command *command)
{
	report_reset(command->control->guest);
}

static void run_help(struct command *command)
{
	text_add(&command->control->out, ",\"help\":");
	text_add_string(&command->control->out, command_help);
}

static void run_quit(struct command *command)
{
	command->control->has_ended = true;
}

static void run_status(struct command *command)
{
	report_status(&command->control->out, command->control->guest, &command->control->handoff);
}

static void run_memory(struct command *command)
{
	report_memory(&command->control->out, command->control->guest);
}
static void run_processes(struct command *command)
{
	report_processes(&command->control->out, command->control->guest);
}
static void run_threads(struct command *command)
{
	report_threads(&command->control->out, command->control->guest);
}

static const struct {
	const char *name;
	void (*run)(struct command *command);
} commands[] = {
	{ "status", run_status },
	{ "processes", run_processes },
	{ "threads", run_threads },
	{ "memory", run_memory },
	{ "reset-stats", run_reset },
	{ "fill", run_fill },
	{ "verify", run_verify },
	{ "work", run_work },
	{ "hot", run_hot },
	{ "touch", run_touch },
	{ "remove", run_remove },
	{ "kernel-io", run_kernel_io },
	{ "corrupt", run_corrupt },
	{ "fork", run_fork },
	{ "backend", run_backend_command },
	{ "kill-device", run_kill_device },
	{ "exec-device", run_exec_device },
	{ "register", run_register },
	{ "disconnect", run_disconnect },
	{ "hostile", run_hostile },
	{ "help", run_help },
	{ "quit", run_quit },
};

static void dispatch(struct command *command)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(command->word[0], commands[i].name))
			continue;
		commands[i].run(command);
		return;
	}
	command_refuse(command, "unknown order; see help");
}

/* The members of a reply gather in control->out while the order runs. */
void command_run(struct control *control, char *line)
{
	struct command command = { .control = control };

	text_clear(&control->out);
	text_add(&control->out, "{\"reply\":%llu", (unsigned long long)control->lines);
	command_split(&command, line);
	if (!command.wrong && command.words)
		dispatch(&command);
	else if (!command.wrong)
		command.wrong = "an empty order; see help";
	if (command.err && !command.wrong)
		command.wrong = strerror(command.err);
	if (command.job_id)
		text_add(&control->out, ",\"job\":%llu", (unsigned long long)command.job_id);
	text_add(&control->out, ",\"ok\":%s,\"error\":", command.wrong ? "false" : "true");
	text_add_string(&control->out, command.wrong ? command.wrong : "");
	control_send(control);
}
