/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/failpoint.h"

#include <errno.h>

#ifdef VMMSWAP_FAILPOINTS

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Every point of the engine, sorted (LC_ALL=C), one a line: add yours in its place. A test compares with
 * the sources. */
/* clang-format off */
static const char *const names[] = {
	"adopt.watch",
	"ahead.claimed",
	"ahead.copied",
	"ahead.fetched",
	"around.chosen",
	"around.done",
	"event.piece",
	"event.read",
	"evict.checked",
	"evict.finished",
	"evict.marked",
	"evict.protected",
	"evict.punched",
	"evict.read",
	"evict.selected",
	"evict.stored",
	"fault.fork-read",
	"fault.reading",
	"flush.moved",
	"freeze.before-thaw",
	"freeze.seized",
	"freeze.stopped",
	"gate.closed",
	"gate.opened",
	"holders.fdinfo",
	"incore.find",
	"kept.seen",
	"leave.piece",
	"listeners.nap",
	"listeners.turn",
	"lost.looked",
	"map_read.minute",
	"mappers.read",
	"memory.punch",
	"memory.read",
	"memory.seek",
	"move.back",
	"move.discarded",
	"move.marked",
	"move.moved",
	"move.out",
	"move.read",
	"move.stored",
	"mover.ask",
	"mover.asked",
	"mover.read",
	"notice.alloc",
	"pins.blind",
	"pins.load",
	"poison.lifted",
	"reads.cut",
	"recover.mapped",
	"replay.begins",
	"replay.step",
	"resident.cachestat",
	"resolve.claimed",
	"resolve.copied",
	"resolve.fetched",
	"restore.awaits-removal",
	"restore.claimed",
	"restore.copied",
	"restore.fetched",
	"seal.secret",
	"shared_look.fdinfo",
	"shared_look.making",
	"shared_look.waiting",
	"spaces.reserve",
	"store.alloc",
	"store.compact.copied",
	"store.compact.relocated",
	"store.cut",
	"store.direct",
	"store.freed",
	"store.headroom",
	"store.move.placed",
	"store.move.written",
	"store.punch",
	"store.ram",
	"store.read",
	"store.read.corrupt",
	"store.sealed",
	"store.write",
	"store.written",
	"swapper.done",
	"swapper.listed",
	"swapper.looked",
	"swapper.unregistered",
	"uffd.continue",
	"uffd.continue-protected",
	"uffd.copy",
	"uffd.minor",
	"uffd.protect",
	"uffd.zeropage",
	"unplug.piece",
	"uring.submit",
	"wake.folded",
};
/* clang-format on */

#define NAMES_N (sizeof names / sizeof *names)
#define TEXT_BYTES_MAX 4096

enum kind { OFF, COUNT, KILL, SEGV, STOP, STALL, SLEEP, FAIL, FAIL_TIMES };

struct action {
	enum kind kind;
	long arg;	/* SLEEP: milliseconds; FAIL, FAIL_TIMES: positive errno */
	uint64_t times; /* FAIL_TIMES: so often yet */
	uint64_t skip;	/* hits that still pass without effect */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t rearmed = PTHREAD_COND_INITIALIZER;
static struct action actions[NAMES_N]; /* under lock */
static uint64_t hits[NAMES_N];	       /* under lock; counted while any point is armed */
/* How many points are armed. Starts as if one were, so that the first hit comes to read the environment. */
static atomic_int armed_n = 1;
static bool environment_read; /* under lock */

static int compare_name(const void *name, const void *entry)
{
	return strcmp(name, *(const char *const *)entry);
}

static int find(const char *name)
{
	const char *const *entry = bsearch(name, names, NAMES_N, sizeof *names, compare_name);

	return entry ? (int)(entry - names) : -1;
}

/* A whole, plain decimal number. */
static bool parse_number(const char *text, uint64_t max, uint64_t *out)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoull(text, &end, 10);
	return !errno && !*end && *out <= max;
}

static bool parse_errno(const char *text, long *out)
{
	for (int code = 1; code < 256; code++) {
		const char *name = strerrorname_np(code);

		if (name && !strcmp(name, text)) {
			*out = code;
			return true;
		}
	}
	return false;
}

static bool parse_action(char *text, struct action *out)
{
	static const struct {
		const char *word;
		enum kind kind;
	} words[] = {
		{ "off", OFF },	  { "count", COUNT }, { "kill", KILL },
		{ "segv", SEGV }, { "stop", STOP },   { "stall", STALL },
	};
	char *skip = strchr(text, '@');
	uint64_t number;

	*out = (struct action){ .kind = FAIL };
	if (skip) {
		*skip++ = '\0';
		if (!parse_number(skip, UINT64_MAX, &out->skip))
			return false;
	}
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		if (!strcmp(text, words[i].word)) {
			out->kind = words[i].kind;
			return true;
		}
	}
	if (!strncmp(text, "sleep:", 6)) {
		out->kind = SLEEP;
		if (!parse_number(text + 6, 3600 * 1000, &number))
			return false;
		out->arg = (long)number;
		return true;
	}
	if (!strncmp(text, "times:", 6)) {
		char *rest = strchr(text + 6, ':');

		out->kind = FAIL_TIMES;
		if (!rest)
			return false;
		*rest = '\0';
		if (!parse_number(text + 6, UINT64_MAX, &out->times) || !out->times)
			return false;
		text = rest + 1;
	} else if (!strncmp(text, "once:", 5)) {
		out->kind = FAIL_TIMES;
		out->times = 1;
		text += 5;
	}
	return parse_errno(text, &out->arg);
}

/* Fills the entries that text names; set[] says which. */
static bool parse(char *text, struct action *parsed, bool *set)
{
	char *rest, *item;

	for (item = strtok_r(text, ";", &rest); item; item = strtok_r(NULL, ";", &rest)) {
		char *action = strchr(item, '=');
		int idx;

		if (!action)
			return false;
		*action++ = '\0';
		idx = find(item);
		if (idx < 0 || !parse_action(action, &parsed[idx]))
			return false;
		set[idx] = true;
	}
	return true;
}

static int arm_locked(const char *text)
{
	struct action parsed[NAMES_N];
	bool set[NAMES_N] = { false };
	char copy[TEXT_BYTES_MAX];
	int armed = 0;

	if (strlen(text) >= sizeof copy)
		return -EINVAL;
	strcpy(copy, text);
	if (!parse(copy, parsed, set))
		return -EINVAL;
	for (size_t i = 0; i < NAMES_N; i++) {
		if (set[i])
			actions[i] = parsed[i];
		armed += actions[i].kind != OFF;
	}
	atomic_store_explicit(&armed_n, armed, memory_order_relaxed);
	pthread_cond_broadcast(&rearmed);
	return 0;
}

static void read_environment_locked(void)
{
	const char *text = getenv("VMMSWAP_FAILPOINTS");

	if (environment_read)
		return;
	environment_read = true;
	if (arm_locked(text ? text : "")) {
		fprintf(stderr, "VMMSWAP_FAILPOINTS=\"%s\" is not NAME=ACTION[@SKIP][;...] of known names\n",
			text);
		abort();
	}
}

int failpoint_arm(const char *text)
{
	int rc;

	pthread_mutex_lock(&lock);
	read_environment_locked();
	rc = arm_locked(text);
	pthread_mutex_unlock(&lock);
	return rc;
}

/* What to do now; the point's own state is advanced. Waits while the point is armed to stall. */
static struct action advance_locked(int idx)
{
	struct action *action = &actions[idx];
	struct action now;

	hits[idx]++;
	if (action->kind != OFF && action->skip) {
		action->skip--;
		return (struct action){ .kind = OFF };
	}
	now = *action;
	if (now.kind == FAIL_TIMES && --action->times == 0)
		action->kind = COUNT;
	while (action->kind == STALL)
		pthread_cond_wait(&rearmed, &lock);
	return now;
}

static void sleep_ms(long ms)
{
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

/* The engine's threads block all signals, and raise() of a blocked one only leaves it pending: a real fault
 * does not. */
static void die_of_segv(void)
{
	sigset_t segv;

	sigemptyset(&segv);
	sigaddset(&segv, SIGSEGV);
	pthread_sigmask(SIG_UNBLOCK, &segv, NULL);
	raise(SIGSEGV);
}

static int perform(struct action now)
{
	switch (now.kind) {
	case KILL:
		kill(getpid(), SIGKILL);
		break;
	case SEGV:
		die_of_segv();
		break;
	case STOP:
		kill(getpid(), SIGSTOP);
		break;
	case SLEEP:
		sleep_ms(now.arg);
		break;
	case FAIL:
	case FAIL_TIMES:
		return (int)-now.arg;
	case OFF:
	case COUNT:
	case STALL:
		break;
	}
	return 0;
}

int failpoint_hit(const char *name)
{
	struct action now;
	int idx;

	if (!atomic_load_explicit(&armed_n, memory_order_relaxed))
		return 0;
	idx = find(name);
	if (idx < 0) {
		fprintf(stderr, "failpoint \"%s\" is missing in the table of failpoint.c\n", name);
		abort();
	}
	pthread_mutex_lock(&lock);
	read_environment_locked();
	now = armed_n ? advance_locked(idx) : (struct action){ .kind = OFF };
	pthread_mutex_unlock(&lock);
	return perform(now);
}

uint64_t failpoint_hits(const char *name)
{
	int idx = find(name);
	uint64_t n = 0;

	if (idx >= 0) {
		pthread_mutex_lock(&lock);
		n = hits[idx];
		pthread_mutex_unlock(&lock);
	}
	return n;
}

const char *failpoint_name(size_t idx)
{
	return idx < NAMES_N ? names[idx] : NULL;
}

#else /* a release build has none */

int failpoint_arm(const char *text)
{
	(void)text;
	return -ENOTSUP;
}

uint64_t failpoint_hits(const char *name)
{
	(void)name;
	return 0;
}

const char *failpoint_name(size_t idx)
{
	(void)idx;
	return NULL;
}

#endif
