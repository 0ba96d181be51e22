// SPDX-License-Identifier: MIT OR Apache-2.0

//go:build mmada_static

package mmada

// The file's name comes first, so that nothing is left for the shared library that may lie beside it.

// #cgo LDFLAGS: -l:libmmada.a -Wl,--as-needed
// #cgo pkg-config: --static mmada
import "C"
