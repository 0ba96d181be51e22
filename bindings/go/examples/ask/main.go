// Asks a question: ask MODEL.gguf QUESTION
package main

import (
	"context"
	"fmt"
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
	answer, err := c.Ask(context.Background(), os.Args[2], nil)
	check(err)
	fmt.Println(answer)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
