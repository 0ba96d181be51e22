// Draws a picture: draw MODEL.gguf PROMPT OUT.png
package main

import (
	"context"
	"log"
	"os"

	"github.com/libmmada/libmmada/bindings/go"
)

func main() {
	model, err := mmada.Open(os.Args[1], nil)
	check(err)
	defer model.Close()
	c, err := model.NewContext(nil)
	check(err)
	defer c.Close()
	options, err := model.ImageOptions(false)
	check(err)
	options.Seed = 2
	picture, err := c.Draw(context.Background(), os.Args[2], &options)
	check(err)
	check(mmada.WriteImage(os.Args[3], picture))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
