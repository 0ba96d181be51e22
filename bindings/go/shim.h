/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What Go cannot write itself: callbacks with the types of mmada.h, and numbers (cgo.Handle) in the place of pointers. */
#ifndef MMADA_GO_SHIM_H
#define MMADA_GO_SHIM_H

#include <mmada.h>
#include <stdint.h>

/* Says which call of Go's (a cgo.Handle, 0 for none) this thread makes from now on: its log messages belong to it. */
void mmada_go_enter(uintptr_t call);

void mmada_go_set_log(mmada_context_options *options, uintptr_t sink);
void mmada_go_set_progress(mmada_open_options *options, uintptr_t progress);
void mmada_go_set_upload_progress(mmada_context_options *options, uintptr_t progress);

/* `size` bytes aligned as mmada_model_open_memory asks, for free(); NULL where there is no such memory. */
void *mmada_go_allocate(size_t size);

#endif
