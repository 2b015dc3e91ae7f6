/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Survives a hardware error in shared memory. The kernel takes such a page away, and sends SIGBUS to whoever
 * touches it next (memory_failure(), BUS_MCEERR_AR). Without this, one bad page of the RAM tier would kill
 * the monitor, and every successor that reads the same page. */
#ifndef VMMSWAP_MEMORY_ERROR_H
#define VMMSWAP_MEMORY_ERROR_H

#include <stdbool.h>

/* Call once before memory_try(). Replaces the process's SIGBUS handler; a SIGBUS outside memory_try() is left
 * to the one that was there before. */
void memory_error_begin(void);

/* Run work(argument). False: memory that it touched is lost, and it was left in the middle. So it may hold no
 * lock and allocate nothing. Not nested. */
bool memory_try(void (*work)(void *argument), void *argument);

#endif
