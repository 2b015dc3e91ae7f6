// SPDX-License-Identifier: GPL-2.0-or-later
/* This reads BTF, but only as much of the format as it takes to find members (Documentation/bpf/btf.rst in
 * the kernel). */
#include "pins/pins_btf.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BTF_LIMIT_BYTES \
	(256u << 20) /* of a file that claims to be BTF; distribution kernels have 5-10 MiB \
				      */
#define NESTING_LIMIT 16

/* Kinds that are newer than the oldest linux/btf.h that we build with. */
enum { KIND_FLOAT = 16, KIND_DECL_TAG = 17, KIND_TYPE_TAG = 18, KIND_ENUM64 = 19 };

struct pins_btf {
	uint8_t *data;
	const char *strings;
	uint32_t strings_bytes;	       /* the last byte is 0 */
	const struct btf_type **types; /* by id; [0] is void and NULL */
	uint32_t types_n;
};

/* Bytes that follow a type's header; -1 for a kind we do not know. */
static int64_t type_tail_bytes(const struct btf_type *type)
{
	uint64_t vlen = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case KIND_DECL_TAG:
		return 4;
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		return vlen * sizeof(struct btf_member);
	case BTF_KIND_ENUM:
		return vlen * sizeof(struct btf_enum);
	case BTF_KIND_FUNC_PROTO:
		return vlen * sizeof(struct btf_param);
	case BTF_KIND_DATASEC:
		return vlen * sizeof(struct btf_var_secinfo);
	case KIND_ENUM64:
		return vlen * 12;
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case KIND_FLOAT:
	case KIND_TYPE_TAG:
		return 0;
	default:
		return -1;
	}
}

static int read_whole(const char *path, uint8_t **data, size_t *size_bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	size_t got = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || st.st_size <= 0 || (uint64_t)st.st_size > BTF_LIMIT_BYTES) {
		close(fd);
		return -EBADMSG;
	}
	*data = malloc(st.st_size);
	while (*data && got < (size_t)st.st_size) {
		ssize_t n = read(fd, *data + got, st.st_size - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		got += n;
	}
	close(fd);
	if (!*data)
		return -ENOMEM;
	*size_bytes = got;
	return got == (size_t)st.st_size ? 0 : -EIO;
}

/* Walk the type section once to count, and once more to fill. */
static int64_t index_types(const uint8_t *at, uint32_t bytes, const struct btf_type **types)
{
	uint32_t used = 0, id = 1;

	while (used < bytes) {
		const struct btf_type *type = (const struct btf_type *)(at + used);
		int64_t tail;

		if (bytes - used < sizeof *type)
			return -EBADMSG;
		tail = type_tail_bytes(type);
		if (tail < 0 || (uint64_t)tail > bytes - used - sizeof *type)
			return -EBADMSG;
		if (types)
			types[id] = type;
		used += sizeof *type + tail;
		id++;
	}
	return id;
}

static int parse(struct pins_btf *btf, size_t size_bytes)
{
	const struct btf_header *header = (const struct btf_header *)btf->data;
	uint64_t types_at, strings_at;
	int64_t types_n;

	if (size_bytes < sizeof *header || header->magic != BTF_MAGIC || header->version != BTF_VERSION ||
	    header->hdr_len < sizeof *header)
		return -EBADMSG;
	types_at = (uint64_t)header->hdr_len + header->type_off;
	strings_at = (uint64_t)header->hdr_len + header->str_off;
	if (types_at % 4 || types_at + header->type_len > size_bytes ||
	    strings_at + header->str_len > size_bytes || !header->str_len ||
	    btf->data[strings_at + header->str_len - 1])
		return -EBADMSG;
	btf->strings = (const char *)btf->data + strings_at;
	btf->strings_bytes = header->str_len;
	types_n = index_types(btf->data + types_at, header->type_len, NULL);
	if (types_n < 0)
		return (int)types_n;
	btf->types = calloc(types_n, sizeof(*btf->types));
	if (!btf->types)
		return -ENOMEM;
	btf->types_n = (uint32_t)types_n;
	index_types(btf->data + types_at, header->type_len, btf->types);
	return 0;
}

int pins_btf_open(const char *path, struct pins_btf **out, struct error *err)
{
	struct pins_btf *btf = calloc(1, sizeof *btf);
	size_t size_bytes = 0;
	int rc;

	if (!btf)
		return error_set(err, ENOMEM, "no memory to read %s", path);
	rc = read_whole(path, &btf->data, &size_bytes);
	if (!rc)
		rc = parse(btf, size_bytes);
	if (rc) {
		pins_btf_close(btf);
		return error_set(err, -rc, "%s: %s; the kernel needs CONFIG_DEBUG_INFO_BTF", path,
				 rc == -EBADMSG ? "not BTF of a known form" : strerror(-rc));
	}
	*out = btf;
	return 0;
}

void pins_btf_close(struct pins_btf *btf)
{
	if (!btf)
		return;
	free(btf->types);
	free(btf->data);
	free(btf);
}

static const char *name_at(const struct pins_btf *btf, uint32_t offset)
{
	return offset < btf->strings_bytes ? btf->strings + offset : "";
}

static const struct btf_type *find_type(const struct pins_btf *btf, uint32_t kind, const char *name)
{
	for (uint32_t id = 1; id < btf->types_n; id++)
		if (BTF_INFO_KIND(btf->types[id]->info) == kind &&
		    !strcmp(name_at(btf, btf->types[id]->name_off), name))
			return btf->types[id];
	return NULL;
}

static const struct btf_type *type_by_id(const struct pins_btf *btf, uint32_t id)
{
	/* const and volatile members: look at what they qualify */
	for (int depth = 0; depth < NESTING_LIMIT && id && id < btf->types_n; depth++) {
		uint32_t kind = BTF_INFO_KIND(btf->types[id]->info);

		if (kind != BTF_KIND_CONST && kind != BTF_KIND_VOLATILE)
			return btf->types[id];
		id = btf->types[id]->type;
	}
	return NULL;
}

static bool is_compound(const struct btf_type *type)
{
	uint32_t kind = type ? BTF_INFO_KIND(type->info) : BTF_KIND_UNKN;

	return kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION;
}

static int member_bit(const struct pins_btf *btf, const struct btf_type *type, const char *name, int depth,
		      uint64_t *bit)
{
	const struct btf_member *members = (const struct btf_member *)(type + 1);
	bool packed = BTF_INFO_KFLAG(type->info);

	for (uint32_t i = 0; i < BTF_INFO_VLEN(type->info); i++) {
		const char *member = name_at(btf, members[i].name_off);
		const struct btf_type *inner = type_by_id(btf, members[i].type);
		uint64_t at = packed ? BTF_MEMBER_BIT_OFFSET(members[i].offset) : members[i].offset;

		if (!strcmp(member, name)) {
			*bit += at;
			return packed && BTF_MEMBER_BITFIELD_SIZE(members[i].offset) ? -EBADMSG : 0;
		}
		if (!*member && is_compound(inner) && depth < NESTING_LIMIT) {
			uint64_t inner_bit = *bit + at;
			int rc = member_bit(btf, inner, name, depth + 1, &inner_bit);

			if (rc != -ENOENT) {
				*bit = inner_bit;
				return rc;
			}
		}
	}
	return -ENOENT;
}

int pins_btf_offset(const struct pins_btf *btf, const char *structure, const char *member,
		    uint32_t *offset_bytes)
{
	const struct btf_type *type = find_type(btf, BTF_KIND_STRUCT, structure);
	uint64_t bit = 0;
	int rc = type ? member_bit(btf, type, member, 0, &bit) : -ENOENT;

	if (!rc && bit % 8)
		rc = -EBADMSG;
	if (!rc)
		*offset_bytes = (uint32_t)(bit / 8);
	return rc;
}

int pins_btf_size(const struct pins_btf *btf, const char *structure, uint32_t *size_bytes)
{
	const struct btf_type *type = find_type(btf, BTF_KIND_STRUCT, structure);

	if (!type)
		return -ENOENT;
	*size_bytes = type->size;
	return 0;
}

int pins_btf_enumerator(const struct pins_btf *btf, const char *enumeration, const char *name,
			uint32_t *value)
{
	const struct btf_type *type = find_type(btf, BTF_KIND_ENUM, enumeration);
	const struct btf_enum *values;

	if (!type)
		return -ENOENT;
	values = (const struct btf_enum *)(type + 1);
	for (uint32_t i = 0; i < BTF_INFO_VLEN(type->info); i++) {
		if (!strcmp(name_at(btf, values[i].name_off), name)) {
			*value = (uint32_t)values[i].val;
			return 0;
		}
	}
	return -ENOENT;
}
