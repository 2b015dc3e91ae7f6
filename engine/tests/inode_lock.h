/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hold the lock of a memfd's inode for as long as a test wants: a write() whose bytes do not come. */
#ifndef VMMSWAP_INODE_LOCK_H
#define VMMSWAP_INODE_LOCK_H

#include "puppet.h"

struct inode_lock {
	int memfd, uffd;
	uint64_t page; /* of the file, which is written to */
	char *bytes;   /* not there yet */
	pthread_t thread;
};

static inline void *inode_lock_write(void *argument)
{
	struct inode_lock *lock = argument;

	CHECK_EQ(pwrite(lock->memfd, lock->bytes, PAGE_BYTES, (off_t)bytes_of_pages(lock->page)), PAGE_BYTES);
	return NULL;
}

/* Returns once it is held. */
static inline void inode_lock_take(struct inode_lock *lock, int memfd, uint64_t page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffd_msg message;

	*lock = (struct inode_lock){ .memfd = memfd, .page = page };
	lock->bytes = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(lock->bytes != MAP_FAILED);
	lock->uffd = (int)CHECK_SYS(syscall(SYS_userfaultfd, O_CLOEXEC));
	CHECK_SYS(ioctl(lock->uffd, UFFDIO_API, &api));
	range.range.start = (uintptr_t)lock->bytes;
	range.range.len = PAGE_BYTES;
	CHECK_SYS(ioctl(lock->uffd, UFFDIO_REGISTER, &range));
	CHECK_OK(pthread_create(&lock->thread, NULL, inode_lock_write, lock));
	CHECK_EQ(read(lock->uffd, &message, sizeof message), sizeof message);
}

static inline void inode_lock_release(struct inode_lock *lock)
{
	struct uffdio_zeropage zero = { .range = { (uintptr_t)lock->bytes, PAGE_BYTES } };

	CHECK_SYS(ioctl(lock->uffd, UFFDIO_ZEROPAGE, &zero));
	CHECK_OK(pthread_join(lock->thread, NULL));
	CHECK_SYS(close(lock->uffd));
	CHECK_SYS(munmap(lock->bytes, PAGE_BYTES));
}

/* Until the thread stands in that function of the kernel. */
static inline void await_wchan(pid_t tid, const char *part)
{
	char path[64], where[64] = "";

	snprintf(path, sizeof path, "/proc/%d/wchan", tid);
	for (int tries = 0; !strstr(where, part); tries++) {
		int fd = (int)CHECK_SYS(open(path, O_RDONLY));
		ssize_t got = read(fd, where, sizeof where - 1);

		close(fd);
		where[got > 0 ? got : 0] = 0;
		if (tries == 30000)
			test_skip("%s says \"%s\" instead of %s", path, where, part);
		poll(NULL, 0, 1);
	}
}

#endif
