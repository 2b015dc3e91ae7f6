/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Waiting on a CPU for another thread that will be done in microseconds. */
#ifndef VMMSWAP_RELAX_H
#define VMMSWAP_RELAX_H

/* How often to look before going to sleep. The other thread copies a page or reads some events, in 2 to 10
 * us; to go to sleep and to be woken costs both threads more than that. `fault_threads engine 32768 8
 * /dev/shm` gives half as many pages again with 1000 as with 100. */
#define RELAX_SPINS 1000

static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
