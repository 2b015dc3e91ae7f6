/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Freestanding: also compiled to be put into a process that does not know of it. So no library, no data, and
 * no call that the compiler might make (memcpy). */
#include "mover_thread.h"

#include <linux/errno.h>
#include <linux/futex.h>
#include <linux/ioctl.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#define PAGE 4096u
#define WINDOW_PAGES (VMMSWAP_WINDOW_BYTES / PAGE)
/* EAGAIN without progress: somebody has the page locked, or splits its folio, just now. */
#define TRIES 256

/* Since Linux 6.8; Debian 12's headers are older. */
struct move_request {
	uint64_t dst, src, len, mode;
	int64_t move;
};
#define MOVE_IOCTL _IOWR(UFFDIO, 0x05, struct move_request)
#define MOVE_DONTWAKE 1

static long call(long number, long a, long b, long c, long d)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = 0;
	register long r9 __asm__("r9") = 0;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = 0;
	register long x5 __asm__("x5") = 0;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "the mover is written for x86-64 and AArch64"
#endif
}

static int has_bit(const uint64_t *words, uint64_t i)
{
	return words[i / 64] >> (i % 64) & 1;
}

static void set_bits(volatile uint64_t *words, uint64_t from, uint64_t n)
{
	for (uint64_t i = from; i < from + n; i++)
		words[i / 64] |= (uint64_t)1 << (i % 64);
}

static int is_guest_memory(const struct vmmswap_mover *mover, uint64_t addr, uint64_t size_bytes)
{
	uint32_t n = __atomic_load_n(&mover->ranges_n, __ATOMIC_ACQUIRE);

	for (uint32_t i = 0; i < n && i < VMMSWAP_MOVER_RANGES_MAX; i++) {
		const struct vmmswap_mover_range *range = &mover->ranges[i];

		if (addr >= range->addr && addr - range->addr < range->size_bytes &&
		    size_bytes <= range->size_bytes - (addr - range->addr))
			return 1;
	}
	return 0;
}

/* Move `pages` pages at most; *moved says how many. 0, or a negative errno about the next page. */
static int move_some(const struct vmmswap_mover *mover, uint64_t to_addr, uint64_t from_addr, uint64_t pages,
		     uint64_t *moved)
{
	struct move_request request = {
		.dst = to_addr, .src = from_addr, .len = pages * PAGE, .mode = MOVE_DONTWAKE
	};
	long rc = call(SYS_ioctl, mover->uffd, (long)MOVE_IOCTL, (long)&request, 0);

	*moved = request.move > 0 ? (uint64_t)request.move / PAGE : 0;
	return *moved ? 0 : (int)rc;
}

/* Pages from `from` on, all of them wanted, until one cannot be moved. Returns how many pages were dealt
 * with. */
static uint64_t move_run(const struct vmmswap_mover *mover, uint64_t to_addr, uint64_t from_addr,
			 uint64_t from, uint64_t pages, unsigned *tries)
{
	struct vmmswap_mailbox *box = mover->mailbox;
	uint64_t moved;
	int rc = move_some(mover, to_addr + from * PAGE, from_addr + from * PAGE, pages, &moved);

	if (!rc) {
		set_bits(box->moved, from, moved);
		*tries = 0;
		return moved ? moved : 1;
	}
	if (rc == -EAGAIN && ++*tries < TRIES)
		return 0;
	*tries = 0;
	if (rc == -EBUSY || rc == -EAGAIN)
		set_bits(box->busy, from, 1);
	else if (rc != -ENOENT) /* else nothing is there */
		__atomic_store_n(&box->error, -rc, __ATOMIC_RELAXED);
	/* Not all of them are in one mapping. Then what is there may not be guest memory, and is not tried
	 * alone. */
	return rc == -EINVAL ? pages : 1;
}

static void move_window(const struct vmmswap_mover *mover, uint64_t to_addr)
{
	struct vmmswap_mailbox *box = mover->mailbox;
	uint64_t from_addr = __atomic_load_n(&box->window_addr, __ATOMIC_RELAXED);
	uint64_t wanted[VMMSWAP_WINDOW_WORDS];
	unsigned tries = 0;

	for (unsigned i = 0; i < VMMSWAP_WINDOW_WORDS; i++)
		wanted[i] = __atomic_load_n(&box->wanted[i], __ATOMIC_RELAXED);
	if (from_addr % VMMSWAP_WINDOW_BYTES) {
		__atomic_store_n(&box->error, EPERM, __ATOMIC_RELAXED);
		return;
	}
	for (uint64_t i = 0, n; i < WINDOW_PAGES; i += n) {
		n = 1;
		if (!has_bit(wanted, i))
			continue;
		while (i + n < WINDOW_PAGES && has_bit(wanted, i + n))
			n++;
		if (!is_guest_memory(mover, from_addr + i * PAGE, n * PAGE)) {
			__atomic_store_n(&box->error, EPERM, __ATOMIC_RELAXED);
			continue;
		}
		n = move_run(mover, to_addr, from_addr, i, n, &tries);
	}
}

/* False: it shall leave. */
static int serve(const struct vmmswap_mover *mover)
{
	struct vmmswap_mailbox *box = mover->mailbox;
	uint32_t place = __atomic_load_n(&box->place, __ATOMIC_RELAXED);
	uint64_t place_addr = mover->scratch_addr + place * VMMSWAP_WINDOW_BYTES;

	for (unsigned i = 0; i < VMMSWAP_WINDOW_WORDS; i++) {
		__atomic_store_n(&box->moved[i], 0, __ATOMIC_RELAXED);
		__atomic_store_n(&box->busy[i], 0, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&box->error, 0, __ATOMIC_RELAXED);
	switch (__atomic_load_n(&box->call, __ATOMIC_RELAXED)) {
	case VMMSWAP_MAILBOX_LEAVE:
		return 0;
	case VMMSWAP_MAILBOX_MOVE:
		if (place < VMMSWAP_PLACES) {
			move_window(mover, place_addr);
			return 1;
		}
		break;
	case VMMSWAP_MAILBOX_DISCARD:
		if (place < VMMSWAP_PLACES) {
			long rc = call(SYS_madvise, (long)place_addr, VMMSWAP_WINDOW_BYTES, MADV_DONTNEED, 0);

			__atomic_store_n(&box->error, (int32_t)-rc, __ATOMIC_RELAXED);
			return 1;
		}
		break;
	}
	__atomic_store_n(&box->error, EPERM, __ATOMIC_RELAXED);
	return 1;
}

/* clears_tid: else the kernel does it when the thread has ended (CLONE_CHILD_CLEARTID). */
static void work(const struct vmmswap_mover *mover, int clears_tid)
{
	struct vmmswap_mailbox *box = mover->mailbox;
	int stays = 1;

	while (stays) {
		uint32_t state = VMMSWAP_MAILBOX_ASKED;

		if (!__atomic_compare_exchange_n(&box->state, &state, VMMSWAP_MAILBOX_TAKEN, 0,
						 __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			call(SYS_futex, (long)&box->state, FUTEX_WAIT, (long)state, 0);
			continue;
		}
		stays = serve(mover);
		if (!stays && clears_tid)
			__atomic_store_n(&box->tid, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&box->state, VMMSWAP_MAILBOX_DONE, __ATOMIC_RELEASE);
		call(SYS_futex, (long)&box->state, FUTEX_WAKE, 1, 0);
	}
}

void vmmswap_mover_run(struct vmmswap_mover *mover)
{
	__atomic_store_n(&mover->mailbox->tid, (uint32_t)call(SYS_gettid, 0, 0, 0, 0), __ATOMIC_RELEASE);
	work(mover, 1);
}
