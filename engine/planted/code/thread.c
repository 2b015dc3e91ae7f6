/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The code that attach puts into a VMM (engine/build_planted.py links it alone): one thread that works
 * as vmmswap_mover_run() does, and ends.
 *
 * The thread is made by clone() at a `syscall; ret` of the VMM's own code, on a stack that has two words: the
 * address of vmmswap_planted_entry, where that `ret` goes, and the address of struct vmmswap_mover. So it
 * never runs anything of the VMM's, whether or not the monitor lives to see it begin. */
#include "../mover_thread.c"

#define SIGNALS_SET 2		/* SIG_SETMASK */
#define SET_NAME 15		/* PR_SET_NAME */
#define NAME 0x00706177736d6d76 /* "vmmswap", as a word: there is no data */

__attribute__((used, noreturn, section(".text.main"))) static void planted_main(struct vmmswap_mover *mover)
{
	uint64_t all_signals = ~(uint64_t)0, name = NAME;

	call(SYS_rt_sigprocmask, SIGNALS_SET, (long)&all_signals, 0, sizeof all_signals);
	call(SYS_prctl, SET_NAME, (long)&name, 0, 0);
	work(mover, 0); /* clone() has stored its number */
	for (;;)
		call(SYS_exit, 0, 0, 0, 0);
}

__asm__(".section .text.entry, \"ax\", @progbits\n"
	".globl vmmswap_planted_entry\n"
	"vmmswap_planted_entry:\n"
	"	pop %rdi\n"
	"	xor %ebp, %ebp\n"
	"	call planted_main\n"
	"	ud2\n"
	".text\n");
