// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada

/*
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"image"
	"image/color"
	"unsafe"
)

// ImageFormat is a format that pictures are encoded in.
type ImageFormat uint32

const (
	// PNG loses nothing.
	PNG ImageFormat = C.MMADA_IMAGE_PNG
	// JPEG has quality 95 of 100.
	JPEG ImageFormat = C.MMADA_IMAGE_JPEG
)

// String is the name: "PNG", "JPEG".
func (f ImageFormat) String() string { return name(uint32(f), "PNG", "JPEG") }

// maxSide is the most pixels of a side that the library takes.
const maxSide = 16384

// ReadImage reads a PNG, JPEG or GIF (its first frame) file with the library's own decoders. Any other image.Image will
// do as well; JPEG decoders differ in the last bit.
//
// It fails with ErrIO, or ErrBadImage for what is no such picture, damaged, or larger than 16384 pixels a side or
// 512 MiB decoded.
func ReadImage(path string) (*image.RGBA, error) {
	var c converter
	defer c.done()
	name, length := c.text(path)
	var read *C.mmada_image
	var object *C.mmada_error
	if err := failure(C.mmada_image_load(name, length, &read, &object), &object); err != nil {
		return nil, err
	}
	defer C.mmada_image_free(read)
	return copyImage(read), nil
}

// ParseImage decodes the bytes of a PNG, JPEG or GIF (its first frame) file. It fails as ReadImage.
func ParseImage(file []byte) (*image.RGBA, error) {
	var c converter
	defer c.done()
	var read *C.mmada_image
	var object *C.mmada_error
	status := C.mmada_image_decode((*C.uint8_t)(pinned(&c, file)), C.size_t(len(file)), &read, &object)
	if err := failure(status, &object); err != nil {
		return nil, err
	}
	defer C.mmada_image_free(read)
	return copyImage(read), nil
}

// WriteImage writes a picture to a file whose name ends in .png, .jpg or .jpeg. The file appears whole or not at all, in
// the place of an existing one. Alpha is dropped.
//
// It fails with ErrIO, ErrBadImage, or ErrInvalidArgument for another ending or a missing folder.
func WriteImage(path string, picture image.Image) error {
	var c converter
	defer c.done()
	pixels := c.image(picture)
	if c.err != nil {
		return c.err
	}
	name, length := c.text(path)
	var object *C.mmada_error
	return failure(C.mmada_image_save(pixels, name, length, &object), &object)
}

// FormatImage encodes a picture as the bytes of a file. Alpha is dropped. It fails with ErrBadImage, or
// ErrInvalidArgument for another format.
func FormatImage(picture image.Image, format ImageFormat) ([]byte, error) {
	var c converter
	defer c.done()
	pixels := c.image(picture)
	if c.err != nil {
		return nil, c.err
	}
	var file *C.mmada_buffer
	var object *C.mmada_error
	if err := failure(C.mmada_image_encode(pixels, C.uint32_t(format), &file, &object), &object); err != nil {
		return nil, err
	}
	return takeBytes(file), nil
}

// copyImage is a picture of C's as one of Go's.
func copyImage(from *C.mmada_image) *image.RGBA {
	width, height := int(C.mmada_image_width(from)), int(C.mmada_image_height(from))
	to := image.NewRGBA(image.Rect(0, 0, width, height))
	pixels := unsafe.Slice((*byte)(unsafe.Pointer(C.mmada_image_pixels(from))), 3*width*height)
	for i := 0; i < width*height; i++ {
		copy(to.Pix[4*i:], pixels[3*i:3*i+3])
		to.Pix[4*i+3] = 0xff
	}
	return to
}

// image is a picture of Go's as one of C's, which is freed with the converter.
func (c *converter) image(from image.Image) *C.mmada_image {
	if c.err != nil {
		return nil
	}
	if from == nil {
		c.err = &Error{Status: ErrBadImage, Message: "the picture is nil"}
		return nil
	}
	bounds := from.Bounds()
	width, height := bounds.Dx(), bounds.Dy()
	if width <= 0 || height <= 0 || width > maxSide || height > maxSide {
		c.err = &Error{Status: ErrBadImage, Message: fmt.Sprintf("a picture of %dx%d pixels is none of 1 to %d a side", width, height, maxSide)}
		return nil
	}
	pixels := rgb(from, bounds)
	var made *C.mmada_image
	var object *C.mmada_error
	status := C.mmada_image_from_rgb((*C.uint8_t)(&pixels[0]), C.size_t(width), C.size_t(height), 0, &made, &object)
	if c.err = failure(status, &object); c.err != nil {
		return nil
	}
	c.images = append(c.images, made)
	return made
}

// rgb are the colors of a picture without their alpha, three bytes each.
func rgb(from image.Image, bounds image.Rectangle) []byte {
	pixels := make([]byte, 0, 3*bounds.Dx()*bounds.Dy())
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			switch from := from.(type) {
			case *image.NRGBA:
				pixels = append(pixels, from.Pix[from.PixOffset(x, y):][:3]...)
			case *image.RGBA:
				at := from.RGBAAt(x, y)
				if at.A != 0xff {
					pixels = appendColor(pixels, at)
				} else {
					pixels = append(pixels, at.R, at.G, at.B)
				}
			default:
				pixels = appendColor(pixels, from.At(x, y))
			}
		}
	}
	return pixels
}

func appendColor(pixels []byte, c color.Color) []byte {
	plain := color.NRGBAModel.Convert(c).(color.NRGBA)
	return append(pixels, plain.R, plain.G, plain.B)
}
