/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the seed system's tests assert, asserted of ours; and what its later versions had to fix.
 * docs/parity.md says which test here stands for which there, and where the others are. */
#include "base/held.h"
#include "puppet.h"

#include "base/units.h"
#include "linux/procfs.h"
#include "serve/event.h"
#include "store/store.h"
#include "vm/page.h"
#include "vm/page_map.h"
#include "vm/vm.h"

static const struct layout three_and_three = { .memfd_pages = { 3, 3 },
					       .regions = { { 0, 0, 3 }, { 1, 0, 3 } },
					       .empty = 1 };

/* Pages of RAM for a page of zeros that was only read. */
#define ZEROS_TAKE (TEST_PRIVATE ? 0u : 1u)

/* --- small things that the puppet is made to do */

static long fill(void *addr, long value)
{
	for (size_t word = 0; word < PUPPET_WORDS; word++)
		((volatile long *)addr)[word] = value;
	return 0;
}

/* What the whole page is filled with; -1 if it is not one value. */
static long filled_with(void *addr, long argument)
{
	volatile long *words = addr;
	long value = words[0];

	(void)argument;
	for (size_t word = 0; word < PUPPET_WORDS; word++)
		if (words[word] != value)
			return -1;
	return value;
}

static long byte_at(void *addr, long offset)
{
	return ((volatile unsigned char *)addr)[offset];
}

static long thread_id(void *addr, long argument)
{
	(void)addr;
	(void)argument;
	return syscall(SYS_gettid);
}

static long unmap(void *addr, long pages)
{
	return munmap(addr, (size_t)pages * 4096);
}

static long call(struct rig *rig, uint32_t process, uint64_t page, long (*run)(void *, long), long argument)
{
	struct puppet_order order = { .kind = ORDER_CALL, .page = page, .run = run, .argument = argument };

	return (long)puppet_do(rig, process, 0, order);
}

static struct engine_stats settled(struct rig *rig)
{
	rig_settle(rig);
	if (engine_needs_count(rig->engine))
		engine_count_resident(rig->engine);
	return rig_stats(rig);
}

static void set_page(struct rig *rig, uint64_t page, long value)
{
	call(rig, 0, page, fill, value);
}

static void check_pages(struct rig *rig, const long *wanted, uint64_t pages)
{
	for (uint64_t page = 0; page < pages; page++)
		CHECK_EQ(call(rig, 0, page, filled_with, 0), wanted[page]);
}

static void do_remove(struct rig *rig, uint64_t page, uint64_t pages)
{
	puppet_do(rig, 0, 0, (struct puppet_order){ .kind = ORDER_REMOVE, .page = page, .pages = pages });
}

/* Guest memory registered, nothing out. */
static void start_tracking(struct rig *rig, const struct layout *layout)
{
	rig_start(rig, layout);
	rig_run_job(rig, JOB_SWAP_OUT);
	CHECK(settled(rig).tracking);
}

/* --- regions */

TEST(two_adjacent_regions)
{
	struct rig rig;

	rig_start(&rig, &three_and_three);
	CHECK_EQ(settled(&rig).total_pages, 6);
	CHECK_EQ(rig.first_idx[0], 0);
	CHECK_EQ(rig.first_idx[1], 3);
	rig_stop(&rig);
}

/* Identical, at its left, inside, at its right, around it. */
TEST(overlapping_ranges_are_refused)
{
	static const struct range overlaps[] = {
		{ 0x10003000, 100, 3 }, { 0x10001000, 100, 3 }, { 0x10004000, 100, 1 },
		{ 0x10005000, 100, 3 }, { 0x10002000, 100, 5 },
	};
	struct process process = { .uffd = -1 };

	CHECK_OK(process_add_range(&process, (struct range){ 0x10003000, 0, 3 }));
	for (size_t i = 0; i < sizeof overlaps / sizeof *overlaps; i++)
		CHECK_EQ(process_add_range(&process, overlaps[i]), -EEXIST);
	CHECK_OK(process_add_range(&process, (struct range){ 0x10000000, 100, 3 }));
	CHECK_OK(process_add_range(&process, (struct range){ 0x10006000, 103, 3 }));
	free(process.ranges);
}

TEST(a_page_amid_a_region_is_no_region)
{
	struct error err = { 0 };
	struct rig rig;

	rig_start(&rig, &three_and_three);
	CHECK_EQ(engine_remove_region(rig.engine, 1, &err), -EINVAL);
	CHECK_EQ(engine_remove_region(rig.engine, 6, &err), -EINVAL);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_stop(&rig);
}

/* --- faults */

TEST(faults_at_the_first_byte_in_the_next_page_and_at_the_last_byte)
{
	struct rig rig;

	start_tracking(&rig, &three_and_three);
	CHECK_EQ(call(&rig, 0, 0, byte_at, 0), 0);
	CHECK_EQ(call(&rig, 0, 0, byte_at, PAGE_BYTES + 1), 0);
	CHECK_EQ(call(&rig, 0, 0, byte_at, 3 * PAGE_BYTES - 1), 0);
	CHECK_EQ(settled(&rig).zeroed_pages, 3);
	CHECK_EQ(settled(&rig).resident_pages, 3 * ZEROS_TAKE);
	CHECK_EQ(settled(&rig).redundant_pages, 0);
	rig_stop(&rig);
}

TEST(addresses_outside_are_nobodys)
{
	struct process process = { .uffd = -1 };
	uint64_t page_idx, base = 0x10003000;

	CHECK_OK(process_add_range(&process, (struct range){ base, 7, 3 }));
	CHECK(!process_page_at(&process, base - 1, &page_idx));
	CHECK(!process_page_at(&process, base + 3 * PAGE_BYTES, &page_idx));
	CHECK(process_page_at(&process, base, &page_idx) && page_idx == 7);
	CHECK(process_page_at(&process, base + 3 * PAGE_BYTES - 1, &page_idx) && page_idx == 9);
	free(process.ranges);
}

/* A VMM that registers something else with its uffd gets it served by the kernel, and a person hears of
 * it. */
static long touch_a_page_of_its_own(void *shared, long argument)
{
	struct uffdio_register request = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)shared;
	request.range.start = (uintptr_t)page;
	request.range.len = 4096;
	if (ioctl((int)argument, UFFDIO_REGISTER, &request))
		return -1;
	return *(volatile long *)page;
}

TEST(a_fault_outside_of_guest_memory_ends)
{
	struct rig rig;

	start_tracking(&rig, &three_and_three);
	CHECK_EQ(call(&rig, 0, 0, touch_a_page_of_its_own, rig.shared->uffd[0]), 0);
	rig_await_notice(&rig, NOTICE_ODD);
	CHECK_EQ(settled(&rig).zeroed_pages, 0);
	rig_stop(&rig);
}

/* The hand of this process stands in the kernel, waiting for a page. */
static void await_userfault(pid_t tid)
{
	char where[64] = "";

	while (!strstr(where, "userfault"))
		procfs_wait_channel(tid, tid, where, sizeof where);
}

/* Both faults are raised before the first is served: the second finds the page there, is counted, and is
 * woken. */
TEST(duplicated_faults_of_two_processes)
{
	struct puppet_order touch = { .kind = ORDER_TOUCH, .page = 1 };
	struct rig rig;
	pid_t tid;

	if (TEST_PRIVATE)
		return; /* one process has it; of its threads: move_out::two_threads */
	rig_start(&rig, &three_and_three);
	rig_fork(&rig, 1);
	tid = (pid_t)call(&rig, 1, 0, thread_id, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	rig_arm(&rig, "uffd.zeropage", "stall");
	puppet_tell(&rig, 0, 0, touch);
	rig_await_point(&rig, "uffd.zeropage");
	puppet_tell(&rig, 1, 0, touch);
	await_userfault(tid);
	rig_disarm("uffd.zeropage");
	CHECK_EQ(puppet_await(&rig, 0, 0), 0);
	CHECK_EQ(puppet_await(&rig, 1, 0), 0);
	CHECK_EQ(settled(&rig).zeroed_pages, 1);
	CHECK_EQ(settled(&rig).redundant_pages, 1);
	CHECK_EQ(settled(&rig).resident_pages, 1);
	rig_stop(&rig);
}

/* --- REMOVE */

TEST(remove_then_fault_reads_zeros)
{
	struct rig rig;

	start_tracking(&rig, &three_and_three);
	CHECK_EQ(call(&rig, 0, 0, filled_with, 0), 0);
	set_page(&rig, 0, 1);
	do_remove(&rig, 0, 1);
	CHECK_EQ(call(&rig, 0, 0, filled_with, 0), 0);
	CHECK_EQ(settled(&rig).zeroed_pages, 2);
	rig_stop(&rig);
}

TEST(remove_of_what_is_out_reads_zeros)
{
	struct rig rig;

	rig_start(&rig, &three_and_three);
	set_page(&rig, 0, 1);
	set_page(&rig, 4, 2);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(settled(&rig).swap_pages, 2);
	do_remove(&rig, 0, 3);
	CHECK_EQ(settled(&rig).swap_pages, 1);
	check_pages(&rig, (const long[]){ 0, 0, 0, 0, 2, 0 }, 6);
	rig_stop(&rig);
}

static void remove_addresses(struct vm *vm, struct process *process, uint64_t start, uint64_t end)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_REMOVE };

	msg.arg.remove.start = start;
	msg.arg.remove.end = end;
	event_apply(vm, process, &msg);
}

static unsigned protected_pages(struct vm *vm)
{
	unsigned n = 0;

	for (uint64_t page_idx = 0; page_idx < 5; page_idx++)
		n += page_state_of(page_word(vm, page_idx)) == PAGE_PROTECTED;
	return n;
}

/* Only the part of a REMOVE that is guest memory means anything to us; a VMM may give up what it likes of its
 * own. */
TEST(remove_outside_of_the_region)
{
	struct error err = { 0 };
	struct vm vm = { 0 };
	struct process *process;
	uint64_t base = 0x10003000, first_idx, end = base + 3 * PAGE_BYTES;

	HELD_TAKE(HELD_GATE_ALONE); /* nobody else is there */
	process = address_space_add(&vm.spaces, (int)CHECK_SYS(eventfd(0, EFD_CLOEXEC)));
	vm.given_up_ms = calloc(1, sizeof *vm.given_up_ms);
	CHECK(vm.given_up_ms);
	CHECK_OK(page_map_create(&vm.map, &err));
	CHECK_OK(page_map_add_pages(vm.map, 5, &first_idx, &err));
	CHECK_OK(process_add_range(process, (struct range){ base, 1, 3 }));
	for (uint64_t page_idx = 0; page_idx < 5; page_idx++)
		CHECK(page_protect(&vm, page_idx, 0));
	remove_addresses(&vm, process, base - PAGE_BYTES, base);
	remove_addresses(&vm, process, end, end + PAGE_BYTES);
	CHECK_EQ(protected_pages(&vm), 5);
	remove_addresses(&vm, process, base - PAGE_BYTES, base + PAGE_BYTES);
	CHECK_EQ(protected_pages(&vm), 4);
	remove_addresses(&vm, process, base, end);
	CHECK_EQ(protected_pages(&vm), 2);
	address_spaces_destroy(&vm.spaces);
	page_map_destroy(vm.map);
	free(vm.given_up_ms);
}

/* --- swap-out and swap-in */

TEST(swap_out_1_0_2_3_0_4)
{
	struct rig rig;

	rig_start(&rig, &three_and_three);
	set_page(&rig, 0, 1);
	set_page(&rig, 2, 2);
	set_page(&rig, 3, 3);
	set_page(&rig, 5, 4);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, 6), 0);
	CHECK_EQ(settled(&rig).swap_pages, 4);
	check_pages(&rig, (const long[]){ 1, 0, 2, 3, 0, 4 }, 6);
	CHECK_EQ(settled(&rig).copied_pages, 4);
	CHECK_EQ(settled(&rig).zeroed_pages, 2);
	rig_stop(&rig);
}

TEST(swap_out_twice_1_5_6_3_0_4)
{
	static const long first[] = { 1, 0, 2 };
	struct rig rig;

	rig_start(&rig, &three_and_three);
	set_page(&rig, 0, 1);
	set_page(&rig, 2, 2);
	set_page(&rig, 3, 3);
	set_page(&rig, 5, 4);
	rig_run_job(&rig, JOB_SWAP_OUT);
	check_pages(&rig, first, 3);
	set_page(&rig, 1, 5);
	set_page(&rig, 2, 6);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, 6), 0);
	check_pages(&rig, (const long[]){ 1, 5, 6, 3, 0, 4 }, 6);
	rig_stop(&rig);
}

TEST(swap_in_10_11_12_13_20_15_0_0_0)
{
	static const struct layout three_regions = { .memfd_pages = { 3, 6 },
						     .regions = { { 0, 0, 3 }, { 1, 0, 3 }, { 1, 3, 3 } },
						     .empty = 1 };
	struct rig rig;

	rig_start(&rig, &three_regions);
	for (uint64_t page = 0; page < 6; page++)
		set_page(&rig, page, 10 + (long)page);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(call(&rig, 0, 4, filled_with, 0), 14);
	set_page(&rig, 4, 20);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK(!settled(&rig).tracking);
	CHECK_EQ(settled(&rig).swap_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 9), 6);
	check_pages(&rig, (const long[]){ 10, 11, 12, 13, 20, 15, 0, 0, 0 }, 9);
	rig_stop(&rig);
}

/* Runs that were cleared, trimmed at their heads, split and joined: pages 1-2, 14-15, 17, 19, 30-31 are
 * left. */
TEST(what_is_out_is_exactly_what_was_not_given_up)
{
	static const struct layout one_region = { .memfd_pages = { 40 },
						  .regions = { { 0, 0, 40 } },
						  .empty = 1 };
	static const uint64_t written[] = { 1, 2, 3, 8, 9, 13, 14, 15, 17, 18, 19, 30, 31 };
	struct rig rig;

	rig_start(&rig, &one_region);
	CHECK_EQ(settled(&rig).swap_pages, 0);
	for (size_t i = 0; i < sizeof written / sizeof *written; i++)
		set_page(&rig, written[i], (long)written[i]);
	rig_run_job(&rig, JOB_SWAP_OUT);
	do_remove(&rig, 3, 1);
	do_remove(&rig, 8, 2);
	do_remove(&rig, 13, 1);
	do_remove(&rig, 18, 1);
	CHECK_EQ(settled(&rig).swap_pages, 8);
	rig_run_job(&rig, JOB_SWAP_IN);
	for (uint64_t page = 0; page < 40; page++) {
		bool out = (page >= 1 && page <= 2) || (page >= 14 && page <= 15) || page == 17 ||
			   page == 19 || (page >= 30 && page <= 31);

		CHECK_EQ(rig_resident(&rig, page), out);
		CHECK_EQ(call(&rig, 0, page, filled_with, 0), out ? (long)page : 0);
	}
	rig_stop(&rig);
}

/* Counted since the last swap-out began; giving up lowers none of the first three. ResidentPages is the
 * kernel's. */
TEST(counters_mean_what_the_seeds_mean)
{
	struct engine_stats stats;
	struct rig rig;

	rig_start(&rig, &three_and_three);
	for (uint64_t page = 0; page < 5; page++)
		set_page(&rig, page, 7);
	CHECK_EQ(settled(&rig).resident_pages, 5);
	rig_run_job(&rig, JOB_SWAP_OUT);
	stats = settled(&rig);
	CHECK(stats.resident_pages == 0 && stats.swap_pages == 5);
	CHECK(stats.copied_pages == 0 && stats.zeroed_pages == 0 && stats.redundant_pages == 0);
	call(&rig, 0, 0, byte_at, 0);
	call(&rig, 0, 1, byte_at, 0);
	call(&rig, 0, 5, byte_at, 0);
	stats = settled(&rig);
	CHECK(stats.copied_pages == 2 && stats.zeroed_pages == 1 && stats.redundant_pages == 0);
	CHECK(stats.resident_pages == 2 + ZEROS_TAKE && stats.swap_pages == 3);
	do_remove(&rig, 1, 2);
	stats = settled(&rig);
	CHECK(stats.copied_pages == 2 && stats.zeroed_pages == 1);
	CHECK(stats.resident_pages == 1 + ZEROS_TAKE && stats.swap_pages == 2);
	rig_run_job(&rig, JOB_SWAP_OUT);
	stats = settled(&rig);
	CHECK(stats.copied_pages == 0 && stats.zeroed_pages == 0 && stats.redundant_pages == 0);
	CHECK_EQ(stats.swap_pages, 3); /* page 5 holds zeros, and so needs no copy */
	CHECK_EQ(stats.resident_pages, 0);
	rig_stop(&rig);
}

/* --- processes that are no more */

static void await_state(pid_t pid, char state, const char *name)
{
	struct procfs_task info = { 0 };

	do {
		if (procfs_task(pid, pid, &info))
			return;
	} while (state ? info.state != state : strcmp(info.name, name) != 0);
}

static void end_child(struct rig *rig, enum order_kind way)
{
	pid_t pid = (pid_t)call(rig, 1, 0, thread_id, 0);

	puppet_tell(rig, 1, 0, (struct puppet_order){ .kind = way });
	if (way == ORDER_END)
		await_state(pid, 'Z', "");
	else
		await_state(pid, 0, "sleep");
}

static void skips(enum order_kind way, bool registered)
{
	struct rig rig;

	if (TEST_PRIVATE)
		return; /* children have none of it; of those that have: backing_private.c */
	rig_start(&rig, &three_and_three);
	set_page(&rig, 0, 1);
	rig_fork(&rig, 1);
	if (registered)
		rig_run_job(&rig, JOB_SWAP_OUT);
	end_child(&rig, way);
	rig_run_job(&rig, registered ? JOB_SWAP_IN : JOB_SWAP_OUT);
	CHECK_EQ(rig.gone, 1);
	CHECK_EQ(settled(&rig).processes, 1);
	check_pages(&rig, (const long[]){ 1, 0, 0, 0, 0, 0 }, 6);
	rig_stop(&rig);
}

TEST(register_skips_a_process_that_has_ended)
{
	skips(ORDER_END, false);
}

TEST(register_skips_a_process_that_called_exec)
{
	skips(ORDER_EXEC, false);
}

TEST(unregister_skips_a_process_that_has_ended)
{
	skips(ORDER_END, true);
}

TEST(unregister_skips_a_process_that_called_exec)
{
	skips(ORDER_EXEC, true);
}

/* --- the store and the page map, which together are what the seed calls its swap file */

TEST(pages_put_together_are_read_one_by_one)
{
	struct error err = { 0 };
	struct store *store;
	char *pages = test_pages(3), *page = test_pages(1);
	const void *each[3];
	uint64_t slots[3];

	CHECK_OK(store_create(test_dir(), &store, &err));
	for (uint64_t i = 0; i < 3; i++) {
		each[i] = pages + i * PAGE_BYTES;
		test_fill_page(pages + i * PAGE_BYTES, i + 1);
	}
	CHECK_OK(store_put(store, each, NULL, 1, slots, &err));
	CHECK_OK(store_put(store, each + 1, NULL, 2, slots + 1, &err));
	for (uint64_t i = 0; i < 3; i++) {
		CHECK_OK(store_get(store, &slots[i], 1, page));
		CHECK(test_page_is(page, i + 1));
	}
	store_destroy(store);
}

TEST(a_slot_beyond_the_file_is_an_error)
{
	struct error err = { 0 };
	struct store *store;
	char *page = test_pages(1);
	uint64_t slot_idx = 1000000;

	CHECK_OK(store_create(test_dir(), &store, &err));
	CHECK_EQ(store_get(store, &slot_idx, 1, page), -EIO);
	store_destroy(store);
}

TEST(a_new_page_map_has_nothing_out)
{
	struct error err = { 0 };
	struct page_map *map;
	uint64_t first_idx;

	CHECK_OK(page_map_create(&map, &err));
	CHECK_OK(page_map_add_pages(map, 200, &first_idx, &err));
	CHECK_EQ(atomic_load(&page_map_header(map)->pages_n), 200);
	CHECK_EQ(page_map_next_used(map, 0, 200), 200);
	for (uint64_t page_idx = 0; page_idx < 200; page_idx++)
		CHECK_EQ(page_state_of(atomic_load(page_map_word(map, page_idx))), PAGE_IN_MEMFD);
	CHECK_EQ(page_map_add_pages(map, PAGE_MAP_MAX_PAGES, &first_idx, &err), -E2BIG);
	CHECK_OK(page_map_add_pages(map, PAGE_MAP_MAX_PAGES - 200, &first_idx, &err));
	CHECK_EQ(page_map_add_pages(map, 1, &first_idx, &err), -E2BIG);
	page_map_destroy(map);
}

TEST(sizes_and_addresses)
{
	CHECK_EQ(sysconf(_SC_PAGESIZE), PAGE_BYTES);
	CHECK_EQ(pages_of_bytes(0), 0);
	CHECK_EQ(pages_of_bytes(PAGE_BYTES - 1), 0);
	CHECK_EQ(pages_of_bytes(PAGE_BYTES), 1);
	CHECK_EQ(pages_of_bytes(3 * PAGE_BYTES + 1), 3);
	CHECK_EQ(bytes_of_pages(0), 0);
	CHECK_EQ(bytes_of_pages(5), 5 * PAGE_BYTES);
	CHECK_EQ(bytes_of_pages((uint64_t)1 << 40), (uint64_t)1 << 52);
	CHECK_EQ((uint64_t)0x12345678 & PAGE_MASK, 0x12345000);
	CHECK_EQ((uint64_t)0x12345000 & PAGE_MASK, 0x12345000);
	CHECK(is_page_aligned(0) && is_page_aligned(PAGE_BYTES));
	CHECK(!is_page_aligned(1) && !is_page_aligned(PAGE_BYTES - 1) && !is_page_aligned(PAGE_BYTES + 1));
}

/* --- process state */

static void check_state_with_name(const char *name)
{
	int status;
	pid_t pid = (pid_t)CHECK_SYS(fork());
	struct procfs_task info;

	if (pid == 0) {
		prctl(PR_SET_NAME, name);
		procfs_task(getpid(), getpid(), &info);
		CHECK_EQ(info.state, 'R');
		raise(SIGSTOP);
		_exit(0);
	}
	CHECK_SYS(waitpid(pid, &status, WUNTRACED));
	CHECK(WIFSTOPPED(status));
	CHECK_OK(procfs_task(pid, pid, &info));
	CHECK_EQ(info.state, 'T');
	kill(pid, SIGKILL);
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK_EQ(procfs_task(pid, pid, &info), -ENOENT);
}

TEST(process_state_whatever_the_name)
{
	check_state_with_name("plain");
	check_state_with_name("");
	check_state_with_name("with  spaces ");
	check_state_with_name("a)b");
	check_state_with_name(") R ((");
	check_state_with_name("x) T 1 (");
}

/* --- what the seed's later versions fixed */

/* A hole that cannot be punched is an error of the job, never a page taken for out that is not. */
TEST(a_failed_punch_is_an_error)
{
	static const struct layout one_region = { .memfd_pages = { 600 },
						  .regions = { { 0, 0, 600 } },
						  .full = 1 };
	struct notice done;
	struct rig rig;

	if (TEST_PRIVATE)
		return; /* nothing is punched; of the move: move_out::nobody_moves */
	rig_start(&rig, &one_region);
	rig_arm(&rig, "memory.punch", "EPERM");
	rig_start_job(&rig, JOB_SWAP_OUT);
	done = rig_await_job(&rig);
	rig_disarm("memory.punch");
	CHECK_EQ(done.code, EPERM);
	CHECK_CONTAINS(done.message, "punch");
	CHECK_EQ(settled(&rig).swap_pages, 0);
	CHECK_EQ(rig_resident_pages(&rig, 0, 600), 600);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_resident_pages(&rig, 0, 600), 0);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* A write that fails midway leaves every page in one place only: Disable then works. */
TEST(a_failed_write_leaves_no_page_in_two_places)
{
	static const struct layout one_region = { .memfd_pages = { 2000 },
						  .regions = { { 0, 0, 2000 } },
						  .full = 1 };
	struct engine_stats stats;
	struct rig rig;

	if (TEST_TIERS)
		return; /* nothing is written yet */
	rig_start(&rig, &one_region);
	rig_arm(&rig, "store.write", "EIO@1");
	rig_start_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_await_job(&rig).code, EIO);
	rig_disarm("store.write");
	stats = settled(&rig);
	CHECK(stats.swap_pages > 0 && stats.resident_pages > 0);
	CHECK_EQ(stats.swap_pages + stats.resident_pages, 2000);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_resident_pages(&rig, 0, 2000), 2000);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* Runs of pages end where regions end, whatever lies next to them in the page map. */
TEST(swap_in_at_region_boundaries)
{
	static const struct layout odd = {
		.memfd_pages = { 600, 100 },
		.regions = { { 0, 0, 5 }, { 0, 5, 513 }, { 1, 0, 1 }, { 1, 1, 99 } },
		.full = 1
	};
	struct rig rig;

	rig_start(&rig, &odd);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(settled(&rig).swap_pages, 618);
	for (uint64_t page = 4; page < 600; page += 513) /* the last of one region, and of the next but one */
		puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_WRITE, .page = page, .half = 1 });
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(rig_resident_pages(&rig, 0, 618), 618);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* The event was raised while memory was registered, and is read when it no longer is. */
TEST(remove_read_after_unregister)
{
	static const struct layout held_back = {
		.memfd_pages = { 100 }, .regions = { { 0, 0, 100 } }, .full = 1, .not_started = 1
	};
	struct puppet_order remove = { .kind = ORDER_REMOVE, .page = 10, .pages = 3 };
	const char *read = TEST_PRIVATE ? "mover.read" : "memory.read";
	struct error err = { 0 };
	struct rig rig;
	pid_t tid;

	rig_start(&rig, &held_back);
	tid = (pid_t)call(&rig, 0, 0, thread_id, 0);
	rig_arm(&rig, read, TEST_PRIVATE ? "once:EIO" : "EIO"); /* else they cannot be put back */
	rig_start_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(rig_await_job(&rig).code, EIO);
	rig_disarm(read);
	CHECK(settled(&rig).tracking && settled(&rig).swap_pages == 0);
	puppet_tell(&rig, 0, 0, remove);
	await_userfault(tid);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK(!settled(&rig).tracking);
	CHECK(!puppet_is_done(&rig, 0, 0));
	CHECK_OK(engine_start(rig.engine, &err));
	puppet_await(&rig, 0, 0);
	puppet_check_all(&rig, 0);
	rig_run_job(&rig, JOB_SWAP_OUT);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}

/* What the VMM has unmapped meanwhile comes back all the same, into the memfd: another process may map it. */
TEST(memory_unmapped_while_it_is_out)
{
	static const struct layout two = { .memfd_pages = { 50, 50 },
					   .regions = { { 0, 0, 50 }, { 1, 0, 50 } },
					   .full = 1 };
	uint64_t words[PUPPET_WORDS];
	struct rig rig;

	if (TEST_PRIVATE)
		return; /* it is given up */
	rig_start(&rig, &two);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(call(&rig, 0, 50, unmap, 50), 0);
	rig_run_job(&rig, JOB_SWAP_IN);
	CHECK_EQ(settled(&rig).swap_pages, 0);
	for (uint64_t page = 50; page < 100; page++) {
		CHECK_EQ(pread(rig.memfds[1], words, sizeof words, (off_t)((page - 50) * 4096)),
			 sizeof words);
		for (uint64_t word = 0; word < PUPPET_WORDS; word++)
			CHECK(words[word] == puppet_word(page, 1, word));
	}
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 50 }), 0);
	rig_stop(&rig);
}

/* Sparse memory: only what holds data is looked at, and a swap-out of nothing is one. */
TEST(only_extents_with_data_go_out)
{
	static const struct layout sparse = { .memfd_pages = { 6000 },
					      .regions = { { 0, 0, 6000 } },
					      .empty = 1 };
	struct rig rig;

	rig_start(&rig, &sparse);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(settled(&rig).progress_pages, 0);
	set_page(&rig, 5000, 9);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(settled(&rig).progress_pages, CHUNK_PAGES);
	CHECK_EQ(settled(&rig).swap_pages, 1);
	CHECK_EQ(rig_resident_pages(&rig, 0, 6000), 0);
	CHECK_EQ(call(&rig, 0, 5000, filled_with, 0), 9);
	rig_stop(&rig);
}

/* Enable while Active takes out what has come in since; Disable with nothing out only ends the tracking. */
TEST(again_and_twice_back)
{
	static const struct layout one_region = { .memfd_pages = { 300 },
						  .regions = { { 0, 0, 300 } },
						  .full = 1 };
	struct rig rig;

	rig_start(&rig, &one_region);
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(puppet_do(&rig, 0, 0, (struct puppet_order){ .kind = ORDER_CHECK, .pages = 100 }), 0);
	CHECK_EQ(settled(&rig).swap_pages, 200);
	rig_run_job(&rig, JOB_SWAP_OUT);
	CHECK_EQ(settled(&rig).swap_pages, 300);
	rig_run_job(&rig, JOB_SWAP_IN);
	rig_run_job(&rig, JOB_SWAP_IN);
	puppet_check_all(&rig, 0);
	rig_stop(&rig);
}
