/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "jobs/protect.h"

#include "jobs/batch.h"

/* A page that is there already, or is a hole by now, needs nothing. Any other error comes again when it is
 * protected. */
static enum uffd_outcome map_pages(struct evictor *evictor, struct process *process, uint64_t page_idx,
				   uint64_t pages)
{
	for (uint64_t idx = page_idx, addr; idx < page_idx + pages; idx++) {
		enum uffd_outcome outcome;

		if (page_state_of(page_word(evictor->vm, idx)) != PAGE_PROTECTED ||
		    !process_addr_of(process, idx, 1, &addr))
			continue;
		outcome = uffd_continue(process->uffd, addr);
		if (outcome == UFFD_RETRY || outcome == UFFD_GONE)
			return outcome;
	}
	return UFFD_DONE;
}

static enum uffd_outcome protect_process(struct evictor *evictor, struct process *process, uint64_t page_idx,
					 uint64_t pages)
{
	enum uffd_outcome outcome = UFFD_DONE;

	if (!process->protects)
		return evictor->frozen ? UFFD_DONE : UFFD_REFUSED;
	if (process->minor && !uffd_can_continue_protected())
		outcome = map_pages(evictor, process, page_idx, pages);
	for (struct mapped at = mapped_in(process, page_idx, pages);
	     outcome == UFFD_DONE && mapped_next(&at);)
		outcome = uffd_protect(process->uffd, at.addr, bytes_of_pages(at.pages));
	return outcome;
}

/* One that can write without an event would make the stored copy wrong. */
enum uffd_outcome protect_everywhere(struct evictor *evictor, uint64_t page_idx, uint64_t pages)
{
	struct vm *vm = evictor->vm;
	uint64_t since_ns = monotonic_ns();

	for (size_t i = 0; i < vm->spaces.n; i++) {
		struct process *process = vm->spaces.processes[i];
		enum uffd_outcome outcome;

		if (process->gone || process->outside)
			continue;
		outcome = protect_process(evictor, process, page_idx, pages);
		if (outcome == UFFD_GONE)
			vm_process_gone(vm, process);
		else if (outcome != UFFD_DONE)
			return outcome;
	}
	batch_stopped_for(evictor, since_ns);
	return UFFD_DONE;
}
