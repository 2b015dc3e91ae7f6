/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "base/memory_error.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>

static _Thread_local sigjmp_buf *volatile way_out;
static struct sigaction before;

/* A synchronous signal: the thread was in the middle of `work`, or of code that is not prepared for it. There
 * the access is repeated, and the action of before decides. */
static void leave(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (info->si_code == BUS_MCEERR_AO)
		return;			  /* vm.memory_failure_early_kill: nobody has touched it yet */
	if (way_out && info->si_code > 0) /* else somebody has sent it */
		siglongjmp(*way_out, 1);
	sigaction(number, &before, NULL);
	if (info->si_code <= 0)
		raise(number);
}

static void install(void)
{
	struct sigaction action = { .sa_sigaction = leave, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	sigaction(SIGBUS, &action, &before);
}

void memory_error_begin(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install);
}

/* As the signal's handler was left without returning. Saving the mask ahead would take a system call each
 * time. */
static void unblock(void)
{
	sigset_t blocked;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGBUS);
	pthread_sigmask(SIG_UNBLOCK, &blocked, NULL);
}

bool memory_try(void (*work)(void *argument), void *argument)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 0)) {
		way_out = NULL;
		unblock();
		return false;
	}
	way_out = &here;
	work(argument);
	way_out = NULL;
	return true;
}
