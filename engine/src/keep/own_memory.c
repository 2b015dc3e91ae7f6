// SPDX-License-Identifier: GPL-2.0-or-later
#include "keep/own_memory.h"

#include <elf.h>
#include <fcntl.h>
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
#define PAGE_DOWN(addr) ((addr) & ~(uintptr_t)4095)

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

static bool is_in(uintptr_t addr, const struct span *span)
{
	return addr >= span->start && addr < span->end;
}

/* The files whose code runs here: each is known by an address in it. A file's mappings come one after the other, and its
 * zeroed data, which is anonymous, right behind them. */
struct code {
	uintptr_t addrs[3];
	char paths[3][512];
	uintptr_t last_end;
};

static bool is_code(struct code *code, const struct mapping_line *line)
{
	bool is = line->path[0] == '\0' && line->span.start == code->last_end;

	for (size_t i = 0; i < 3; i++)
		is |= line->path[0] == '/' && !strcmp(line->path, code->paths[i]);
	if (is)
		code->last_end = line->span.end;
	return is;
}

static int open_maps(struct reader *reader)
{
	reader->filled = reader->at = 0;
	reader->fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	return reader->fd;
}

static bool find_code(struct reader *reader, struct code *code)
{
	size_t found = 0;
	char *line;

	if (open_maps(reader) < 0)
		return false;
	while (next_line(reader, &line)) {
		struct mapping_line mapping = parse(line);

		for (size_t i = 0; i < 3; i++) {
			if (!is_in(code->addrs[i], &mapping.span) ||
			    strlen(mapping.path) >= sizeof code->paths[i])
				continue;
			strcpy(code->paths[i], mapping.path);
			found++;
		}
	}
	close(reader->fd);
	return found == 3;
}

static bool is_kept(const struct mapping_line *line, const struct span *spans, size_t spans_n)
{
	/* The stack, with the command line that /proc/PID/cmdline shows, and the kernel's own. */
	if (line->path[0] == '[' && strcmp(line->path, "[heap]") != 0 && strncmp(line->path, "[anon", 5) != 0)
		return true;
	for (size_t i = 0; i < spans_n; i++)
		if (is_in(line->span.start, &spans[i]) || is_in(spans[i].start, &line->span))
			return true;
	return false;
}

static void unmap(uintptr_t start, uintptr_t end)
{
	if (start < end)
		munmap((void *)start, end - start);
}

/* Mappings are collected first: the list must not change while it is read. */
void own_memory_keep_only(const struct span *spans, size_t spans_n)
{
	static struct reader reader;
	static struct span doomed[MAPPINGS_MAX];
	static struct code code;
	uintptr_t thread = (uintptr_t)__builtin_thread_pointer();
	size_t doomed_n = 0;
	char *line;

	code.addrs[0] = (uintptr_t)&own_memory_keep_only;
	code.addrs[1] = (uintptr_t)&munmap;
	code.addrs[2] = getauxval(AT_BASE);
	if (HAS_RUNTIME || !find_code(&reader, &code) || open_maps(&reader) < 0)
		return;
	while (next_line(&reader, &line) && doomed_n < MAPPINGS_MAX) {
		struct mapping_line mapping = parse(line);

		if (!is_code(&code, &mapping) && !is_kept(&mapping, spans, spans_n))
			doomed[doomed_n++] = mapping.span;
	}
	close(reader.fd);
	for (size_t i = 0; i < doomed_n; i++) {
		if (!is_in(thread, &doomed[i])) {
			unmap(doomed[i].start, doomed[i].end);
			continue;
		}
		if (PAGE_DOWN(thread - THREAD_BYTES) > doomed[i].start)
			unmap(doomed[i].start, PAGE_DOWN(thread - THREAD_BYTES));
		unmap(PAGE_DOWN(thread + THREAD_BYTES), doomed[i].end);
	}
}
