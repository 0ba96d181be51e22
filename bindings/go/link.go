// SPDX-License-Identifier: MIT OR Apache-2.0

//go:build !mmada_static

package mmada

// #cgo pkg-config: mmada
import "C"
