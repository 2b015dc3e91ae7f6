/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Offsets of the running kernel's structures, from its own type information. Private to pins. */
#ifndef VMMSWAP_PINS_BTF_H
#define VMMSWAP_PINS_BTF_H

#include <stdint.h>

#include "base/error.h"

struct pins_btf;

/* Read and index /sys/kernel/btf/vmlinux or a file of that format. -ENOENT where the kernel has none,
 * -EBADMSG if it is not BTF that we can read. */
int pins_btf_open(const char *path, struct pins_btf **out, struct error *err);
void pins_btf_close(struct pins_btf *btf);

/* Offset in bytes of a member of a structure, also one inside its anonymous members. -ENOENT: no such
 * structure or member; -EBADMSG: a bit field. */
int pins_btf_offset(const struct pins_btf *btf, const char *structure, const char *member,
		    uint32_t *offset_bytes);
int pins_btf_size(const struct pins_btf *btf, const char *structure, uint32_t *size_bytes);
/* Value of an enumerator, such as PG_head of pageflags. */
int pins_btf_enumerator(const struct pins_btf *btf, const char *enumeration, const char *name,
			uint32_t *value);

#endif
