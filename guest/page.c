/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Guest memory is read and written by atomic 64-bit accesses with acquire and release, which cost nothing
 * extra on x86-64. They make the copy of a page safe against a writer in another thread: a reader that saw
 * any word of a write in progress also sees that the page's word was taken, and throws its copy away. */
#include "page.h"

#include <errno.h>
#include <string.h>

#include "job.h"

#define WRITER_SHIFT 40
#define LOCK_RECHECK_NS 100000000u /* a writer that was killed wakes nobody */

static _Atomic uint64_t *guest_words(struct worker *worker, uint64_t page_idx)
{
	return (_Atomic uint64_t *)(void *)memory_page(&worker->guest->memory, page_idx);
}

bool page_trylock(struct worker *worker, uint64_t page_idx, page_word *was)
{
	_Atomic page_word *word = &worker->guest->words[page_idx];

	*was = atomic_load(word);
	return !word_writer(*was) &&
	       atomic_compare_exchange_strong(word, was, *was | (page_word)worker->id << WRITER_SHIFT);
}

static void wait_for_unlock(struct worker *worker, uint64_t page_idx)
{
	struct shared *shared = worker->guest->shared;

	atomic_fetch_add(&shared->unlock_waiters, 1);
	uint32_t seen = atomic_load(&shared->unlocked);
	if (word_writer(atomic_load(&worker->guest->words[page_idx])))
		futex_wait(&shared->unlocked, seen, LOCK_RECHECK_NS);
	atomic_fetch_sub(&shared->unlock_waiters, 1);
	/* The holder may be dead, and every worker that could set that right may be waiting here. */
	jobs_recover(worker);
}

page_word page_lock(struct worker *worker, uint64_t page_idx)
{
	page_word was;

	while (!page_trylock(worker, page_idx, &was))
		wait_for_unlock(worker, page_idx);
	return was;
}

void page_unlock(struct worker *worker, uint64_t page_idx, page_word word)
{
	struct shared *shared = worker->guest->shared;

	atomic_store(&worker->guest->words[page_idx], word);
	if (atomic_load(&shared->unlock_waiters)) {
		atomic_fetch_add(&shared->unlocked, 1);
		futex_wake_all(&shared->unlocked);
	}
}

static enum page_result bus_error(struct worker *worker)
{
	op_end(worker);
	atomic_fetch_add(&worker->slot->bus_errors, 1);
	if (worker->job)
		atomic_fetch_add(&worker->job->bus_errors, 1);
	return PAGE_BUS_ERROR;
}

static enum page_result copy_in(struct worker *worker, uint64_t page_idx)
{
	const _Atomic uint64_t *from = guest_words(worker, page_idx);

	op_begin(worker, page_idx);
	if (BUS_ERROR_IN(worker))
		return bus_error(worker);
	for (unsigned i = 0; i < PAGE_WORDS; i++)
		worker->got[i] = atomic_load_explicit(&from[i], memory_order_acquire);
	BUS_ERROR_OUT(worker);
	op_end(worker);
	return PAGE_OK;
}

static bool is_all_zeros(const uint64_t *words)
{
	for (unsigned i = 0; i < PAGE_WORDS; i++)
		if (words[i])
			return false;
	return true;
}

/* worker->expected as the word says; for CONTENTS_EITHER as the version says. */
static void expect(struct worker *worker, uint64_t page_idx, page_word word)
{
	if (word_contents(word) == CONTENTS_UNTOUCHED || word_contents(word) == CONTENTS_ZEROS)
		memset(worker->expected, 0, PAGE_BYTES);
	else
		content_expect(&worker->guest->content, page_idx, word_version(word), worker->expected);
}

static void record_first(struct mismatch *first, struct worker *worker, uint64_t page_idx, page_word word,
			 unsigned at)
{
	uint32_t unclaimed = 0;

	if (!atomic_compare_exchange_strong(&first->claimed, &unclaimed, 1))
		return;
	first->page_idx = page_idx;
	first->addr = (uint64_t)(uintptr_t)memory_page(&worker->guest->memory, page_idx);
	first->offset_bytes = at;
	first->expected = ((const uint8_t *)worker->expected)[at];
	first->actual = ((const uint8_t *)worker->got)[at];
	first->expected_version =
		word_contents(word) == CONTENTS_VERSION || word_contents(word) == CONTENTS_EITHER ?
			word_version(word) :
			0;
	first->actual_version = content_claimed_version(&worker->guest->content, page_idx, worker->got);
	first->process = worker->guest->process;
	first->worker = worker->index;
	atomic_store(&first->ready, 1);
}

static void record_wrong(struct worker *worker, uint64_t page_idx, page_word word)
{
	const uint8_t *expected = (const uint8_t *)worker->expected;
	const uint8_t *got = (const uint8_t *)worker->got;
	uint64_t wrong = 0;
	unsigned first = 0;

	for (unsigned i = PAGE_BYTES; i-- > 0;) {
		if (expected[i] == got[i])
			continue;
		wrong++;
		first = i;
	}
	atomic_fetch_add(&worker->slot->wrong_bytes, wrong);
	atomic_fetch_add(&worker->slot->wrong_pages, 1);
	record_first(&worker->guest->shared->first_wrong, worker, page_idx, word, first);
	if (!worker->job)
		return;
	atomic_fetch_add(&worker->job->wrong_bytes, wrong);
	atomic_fetch_add(&worker->job->wrong_pages, 1);
	record_first(&worker->job->first_wrong, worker, page_idx, word, first);
}

/* Compare worker->got. *settled is the word as it is known after this look. */
static enum page_result compare(struct worker *worker, uint64_t page_idx, page_word word, page_word *settled)
{
	bool is_either = word_contents(word) == CONTENTS_EITHER;

	*settled = word;
	atomic_fetch_add(&worker->slot->verified_bytes, PAGE_BYTES);
	if (worker->job)
		atomic_fetch_add(&worker->job->bytes, PAGE_BYTES);
	expect(worker, page_idx, word);
	if (!memcmp(worker->expected, worker->got, PAGE_BYTES)) {
		if (is_either)
			*settled = word_make(word_version(word), CONTENTS_VERSION);
		return PAGE_OK;
	}
	if (is_either && is_all_zeros(worker->got)) {
		*settled = word_make(word_version(word), CONTENTS_ZEROS);
		return PAGE_OK;
	}
	record_wrong(worker, page_idx, word);
	return PAGE_WRONG;
}

enum page_result page_check(struct worker *worker, uint64_t page_idx)
{
	_Atomic page_word *word = &worker->guest->words[page_idx];
	page_word settled;

	for (;;) {
		page_word before = atomic_load(word);

		if (word_writer(before)) {
			wait_for_unlock(worker, page_idx);
			continue;
		}
		enum page_result result = copy_in(worker, page_idx);

		if (atomic_load(word) != before)
			continue;
		atomic_fetch_add(&worker->slot->reads, 1);
		if (result == PAGE_OK)
			result = compare(worker, page_idx, before, &settled);
		if (result == PAGE_OK && settled != before)
			atomic_compare_exchange_strong(word, &before, settled);
		return result;
	}
}

enum page_result page_check_locked(struct worker *worker, uint64_t page_idx, page_word word)
{
	page_word settled;
	enum page_result result = copy_in(worker, page_idx);

	return result == PAGE_OK ? compare(worker, page_idx, word, &settled) : result;
}

static bool is_part_write(const struct guest *guest, uint64_t page_idx, page_word was, enum write_how how)
{
	return how == WRITE_PART && word_contents(was) == CONTENTS_VERSION &&
	       content_allows_part(content_class(&guest->content, page_idx), word_version(was));
}

page_word page_next_word(const struct guest *guest, uint64_t page_idx, page_word was, uint32_t how)
{
	if (how == OP_REMOVE)
		return word_make(word_version(was), CONTENTS_ZEROS);
	if (how == WRITE_PART && !is_part_write(guest, page_idx, was, how))
		how = WRITE_WHOLE;
	enum page_class class = content_class(&guest->content, page_idx);
	return word_make(content_next_version(class, word_version(was), how), CONTENTS_VERSION);
}

static enum page_result copy_out(struct worker *worker, uint64_t page_idx, uint32_t version, bool is_part)
{
	_Atomic uint64_t *to = guest_words(worker, page_idx);

	op_begin(worker, page_idx);
	if (BUS_ERROR_IN(worker))
		return bus_error(worker);
	for (unsigned i = 0; i < PAGE_WORDS; i++)
		if (!is_part || content_part_covers(version, i))
			atomic_store_explicit(&to[i], worker->next[i], memory_order_release);
	BUS_ERROR_OUT(worker);
	op_end(worker);
	return PAGE_OK;
}

page_word page_write_locked(struct worker *worker, uint64_t page_idx, page_word was, enum write_how how,
			    enum page_result *result)
{
	const struct guest *guest = worker->guest;
	page_word next = page_next_word(guest, page_idx, was, how);

	content_expect(&guest->content, page_idx, word_version(next), worker->next);
	*result = copy_out(worker, page_idx, word_version(next), is_part_write(guest, page_idx, was, how));
	if (*result != PAGE_OK)
		return was;
	atomic_fetch_add(&worker->slot->writes, 1);
	return next;
}

static void drain(struct worker *worker)
{
	while (read(worker->pipe_fd[0], worker->got, PAGE_BYTES) > 0)
		;
}

/* The pipes are ours alone and one page always fits, so anything but a whole page is the guest page's
 * fault. */
page_word page_kernel_read_locked(struct worker *worker, uint64_t page_idx, page_word was,
				  enum page_result *result)
{
	const struct guest *guest = worker->guest;
	page_word next = page_next_word(guest, page_idx, was, WRITE_WHOLE);

	content_expect(&guest->content, page_idx, word_version(next), worker->next);
	*result = PAGE_BUS_ERROR;
	if (write(worker->pipe_fd[1], worker->next, PAGE_BYTES) != (ssize_t)PAGE_BYTES)
		return was;
	op_begin(worker, page_idx);
	/* syscall(): the sanitizers would take read() for an unordered write and report our own seqlock. */
	long count = syscall(SYS_read, worker->pipe_fd[0], memory_page(&guest->memory, page_idx),
			     (size_t)PAGE_BYTES);
	op_end(worker);
	if (count != (long)PAGE_BYTES) {
		drain(worker);
		bus_error(worker);
		return was;
	}
	atomic_fetch_add(&worker->slot->kernel_ios, 1);
	*result = PAGE_OK;
	return next;
}

enum page_result page_kernel_write_locked(struct worker *worker, uint64_t page_idx, page_word word)
{
	page_word settled;

	op_begin(worker, page_idx);
	long count = syscall(SYS_write, worker->pipe_fd[1], memory_page(&worker->guest->memory, page_idx),
			     (size_t)PAGE_BYTES);
	op_end(worker);
	if (count != (long)PAGE_BYTES ||
	    read(worker->pipe_fd[0], worker->got, PAGE_BYTES) != (ssize_t)PAGE_BYTES) {
		drain(worker);
		return bus_error(worker);
	}
	atomic_fetch_add(&worker->slot->kernel_ios, 1);
	return compare(worker, page_idx, word, &settled);
}

void page_recover(struct worker *worker, uint64_t page_idx, uint32_t how)
{
	_Atomic page_word *shared_word = &worker->guest->words[page_idx];
	page_word word = atomic_load(shared_word);
	page_word was = word_make(word_version(word), word_contents(word));
	page_word next = page_next_word(worker->guest, page_idx, was, how);
	enum page_result result;

	atomic_store(shared_word, was | (page_word)worker->id << WRITER_SHIFT);
	result = copy_in(worker, page_idx);
	if (result == PAGE_OK) {
		expect(worker, page_idx, next);
		memcpy(worker->next, worker->expected, PAGE_BYTES);
		expect(worker, page_idx, was);
		/* A removal may have been cut short, or a page of unsettled contents may have been zeros
		 * before. */
		bool allows_zeros = word_contents(was) == CONTENTS_EITHER;
		for (unsigned i = 0; i < PAGE_WORDS; i++)
			if (worker->got[i] == worker->next[i] || (allows_zeros && !worker->got[i]))
				worker->expected[i] = worker->got[i];
		if (memcmp(worker->expected, worker->got, PAGE_BYTES))
			record_wrong(worker, page_idx, was);
	}
	next = page_write_locked(worker, page_idx, word_make(word_version(next), CONTENTS_ZEROS), WRITE_WHOLE,
				 &result);
	page_unlock(worker, page_idx, next);
}

enum page_result page_corrupt(struct worker *worker, uint64_t page_idx, unsigned offset_bytes)
{
	_Atomic uint64_t *word = guest_words(worker, page_idx) + offset_bytes / 8;
	uint64_t flip = UINT64_C(0xff) << (offset_bytes % 8 * 8);

	op_begin(worker, page_idx);
	if (BUS_ERROR_IN(worker))
		return bus_error(worker);
	atomic_fetch_xor(word, flip);
	BUS_ERROR_OUT(worker);
	op_end(worker);
	return PAGE_OK;
}

enum page_result page_peek(struct worker *worker, uint64_t page_idx, unsigned offset_bytes)
{
	const volatile uint8_t *byte = memory_page(&worker->guest->memory, page_idx) + offset_bytes;

	op_begin(worker, page_idx);
	if (BUS_ERROR_IN(worker))
		return bus_error(worker);
	(void)*byte;
	BUS_ERROR_OUT(worker);
	op_end(worker);
	return PAGE_OK;
}
