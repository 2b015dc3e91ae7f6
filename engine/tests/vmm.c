/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "vmm.h"

#include "guest_mover.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))

static void need(bool good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

/* What a page must hold. Versions are never used twice, so that old contents are never taken for new ones. */
struct expected {
	uint64_t version; /* 0: zeros */
	uint64_t newest;  /* ever written */

	/* A REMOVE that a monitor had read and not yet recorded when it was killed is lost: the page is
	 * zeros, or comes back with exactly the contents that it had. Which of the two is seen at the first
	 * look, and holds from then on. The version that may come back; 0: none may. */
	uint64_t returning;
};

struct worker {
	struct vmm *vmm;
	uint32_t number;
	uint64_t seed;
	/* all of them; a worker only looks at its own. Private memory: never swapped by us */
	struct expected *pages;
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

bool vmm_repeats_words;

/* Version 0 is a page of zeros. From some word on, another one in each version, a page repeats its first
 * eight: so pages compress to any length, and some not at all. A few may repeat one word. */
static uint64_t wanted_word(uint64_t page, uint64_t version, uint64_t word)
{
	uint64_t first = (page * 37 + version * 411) % (WORDS + WORDS / 4);

	if (first < 8)
		word = vmm_repeats_words ? 0 : word % 8;
	else if (word >= first)
		word %= 8;
	return version ? (page * 0x9e3779b97f4a7c15 + version) * 0xbf58476d1ce4e5b9 +
				 word * 0x94d049bb133111eb :
			 0;
}

static uint64_t total_pages(const struct vmm *vmm)
{
	return vmm->pages[0] + vmm->pages[1];
}

static volatile uint64_t *page_at(const struct vmm *vmm, uint64_t page)
{
	bool second = page >= vmm->pages[0];

	return (volatile uint64_t *)(uintptr_t)(vmm->shared->base_addr[second] +
						(second ? page - vmm->pages[0] : page) * PAGE);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void settle_given_up(struct worker *self, uint64_t page, uint64_t first_value)
{
	struct expected *expected = &self->pages[page];

	if (expected->returning && first_value == wanted_word(page, expected->returning, 0)) {
		expected->version = expected->returning;
		atomic_fetch_add(&self->vmm->shared->returned_pages, 1);
	}
	expected->returning = 0;
}

static void check_page(struct worker *self, uint64_t page)
{
	volatile uint64_t *words = page_at(self->vmm, page);
	struct vmm_shared *shared = self->vmm->shared;

	settle_given_up(self, page, words[0]);
	for (uint64_t word = 0; word < WORDS; word++) {
		uint64_t value = words[word], wanted = wanted_word(page, self->pages[page].version, word);

		if (value == wanted)
			continue;
		if (atomic_fetch_add(&shared->wrong_pages, 1) == 0) {
			shared->first_wrong_page = page;
			shared->first_wrong_value = value;
			shared->first_wrong_wanted = wanted;
		}
		return;
	}
	atomic_fetch_add(&shared->verified_pages, 1);
}

static void write_page(struct worker *self, uint64_t page)
{
	volatile uint64_t *words = page_at(self->vmm, page);
	struct expected *expected = &self->pages[page];

	expected->returning = 0;
	expected->version = ++expected->newest;
	for (uint64_t word = 0; word < WORDS; word++)
		words[word] = wanted_word(page, expected->version, word);
}

/* As QEMU's balloon does it, as crosvm's does it, and without telling anyone at all. */
static void give_page_up(struct worker *self, uint64_t page, unsigned way)
{
	bool second = page >= self->vmm->pages[0];
	off_t offset = (off_t)((second ? page - self->vmm->pages[0] : page) * PAGE);
	void *at = (void *)(uintptr_t)page_at(self->vmm, page);

	if (TEST_PRIVATE) {
		need(madvise(at, PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	} else if (way == 0) {
		need(madvise(at, PAGE, MADV_REMOVE) == 0, "MADV_REMOVE");
	} else {
		need(fallocate(self->vmm->memfds[second], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
			       PAGE) == 0,
		     "fallocate");
		need(madvise(at, PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	}
	if (self->vmm->shared->lossy)
		self->pages[page].returning = self->pages[page].version;
	self->pages[page].version = 0;
}

static void work(struct worker *self)
{
	struct vmm *vmm = self->vmm;
	uint64_t dice = next_random(&self->seed), count = total_pages(vmm) / vmm->workers;
	uint64_t page = (dice >> 8) % count * vmm->workers + self->number, since_ns = now_ns(), stall_ns;

	check_page(self, page);
	if (!vmm->shared->read_only && dice % 4 == 0)
		write_page(self, page);
	else if (vmm->shared->give_up && dice % 16 == 1)
		give_page_up(self, page, (dice >> 4) % 2);
	stall_ns = now_ns() - since_ns;
	if (stall_ns >
	    vmm->shared->longest_stall_ns) /* two threads at once: the next stall of that length is counted */
		vmm->shared->longest_stall_ns = stall_ns;
	atomic_fetch_add(&vmm->shared->operations, 1);
}

static void *run_worker(void *argument)
{
	struct worker *self = argument;
	struct vmm_shared *shared = self->vmm->shared;
	uint32_t round = 0;

	while (!shared->quit) {
		if (shared->check_round != round) {
			round = shared->check_round;
			for (uint64_t page = self->number; page < total_pages(self->vmm);
			     page += self->vmm->workers)
				check_page(self, page);
			atomic_fetch_add(&shared->checked, 1);
		}
		if (shared->run) {
			work(self);
			continue;
		}
		atomic_fetch_add(&shared->idle_workers, 1);
		while (!shared->run && !shared->quit && shared->check_round == round)
			usleep(200);
		atomic_fetch_sub(&shared->idle_workers, 1);
	}
	return NULL;
}

/* A device process: it checks one page that nobody writes, over and over, through its own page tables. */
static void be_device(struct vmm *vmm, uint32_t number)
{
	struct vmm_shared *shared = vmm->shared;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!shared->quit && (!shared->children || number + shared->children >= shared->forked)) {
		volatile uint64_t *words = page_at(vmm, total_pages(vmm) - 1);

		if (!TEST_PRIVATE && words[1] != wanted_word(total_pages(vmm) - 1, 1, 1))
			atomic_fetch_add(&vmm->shared->wrong_pages, 1);
		usleep(500);
	}
	_exit(0);
}

static void fork_devices(struct vmm *vmm)
{
	while (!vmm->shared->quit) {
		while (vmm->shared->forked < vmm->shared->forks) {
			pid_t pid = fork();

			if (pid == 0)
				be_device(vmm, vmm->shared->forked);
			need(pid > 0, "fork");
			atomic_fetch_add(&vmm->shared->forked, 1);
		}
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		usleep(500);
	}
	while (wait(NULL) > 0)
		;
}

static void start_mover(struct vmm *vmm)
{
	static struct vmmswap_mover mover;

	for (uint32_t i = 0; i < VMM_REGIONS; i++) {
		uint64_t addr = vmm->shared->base_addr[i], size_bytes = vmm->pages[i] * PAGE;

		need(madvise((void *)addr, size_bytes, MADV_DONTFORK) == 0, "MADV_DONTFORK");
		mover.ranges[mover.ranges_n++] = (struct vmmswap_mover_range){ addr, size_bytes };
	}
	mover_start(&mover, vmm->mailbox);
}

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE |
					      UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					      UFFD_FEATURE_WP_HUGETLBFS_SHMEM };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	need(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0, "userfaultfd");
	return uffd;
}

static void be_vmm(struct vmm *vmm, int ready)
{
	static struct worker workers[VMM_WORKERS_MAX];
	pthread_t threads[VMM_WORKERS_MAX];
	struct expected *pages = calloc(total_pages(vmm), sizeof *pages);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(pages != NULL, "calloc");
	for (int i = 0; i < VMM_REGIONS; i++) {
		uint64_t size_bytes = vmm->pages[i] * PAGE;
		void *at = TEST_PRIVATE ? (void *)mover_map(size_bytes, (uint64_t)i * 100 * PAGE) :
					  mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
					       vmm->memfds[i], 0);

		need(at != MAP_FAILED, "mmap");
		vmm->shared->base_addr[i] = (uintptr_t)at;
	}
	vmm->shared->dummy_addr =
		(uintptr_t)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (uint32_t i = 0; i < vmm->workers; i++)
		workers[i] = (struct worker){ vmm, i, 88172645463325252u + i * 7919, pages };
	for (uint64_t page = 0; page < total_pages(vmm); page++)
		if (page % 8 != 3)
			write_page(&workers[0], page);
	vmm->shared->uffd = open_uffd();
	if (TEST_PRIVATE)
		start_mover(vmm);
	for (uint32_t i = 0; i < vmm->workers; i++)
		need(pthread_create(&threads[i], NULL, run_worker, &workers[i]) == 0, "pthread_create");
	need(write(ready, "r", 1) == 1, "write");
	fork_devices(vmm);
	for (uint32_t i = 0; i < vmm->workers; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

void vmm_start(struct vmm *vmm, uint64_t pages_0, uint64_t pages_1, uint32_t workers)
{
	int ready[2];
	char byte;

	*vmm = (struct vmm){ .pages = { pages_0, pages_1 }, .workers = workers, .memfds = { -1, -1 } };
	vmm->mailbox = TEST_PRIVATE ? mover_mailbox() : -1;
	vmm->shared =
		mmap(NULL, sizeof *vmm->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(vmm->shared != MAP_FAILED && pipe(ready) == 0, "vmm_start");
	for (int i = 0; i < VMM_REGIONS && !TEST_PRIVATE; i++) {
		vmm->memfds[i] = memfd_create("test guest", MFD_CLOEXEC);
		need(vmm->memfds[i] >= 0 && ftruncate(vmm->memfds[i], (off_t)(vmm->pages[i] * PAGE)) == 0,
		     "memfd");
	}
	vmm->pid = fork();
	need(vmm->pid >= 0, "fork");
	if (vmm->pid == 0)
		be_vmm(vmm, ready[1]);
	close(ready[1]);
	need(read(ready[0], &byte, 1) == 1, "the VMM did not start");
	close(ready[0]);
	vmm->pidfd = (int)syscall(SYS_pidfd_open, vmm->pid, 0);
	vmm->uffd = (int)syscall(SYS_pidfd_getfd, vmm->pidfd, vmm->shared->uffd, 0);
	need(vmm->uffd >= 0, "pidfd_getfd");
}

void vmm_run(struct vmm *vmm)
{
	vmm->shared->run = true;
}

void vmm_idle(struct vmm *vmm)
{
	vmm->shared->run = false;
	while (vmm->shared->idle_workers < vmm->workers)
		sched_yield();
}

void vmm_check(struct vmm *vmm)
{
	atomic_store(&vmm->shared->checked, 0);
	atomic_fetch_add(&vmm->shared->check_round, 1);
	while (vmm->shared->checked < vmm->workers)
		usleep(1000);
}

uint64_t vmm_resident_pages(const struct vmm *vmm)
{
	uint64_t pages = 0;

	for (int i = 0; i < VMM_REGIONS; i++) {
		struct stat status;

		need(fstat(vmm->memfds[i], &status) == 0, "fstat");
		pages += (uint64_t)status.st_blocks / 8;
	}
	return pages;
}

void vmm_stop(struct vmm *vmm)
{
	int status = 0;

	vmm->shared->quit = true;
	need(waitpid(vmm->pid, &status, 0) == vmm->pid, "waitpid");
	need(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the VMM's end");
	for (int i = 0; i < VMM_REGIONS && !TEST_PRIVATE; i++)
		close(vmm->memfds[i]);
	if (TEST_PRIVATE)
		close(vmm->mailbox);
	close(vmm->uffd);
	close(vmm->pidfd);
	munmap(vmm->shared, sizeof *vmm->shared);
}
