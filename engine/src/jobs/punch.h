/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The last steps of a page's way out: mark it STORED, punch it out of the memfd, let it be touched again.
 *
 * Why a page fault is answered while we wait for the lock of the inode
 * ---------------------------------------------------------------------
 * fallocate(PUNCH_HOLE) takes the lock of the memfd's inode (mm/shmem.c, shmem_fallocate()). The VMM may hold
 * it for as long as it likes: a thread that write()s to its memfd holds it while it faults on the bytes that
 * it writes, and those may be guest memory. Our call can neither be asked not to wait nor be called off: it
 * sleeps uninterruptibly, and punches when it gets the lock, even if we were killed meanwhile. So from before
 * the call until its end these pages are PUNCHING. What is true then:
 *
 * 1. Our call waits for the lock. Nothing has happened yet. Every page of the run is there, and
 *    write-protected in every process. It can be read: through an entry that is there without a fault, else
 *    by a fault that the kernel answers alone, or that asks for the page to be mapped (a minor fault), which
 *    resolve.c does, protected, without waiting for us. (Where the kernel cannot map it protected, it is
 *    mapped before it is protected: protect.h.) It must not be written: the write would go with the
 *    page when the punch comes. Nor can the page be taken out of the operation any more. A writer waits.
 * 2. Our call has the lock. First the entries go, in all processes (unmap_mapping_range()), then the pages,
 *    one by one. Who faults in the run now waits in the kernel for the end of the call (inode->i_private,
 *    shmem_falloc_wait()). UFFDIO_COPY does not wait there. Before its page is gone it says EEXIST. After
 *    that it would succeed, and the page be lost: shmem_undo_range() goes over the range a second time. That
 *    is why nobody may fill a page that is PUNCHING.
 * 3. Our call has returned. The run is a hole, and who touches it raises MISSING. Between here and the end of
 *    PUNCHING we wait for nothing that a guest can delay: that the hole is there is found out by mincore()
 *    and not by lseek().
 *
 * So a thread of the VMM that has the lock gets on. What it needs of us are reads: whatever takes the lock of
 * an inode only reads the memory of its caller. A page of the run that waits can be read (1); every other
 * page is either not PUNCHING, or is in another worker's run that waits for the same lock and can be read
 * too. Runs that were punched are finished before we go for the lock again: a run at a time, never a hole of
 * ours that waits for the punch of the next run.
 *
 * What is left is the writer in (1). It waits for who has the lock, and gets on when he does. Only if he in
 * turn waits for that very write would both stand still: the bytes that he write()s to the memfd would have
 * to come from a thread of the VMM, by a userfaultfd or a FUSE of its own, that first writes to a page of
 * this run. To hold nobody up for long where we can help it, we take the lock once (lseek()) before we mark
 * anything: a holder of long standing then delays us alone. What may still come between lies in the
 * microseconds from there to the punch.
 *
 * Options that were rejected: letting the writer go on and keeping the page by a reference of ours (splice()
 * to a pipe) until it is punched: its last bytes would be nowhere but in our memory, and lost with us.
 * Punching with nothing marked: a fault in the hole would be answered with zeros. Waiting with a time limit:
 * there is none for a lock.
 *
 * Large folios: with batch->whole all of the chunk that is resident is marked before the first run is
 * punched, or nothing is. A folio has no holes, so it lies in one run, and is punched whole by one call. */
#ifndef VMMSWAP_PUNCH_H
#define VMMSWAP_PUNCH_H

#include "jobs/batch.h"

/* Take out what is still PROTECTED, or KEPT, of a batch whose bytes are stored; its other slots are dropped.
 * joined: as of evict_protected(). On error what is not out is resident as before. */
int punch_batch(struct batch *batch, uint64_t joined, struct error *err);

#endif
