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
	UFFD_EXISTS, /* EEXIST: the page is present; who waits for it needs a wake */
	/* EAGAIN: an event is unread, or its process has not run on since: drain, look again */
	UFFD_RETRY,
	/* ESRCH, or ENOMEM of (un)register with ESRCH behind it: the process died or called exec */
	UFFD_GONE,
	UFFD_UNMAPPED, /* ENOENT: the range is not mapped, or not registered with this uffd */
	UFFD_NO_MEMORY, /* ENOMEM: the process's cgroup or the host is out of memory; of (un)register: no mapping can be split */
	UFFD_BEYOND,  /* EFAULT: the memfd is shorter than the range */
	UFFD_REFUSED, /* EINVAL and all others: the kernel or this uffd cannot do it */
};

const char *uffd_outcome_text(enum uffd_outcome outcome);

/* A userfaultfd for mappings of our own process, which nobody accesses: for user mode only, as anybody may have it (Linux 5.11).
 * The fd, or -errno. */
int uffd_open_own(void);

/* Register for missing faults, and for write-protect faults if wanted. UFFD_REFUSED: no such mapping, another uffd
 * watches it (EBUSY), or write-protection is not to be had. */
enum uffd_outcome uffd_register(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect);
enum uffd_outcome uffd_unregister(int uffd, uint64_t addr, uint64_t size_bytes);

/* The same of shmem. UFFD_REFUSED also if anything else is mapped in the range, of which nothing has changed then. Write-protection
 * that was there is off for an instant; missing faults are not. */
enum uffd_outcome uffd_register_shared(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect);
enum uffd_outcome uffd_unregister_shared(int uffd, uint64_t addr, uint64_t size_bytes);

/* The same, with all that is there left as it is; minor faults come then, too, until the range is unregistered. */
enum uffd_outcome uffd_register_more(int uffd, uint64_t addr, uint64_t size_bytes, bool write_protect);

enum uffd_answer { UFFD_NO, UFFD_YES, UFFD_UNKNOWN };

/* Whether the page is registered with a userfaultfd. Not known while an event of the process is unread. */
enum uffd_answer uffd_is_registered(int uffd, uint64_t addr);

/* Copy from `from` (page aligned) into the hole at addr, write-protected if wanted, and wake. *copied_bytes tells how far it came, also with
 * UFFD_RETRY and UFFD_EXISTS; a range is then continued from there. UFFD_EXISTS is said only of the first page left. */
enum uffd_outcome uffd_copy(int uffd, uint64_t addr, const void *from, uint64_t size_bytes,
			    bool write_protect, uint64_t *copied_bytes);
enum uffd_outcome uffd_zeropage(int uffd, uint64_t addr);
enum uffd_outcome uffd_poison(int uffd, uint64_t addr);

/* Map the page that the memfd has. */
enum uffd_outcome uffd_continue(int uffd, uint64_t addr);

/* The same, write-protected: the next write raises a write-protect fault. UFFD_REFUSED before Linux 6.4. */
enum uffd_outcome uffd_continue_protected(int uffd, uint64_t addr);
enum uffd_outcome uffd_wake(int uffd, uint64_t addr, uint64_t size_bytes);

/* Protect: the next write to each page raises a write-protect fault. Unprotect wakes who waits for the range. */
enum uffd_outcome uffd_protect(int uffd, uint64_t addr, uint64_t size_bytes);
enum uffd_outcome uffd_unprotect(int uffd, uint64_t addr, uint64_t size_bytes);

/* Read at most messages_n messages without ever blocking, whatever the VMM did to the O_NONBLOCK flag that it shares
 * with us. The count, 0 for none, or a negative errno for an fd that is no longer usable. */
int uffd_read(int uffd, struct uffd_msg *messages, size_t messages_n);

#endif
