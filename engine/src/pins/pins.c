// SPDX-License-Identifier: GPL-2.0-or-later
#include "pins/pins.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/units.h"
#include "pins/pins_bpf.h"
#include "pins/pins_collapse.h"
#include "pins/pins_drain.h"
#include "pins/pins_selftest.h"

#define NEARLY_MIN 4	/* this many pages with one reference too many look like an LRU batch */
#define REDRAIN_WAIT 16 /* checks until the next drain within a pass, after a drain that freed nothing */
#define REASON_BYTES 512

enum kind { KIND_BPF, KIND_COLLAPSE, KIND_QMP, KIND_PROMISE, KIND_SETTLE };

static const char *const kind_names[] = { "bpf", "collapse", "qmp", "promise", "settle" };

struct pins {
	enum kind kind;
	struct pins_bpf *bpf;		/* KIND_BPF */
	struct pins_collapse *collapse; /* KIND_COLLAPSE */
	uint32_t settle_ms;		/* KIND_SETTLE; otherwise 0 */
	atomic_int redrain_wait;
	char reason[REASON_BYTES];
};

static void add_reason(struct pins *pins, const char *kind, const char *why)
{
	size_t used = strlen(pins->reason);

	snprintf(pins->reason + used, sizeof pins->reason - used, "%s%s: %s", used ? "; " : "", kind, why);
}

static bool try_bpf(struct pins *pins)
{
	struct error err = { 0 };
	int rc = pins_bpf_create(&pins->bpf, &err);

	if (!rc)
		rc = pins_selftest_bpf(pins->bpf, &err);
	if (!rc)
		return true;
	pins_bpf_destroy(pins->bpf);
	pins->bpf = NULL;
	add_reason(pins, "bpf", err.message);
	return false;
}

static bool try_collapse(struct pins *pins)
{
	struct error err = { 0 };
	int rc = pins_collapse_create(&pins->collapse, &err);

	if (!rc)
		rc = pins_selftest_collapse(pins->collapse, &err);
	if (!rc)
		return true;
	pins_collapse_destroy(pins->collapse);
	pins->collapse = NULL;
	add_reason(pins, "collapse", err.message);
	return false;
}

/* The index of the kind chosen, or -1. */
static int choose(struct pins *pins, const struct pins_config *config)
{
	if (!config->allow_bpf)
		add_reason(pins, "bpf", "not allowed by the configuration");
	else if (try_bpf(pins))
		return KIND_BPF;
	if (!config->allow_collapse)
		add_reason(pins, "collapse", "not allowed by the configuration");
	else if (try_collapse(pins))
		return KIND_COLLAPSE;
	if (config->qmp_drained)
		return KIND_QMP;
	add_reason(pins, "qmp", "not used");
	if (config->promised_unpinned)
		return KIND_PROMISE;
	add_reason(pins, "promise", "the VMM made none");
	if (config->allow_settle)
		return KIND_SETTLE;
	add_reason(pins, "settle", "not allowed by the configuration");
	return -1;
}

int pins_create(const struct pins_config *config, struct pins **out, struct error *err)
{
	struct pins *pins = calloc(1, sizeof *pins);
	int kind;

	if (!pins)
		return error_set(err, ENOMEM, "no memory for the check of pinned pages");
	kind = choose(pins, config);
	if (kind < 0) {
		error_set(err, ENOTSUP, "I/O into guest memory cannot be ruled out: %s", pins->reason);
		pins_destroy(pins);
		return -ENOTSUP;
	}
	pins->kind = (enum kind)kind;
	pins->settle_ms = pins->kind == KIND_SETTLE ? config->settle_ms : 0;
	*out = pins;
	return 0;
}

void pins_destroy(struct pins *pins)
{
	if (!pins)
		return;
	pins_bpf_destroy(pins->bpf);
	pins_collapse_destroy(pins->collapse);
	free(pins);
}

const char *pins_kind(const struct pins *pins)
{
	return pins ? kind_names[pins->kind] : "none";
}

const char *pins_reason(const struct pins *pins)
{
	return pins ? pins->reason : "";
}

uint32_t pins_settle_ms(const struct pins *pins)
{
	return pins->settle_ms;
}

int pins_begin_pass(struct pins *pins)
{
	if (pins->kind != KIND_BPF) /* collapse drains by itself */
		return 0;
	atomic_store(&pins->redrain_wait, 0);
	return pins_drain_batches();
}

static void set_bits(uint64_t *bits, uint32_t pages_n)
{
	for (uint32_t i = 0; i < pages_n; i++)
		bits[i / 64] |= (uint64_t)1 << (i % 64);
}

static void clear_bits_from(uint64_t *bits, uint32_t pages_n)
{
	for (uint32_t i = pages_n; i < PINS_CHUNK_PAGES; i++)
		bits[i / 64] &= ~((uint64_t)1 << (i % 64));
}

static bool any_bit(const uint64_t *bits)
{
	uint64_t all = 0;

	for (int i = 0; i < PINS_WORDS; i++)
		all |= bits[i];
	return all != 0;
}

/* A page in the host's swap may still be held where it was before. Reading brings back that very page, and
 * fills no hole. */
static void bring_in(int memfd, uint64_t offset_bytes, const uint64_t *swapped)
{
	char byte;

	for (uint32_t i = 0; i < PINS_CHUNK_PAGES; i++)
		if (swapped[i / 64] >> (i % 64) & 1 &&
		    pread(memfd, &byte, 1, (off_t)(offset_bytes + i * PAGE_BYTES)) < 0)
			return; /* pages that could not be read stay held */
	pins_drain_batches();
}

static bool may_redrain(struct pins *pins)
{
	if (atomic_load(&pins->redrain_wait) > 0) {
		atomic_fetch_sub(&pins->redrain_wait, 1);
		return false;
	}
	return true;
}

static int check_bpf(struct pins *pins, int memfd, const struct pins_place *place, struct pins_chunk *out)
{
	struct pins_verdict seen;
	int rc = pins_bpf_look(pins->bpf, memfd, place, &seen);

	if (!rc && any_bit(seen.swapped)) {
		bring_in(memfd, bytes_of_pages(place->first_page), seen.swapped);
		rc = pins_bpf_look(pins->bpf, memfd, place, &seen);
	}
	if (!rc && seen.nearly_n >= NEARLY_MIN && may_redrain(pins)) {
		uint32_t nearly_n = seen.nearly_n;

		pins_drain_batches();
		rc = pins_bpf_look(pins->bpf, memfd, place, &seen);
		if (!rc && seen.nearly_n >= nearly_n)
			atomic_store(&pins->redrain_wait, REDRAIN_WAIT);
	}
	if (rc == -EAGAIN) { /* its tree changed each time: learn nothing, and treat all as held this time */
		set_bits(out->held, PINS_CHUNK_PAGES);
		return 0;
	}
	if (!rc)
		*out = seen.chunk;
	return rc;
}

static int check_collapse(struct pins *pins, int memfd, uint64_t offset_bytes, uint32_t pages_n,
			  struct pins_chunk *out)
{
	bool is_free = false;
	int rc = pages_n == PINS_CHUNK_PAGES ?
			 pins_collapse_look(pins->collapse, memfd, offset_bytes, &is_free) :
			 0;

	if (rc)
		return rc;
	if (is_free) {
		set_bits(out->present, pages_n);
		set_bits(out->large, pages_n);
		out->sees_folios = true;
	} else {
		set_bits(out->held, pages_n);
	}
	return 0;
}

static int check(struct pins *pins, int memfd, uint64_t offset_bytes, uint32_t pages_n,
		 struct pins_chunk *out)
{
	struct pins_place place = { .first_page = pages_of_bytes(offset_bytes), .pages_n = pages_n };
	struct statfs fs;
	struct stat st;

	if (pins->kind != KIND_BPF && pins->kind != KIND_COLLAPSE)
		return 0;
	if (fstatfs(memfd, &fs) || fstat(memfd, &st))
		return -errno;
	if (fs.f_type != TMPFS_MAGIC || !S_ISREG(st.st_mode))
		return -ENOTSUP;
	if (pins->kind == KIND_COLLAPSE)
		return check_collapse(pins, memfd, offset_bytes, pages_n, out);
	place.ino = st.st_ino;
	return check_bpf(pins, memfd, &place, out);
}

int pins_check(struct pins *pins, int memfd, uint64_t offset_bytes, uint32_t pages_n, struct pins_chunk *out)
{
	int rc;

	memset(out, 0, sizeof *out);
	if (offset_bytes % CHUNK_BYTES || offset_bytes > INT64_MAX || !pages_n ||
	    pages_n > PINS_CHUNK_PAGES || memfd < 0)
		rc = -EINVAL;
	else
		rc = check(pins, memfd, offset_bytes, pages_n, out);
	if (rc)
		set_bits(out->held, pages_n < PINS_CHUNK_PAGES ? pages_n : PINS_CHUNK_PAGES);
	clear_bits_from(out->held, pages_n);
	clear_bits_from(out->present, pages_n);
	clear_bits_from(out->large, pages_n);
	if (FAILPOINT("pins.blind"))
		memset(out->held, 0, sizeof out->held);
	return rc;
}
