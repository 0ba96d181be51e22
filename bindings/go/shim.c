/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "shim.h"
#include "_cgo_export.h"
#include <stdlib.h>

static _Thread_local uintptr_t current_call;

void mmada_go_enter(uintptr_t call) { current_call = call; }

static void on_log(uint32_t level, const char *message, size_t length, void *sink) {
    mmadaGoLog(level, (char *)message, length, (uintptr_t)sink, current_call);
}

void mmada_go_set_log(mmada_context_options *options, uintptr_t sink) {
    options->log = on_log;
    options->log_user_data = (void *)sink;
    options->log_level = MMADA_LOG_DEBUG; /* the handler in Go chooses, and may change its mind */
}

static int on_progress(uint64_t done, uint64_t total, void *progress) {
    return mmadaGoProgress(done, total, (uintptr_t)progress);
}

void mmada_go_set_progress(mmada_open_options *options, uintptr_t progress) {
    options->progress = on_progress;
    options->progress_user_data = (void *)progress;
}

void mmada_go_set_upload_progress(mmada_context_options *options, uintptr_t progress) {
    options->progress = on_progress;
    options->progress_user_data = (void *)progress;
}

void *mmada_go_allocate(size_t size) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, size ? size : 1) ? NULL : memory;
}
