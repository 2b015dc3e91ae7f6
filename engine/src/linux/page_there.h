/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether a process has a page, where its page map may not be read. */
#ifndef VMMSWAP_PAGE_THERE_H
#define VMMSWAP_PAGE_THERE_H

#include <stdint.h>
#include <sys/types.h>

/* 1: the process has a page on RAM there. 0: it has none, or the kernel's page of zeros, or nothing is
 * mapped. -errno.
 *
 * /proc/PID/pagemap has mode 0400: without CAP_DAC_OVERRIDE only its owner opens it. move_pages() without
 * target nodes looks at the page tables and fills nothing, and asks for no more than ptrace's right to read,
 * which CAP_SYS_PTRACE gives (mm/migrate.c, do_pages_stat_array()). It does not see that a page is swapped
 * out. */
int page_is_there(pid_t pid, uint64_t addr);

#endif
