/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Freezing all processes that map a VM's memory. */
#ifndef VMMSWAP_FREEZE_VM_H
#define VMMSWAP_FREEZE_VM_H

#include "jobs/job.h"

/* Freeze every process that maps a memfd of the VM, known to us or not. 0, or -errno with the job's error set
 * and all processes running. */
int freeze_vm(struct swapper *swapper, struct freeze **freeze);

#endif
