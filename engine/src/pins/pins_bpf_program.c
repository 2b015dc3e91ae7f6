// SPDX-License-Identifier: GPL-2.0-or-later
/* The program, for the verifier of any kernel since 5.15, with no symbols, no kprobes and no compiler:
 *
 *	current -> files -> fdt -> fd[fd] -> f_mapping -> i_pages -> nodes -> slots -> struct page
 *
 * It reads the page cache's tree itself, so no mapping of ours is needed, and no page can come to be by our
 * looking. All reads are bpf_probe_read_kernel(): a bad address gives zeros, never a fault. It holds no lock
 * and no RCU section; the snapshot carries what proves that nothing moved meanwhile (pins_snapshot.c).
 *
 * Registers: r6 context, later the page copy; r7 snapshot; r8 loop counter; r9 an address. r0-r5 are lost in
 * calls. */
#include "pins/pins_bpf_program.h"

#include <assert.h>
#include <string.h>

#define SNAP(member) ((int)offsetof(struct pins_snapshot, member))
#define ARG(member) ((int)offsetof(struct pins_bpf_args, member))
#define NODE_TAG 2 /* low bits of an internal entry */
#define STACK_WORD (-8)
#define STACK_FILES (-16)
#define STACK_FIRST_PAGE (-24)
#define STACK_XARRAY_HEAD (-32)
#define STACK_NODE (-64) /* PINS_NODE_HEAD_BYTES */

static_assert(sizeof(struct pins_snapshot) <= 1 << PINS_SCRATCH_SHIFT, "a snapshot fits its scratch");
static_assert(sizeof(struct pins_page_copy) == 80, "the page loop multiplies by this");

struct builder {
	struct bpf_insn *insns;
	size_t n;
};

static void emit(struct builder *b, int code, int dst, int src, int off, int imm)
{
	assert(b->n < PINS_PROGRAM_INSNS);
	b->insns[b->n++] =
		(struct bpf_insn){ .code = code, .dst_reg = dst, .src_reg = src, .off = off, .imm = imm };
}

static void alu(struct builder *b, int op, int dst, int imm)
{
	emit(b, BPF_ALU64 | op | BPF_K, dst, 0, 0, imm);
}

static void alu_reg(struct builder *b, int op, int dst, int src)
{
	emit(b, BPF_ALU64 | op | BPF_X, dst, src, 0, 0);
}

static void load(struct builder *b, int dst, int src, int off)
{
	emit(b, BPF_LDX | BPF_DW | BPF_MEM, dst, src, off, 0);
}

static void store(struct builder *b, int dst, int off, int src)
{
	emit(b, BPF_STX | BPF_DW | BPF_MEM, dst, src, off, 0);
}

static size_t jump(struct builder *b, int op, int reg, int imm)
{
	emit(b, BPF_JMP | op | BPF_K, reg, 0, 0, imm);
	return b->n - 1;
}

static void land(struct builder *b, size_t jump_idx)
{
	b->insns[jump_idx].off = (int16_t)(b->n - jump_idx - 1);
}

/* r1 = to + to_off; read size_bytes from the kernel at r3 */
static void read_r3(struct builder *b, int to, int to_off, int size_bytes)
{
	alu_reg(b, BPF_MOV, BPF_REG_1, to);
	alu(b, BPF_ADD, BPF_REG_1, to_off);
	alu(b, BPF_MOV, BPF_REG_2, size_bytes);
	emit(b, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel);
}

/* read size_bytes from the kernel at r9 + from_off */
static void read_at(struct builder *b, int to, int to_off, int size_bytes, int from_off)
{
	alu_reg(b, BPF_MOV, BPF_REG_3, BPF_REG_9);
	alu(b, BPF_ADD, BPF_REG_3, from_off);
	read_r3(b, to, to_off, size_bytes);
}

/* r9 = *(u64 *)(r9 + off) */
static void follow(struct builder *b, int off)
{
	read_at(b, BPF_REG_10, STACK_WORD, 8, off);
	load(b, BPF_REG_9, BPF_REG_10, STACK_WORD);
}

static void start(struct builder *b, int map_fd)
{
	alu_reg(b, BPF_MOV, BPF_REG_6, BPF_REG_1);
	emit(b, BPF_LD | BPF_DW | BPF_IMM, BPF_REG_7, BPF_PSEUDO_MAP_VALUE, 0, map_fd);
	emit(b, 0, 0, 0, 0, 0);
	load(b, BPF_REG_1, BPF_REG_6, ARG(scratch_idx));
	alu(b, BPF_AND, BPF_REG_1, PINS_SCRATCHES - 1);
	alu(b, BPF_LSH, BPF_REG_1, PINS_SCRATCH_SHIFT);
	alu_reg(b, BPF_ADD, BPF_REG_7, BPF_REG_1);
	load(b, BPF_REG_1, BPF_REG_6, ARG(first_page));
	store(b, BPF_REG_10, STACK_FIRST_PAGE, BPF_REG_1);
}

static void find_mapping(struct builder *b, const struct pins_layout *l)
{
	emit(b, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_get_current_task);
	alu_reg(b, BPF_MOV, BPF_REG_9, BPF_REG_0);
	follow(b, l->task_files);
	store(b, BPF_REG_10, STACK_FILES, BPF_REG_9);
	follow(b, l->files_fdt);
	store(b, BPF_REG_7, SNAP(fdt[0]), BPF_REG_9);
	follow(b, l->fdt_fd);
	load(b, BPF_REG_1, BPF_REG_6, ARG(fd));
	alu(b, BPF_LSH, BPF_REG_1, 3);
	alu_reg(b, BPF_ADD, BPF_REG_9, BPF_REG_1);
	follow(b, 0);
	store(b, BPF_REG_7, SNAP(mapping), BPF_REG_9);
	load(b, BPF_REG_9, BPF_REG_10, STACK_FILES);
	read_at(b, BPF_REG_7, SNAP(fdt[1]), 8, l->files_fdt);
	load(b, BPF_REG_9, BPF_REG_7, SNAP(mapping));
	follow(b, l->file_mapping);
	store(b, BPF_REG_7, SNAP(mapping), BPF_REG_9);
	follow(b, l->mapping_host);
	read_at(b, BPF_REG_7, SNAP(ino), 8, l->inode_ino);
	load(b, BPF_REG_9, BPF_REG_7, SNAP(mapping));
	alu(b, BPF_ADD, BPF_REG_9, l->mapping_pages + l->xarray_head);
	store(b, BPF_REG_10, STACK_XARRAY_HEAD, BPF_REG_9);
	follow(b, 0);
	store(b, BPF_REG_7, SNAP(root[0]), BPF_REG_9);
}

/* A tree of one leaf or one entry has no node of shift 6: all that it has is group 0. */
static void clear_groups(struct builder *b)
{
	alu(b, BPF_MOV, BPF_REG_1, 0);
	for (int g = 0; g < PINS_GROUPS; g++)
		store(b, BPF_REG_7, SNAP(group[0]) + 8 * g, BPF_REG_1);
}

static void walk_level(struct builder *b, const struct pins_layout *l, int level, size_t *done)
{
	int at = SNAP(level[0]) + level * (int)sizeof(struct pins_node_copy);
	int head_at = at + (int)offsetof(struct pins_node_copy, head);
	size_t deeper;

	store(b, BPF_REG_7, at, BPF_REG_9);
	alu(b, BPF_SUB, BPF_REG_9, NODE_TAG);
	read_at(b, BPF_REG_10, STACK_NODE, PINS_NODE_HEAD_BYTES, 0);
	emit(b, BPF_LDX | BPF_B | BPF_MEM, BPF_REG_8, BPF_REG_10, STACK_NODE + l->node_shift, 0);
	store(b, BPF_REG_7, at + (int)offsetof(struct pins_node_copy, shift), BPF_REG_8);
	alu(b, BPF_AND, BPF_REG_8, 63);
	load(b, BPF_REG_3, BPF_REG_10, STACK_FIRST_PAGE);
	alu_reg(b, BPF_RSH, BPF_REG_3, BPF_REG_8);
	alu(b, BPF_AND, BPF_REG_3, PINS_NODE_SLOTS - 1);
	alu(b, BPF_LSH, BPF_REG_3, 3);
	alu_reg(b, BPF_ADD, BPF_REG_3, BPF_REG_9);
	alu(b, BPF_ADD, BPF_REG_3, l->node_slots);
	deeper = jump(b, BPF_JNE, BPF_REG_8, 6);
	read_r3(b, BPF_REG_7, SNAP(group[0]), 8 * PINS_GROUPS);
	read_at(b, BPF_REG_7, head_at, PINS_NODE_HEAD_BYTES, 0);
	done[level] = jump(b, BPF_JA, 0, 0);
	land(b, deeper);
	read_r3(b, BPF_REG_10, STACK_WORD, 8);
	read_at(b, BPF_REG_7, head_at, PINS_NODE_HEAD_BYTES, 0);
	load(b, BPF_REG_9, BPF_REG_10, STACK_WORD);
}

static void walk(struct builder *b, const struct pins_layout *l)
{
	size_t done[PINS_LEVELS], single, leaf, lost;

	clear_groups(b);
	alu_reg(b, BPF_MOV, BPF_REG_1, BPF_REG_9);
	alu(b, BPF_AND, BPF_REG_1, 3);
	single = jump(b, BPF_JNE, BPF_REG_1, NODE_TAG);
	alu_reg(b, BPF_MOV, BPF_REG_3, BPF_REG_9);
	alu(b, BPF_ADD, BPF_REG_3, (int)l->node_shift - NODE_TAG);
	alu(b, BPF_MOV, BPF_REG_1, 0);
	store(b, BPF_REG_10, STACK_WORD, BPF_REG_1);
	read_r3(b, BPF_REG_10, STACK_WORD, 1);
	load(b, BPF_REG_1, BPF_REG_10, STACK_WORD);
	leaf = jump(b, BPF_JEQ, BPF_REG_1, 0);
	for (int level = 0; level < PINS_LEVELS; level++)
		walk_level(b, l, level, done);
	lost = jump(b, BPF_JA, 0, 0);
	land(b, single);
	land(b, leaf);
	store(b, BPF_REG_7, SNAP(group[0]), BPF_REG_9);
	land(b, lost);
	for (int level = 0; level < PINS_LEVELS; level++)
		land(b, done[level]);
}

static void read_group(struct builder *b, const struct pins_layout *l, int group)
{
	int slots_at = SNAP(slots[0]) + group * PINS_NODE_SLOTS * 8;
	size_t data, over;

	load(b, BPF_REG_9, BPF_REG_7, SNAP(group[0]) + 8 * group);
	alu_reg(b, BPF_MOV, BPF_REG_1, BPF_REG_9);
	alu(b, BPF_AND, BPF_REG_1, 3);
	data = jump(b, BPF_JNE, BPF_REG_1, NODE_TAG);
	alu(b, BPF_SUB, BPF_REG_9, NODE_TAG);
	read_at(b, BPF_REG_7, slots_at, PINS_NODE_SLOTS * 8, l->node_slots);
	read_at(b, BPF_REG_7, SNAP(leaf[0]) + group * PINS_NODE_HEAD_BYTES, PINS_NODE_HEAD_BYTES, 0);
	over = jump(b, BPF_JA, 0, 0);
	land(b, data);
	/* address 0 cannot be read: this fills the slots with zeros */
	alu(b, BPF_MOV, BPF_REG_3, 0);
	read_r3(b, BPF_REG_7, slots_at, PINS_NODE_SLOTS * 8);
	store(b, BPF_REG_7, slots_at, BPF_REG_9);
	land(b, over);
}

static void read_large(struct builder *b, const struct pins_layout *l)
{
	read_at(b, BPF_REG_6, (int)offsetof(struct pins_page_copy, mapcount_before), 4,
		l->folio_large_mapcount);
	read_at(b, BPF_REG_6, 0, PINS_PAGE_BYTES, 0);
	read_at(b, BPF_REG_6, (int)offsetof(struct pins_page_copy, mapcount_after), 4,
		l->folio_large_mapcount);
	read_at(b, BPF_REG_6, (int)offsetof(struct pins_page_copy, pincount), 4, l->folio_pincount);
}

static void read_pages(struct builder *b, const struct pins_layout *l)
{
	size_t loop, hole, back;

	alu(b, BPF_MOV, BPF_REG_8, 0);
	loop = b->n;
	alu_reg(b, BPF_MOV, BPF_REG_1, BPF_REG_8);
	alu(b, BPF_LSH, BPF_REG_1, 3);
	alu_reg(b, BPF_ADD, BPF_REG_1, BPF_REG_7);
	load(b, BPF_REG_9, BPF_REG_1, SNAP(slots[0]));
	hole = jump(b, BPF_JEQ, BPF_REG_9, 0);
	alu_reg(b, BPF_MOV, BPF_REG_6, BPF_REG_8);
	alu(b, BPF_MUL, BPF_REG_6, sizeof(struct pins_page_copy));
	alu_reg(b, BPF_ADD, BPF_REG_6, BPF_REG_7);
	alu(b, BPF_ADD, BPF_REG_6, SNAP(pages[0]));
	read_at(b, BPF_REG_6, 0, PINS_PAGE_BYTES, 0);
	if (l->folio_large_mapcount != PINS_NONE) {
		load(b, BPF_REG_1, BPF_REG_6, l->folio_flags);
		alu(b, BPF_AND, BPF_REG_1, 1 << l->head_bit);
		size_t small = jump(b, BPF_JEQ, BPF_REG_1, 0);

		read_large(b, l);
		land(b, small);
	}
	land(b, hole);
	alu(b, BPF_ADD, BPF_REG_8, 1);
	back = jump(b, BPF_JLT, BPF_REG_8, PINS_CHUNK_PAGES);
	b->insns[back].off = (int16_t)((int)loop - (int)back - 1);
}

/* Copy every struct page of a folio that fills the chunk: they lie one after the other. */
static void read_folio_pages(struct builder *b, const struct pins_layout *l)
{
	int size_bytes = PINS_CHUNK_PAGES * PINS_PAGE_BYTES;
	size_t small;

	load(b, BPF_REG_1, BPF_REG_7, SNAP(pages[0]) + (int)l->folio_flags);
	alu(b, BPF_AND, BPF_REG_1, 1 << l->head_bit);
	small = jump(b, BPF_JEQ, BPF_REG_1, 0);
	load(b, BPF_REG_9, BPF_REG_7, SNAP(slots[0]));
	read_at(b, BPF_REG_7, SNAP(folio_pages[0]), size_bytes, 0);
	read_at(b, BPF_REG_7, SNAP(pages[0]), PINS_PAGE_BYTES, 0);
	read_at(b, BPF_REG_7, SNAP(folio_pages[1]), size_bytes, 0);
	land(b, small);
}

size_t pins_bpf_program(const struct pins_layout *layout, int map_fd,
			struct bpf_insn insns[PINS_PROGRAM_INSNS])
{
	struct builder b = { .insns = insns };

	start(&b, map_fd);
	find_mapping(&b, layout);
	walk(&b, layout);
	for (int group = 0; group < PINS_GROUPS; group++)
		read_group(&b, layout, group);
	load(&b, BPF_REG_9, BPF_REG_10, STACK_XARRAY_HEAD);
	read_at(&b, BPF_REG_7, SNAP(root[1]), 8, 0);
	read_pages(&b, layout);
	if (layout->folio_entire_mapcount != PINS_NONE)
		read_folio_pages(&b, layout);
	alu(&b, BPF_MOV, BPF_REG_0, 0);
	emit(&b, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	return b.n;
}
