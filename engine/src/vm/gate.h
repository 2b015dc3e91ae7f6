/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeps reading events and acting on pages apart.
 *
 * A REMOVE lets the guest go on the moment it is read: what the page map says of the removed pages must be true by the
 * time that any thread acts on it again. So the reader holds the gate alone, from before read() until the map is
 * updated, and whoever takes a last look at a page's state and then acts on it (COPY, ZEROPAGE, write-protect) passes
 * through with others from the look until the ioctl is done. The set of processes changes only with the gate held alone.
 *
 * Passing is far more frequent than holding alone, so each thread passes on a lane of its own, which costs it one atomic
 * operation on a cache line that nobody else writes to.
 *
 * Nobody waits without end. Who wants the gate alone closes all lanes first: at most one passage of each, the one under
 * way, comes before it, and those who asked before. A passage that waits is overtaken by GATE_OVERTAKES_MAX holders at
 * most. More than one may overtake, because a holder is a page fault and a passage is often a long job's, and its thread
 * may have to be woken first. */
#ifndef VMMSWAP_GATE_H
#define VMMSWAP_GATE_H

#define GATE_OVERTAKES_MAX 8

struct gate;
struct lane;

int gate_create(struct gate **out);
void gate_destroy(struct gate *gate); /* all lanes were given up; NULL is fine */

/* A lane for one thread at a time to pass on, until it gives it up. Both wait for who holds the gate alone. -ENOMEM. */
int gate_join(struct gate *gate, struct lane **out);
void gate_part(struct gate *gate, struct lane *lane); /* NULL is fine */

/* Not recursive. */
void gate_pass(struct gate *gate, struct lane *lane);
void gate_leave(struct gate *gate, struct lane *lane);

/* Not by a thread that is passing. */
void gate_hold_alone(struct gate *gate);
void gate_release(struct gate *gate);

#endif
