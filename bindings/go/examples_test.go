// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada_test

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"image"
	"image/png"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libmmada/libmmada/bindings/go"
)

func Example() {
	model, err := mmada.Open(modelPath(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	c, err := model.NewContext(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	answer, err := c.Ask(context.Background(), "What is 17 + 25?", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer)
	// Output: 42
}

func ExampleGeneration_Steps() {
	model, err := mmada.Open(modelPath(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	c, err := model.NewContext(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	options, err := model.TextOptions(true, false) // with thinking
	if err != nil {
		log.Fatal(err)
	}
	generation, err := c.BeginText([]mmada.Message{mmada.User("What is 17 + 25?")}, &options)
	if err != nil {
		log.Fatal(err)
	}
	defer generation.Close()
	steps := 0
	for step, err := range generation.Steps(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		steps = step.Index
	}
	answer, err := generation.Answer()
	fmt.Println(steps > 1, answer, err)
	// Output: true 42 <nil>
}

// The README's programs are the files in examples, which are built and run.
func TestTheExamplesSayWhatTheyShould(t *testing.T) {
	readme := string(must[[]byte](t)(os.ReadFile("README.md")))
	folder := t.TempDir()
	for _, name := range []string{"draw", "ask", "look", "chat"} {
		source := string(must[[]byte](t)(os.ReadFile(filepath.Join("examples", name, "main.go"))))
		if name != "chat" && !strings.Contains(readme, "```go\n"+source+"```\n") {
			t.Errorf("README.md does not have examples/%s/main.go as it is", name)
		}
	}
	build := exec.Command("go", "build", "-o", folder, "./examples/...")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		t.Fatal(err)
	}
	run := func(input, name string, arguments ...string) string {
		t.Helper()
		command := exec.Command(filepath.Join(folder, name), append([]string{modelPath()}, arguments...)...)
		command.Stdin = strings.NewReader(input)
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, output)
		}
		return string(output)
	}
	drawn := filepath.Join(folder, "drawn.png")
	if said := run("", "draw", prompt, drawn); said != "" {
		t.Errorf("draw said %q", said)
	}
	if said := run("", "ask", question); said != "42\n" {
		t.Errorf("ask said %q", said)
	}
	if said := run("", "look", drawn, "What color is the background?"); said != "black\n" {
		t.Errorf("look said %q", said)
	}
	// how well the demo model remembers does not matter, but that the second answer is one to the whole conversation
	_, c := start(t, nil)
	conversation := []mmada.Message{mmada.User(question), mmada.Assistant("42"), mmada.User("What is 30 + 12?")}
	generation := must[*mmada.Generation](t)(c.BeginText(conversation, nil))
	defer generation.Close()
	if err := generation.Run(background, nil); err != nil {
		t.Fatal(err)
	}
	want := "42\n" + must[string](t)(generation.Text()) + "\n"
	if said := run(question+"\nWhat is 30 + 12?\n", "chat"); said != want {
		t.Errorf("chat said %q instead of %q", said, want)
	}
	file := must[*os.File](t)(os.Open(drawn))
	defer file.Close()
	samePixels(t, must[image.Image](t)(png.Decode(file)), expectedPicture(t))
}

func TestEverythingExportedIsDocumented(t *testing.T) {
	for _, path := range must[[]string](t)(filepath.Glob("*.go")) {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file := must[*ast.File](t)(parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments))
		for _, declaration := range file.Decls {
			switch d := declaration.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && (d.Doc == nil || !strings.HasPrefix(d.Doc.Text(), d.Name.Name+" ")) {
					t.Errorf("%s: %s", path, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if s, ok := spec.(*ast.TypeSpec); ok && s.Name.IsExported() && d.Doc == nil {
						t.Errorf("%s: type %s", path, s.Name.Name)
					}
					if s, ok := spec.(*ast.ValueSpec); ok && s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil {
						t.Errorf("%s: %s", path, s.Names[0].Name)
					}
				}
			}
		}
	}
}
