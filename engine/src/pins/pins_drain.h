/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Empty the kernel's per-CPU LRU batches: each holds one more reference to up to 31 pages. Private to pins.
 */
#ifndef VMMSWAP_PINS_DRAIN_H
#define VMMSWAP_PINS_DRAIN_H

/* 150-200 us, on all CPUs. 0 or -errno (-ENOSYS on a kernel without page migration). */
int pins_drain_batches(void);

#endif
