/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keeps reading events and acting on pages apart.
 *
 * The guest continues as soon as its REMOVE is read, so the page map must be right before any thread acts on
 * the removed pages again. So a thread that reads events holds the gate alone, from before read() until the
 * map is updated. A thread that looks at a page's state and then acts on it (COPY, ZEROPAGE, write-protect)
 * passes the gate, together with others, from the look until the ioctl is done. The set of processes changes
 * only with the gate held alone.
 *
 * Threads pass far more often than they hold alone. So each passes on a lane of its own, which costs one
 * atomic operation on a cache line that no other thread writes to.
 *
 * No thread waits for ever. A thread that wants the gate alone closes all lanes first. Before it come only
 * the passages under way, at most one on each lane, and the holders that asked before it. A passage that
 * waits is overtaken by at most GATE_OVERTAKES_MAX holders. This is more than one, because a holder serves
 * page faults while a passage is often a long job's, whose thread may have to be woken first. */
#ifndef VMMSWAP_GATE_H
#define VMMSWAP_GATE_H

#define GATE_OVERTAKES_MAX 8

struct gate;
struct lane;

int gate_create(struct gate **out);
void gate_destroy(struct gate *gate); /* after all lanes were given up; NULL is allowed */

/* Get a lane, on which one thread at a time may pass, and give it up. Both wait while the gate is held alone.
 * -ENOMEM. */
int gate_join(struct gate *gate, struct lane **out);
void gate_part(struct gate *gate, struct lane *lane); /* NULL is allowed */

/* Not recursive. */
void gate_pass(struct gate *gate, struct lane *lane);
void gate_leave(struct gate *gate, struct lane *lane);

/* Not for a thread that passes the gate. */
void gate_hold_alone(struct gate *gate);
void gate_release(struct gate *gate);

#endif
