/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vm/gate.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/held.h"

struct lane {
	_Alignas(64) pthread_mutex_t lock; /* a cache line each, so that passing costs no traffic */
};

struct gate {
	size_t lanes_n;
	struct lane lanes[];
};

int gate_create(size_t threads_n, struct gate **out)
{
	pthread_mutexattr_t attr;
	struct gate *gate = aligned_alloc(64, sizeof *gate + threads_n * sizeof *gate->lanes);

	if (!gate)
		return -ENOMEM;
	gate->lanes_n = threads_n;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	for (size_t slot = 0; slot < threads_n; slot++)
		pthread_mutex_init(&gate->lanes[slot].lock, &attr);
	pthread_mutexattr_destroy(&attr);
	*out = gate;
	return 0;
}

void gate_destroy(struct gate *gate)
{
	if (!gate)
		return;
	for (size_t slot = 0; slot < gate->lanes_n; slot++)
		pthread_mutex_destroy(&gate->lanes[slot].lock);
	free(gate);
}

void gate_pass(struct gate *gate, size_t slot)
{
	HELD_TAKE(HELD_GATE);
	pthread_mutex_lock(&gate->lanes[slot].lock);
}

void gate_leave(struct gate *gate, size_t slot)
{
	pthread_mutex_unlock(&gate->lanes[slot].lock);
	HELD_DROP(HELD_GATE);
}

void gate_hold_alone(struct gate *gate)
{
	HELD_TAKE(HELD_GATE_ALONE);
	for (size_t slot = 0; slot < gate->lanes_n; slot++)
		pthread_mutex_lock(&gate->lanes[slot].lock);
}

void gate_release(struct gate *gate)
{
	for (size_t slot = gate->lanes_n; slot > 0; slot--)
		pthread_mutex_unlock(&gate->lanes[slot - 1].lock);
	HELD_DROP(HELD_GATE_ALONE);
}
