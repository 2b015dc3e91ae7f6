/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "contents.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "content.h" /* the test guest's */

#define LIBRARIES "/usr/lib"
#define DEPTH_MAX 3

static void fill_random(char *page, uint64_t page_idx)
{
	for (uint64_t i = 0; i < PAGE_WORDS; i++) {
		uint64_t word = content_mix(page_idx * PAGE_WORDS + i + 1);

		memcpy(page + 8 * i, &word, sizeof word);
	}
}

struct library_pages {
	char *guest;
	size_t pages, done;
};

static bool is_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

static void append_library(struct library_pages *all, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && all->done < all->pages) {
		char *page = all->guest + all->done * PAGE_BYTES;

		if (read(fd, page, PAGE_BYTES) != (ssize_t)PAGE_BYTES)
			break;
		all->done += !is_zero(page);
	}
	if (fd >= 0)
		close(fd);
}

static void append_folder(struct library_pages *all, const char *path, int depth)
{
	DIR *folder = opendir(path);
	struct dirent *entry;

	while (folder && (entry = readdir(folder)) && all->done < all->pages) {
		char inside[4096];

		if (entry->d_name[0] == '.' ||
		    (size_t)snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name) >= sizeof inside)
			continue;
		if (entry->d_type == DT_DIR && depth < DEPTH_MAX)
			append_folder(all, inside, depth + 1);
		else if (entry->d_type == DT_REG && strstr(entry->d_name, ".so"))
			append_library(all, inside);
	}
	if (folder)
		closedir(folder);
}

/* The machine may have fewer pages of libraries than are wanted: they are then there several times. */
static void fill_libraries(char *guest, size_t pages)
{
	struct library_pages all = { guest, pages, 0 };

	while (all.done < pages) {
		size_t before = all.done;

		append_folder(&all, LIBRARIES, 0);
		if (all.done == before) {
			fprintf(stderr, "no shared libraries below " LIBRARIES "\n");
			exit(1);
		}
	}
}

static void fill_mixed(char *guest, size_t pages)
{
	struct content content = { .seed = 1 };

	content_parse_mix(&content, "random=35,text=35,same=10,zero=10,untouched=10");
	for (size_t i = 0; i < pages; i++) {
		enum page_class class = content_class(&content, i);

		if (class != CLASS_UNTOUCHED)
			content_expect(&content, i, content_next_version(class, 0, WRITE_FILL),
				       (uint64_t *)(guest + i * PAGE_BYTES));
	}
}

/* Holes of the file stay holes in the guest's memory. */
static void fill_from_file(char *guest, size_t pages, const char *path)
{
	off_t end = (off_t)(pages * PAGE_BYTES), at = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && (at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
		at -= at % PAGE_BYTES;
		if (pread(fd, guest + at, PAGE_BYTES, at) <= 0)
			break;
		at += PAGE_BYTES;
	}
	if (fd < 0) {
		perror(path);
		exit(2);
	}
	close(fd);
}

void fill_contents(char *guest, size_t pages, const char *contents)
{
	bool holes = !strcmp(contents, "holes");

	if (contents[0] == '/') {
		fill_from_file(guest, pages, contents);
	} else if (!strcmp(contents, "libs")) {
		fill_libraries(guest, pages);
	} else if (!strcmp(contents, "mixed")) {
		fill_mixed(guest, pages);
	} else if (holes || !strcmp(contents, "random")) {
		for (size_t i = 0; i < pages; i++)
			if (holes && i % 2)
				memset(guest + i * PAGE_BYTES, 0, PAGE_BYTES);
			else
				fill_random(guest + i * PAGE_BYTES, i);
	} else {
		fprintf(stderr, "no such contents: %s\n", contents);
		exit(2);
	}
}
