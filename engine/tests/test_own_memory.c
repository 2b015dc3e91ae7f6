/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "harness.h"
#include "keep/own_memory.h"

#define SPAN_BYTES ((size_t)1 << 20)

/* Three neighbours, which the kernel makes one mapping of: what is beside what stays must not stay with
 * it. */
static char *neighbours(void)
{
	char *memory = mmap(NULL, 3 * SPAN_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static bool is_mapped(const char *page)
{
	unsigned char resident;

	return mincore((void *)page, 1, &resident) == 0;
}

/* In a process of its own; its exit status: a bit for each of the three that is left. 128: it did not get
 * there. */
static int left_of(char *memory, const struct span *spans, size_t spans_n)
{
	int status;
	pid_t pid = (pid_t)CHECK_SYS(fork());

	if (!pid) {
		int left = 0;

		own_memory_keep_only(spans, spans_n);
		for (int i = 0; i < 3; i++)
			left |= is_mapped(memory + (size_t)i * SPAN_BYTES) << i;
		_exit(left);
	}
	CHECK_SYS(waitpid(pid, &status, 0));
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static struct span span_of(const char *start)
{
	return (struct span){ (uintptr_t)start, (uintptr_t)start + SPAN_BYTES };
}

static bool has_runtime(void)
{
#if defined(__SANITIZE_ADDRESS__)
	return true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
	return true;
#endif
#endif
	return false;
}

TEST(only_what_is_named_stays)
{
	char *memory = neighbours();
	struct span middle = span_of(memory + SPAN_BYTES);
	struct span outer[] = { span_of(memory + 2 * SPAN_BYTES), span_of(memory) };

	if (has_runtime())
		test_skip("a sanitizer's runtime needs its memory: all stays");
	CHECK_EQ(left_of(memory, &middle, 1), 2);
	CHECK_EQ(left_of(memory, outer, 2), 5);
	CHECK_EQ(left_of(memory, NULL, 0), 0);
}

TEST(more_spans_than_there_is_room_for_change_nothing)
{
	char *memory = neighbours();
	struct span many[OWN_MEMORY_SPANS_MAX + 1];

	for (size_t i = 0; i <= OWN_MEMORY_SPANS_MAX; i++)
		many[i] = span_of(memory);
	CHECK_EQ(left_of(memory, many, OWN_MEMORY_SPANS_MAX + 1), 7);
}
