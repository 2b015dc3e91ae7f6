/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "store/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/units.h"

#define KEY_BYTES 32
#define NONCE_BYTES 12
#define CONTEXTS 8

/* Of CPUID leaf 1: ECX above EDX. */
#define CAP_AES ((uint64_t)1 << 57)
#define CAP_PCLMULQDQ ((uint64_t)1 << 33)

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

static const char magic[8] = "vmmskey1";

struct key_page {
	char magic[8];
	_Atomic uint64_t next_serial;
	unsigned char key[KEY_BYTES];
};

/* A context holds the expanded key: making one for each page would cost more than sealing the page. */
struct context {
	_Alignas(64) _Atomic bool busy; /* a cache line each: threads take them thousands of times a second */
	EVP_CIPHER_CTX *cipher;
};

struct seal {
	int fd;
	bool secret;
	struct key_page *page;
	struct context contexts[CONTEXTS];
};

static EVP_CIPHER_CTX *make_context(const struct seal *seal)
{
	EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();

	if (cipher && EVP_CipherInit_ex(cipher, EVP_aes_256_gcm(), NULL, seal->page->key, NULL, 1) == 1)
		return cipher;
	EVP_CIPHER_CTX_free(cipher);
	return NULL;
}

/* *borrowed: give it back by returning it; else free it. */
static EVP_CIPHER_CTX *take_context(struct seal *seal, struct context **borrowed)
{
	static _Thread_local size_t last_i; /* nobody else has it, as a rule */
	size_t first_i = last_i;

	*borrowed = NULL;
	for (size_t n = 0; n < CONTEXTS; n++) {
		size_t i = (first_i + n) % CONTEXTS;
		struct context *context = &seal->contexts[i];

		if (atomic_load_explicit(&context->busy, memory_order_relaxed) ||
		    atomic_exchange(&context->busy, true))
			continue;
		if (!context->cipher)
			context->cipher = make_context(seal);
		*borrowed = context;
		last_i = i;
		return context->cipher;
	}
	return make_context(seal);
}

static void return_context(EVP_CIPHER_CTX *cipher, struct context *borrowed)
{
	if (borrowed)
		atomic_store(&borrowed->busy, false);
	else
		EVP_CIPHER_CTX_free(cipher);
}

static int open_key_memory(bool *secret)
{
	int fd = FAILPOINT("seal.secret");

	if (!fd)
		fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
	*secret = fd >= 0;
	if (fd < 0)
		fd = memfd_create("vmmswap-key", MFD_CLOEXEC);
	if (fd >= 0 && ftruncate(fd, (off_t)PAGE_BYTES) &&
	    errno != EINVAL) { /* EINVAL: memfd_secret has its size already */
		close(fd);
		return -errno;
	}
	return fd < 0 ? -errno : fd;
}

static int map_key(struct seal *seal, struct error *err)
{
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, seal->fd, 0);

	if (page == MAP_FAILED)
		return error_set(err, errno, "cannot map the memory of the key: %s", strerror(errno));
	seal->page = page;
	madvise(page, PAGE_BYTES, MADV_DONTDUMP);
	if (!seal->secret && mlock(page, PAGE_BYTES))
		return error_set(err, EPERM,
				 "cannot lock the memory of the key (%s): raise LimitMEMLOCK=, or set "
				 "Encryption=no",
				 strerror(errno));
	return 0;
}

static int make_seal(int fd, bool secret, struct seal **out, struct error *err)
{
	struct seal *seal = aligned_alloc(_Alignof(struct seal), sizeof *seal);
	int rc;

	if (!seal) {
		close(fd);
		return error_set(err, ENOMEM, "no memory for the key");
	}
	memset(seal, 0, sizeof *seal);
	seal->fd = fd;
	seal->secret = secret;
	rc = map_key(seal, err);
	if (rc) {
		seal_destroy(seal);
		return rc;
	}
	*out = seal;
	return 0;
}

static int fill_random(void *bytes, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t got = getrandom((char *)bytes + done, n - done, 0);

		if (got < 0 && errno != EINTR)
			return -errno;
		done += got > 0 ? (size_t)got : 0;
	}
	return 0;
}

int seal_create(struct seal **out, struct error *err)
{
	bool secret;
	int fd = open_key_memory(&secret), rc;

	if (fd < 0)
		return error_set(err, -fd, "cannot make memory for a key: %s", strerror(-fd));
	rc = make_seal(fd, secret, out, err);
	if (rc)
		return rc;
	rc = fill_random((*out)->page->key, KEY_BYTES);
	if (rc) {
		seal_destroy(*out);
		return error_set(err, EIO, "the kernel has no randomness for a key: %s", strerror(-rc));
	}
	memcpy((*out)->page->magic, magic, sizeof magic);
	return 0;
}

/* A secret memfd is on a file system of its own, which does not support seals. */
static bool is_secret(int fd)
{
	return fcntl(fd, F_GET_SEALS) < 0;
}

int seal_adopt(int fd, struct seal **out, struct error *err)
{
	int own_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3), rc;

	if (own_fd < 0)
		return error_set(err, errno, "cannot dup the fd of the key, %d: %s", fd, strerror(errno));
	rc = make_seal(own_fd, is_secret(own_fd), out, err);
	if (rc)
		return rc;
	if (memcmp((*out)->page->magic, magic, sizeof magic)) {
		seal_destroy(*out);
		return error_set(err, EPROTO, "fd %d holds no key: what is on disk cannot be read", fd);
	}
	return 0;
}

void seal_destroy(struct seal *seal)
{
	if (!seal)
		return;
	for (size_t i = 0; i < CONTEXTS; i++)
		EVP_CIPHER_CTX_free(seal->contexts[i].cipher);
	if (seal->page)
		munmap(seal->page, PAGE_BYTES);
	close(seal->fd);
	free(seal);
}

int seal_fd(const struct seal *seal)
{
	return seal->fd;
}

bool seal_is_secret(const struct seal *seal)
{
	return seal->secret;
}

bool seal_is_fast(void)
{
	/* libcrypto's view, which OPENSSL_ia32cap= in the environment can change (OPENSSL_ia32cap(3)). */
	const char *settings = OPENSSL_info(OPENSSL_INFO_CPU_SETTINGS);
	unsigned long long bits;

	if (!settings || sscanf(settings, "OPENSSL_ia32cap=%llx", &bits) != 1)
		return true; /* another architecture */
	return bits & CAP_AES && bits & CAP_PCLMULQDQ;
}

uint64_t seal_next_serial(struct seal *seal)
{
	return atomic_fetch_add(&seal->page->next_serial, 1);
}

static void make_nonce(uint64_t serial, uint32_t granule, unsigned char nonce[NONCE_BYTES])
{
	memcpy(nonce, &serial, sizeof serial);
	memcpy(nonce + sizeof serial, &granule, sizeof granule);
}

int seal_close(struct seal *seal, uint64_t serial, uint32_t granule, const void *aad, size_t aad_bytes,
	       const void *bytes, size_t n, void *sealed, void *tag)
{
	unsigned char nonce[NONCE_BYTES];
	struct context *borrowed;
	EVP_CIPHER_CTX *cipher = take_context(seal, &borrowed);
	int part, rc = 0;

	make_nonce(serial, granule, nonce);
	if (!cipher)
		rc = -ENOMEM;
	else if (EVP_CipherInit_ex(cipher, NULL, NULL, NULL, nonce, 1) != 1 ||
		 EVP_CipherUpdate(cipher, NULL, &part, aad, (int)aad_bytes) != 1 ||
		 EVP_CipherUpdate(cipher, sealed, &part, bytes, (int)n) != 1 ||
		 EVP_CipherFinal_ex(cipher, (unsigned char *)sealed + n, &part) != 1 ||
		 EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, SEAL_TAG_BYTES, tag) != 1)
		rc = -EIO;
	return_context(cipher, borrowed);
	return rc;
}

int seal_open(struct seal *seal, uint64_t serial, uint32_t granule, const void *aad, size_t aad_bytes,
	      const void *sealed, size_t n, const void *tag, void *bytes)
{
	unsigned char nonce[NONCE_BYTES], own_tag[SEAL_TAG_BYTES];
	struct context *borrowed;
	EVP_CIPHER_CTX *cipher = take_context(seal, &borrowed);
	int part, rc = 0;

	make_nonce(serial, granule, nonce);
	memcpy(own_tag, tag, sizeof own_tag); /* OpenSSL takes it as not const */
	if (!cipher)
		rc = -ENOMEM;
	else if (EVP_CipherInit_ex(cipher, NULL, NULL, NULL, nonce, 0) != 1 ||
		 EVP_CipherUpdate(cipher, NULL, &part, aad, (int)aad_bytes) != 1 ||
		 EVP_CipherUpdate(cipher, bytes, &part, sealed, (int)n) != 1 ||
		 EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_SET_TAG, SEAL_TAG_BYTES, own_tag) != 1)
		rc = -EIO;
	else if (EVP_CipherFinal_ex(cipher, (unsigned char *)bytes + n, &part) != 1)
		rc = -EBADMSG;
	return_context(cipher, borrowed);
	return rc;
}
