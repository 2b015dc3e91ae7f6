/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeps reading events and acting on pages apart.
 *
 * A REMOVE lets the guest go on the moment it is read: what the page map says of the removed pages must be true by the
 * time that any thread acts on it again. So the reader holds the gate alone, from before read() until the map is
 * updated, and whoever takes a last look at a page's state and then acts on it (COPY, ZEROPAGE, write-protect) passes
 * through with others from the look until the ioctl is done. The set of processes changes only with the gate held alone.
 *
 * Passing through is far more frequent than holding it alone, so each thread has a lock of its own to pass with, and
 * holding the gate alone means holding all of them. */
#ifndef VMMSWAP_GATE_H
#define VMMSWAP_GATE_H

#include <stddef.h>

struct gate;

int gate_create(size_t threads_n, struct gate **out);
void gate_destroy(struct gate *gate);

/* slot: the calling thread's own number, below threads_n. Not recursive. */
void gate_pass(struct gate *gate, size_t slot);
void gate_leave(struct gate *gate, size_t slot);

void gate_hold_alone(struct gate *gate);
void gate_release(struct gate *gate);

#endif
