/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What this kernel does to holes when it collapses 2 MiB of shared memory into one huge page.
 *
 * khugepaged collapses memory by itself if shmem_enabled or a mount's huge= allows huge pages. MADV_COLLAPSE
 * (since 6.1) does it for any process that maps the memory, whatever the settings are. Holes of the file
 * become zeros. Since Linux 6.4 a range that is registered with a userfaultfd is left alone ("mm/khugepaged:
 * skip shmem with userfaultfd"). Before that, its holes are filled too: no event comes, and the guest reads
 * zeros where its memory is out. The kernel's version does not tell which, because distributions backport
 * fixes; so this tries it. */
#ifndef VMMSWAP_COLLAPSE_H
#define VMMSWAP_COLLAPSE_H

#include "base/error.h"

enum collapse_holes {
	COLLAPSE_SPARES_HOLES,
	COLLAPSE_FILLS_HOLES,
	COLLAPSE_UNKNOWN, /* nothing can be collapsed now: shmem_enabled is deny, or no huge page is free */
};

/* Try it on a memfd of our own. Returns an enum collapse_holes, or -errno with *err if it could not be
 * tried. */
int collapse_try_holes(struct error *err);

#endif
