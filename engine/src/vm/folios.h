/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether guest memory may hold folios of several pages, by the kernel's settings: for a swap-out whose way of seeing pins does not
 * see folios. What such a folio is must then go out whole, or not at all.
 *
 * The settings are everybody's, and any of them may be switched while a VM lives. A folio that was made under one outlives it, so a
 * "yes" holds until the VM ends, over restarts of the monitor. What was switched off before the monitor looked for the first time is
 * not known: docs/live-swap-out.md. */
#ifndef VMMSWAP_FOLIOS_H
#define VMMSWAP_FOLIOS_H

#include "vm/vm.h"

/* Look, and set vm->large_folios. memory: whose files are looked at. */
void folios_look(struct vm *vm, const struct memory *memory);

#endif
