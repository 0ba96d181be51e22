// A conversation: chat MODEL.gguf, then a line for every message. The answer is written as far as it is settled; Ctrl-C
// cancels it, and the conversation ends.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/libmmada/libmmada/bindings/go"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: chat MODEL.gguf")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := chat(ctx, os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func chat(ctx context.Context, path string) error {
	model, err := mmada.Open(path, nil)
	if err != nil {
		return err
	}
	defer model.Close()
	c, err := model.NewContext(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	var messages []mmada.Message
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		messages = append(messages, mmada.User(lines.Text()))
		answer, err := turn(ctx, c, messages)
		if err != nil {
			return err
		}
		messages = append(messages, mmada.Assistant(answer))
	}
	return lines.Err()
}

// turn answers a conversation. What stands before the first mask does not change any more, and is written.
func turn(ctx context.Context, c *mmada.Context, messages []mmada.Message) (string, error) {
	generation, err := c.BeginText(messages, nil)
	if err != nil {
		return "", err
	}
	defer generation.Close()
	written := 0
	for _, err := range generation.Steps(ctx) {
		if err != nil {
			return "", err
		}
		text, err := generation.Text()
		if err != nil {
			return "", err
		}
		if len(text) > written {
			fmt.Print(text[written:])
			written = len(text)
		}
	}
	fmt.Println()
	return generation.Answer()
}
