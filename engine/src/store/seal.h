/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Authenticated encryption of what goes to disk: AES-256-GCM, with a key that is made for one VM and is only
 * ever in memory.
 *
 * Where the kernel has memfd_secret(2), the key lives in a page of it: not even root can read it through
 * /proc, and no core dump contains it. Elsewhere it lives in a locked memfd that no core dump contains. Its
 * fd goes to the fd store, so that a successor can read what is on the disk. When the last fd closes, the key
 * is gone, and nobody can read what the disk still holds.
 *
 * A nonce is 12 bytes: a serial number of 8, then the granule at which the record begins. A counter gives out
 * the serial numbers. It lives in the same page as the key, and an atomic operation increments it before its
 * value is used. So whoever has the key also has the counter: no crash, restart or upgrade can restore one
 * without the other, and no serial number is given out twice under one key. Each image of a segment is sealed
 * under one serial number, even if it is sealed again because a write failed, and no two records of one image
 * begin at the same granule. */
#ifndef VMMSWAP_SEAL_H
#define VMMSWAP_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define SEAL_TAG_BYTES 16

struct seal;

/* Make a new random key. -ENOMEM, -EIO (no randomness), -ENOSYS; *err says what to do. */
int seal_create(struct seal **out, struct error *err);

/* Take over the key of a process that died. The fd is dup'ed. -EPROTO: it holds no key. */
int seal_adopt(int fd, struct seal **out, struct error *err);
void seal_destroy(struct seal *seal);

int seal_fd(const struct seal *seal);
bool seal_is_secret(const struct seal *seal); /* true: memfd_secret; false: a locked memfd */
bool seal_is_fast(void);		      /* libcrypto has the processor's AES instructions */

uint64_t seal_next_serial(struct seal *seal);

/* Encrypt n bytes from bytes to sealed (may be the same place); aad is authenticated with them but not
 * encrypted. -ENOMEM, -EIO. Any thread. */
int seal_close(struct seal *seal, uint64_t serial, uint32_t granule, const void *aad, size_t aad_bytes,
	       const void *bytes, size_t n, void *sealed, void *tag);

/* The opposite of seal_close(). -EBADMSG: these are not the bytes that were sealed; do not use the contents
 * of *bytes. */
int seal_open(struct seal *seal, uint64_t serial, uint32_t granule, const void *aad, size_t aad_bytes,
	      const void *sealed, size_t n, const void *tag, void *bytes);

#endif
