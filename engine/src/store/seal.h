/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Authenticated encryption of what goes to disk: AES-256-GCM, with a key made for one VM that is only ever in memory.
 *
 * The key lives in a page of memfd_secret(2) where the kernel has that: not even root reads it through /proc, and no core dump has it. Elsewhere in
 * a locked memfd that no dump holds. Its fd goes to the fd store, so that a successor can read what is on the disk; when the last fd closes, the key
 * is gone, and with it all that the disk still holds.
 *
 * A nonce is 12 bytes: a serial number of 8, then the granule at which the record begins. Serial numbers are given out by a counter that
 * lives in the same page as the key and is counted up before its value is used, by an atomic operation. So whoever has the key has the
 * counter, too: no crash, restart or upgrade can bring the one back without the other, and no serial number is given out twice under one
 * key. One image of a segment is sealed under one serial number, also when it is sealed again because a write failed, and no two records
 * of one image begin at the same granule. */
#ifndef VMMSWAP_SEAL_H
#define VMMSWAP_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define SEAL_TAG_BYTES 16

struct seal;

/* A new random key. -ENOMEM, -EIO (no randomness), -ENOSYS: with what to do. */
int seal_create(struct seal **out, struct error *err);

/* Take over the key of a process that died. The fd is dup'ed. -EPROTO: it holds no key. */
int seal_adopt(int fd, struct seal **out, struct error *err);
void seal_destroy(struct seal *seal);

int seal_fd(const struct seal *seal);
bool seal_is_secret(const struct seal *seal); /* memfd_secret: else a locked memfd */
bool seal_is_fast(void);		      /* the processor has instructions for it */

uint64_t seal_next_serial(struct seal *seal);

/* bytes -> sealed (may be the same place), n bytes; aad is authenticated with them, and in clear. -ENOMEM, -EIO. Any thread. */
int seal_close(struct seal *seal, uint64_t serial, uint32_t granule, const void *aad, size_t aad_bytes,
	       const void *bytes, size_t n, void *sealed, void *tag);

/* The opposite. -EBADMSG: these are not the bytes that were sealed, and what stands in *bytes is worth nothing. */
int seal_open(struct seal *seal, uint64_t serial, uint32_t granule, const void *aad, size_t aad_bytes,
	      const void *sealed, size_t n, const void *tag, void *bytes);

#endif
