// SPDX-License-Identifier: GPL-2.0-or-later
#include "keep/own_memory.h"

#include "base/units.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdbool.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

/* A sanitizer's runtime has its own memory, without which no instruction of ours runs. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_RUNTIME true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_RUNTIME true
#endif
#endif
#ifndef HAS_RUNTIME
#define HAS_RUNTIME false
#endif

#define MAPPINGS_MAX 2048
#define THREAD_BYTES \
	((uintptr_t)64 << 10) /* of a thread's variables and control block, at most, on either side */
#define KEPT_MAX (OWN_MEMORY_SPANS_MAX + 4)
#define PAGE_DOWN(addr) ((addr) & ~(uintptr_t)(PAGE_BYTES - 1))

struct mapping_line {
	struct span span;
	const char *path; /* of the line that was read; empty for anonymous memory */
};

/* The lines of /proc/self/maps, one by one. */
struct reader {
	int fd;
	size_t filled, at;
	char text[8192];
};

static bool next_line(struct reader *reader, char **line)
{
	for (;;) {
		char *start = reader->text + reader->at;
		char *end = memchr(start, '\n', reader->filled - reader->at);
		ssize_t n;

		if (end) {
			*end = '\0';
			*line = start;
			reader->at = (size_t)(end + 1 - reader->text);
			return true;
		}
		memmove(reader->text, start, reader->filled - reader->at);
		reader->filled -= reader->at;
		reader->at = 0;
		n = read(reader->fd, reader->text + reader->filled, sizeof reader->text - reader->filled);
		if (n <= 0)
			return false;
		reader->filled += (size_t)n;
	}
}

static uintptr_t hexadecimal(const char **at)
{
	uintptr_t value = 0;

	for (;; (*at)++) {
		char digit = **at;

		if (digit >= '0' && digit <= '9')
			value = value << 4 | (uintptr_t)(digit - '0');
		else if (digit >= 'a' && digit <= 'f')
			value = value << 4 | (uintptr_t)(digit - 'a' + 10);
		else
			return value;
	}
}

/* START-END PERMISSIONS OFFSET DEVICE INODE   PATH (proc_pid_maps(5)) */
static struct mapping_line parse(const char *line)
{
	struct mapping_line found;

	found.span.start = hexadecimal(&line);
	line++;
	found.span.end = hexadecimal(&line);
	for (int field = 0; field < 4; field++) {
		line += strspn(line, " ");
		line += strcspn(line, " ");
	}
	found.path = line + strspn(line, " ");
	return found;
}

/* What stays, in the order of addresses. */
struct kept {
	struct span spans[KEPT_MAX];
	size_t n;
};

static void keep_span(struct kept *kept, uintptr_t start, uintptr_t end)
{
	size_t at = kept->n;

	for (; at > 0 && kept->spans[at - 1].start > start; at--)
		kept->spans[at] = kept->spans[at - 1];
	kept->spans[at] = (struct span){ PAGE_DOWN(start), PAGE_DOWN(end + PAGE_BYTES - 1) };
	kept->n++;
}

/* The program or library that has this address, from its first page to the end of its zeroed data. */
struct wanted {
	uintptr_t addr;
	struct span found;
};

static int look_at_object(struct dl_phdr_info *object, size_t bytes, void *context)
{
	struct wanted *wanted = context;
	struct span all = { UINTPTR_MAX, 0 };

	(void)bytes;
	for (size_t i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &object->dlpi_phdr[i];
		uintptr_t start = object->dlpi_addr + part->p_vaddr;

		if (part->p_type != PT_LOAD)
			continue;
		all.start = start < all.start ? start : all.start;
		all.end = start + part->p_memsz > all.end ? start + part->p_memsz : all.end;
	}
	if (wanted->addr < all.start || wanted->addr >= all.end)
		return 0;
	wanted->found = all;
	return 1;
}

static bool keep_object(struct kept *kept, uintptr_t addr)
{
	struct wanted wanted = { .addr = addr };

	if (!dl_iterate_phdr(look_at_object, &wanted))
		return false;
	keep_span(kept, wanted.found.start, wanted.found.end);
	return true;
}

/* The stack, with the command line that /proc/PID/cmdline shows, and the kernel's own. */
static bool is_special(const struct mapping_line *line)
{
	return line->path[0] == '[' && strcmp(line->path, "[heap]") != 0 &&
	       strncmp(line->path, "[anon", 5) != 0;
}

/* What of a mapping is not kept. */
static void unmap_rest(struct span mapping, const struct kept *kept)
{
	uintptr_t from = mapping.start;

	for (size_t i = 0; i <= kept->n; i++) {
		uintptr_t to = i < kept->n && kept->spans[i].start < mapping.end ? kept->spans[i].start :
										   mapping.end;

		if (from < to)
			munmap((void *)from, to - from);
		if (to == mapping.end)
			return;
		if (kept->spans[i].end > from)
			from = kept->spans[i].end;
	}
}

/* Mappings are collected first: the list must not change while it is read. */
void own_memory_keep_only(const struct span *spans, size_t spans_n)
{
	static struct reader reader;
	static struct span doomed[MAPPINGS_MAX];
	uintptr_t thread = (uintptr_t)__builtin_thread_pointer();
	struct kept kept = { .n = 0 };
	size_t doomed_n = 0;
	char *line;

	if (HAS_RUNTIME || spans_n > OWN_MEMORY_SPANS_MAX)
		return;
	for (size_t i = 0; i < spans_n; i++)
		keep_span(&kept, spans[i].start, spans[i].end);
	keep_span(&kept, thread - THREAD_BYTES, thread + THREAD_BYTES);
	if (!keep_object(&kept, (uintptr_t)&own_memory_keep_only) ||
	    !keep_object(&kept, (uintptr_t)&munmap) || !keep_object(&kept, getauxval(AT_BASE)))
		return;
	reader.fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	if (reader.fd < 0)
		return;
	reader.filled = reader.at = 0;
	while (next_line(&reader, &line) && doomed_n < MAPPINGS_MAX) {
		struct mapping_line mapping = parse(line);

		if (!is_special(&mapping))
			doomed[doomed_n++] = mapping.span;
	}
	close(reader.fd);
	for (size_t i = 0; i < doomed_n; i++)
		unmap_rest(doomed[i], &kept);
}
