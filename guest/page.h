/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One page of the guest: what it must hold now, who may change it, and whether it does hold it.
 *
 * Each page has one 64-bit word outside guest memory: version, kind of contents, and the worker that is
 * changing it. A change takes the word (compare and swap), changes the page, and gives the word back with
 * the next version; a read copies the page and is valid if the word was free and the same before and
 * after. So all processes may read and write all pages at any time, each read is checked against an exact
 * expectation, and readers never wait for each other: two processes can fault on one page at once. */
#ifndef GUEST_PAGE_H
#define GUEST_PAGE_H

#include "memory.h"
#include "shared.h"
#include "uffd.h"

/* The word: bits 0-31 version, 32-33 contents, 40-63 worker id of the writer (0: free). */
typedef uint64_t page_word;

enum contents {
	CONTENTS_UNTOUCHED, /* zeros: never written */
	CONTENTS_VERSION,   /* what content_expect() says for the version */
	CONTENTS_ZEROS,	    /* given up, or all given back */
	CONTENTS_EITHER, /* given up by a way that may keep the contents: zeros or the version, decided by the
			    first read */
};

static inline uint32_t word_version(page_word word)
{
	return (uint32_t)word;
}
static inline enum contents word_contents(page_word word)
{
	return (word >> 32) & 3;
}
static inline uint32_t word_writer(page_word word)
{
	return (uint32_t)(word >> 40);
}
static inline page_word word_make(uint32_t version, enum contents contents)
{
	return version | ((page_word)contents << 32);
}

/* Everything that page operations need; one for each process, inherited by fork. */
struct guest {
	struct memory memory;
	struct content content;
	struct shared *shared;
	_Atomic page_word *words; /* one for each page */
	int notify_fd;		  /* eventfd: something changed that the control thread may wait for */
	int zygote_fd;		  /* control's end of the socket to the zygote */
	int pidfd[MAX_PROCESSES]; /* of the other processes, 0: none; the control thread's */
	_Atomic int uffd;	  /* the VMM's own; -1: none */
	_Atomic int socket_fd;	  /* to the monitor; -1: not connected */
	struct uffd_options uffd_options;
	bool has_dummy; /* processes with a uffd of their own send a dummy page */
	int process;	/* our index in shared->process */
	unsigned workers, device_workers;
};

struct worker;

enum page_result { PAGE_OK, PAGE_WRONG, PAGE_BUS_ERROR };

/* Take the page, waiting while another has it. Returns the word as it was. */
page_word page_lock(struct worker *worker, uint64_t page_idx);
/* Take it if it is free. */
bool page_trylock(struct worker *worker, uint64_t page_idx, page_word *was);
void page_unlock(struct worker *worker, uint64_t page_idx, page_word word);

/* Read and compare all 4096 bytes; waits while somebody writes. Counts in the worker's slot. */
enum page_result page_check(struct worker *worker, uint64_t page_idx);

/* The page, held by this worker, must be as `word` says. */
enum page_result page_check_locked(struct worker *worker, uint64_t page_idx, page_word word);

/* Write the page, held by this worker, so that it goes from `was` on. Returns the word to unlock with. */
page_word page_write_locked(struct worker *worker, uint64_t page_idx, page_word was, enum write_how how,
			    enum page_result *result);

/* As above, the bytes written or read by the kernel: read() from, write() to a pipe. */
page_word page_kernel_read_locked(struct worker *worker, uint64_t page_idx, page_word was,
				  enum page_result *result);
enum page_result page_kernel_write_locked(struct worker *worker, uint64_t page_idx, page_word word);

/* The word after an unfinished or finished write or removal of a page that was as `was` says. */
page_word page_next_word(const struct guest *guest, uint64_t page_idx, page_word was, uint32_t how);

/* A page whose writer died: each 64-bit word must be the old or the new one. Then write it anew and
 * release it. */
void page_recover(struct worker *worker, uint64_t page_idx, uint32_t how);

/* Turn one byte of the page around, behind the back of the records. */
enum page_result page_corrupt(struct worker *worker, uint64_t page_idx, unsigned offset_bytes);

/* Read one byte. */
enum page_result page_peek(struct worker *worker, uint64_t page_idx, unsigned offset_bytes);

#endif
