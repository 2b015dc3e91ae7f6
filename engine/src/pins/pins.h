/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tells whether anything besides page tables holds a page of guest memory, so that a page with I/O in flight
 * is never evicted.
 *
 * O_DIRECT pins its pages. If a request is in flight while its page is stored and punched, it completes
 * into a page that is no longer the guest's. The guest then reads older bytes, with no error and no event.
 * docs/pins.md explains this.
 *
 * The order that makes it safe, per chunk:
 *
 *	write-protect (or freeze)  ->  pins_check()  ->  pread  ->  store  ->  mark  ->  punch
 *
 * The check comes after the protect, because a pin that is taken later faults first. It comes before the
 * pread, because both would miss a transfer that ends between the two. Evict a page only if the check said
 * that it is present and not held, and no event has dropped it since. */
#ifndef VMMSWAP_PINS_H
#define VMMSWAP_PINS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct pins;

#define PINS_CHUNK_PAGES 512
#define PINS_WORDS (PINS_CHUNK_PAGES / 64)

struct pins_config {
	bool allow_bpf;		/* try the page check by BPF: exact per page */
	bool allow_collapse;	/* try MADV_COLLAPSE: exact per 2 MiB, makes one large folio of them */
	bool qmp_drained;	/* the caller drains the VMM's block layer by QMP `stop` after the protect */
	bool promised_unpinned; /* the VMM said at hand-off that nothing pins its memory ("pins": false) */
	bool allow_settle;	/* last resort: wait settle_ms after the protect; proves nothing */
	uint32_t settle_ms;
};

/* One bit a page, bit i % 64 of word i / 64 for the i-th page of the chunk. */
struct pins_chunk {
	uint64_t held[PINS_WORDS];    /* something else holds the page, or may hold it: leave it */
	uint64_t present[PINS_WORDS]; /* the page is in the memfd and in memory */
	uint64_t large[PINS_WORDS];   /* it belongs to a folio of several pages: punch all of that or none */
	/* present and large are known; else they are all zero, meaning nothing */
	bool sees_folios;
};

/* Choose the first detector that works, each proven by its self-test: BPF, collapse, QMP, promise, settle.
 * Takes 20 to 60 ms. -ENOTSUP, with every reason in *err, if the configuration leaves none. */
int pins_create(const struct pins_config *config, struct pins **out, struct error *err);
void pins_destroy(struct pins *pins); /* NULL is fine */

/* bpf, collapse, qmp, promise, settle; "none" for NULL */
const char *pins_kind(const struct pins *pins);
/* Why no better detector is used; "" if there is none better. */
const char *pins_reason(const struct pins *pins);
/* How long the caller must wait between the protect and the first check, serving faults meanwhile; 0 but for
 * settle. */
uint32_t pins_settle_ms(const struct pins *pins);

/* Call this once per pass, after the protect. Empties the kernel's per-CPU LRU batches, which hold references
 * to pages. 0 or -errno. After an error pins_check() still never calls a held page free, but more pages look
 * held. */
int pins_begin_pass(struct pins *pins);

/* Look at pages_n (1..512) pages of memfd from offset_bytes, which is a multiple of 2 MiB. Any number of
 * threads at once. It never waits for a pin, allocates no page of the memfd, and maps none (collapse: only
 * fully populated chunks). A page that is only in the host's swap is brought in first. "Not held" means that
 * only the page cache and page tables refer to the page. The bits of pages beyond pages_n are clear.
 *
 * collapse: all pages are held, or none are and the chunk is now one large folio (large is all ones): the
 * caller then punches all 512 pages or none. A chunk with a hole, or of fewer than 512 pages, is always held.
 * qmp, promise, settle: nothing is looked at, nothing is held, sees_folios is false.
 *
 * 0, or -errno if nothing could be learnt (bad arguments: -EINVAL; memfd not shared memory: -ENOTSUP); then
 * all pages_n pages are marked held. */
int pins_check(struct pins *pins, int memfd, uint64_t offset_bytes, uint32_t pages_n, struct pins_chunk *out);

#endif
