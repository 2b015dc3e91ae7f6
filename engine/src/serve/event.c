/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serve/event.h"

#include <errno.h>

#include "base/failpoint.h"
#include "vm/page.h"

/* The guest gave these pages up; the hole may come later, see vm.h. A whole chunk without any used page is
 * not written to: that would take memory for everything that a balloon takes at first. */
static void give_up_before_the_hole(struct vm *vm, uint64_t page_idx, uint64_t pages, uint32_t now_ms)
{
	uint64_t end_idx = page_idx + pages, next_idx;

	for (uint64_t idx = page_idx; idx < end_idx; idx = next_idx) {
		next_idx = (idx / CHUNK_PAGES + 1) * CHUNK_PAGES;
		if (next_idx > end_idx)
			next_idx = end_idx;
		if (next_idx - idx == CHUNK_PAGES && page_map_next_used(vm->map, idx, next_idx) >= next_idx) {
			atomic_store(&vm->given_up_ms[idx / CHUNK_PAGES], now_ms);
			continue;
		}
		for (; idx < next_idx; idx++)
			page_give_up(vm, idx, now_ms);
	}
}

/* A large range is handled in parts: removal.h. */
static void give_up(struct vm *vm, uint64_t page_idx, uint64_t pages)
{
	uint32_t now_ms = vm_now_ms();

	if (pages <= REMOVAL_PIECE_PAGES || !removals_add(&vm->removals, page_idx, pages, now_ms))
		give_up_before_the_hole(vm, page_idx, pages, now_ms);
}

bool event_go_on(struct vm *vm)
{
	struct removal piece;
	bool found;

	if (!atomic_load_explicit(&vm->removals.n, memory_order_relaxed))
		return false;
	FAILPOINT_HERE("event.piece");
	gate_hold_alone(vm->gate);
	found = removals_take(&vm->removals, &piece);
	if (found)
		give_up_before_the_hole(vm, piece.page_idx, piece.end_idx - piece.page_idx,
					piece.given_up_ms);
	gate_release(vm->gate);
	return found;
}

/* A child that has a copy of private memory gives up its own alone. */
static void forget_copy(struct process *process, uint64_t start_addr, uint64_t end_addr)
{
	uffd_unregister(process->uffd, start_addr, end_addr - start_addr);
	process_forget(process, start_addr, end_addr);
}

static void give_up_addresses(struct vm *vm, struct process *process, uint64_t start_addr, uint64_t end_addr)
{
	for (size_t i = 0; i < process->ranges_n; i++) {
		const struct range *range = &process->ranges[i];
		uint64_t range_end_addr = range->addr + bytes_of_pages(range->pages);
		uint64_t from = start_addr > range->addr ? start_addr : range->addr;
		uint64_t to = end_addr < range_end_addr ? end_addr : range_end_addr;

		if (from < to)
			give_up(vm, range->page_idx + pages_of_bytes(from - range->addr),
				pages_of_bytes(to - from));
	}
}

/* Our successor must know. */
static void tell_moved(struct vm *vm, struct process *process)
{
	struct notice notice = { .kind = NOTICE_PROCESS_MOVED, .process_id = process->id };

	if (!atomic_exchange(&process->moved, true))
		notices_post(vm->notices, &notice);
}

void event_apply(struct vm *vm, struct process *process, const struct uffd_msg *msg)
{
	int rc = 0;

	FAILPOINT_HERE("event.read");
	switch (msg->event) {
	case UFFD_EVENT_REMOVE:
		if (vm_has_copy(vm, process))
			forget_copy(process, msg->arg.remove.start, msg->arg.remove.end);
		else
			give_up_addresses(vm, process, msg->arg.remove.start, msg->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		/* Private memory is nowhere else, and something new may be mapped there. */
		if (vm->mover && !vm_has_copy(vm, process))
			give_up_addresses(vm, process, msg->arg.remove.start, msg->arg.remove.end);
		rc = process_forget(process, msg->arg.remove.start, msg->arg.remove.end);
		break;
	case UFFD_EVENT_REMAP:
		rc = process_move(process, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
		break;
	}
	if (msg->event != UFFD_EVENT_REMOVE)
		tell_moved(vm, process);
	if (rc)
		notices_odd(vm->notices, UINT64_MAX,
			    "process %u: cannot follow a change of its mappings (%s)", process->id,
			    rc == -ENOMEM ? "no memory" : "they overlap");
}
