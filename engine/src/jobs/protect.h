/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Write-protecting pages on their way out, in every process. */
#ifndef VMMSWAP_PROTECT_H
#define VMMSWAP_PROTECT_H

#include "jobs/evict.h"

/* Protect pages, of which those that are PROTECTED in the page map are to go out. With the gate passed.
 *
 * Until a page is punched, every process can read it (jobs/punch.h). That needs nothing of us, except in a
 * process with minor faults (struct process, `minor`): its first access to a page that the file has comes to
 * us too. Since Linux 6.4 a fault thread answers it: it maps the page protected
 * (uffd_continue_protected()). Older kernels can only map it writable, and what is then written before the
 * page is protected would be lost with the punch. So there the pages that go out are mapped first, while they
 * may still be written, and then protected with all others. If the host reclaims such a page from the process
 * before the punch, its reader waits for the punch, as a writer does. */
enum uffd_outcome protect_everywhere(struct evictor *evictor, uint64_t page_idx, uint64_t pages);

#endif
