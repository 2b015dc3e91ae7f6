/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether guest memory may have folios of several pages, by the kernel's settings. A swap-out needs this if
 * its way to see pins does not show folios: the pages of a folio must go out together, or not at all.
 *
 * The settings are the host's, and may change while a VM runs. A folio outlives the setting under which it
 * was made, so a "yes" is kept until the VM ends, across restarts of the monitor. If a setting was switched
 * off before the monitor first looked, nobody knows: docs/live-swap-out.md. */
#ifndef VMMSWAP_FOLIOS_H
#define VMMSWAP_FOLIOS_H

#include "vm/vm.h"

/* Read the settings that apply to the files of `memory`, and set vm->large_folios. */
void folios_look(struct vm *vm, const struct memory *memory);

#endif
