/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One look at one fault, from the inside: resolve.c and put_back.c. */
#ifndef VMMSWAP_ATTEMPT_H
#define VMMSWAP_ATTEMPT_H

#include "serve/resolve.h"

#define FIRST_RETRY_NS 1000000

/* Lives on the stack of resolve() or resolve_fetched(). */
struct attempt {
	struct vm *vm;
	const struct means *means;
	struct fault *fault;
	struct process *process; /* valid while the gate is passed */
	uint64_t page_idx;
	uint64_t claimed;
	bool lost; /* the page was found to be lost: others around it may be lost too */
};

/* End the claim. The page is as it was: if it was given up, its hole may still be to come. */
void attempt_release(struct attempt *attempt);
/* End the claim: the page is there. */
void attempt_filled(struct attempt *attempt);

void attempt_wake_own(struct attempt *attempt);
enum resolved attempt_later(struct attempt *attempt, uint64_t delay_ns);

/* What an ioctl that did not fill the page means for the fault. The claim has been released. */
enum resolved attempt_unfilled(struct attempt *attempt, enum uffd_outcome outcome);

/* We hold the claim on a page that is out, and yet it is present. */
enum resolved attempt_found_present(struct attempt *attempt);

/* The page is claimed, and its bytes were read outside of the gate, which is passed again. page: the bytes,
 * if rc is 0. */
enum resolved attempt_put_back(struct attempt *attempt, bool was_poisoned, int rc, const void *page);

/* True if the process has a private copy of guest memory: a forked child. */
bool attempt_is_a_copy(const struct attempt *attempt);

/* The page is claimed, the gate is passed, and these are its bytes. */
enum resolved attempt_copy(struct attempt *attempt, bool was_poisoned, const void *page);

/* Leave the gate, if the result is not READING. */
enum resolved attempt_end(struct attempt *attempt, enum resolved result);

#endif
