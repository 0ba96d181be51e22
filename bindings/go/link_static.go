// SPDX-License-Identifier: MIT OR Apache-2.0

//go:build mmada_static

package mmada

// The archive is named as a file and comes first, so that nothing is left for the shared library that lies beside it,
// and the linker leaves that out.

// #cgo LDFLAGS: -l:libmmada.a -Wl,--as-needed
// #cgo pkg-config: --static mmada
import "C"
