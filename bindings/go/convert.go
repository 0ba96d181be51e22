// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// converter turns values of Go's into C's, for one call: what they point to is pinned until done is called. The first
// value that cannot be C's is err.
type converter struct {
	pinner runtime.Pinner
	images []*C.mmada_image
	err    error
}

func (c *converter) done() {
	c.pinner.Unpin()
	for _, image := range c.images {
		C.mmada_image_free(image)
	}
}

// nothing is what empty texts and arrays point to, where NULL means something else.
var nothing [1]uint64

func pinned[T any](c *converter, values []T) unsafe.Pointer {
	if len(values) == 0 {
		return unsafe.Pointer(&nothing)
	}
	c.pinner.Pin(unsafe.SliceData(values))
	return unsafe.Pointer(unsafe.SliceData(values))
}

func (c *converter) text(s string) (*C.char, C.size_t) {
	if s == "" {
		return (*C.char)(unsafe.Pointer(&nothing)), 0
	}
	c.pinner.Pin(unsafe.StringData(s))
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s))), C.size_t(len(s))
}

func (c *converter) ids(ids []uint32) (*C.uint32_t, C.size_t) {
	return (*C.uint32_t)(pinned(c, ids)), C.size_t(len(ids))
}

func (c *converter) size(what string, value int) C.size_t {
	if value < 0 {
		if c.err == nil {
			c.err = invalid("%s is %d, below 0", what, value)
		}
		return 0
	}
	return C.size_t(value)
}

func flag(value bool) C.uint32_t {
	if value {
		return 1
	}
	return 0
}

// takeText copies and frees a buffer that holds a text; NULL is the empty text.
func takeText(buffer *C.mmada_buffer) string {
	defer C.mmada_buffer_free(buffer)
	data := unsafe.Pointer(C.mmada_buffer_text(buffer))
	if data == nil {
		return ""
	}
	return string(unsafe.Slice((*byte)(data), int(C.mmada_buffer_length(buffer))))
}

// takeIDs copies and frees a buffer that holds ids.
func takeIDs(buffer *C.mmada_buffer) []uint32 {
	defer C.mmada_buffer_free(buffer)
	data := unsafe.Pointer(C.mmada_buffer_ids(buffer))
	if data == nil {
		return nil
	}
	return append([]uint32(nil), unsafe.Slice((*uint32)(data), int(C.mmada_buffer_length(buffer)))...)
}

// takeBytes copies and frees a buffer that holds bytes.
func takeBytes(buffer *C.mmada_buffer) []byte {
	defer C.mmada_buffer_free(buffer)
	data := unsafe.Pointer(C.mmada_buffer_bytes(buffer))
	if data == nil {
		return nil
	}
	return append([]byte(nil), unsafe.Slice((*byte)(data), int(C.mmada_buffer_length(buffer)))...)
}
