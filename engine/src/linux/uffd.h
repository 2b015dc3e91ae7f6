/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Typed wrappers of the userfaultfd ioctls: the one place that knows the kernel's errnos and quirks.
 *
 * Every call works on a dup of the uffd held by another process than the one it watches. */
#ifndef VMMSWAP_UFFD_H
#define VMMSWAP_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What an ioctl's errno means here. Sources: Linux fs/userfaultfd.c, mm/userfaultfd.c. */
enum uffd_outcome {
	UFFD_DONE,
	UFFD_EXISTS, /* EEXIST: the page is present; threads that wait for it must be woken */
	/* EAGAIN: an event is unread, or its process has not run since it was read: read events, then try
	 * again */
	UFFD_RETRY,
	/* ESRCH, or ENOMEM of (un)register that stands for ESRCH: the process died or called exec */
	UFFD_GONE,
	UFFD_UNMAPPED, /* ENOENT: the range is not mapped, or not registered with this uffd */
	/* ENOMEM: the process's cgroup or the host is out of memory; of (un)register: no mapping can be
	 * split */
	UFFD_NO_MEMORY,
	UFFD_BEYOND,  /* EFAULT: the memfd is shorter than the range */
	UFFD_REFUSED, /* EINVAL and all others: the kernel or this uffd cannot do it */
};

const char *uffd_outcome_text(enum uffd_outcome outcome);

/* Open a userfaultfd for mappings of our own process, which nobody accesses. It is for user mode only, so it
 * needs no privilege (since Linux 5.11). The fd, or -errno. */
int uffd_open_own(void);

/* Register for missing faults, and for write-protect faults if wanted. UFFD_REFUSED: there is no such
 * mapping, another uffd watches it (EBUSY), or the kernel cannot write-protect it. */
enum uffd_outcome uffd_register(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect);
enum uffd_outcome uffd_unregister(int uffd, uint64_t addr, uint64_t size_bytes);

/* The same, for shmem only. UFFD_REFUSED, with nothing changed, also if anything else is mapped in the range.
 * Existing write-protection is off for an instant; missing faults are not. */
enum uffd_outcome uffd_register_shared(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect);
enum uffd_outcome uffd_unregister_shared(int uffd, uint64_t addr, uint64_t size_bytes);

/* As uffd_register_shared(), but keeps existing protection. Minor faults come too, until the range is
 * unregistered. */
enum uffd_outcome uffd_register_more(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect);

enum uffd_answer { UFFD_NO, UFFD_YES, UFFD_UNKNOWN };

/* Is the page registered with a userfaultfd? UFFD_UNKNOWN while an event of the process is unread. */
enum uffd_answer uffd_is_registered(int uffd, uint64_t addr);

/* Copy from `from` (page aligned) into the hole at addr, write-protected if wanted, and wake. *copied_bytes
 * says how much was copied, also with UFFD_RETRY and UFFD_EXISTS: continue from there. UFFD_EXISTS is about
 * the first page that was not copied. */
enum uffd_outcome uffd_copy(int uffd, uint64_t addr, const void *from, uint64_t size_bytes,
			    bool write_protect, uint64_t *copied_bytes);
enum uffd_outcome uffd_zeropage(int uffd, uint64_t addr);
enum uffd_outcome uffd_poison(int uffd, uint64_t addr);

/* Map the page that the memfd has. */
enum uffd_outcome uffd_continue(int uffd, uint64_t addr);

/* As uffd_continue(), but write-protected: the next write raises a write-protect fault. UFFD_REFUSED where
 * the kernel cannot: before Linux 6.4. */
enum uffd_outcome uffd_continue_protected(int uffd, uint64_t addr);
bool uffd_can_continue_protected(void);
enum uffd_outcome uffd_wake(int uffd, uint64_t addr, uint64_t size_bytes);

/* Write-protect: the next write to each page raises a write-protect fault. Unprotect wakes threads that wait
 * for the range. */
enum uffd_outcome uffd_protect(int uffd, uint64_t addr, uint64_t size_bytes);
enum uffd_outcome uffd_unprotect(int uffd, uint64_t addr, uint64_t size_bytes);

/* Read at most messages_n messages without ever blocking, whatever the VMM did to the O_NONBLOCK flag that it
 * shares with us. The count, 0 for none, or a negative errno for an fd that is no longer usable. */
int uffd_read(int uffd, struct uffd_msg *messages, size_t messages_n);

#endif
