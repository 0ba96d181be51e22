// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada_test

import (
	"context"
	"errors"
	"image"
	"image/color"
	"image/png"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/libmmada/libmmada/bindings/go"
)

const (
	prompt   = "a yellow star above a purple ring on a black background"
	question = "What is 17 + 25?"
)

func modelPath() string {
	if path := os.Getenv("MMADA_MODEL"); path != "" {
		return path
	}
	return filepath.Join("..", "..", "models", "mmada-shapes.gguf")
}

// background is the context of calls that nobody cancels.
var background = context.Background()

func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func open(t testing.TB) *mmada.Model {
	t.Helper()
	model := must[*mmada.Model](t)(mmada.Open(modelPath(), nil))
	t.Cleanup(func() { model.Close() })
	return model
}

func start(t testing.TB, options *mmada.ContextOptions) (*mmada.Model, *mmada.Context) {
	t.Helper()
	model := open(t)
	c := must[*mmada.Context](t)(model.NewContext(options))
	t.Cleanup(func() { c.Close() })
	return model, c
}

// endless are options of an answer that nothing ends before its 512 steps.
func endless(t testing.TB, model *mmada.Model) *mmada.TextOptions {
	t.Helper()
	options := must[mmada.TextOptions](t)(model.TextOptions(false, false))
	info := must[mmada.ModelInfo](t)(model.Info())
	options.GenLength, options.BlockLength, options.Steps = 512, 512, 512
	options.Forbid = []uint32{info.EOS, info.EOT}
	return &options
}

func beginEndless(t testing.TB, model *mmada.Model, c *mmada.Context) *mmada.Generation {
	t.Helper()
	generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User("Tell me everything.")}, endless(t, model)))
	t.Cleanup(func() { generation.Close() })
	return generation
}

func is(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("%v is not %v", err, target)
		}
	}
	var e *mmada.Error
	if !errors.As(err, &e) || e.Message == "" || !strings.HasPrefix(err.Error(), "mmada: ") {
		t.Fatalf("%#v is no *Error with a message", err)
	}
}

// expectedPicture is what the program mmada draws.
func expectedPicture(t testing.TB) image.Image {
	t.Helper()
	path := os.Getenv("MMADA_PICTURE")
	if path == "" {
		t.Skip("MMADA_PICTURE is not set")
	}
	file := must[*os.File](t)(os.Open(path))
	defer file.Close()
	return must[image.Image](t)(png.Decode(file))
}

func samePixels(t testing.TB, got, want image.Image) {
	t.Helper()
	if got.Bounds() != want.Bounds() {
		t.Fatalf("the picture has %v instead of %v", got.Bounds(), want.Bounds())
	}
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			if color.NRGBAModel.Convert(got.At(x, y)) != color.NRGBAModel.Convert(want.At(x, y)) {
				t.Fatalf("pixel %d,%d is %v instead of %v", x, y, got.At(x, y), want.At(x, y))
			}
		}
	}
}

func drawOptions(t testing.TB, model *mmada.Model) *mmada.ImageOptions {
	t.Helper()
	options := must[mmada.ImageOptions](t)(model.ImageOptions(false))
	options.Seed = 2
	return &options
}

func TestADrawingIsTheOneThatTheCommandLineDraws(t *testing.T) {
	want := expectedPicture(t)
	model, c := start(t, nil)
	got := must[*image.RGBA](t)(c.Draw(background, prompt, drawOptions(t, model)))
	samePixels(t, got, want)
}

func TestAQuestionIsAnswered(t *testing.T) {
	_, c := start(t, nil)
	if answer := must[string](t)(c.Ask(background, question, nil)); answer != "42" {
		t.Fatalf("%q", answer)
	}
}

func TestAnAnswerAboutAnImageOfAnyGoType(t *testing.T) {
	picture := expectedPicture(t)
	_, c := start(t, nil)
	bounds := picture.Bounds()
	palette := image.NewPaletted(bounds.Add(image.Pt(-7, 5)), nil)
	wide := image.NewNRGBA64(bounds)
	for y := range bounds.Dy() {
		for x := range bounds.Dx() {
			at := picture.At(x, y)
			wide.Set(x, y, at)
			index := slices.Index(palette.Palette, at)
			if index < 0 && len(palette.Palette) < 256 {
				palette.Palette = append(palette.Palette, at)
				index = len(palette.Palette) - 1
			}
			palette.SetColorIndex(x-7, y+5, uint8(max(index, 0)))
		}
	}
	for _, picture := range []image.Image{picture, palette, wide} {
		if answer := must[string](t)(c.Ask(background, "What color is the background?", picture)); answer != "black" {
			t.Errorf("%T: %q", picture, answer)
		}
	}
}

func TestThinkingAndAnswerComeApart(t *testing.T) {
	model, c := start(t, nil)
	options := must[mmada.TextOptions](t)(model.TextOptions(true, false))
	if !options.Thinking {
		t.Fatal("the options do not think")
	}
	generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, &options))
	defer generation.Close()
	if err := generation.Run(background, nil); err != nil {
		t.Fatal(err)
	}
	text, thinking, answer := must[string](t)(generation.Text()), must[string](t)(generation.Thinking()), must[string](t)(generation.Answer())
	if answer != "42" || thinking == "" || !strings.Contains(text, "<think>"+thinking+"</think>") {
		t.Fatalf("%q is %q and %q", text, thinking, answer)
	}
}

func TestStepsTellWhatChanges(t *testing.T) {
	model, c := start(t, nil)
	generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
	defer generation.Close()
	canvas := must[[]uint32](t)(generation.Canvas())
	if canvas[0] != mmada.Masked {
		t.Fatal("a canvas that is decided before the first step")
	}
	steps := 0
	for step, err := range generation.Steps(background) {
		if err != nil {
			t.Fatal(err)
		}
		steps++
		if step.Stage != mmada.StageText || step.Index != steps || step.Total < steps {
			t.Fatalf("step %d is %+v", steps, step)
		}
		for _, change := range step.Changes {
			canvas[change.Position] = change.ID
		}
	}
	if got := must[[]uint32](t)(generation.Canvas()); steps == 0 || !slices.Equal(got, canvas) {
		t.Fatalf("the changes of %d steps make %v instead of %v", steps, canvas, got)
	}
	ids := must[[]uint32](t)(generation.IDs())
	if text := must[string](t)(model.Detokenize(ids, true)); text != "42" {
		t.Fatalf("the ids %v say %q", ids, text)
	}
	info := must[mmada.GenerationInfo](t)(generation.Info())
	if !info.Done || !info.HasText || info.TotalSteps < steps || info.ImageCount != 0 {
		t.Fatalf("%+v after %d steps", info, steps)
	}
	_, err := generation.Step(background)
	is(t, err, mmada.ErrDone)
	for range generation.Steps(background) {
		t.Fatal("a complete generation has steps")
	}
}

func TestALoopCanBeLeftAndGoneOnWith(t *testing.T) {
	model, c := start(t, nil)
	generation := must[*mmada.Generation](t)(c.BeginImage(prompt, drawOptions(t, model)))
	defer generation.Close()
	for step, err := range generation.Steps(background) {
		if err != nil {
			t.Fatal(err)
		}
		if step.Index == 2 {
			break
		}
	}
	stop := errors.New("enough")
	if err := generation.Run(background, func(step mmada.Step) error {
		if step.Index != 3 {
			t.Errorf("step %d follows the second", step.Index)
		}
		return stop
	}); err != stop {
		t.Fatalf("the callback's error came back as %v", err)
	}
	preview := must[*image.RGBA](t)(generation.Image(background, 0))
	if err := generation.Run(background, nil); err != nil {
		t.Fatal(err)
	}
	got := must[*image.RGBA](t)(generation.Image(background, 0))
	if reflect.DeepEqual(got, preview) {
		t.Error("the preview is the picture")
	}
	samePixels(t, got, expectedPicture(t))
}

func TestPicturesThatAreDrawnTogetherAreThoseOfTheirSeeds(t *testing.T) {
	model, c := start(t, nil)
	options := drawOptions(t, model)
	options.Seed, options.Count = 1, 2
	generation := must[*mmada.Generation](t)(c.BeginImage(prompt, options))
	defer generation.Close()
	if err := generation.Run(background, nil); err != nil {
		t.Fatal(err)
	}
	info := must[mmada.GenerationInfo](t)(generation.Info())
	if info.ImageCount != 2 {
		t.Fatalf("%+v", info)
	}
	second := must[*image.RGBA](t)(generation.Image(background, 1))
	samePixels(t, second, expectedPicture(t))
	codes := must[[]uint32](t)(generation.Codes(1))
	samePixels(t, must[*image.RGBA](t)(c.DecodeImage(codes, info.ImageColumns)), second)
	offset := uint32(must[mmada.ModelInfo](t)(model.Info()).ImageOffset)
	for i, id := range must[[]uint32](t)(generation.ImageCanvas(1)) {
		if id != codes[i]+offset {
			t.Fatalf("place %d has id %d and code %d", i, id, codes[i])
		}
	}
	_, err := generation.Image(background, 2)
	is(t, err, mmada.ErrInvalidArgument)
	_, err = generation.ImageCanvas(-1)
	is(t, err, mmada.ErrNotFound)
	_, err = generation.Text()
	is(t, err, mmada.ErrInvalidArgument)
	_, err = c.Draw(background, prompt, options)
	is(t, err, mmada.ErrInvalidArgument)
}

func TestStopForbidAllowAndPinned(t *testing.T) {
	model, c := start(t, nil)
	run := func(change func(*mmada.TextOptions)) (string, []uint32) {
		t.Helper()
		options := must[mmada.TextOptions](t)(model.TextOptions(false, false))
		change(&options)
		generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, &options))
		defer generation.Close()
		if err := generation.Run(background, nil); err != nil {
			t.Fatal(err)
		}
		return must[string](t)(generation.Answer()), must[[]uint32](t)(generation.Canvas())
	}
	plain, _ := run(func(*mmada.TextOptions) {})
	ids := must[[]uint32](t)(model.Tokenize(plain, false))
	if got, _ := run(func(o *mmada.TextOptions) { o.Stop = []string{"never said", plain[1:]} }); got != plain[:1] {
		t.Errorf("stopped before %q: %q", plain[1:], got)
	}
	if got, canvas := run(func(o *mmada.TextOptions) { o.Forbid = ids }); got == plain || slices.Contains(canvas, ids[0]) {
		t.Errorf("%v is forbidden but %q is said, %v", ids, got, canvas)
	}
	others := must[[]uint32](t)(model.Tokenize("7", false))
	_, canvas := run(func(o *mmada.TextOptions) { o.AllowOnly = others })
	for _, id := range canvas {
		if id != others[0] {
			t.Errorf("%v although only %v are allowed", canvas, others)
		}
	}
	_, canvas = run(func(o *mmada.TextOptions) {
		o.Pinned = []mmada.Pin{{Position: 1, ID: others[0]}, {Position: 3, ID: ids[0]}}
	})
	if canvas[1] != others[0] || canvas[3] != ids[0] {
		t.Errorf("%v without what is pinned", canvas)
	}
	options := must[mmada.TextOptions](t)(model.TextOptions(false, false))
	options.AllowOnly = []uint32{}
	_, err := c.BeginText([]mmada.Message{mmada.User(question)}, &options)
	is(t, err, mmada.ErrInvalidArgument)
}

func TestTheSeedMakesTheAnswer(t *testing.T) {
	model, one := start(t, &mmada.ContextOptions{Threads: 1})
	two := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{Threads: 2}))
	defer two.Close()
	draw := func(c *mmada.Context, seed uint64) []uint32 {
		t.Helper()
		options := must[mmada.ImageOptions](t)(model.ImageOptions(false))
		options.Seed = seed
		options.Steps = 3
		generation := must[*mmada.Generation](t)(c.BeginImage("a red circle", &options))
		defer generation.Close()
		if err := generation.Run(background, nil); err != nil {
			t.Fatal(err)
		}
		return must[[]uint32](t)(generation.Codes(0))
	}
	first := draw(one, math.MaxUint64)
	if !slices.Equal(first, draw(two, math.MaxUint64)) {
		t.Error("two threads draw otherwise than one")
	}
	if slices.Equal(first, draw(one, 7)) {
		t.Error("two seeds draw the same")
	}
}

func TestThinkingBeforeAPicture(t *testing.T) {
	model, c := start(t, nil)
	options := must[mmada.ImageOptions](t)(model.ImageOptions(true))
	description := must[mmada.TextOptions](t)(model.DescriptionOptions())
	options.Description = &description
	generation := must[*mmada.Generation](t)(c.BeginImage("a red circle", &options))
	defer generation.Close()
	var stages []mmada.Stage
	if err := generation.Run(background, func(step mmada.Step) error {
		stages = append(stages, step.Stage)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := slices.Compact(stages); !slices.Equal(got, []mmada.Stage{mmada.StageText, mmada.StageImage}) {
		t.Errorf("the stages are %v", got)
	}
	if text := must[string](t)(generation.Description()); text == "" {
		t.Error("no description")
	}
	if picture := must[*image.RGBA](t)(generation.Image(background, 0)); picture.Bounds().Dx() != options.Width {
		t.Errorf("%v", picture.Bounds())
	}
	options.Thinking = false
	_, err := c.BeginImage("a red circle", &options)
	is(t, err, mmada.ErrInvalidArgument)
}

func TestWarningsTellOfAPromptThatIsCut(t *testing.T) {
	model, c := start(t, nil)
	generation := must[*mmada.Generation](t)(c.BeginImage(strings.Repeat("a very red circle and ", 500), drawOptions(t, model)))
	defer generation.Close()
	if warnings := must[[]string](t)(generation.Warnings()); len(warnings) != 1 || !strings.Contains(warnings[0], "left out") {
		t.Errorf("%q", warnings)
	}
}

func TestGenerationsTakeTurns(t *testing.T) {
	model, c := start(t, nil)
	text := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
	defer text.Close()
	drawing := must[*mmada.Generation](t)(c.BeginImage(prompt, drawOptions(t, model)))
	defer drawing.Close()
	c.Close()
	model.Close()
	for a, b := true, true; a || b; {
		for _, turn := range []struct {
			generation *mmada.Generation
			going      *bool
		}{{text, &a}, {drawing, &b}} {
			if *turn.going {
				*turn.going = !must[mmada.Step](t)(turn.generation.Step(background)).Done
			}
		}
	}
	if answer := must[string](t)(text.Answer()); answer != "42" {
		t.Errorf("%q", answer)
	}
	samePixels(t, must[*image.RGBA](t)(drawing.Image(background, 0)), expectedPicture(t))
}

func TestPromptsOfIDs(t *testing.T) {
	model, c := start(t, nil)
	messages := []mmada.Message{mmada.System("Be brief."), mmada.User("What is 2 + 2?"), mmada.Assistant("4"), mmada.User(question)}
	ids := must[[]uint32](t)(model.PromptIDs(messages, false))
	answers := []string{}
	for _, begin := range []func() (*mmada.Generation, error){
		func() (*mmada.Generation, error) { return c.BeginText(messages, nil) },
		func() (*mmada.Generation, error) { return c.BeginTextIDs(ids, nil) },
	} {
		generation := must[*mmada.Generation](t)(begin())
		if err := generation.Run(background, nil); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, must[string](t)(generation.Text()))
		generation.Close()
	}
	if answers[0] != answers[1] {
		t.Errorf("%q", answers)
	}
	options := must[mmada.ImageOptions](t)(model.ImageOptions(false))
	options.Guidance = 0
	generation := must[*mmada.Generation](t)(c.BeginImageIDs(ids[:5], nil, &options))
	defer generation.Close()
	if err := generation.Run(background, nil); err != nil {
		t.Fatal(err)
	}
}

func TestTokenizeAndBack(t *testing.T) {
	model := open(t)
	for _, text := range []string{"", "Wie heißt du? 🦀", "a\x00b", " <|endoftext|> "} {
		ids := must[[]uint32](t)(model.Tokenize(text, false))
		if back := must[string](t)(model.Detokenize(ids, false)); back != text {
			t.Errorf("%q became %q", text, back)
		}
	}
	info := must[mmada.ModelInfo](t)(model.Info())
	special := must[string](t)(model.Detokenize([]uint32{info.EOS}, false))
	if ids := must[[]uint32](t)(model.Tokenize(special, true)); !slices.Equal(ids, []uint32{info.EOS}) {
		t.Errorf("%q is %v", special, ids)
	}
	if text := must[string](t)(model.Detokenize([]uint32{info.EOS}, true)); text != "" {
		t.Errorf("%q", text)
	}
	_, err := model.Tokenize("\xff", false)
	is(t, err, mmada.ErrInvalidUTF8)
	_, err = model.Tokenize(strings.Repeat("a", 1<<20+1), false)
	is(t, err, mmada.ErrInvalidArgument)
}

func TestLogitsAndScores(t *testing.T) {
	model, c := start(t, nil)
	info := must[mmada.ModelInfo](t)(model.Info())
	before := must[[]uint32](t)(model.PromptIDs([]mmada.Message{mmada.User(question)}, false))
	right := must[[]uint32](t)(model.Tokenize("42", false))
	wrong := must[[]uint32](t)(model.Tokenize("13", false))
	score := func(answer []uint32) mmada.Score {
		return must[mmada.Score](t)(c.Score(background, before, answer, &mmada.ScoreOptions{Samples: 16, Seed: 3}))
	}
	a, b := score(right), score(wrong)
	if !(a.LogLikelihood > b.LogLikelihood) || a.LogLikelihood > 0 || a.Samples != 16 {
		t.Errorf("%+v for 42, %+v for 13", a, b)
	}
	if a != score(right) {
		t.Error("the same seed gives another score")
	}
	sequence := append(slices.Clone(before), slices.Repeat([]uint32{info.Mask}, 2)...)
	rows := []int{len(sequence) - 1, len(before)}
	logits := must[[][]float32](t)(c.Logits(background, sequence, rows, 0, uint32(info.TextVocabulary)))
	part := must[[][]float32](t)(c.Logits(background, sequence, rows[1:], 5, 12))
	if len(logits) != 2 || len(logits[0]) != info.TextVocabulary || !slices.Equal(part[0], logits[1][5:12]) {
		t.Errorf("%v is not the part of the row", part)
	}
	for _, err := range []error{
		errorOf(c.Logits(background, sequence, rows, 4, uint32(info.Vocabulary)+1)),
		errorOf(c.Logits(background, sequence, rows, 4, 3)),
		errorOf(c.Logits(background, sequence, []int{-1}, 0, 1)),
		errorOf(c.Logits(background, sequence, []int{len(sequence)}, 0, 1)),
		errorOf(c.Logits(background, nil, nil, 0, 1)),
		errorOf(c.Score(background, before, nil, nil)),
		errorOf(c.Score(background, before, []uint32{info.Mask}, nil)),
		errorOf(c.Score(background, before, right, &mmada.ScoreOptions{Samples: -1})),
	} {
		is(t, err, mmada.ErrInvalidArgument)
	}
}

func errorOf[T any](_ T, err error) error { return err }

func TestInformation(t *testing.T) {
	model, c := start(t, &mmada.ContextOptions{Threads: 2, InstructionSet: "portable", Compute: mmada.ComputeExact})
	info := must[mmada.ModelInfo](t)(model.Info())
	if !info.HasImages || info.Vocabulary <= info.TextVocabulary || info.ImageDownsampling == 0 || info.FileBytes < 1<<20 {
		t.Errorf("%+v", info)
	}
	context := must[mmada.ContextInfo](t)(c.Info())
	if context.Threads != 2 || context.InstructionSet != "portable" || context.Compute != mmada.ComputeExact {
		t.Errorf("%+v", context)
	}
	keys := must[[]string](t)(model.MetadataKeys())
	if !slices.Contains(keys, "general.architecture") {
		t.Errorf("%v", keys)
	}
	if value := must[string](t)(model.Metadata("general.architecture")); value != "mmada" {
		t.Errorf("%q", value)
	}
	_, err := model.Metadata("no.such.key")
	is(t, err, mmada.ErrNotFound)
	devices := must[[]mmada.Device](t)(mmada.Devices())
	if len(devices) == 0 || devices[0].Backend != "cpu" || !strings.Contains(devices[0].InstructionSets, "portable") {
		t.Errorf("%+v", devices)
	}
	if devices[0].ID != "cpu" || devices[0].Refusal != "" || devices[0].ComputeCapability != [2]int{} {
		t.Errorf("%+v", devices[0])
	}
	if !strings.Contains(mmada.BuildInfo(), mmada.Version()) {
		t.Errorf("%q, %q", mmada.BuildInfo(), mmada.Version())
	}
	text := must[mmada.Estimate](t)(model.EstimateText(10, nil))
	picture := must[mmada.Estimate](t)(model.EstimateImage(10, drawOptions(t, model)))
	if text.Tokens == 0 || picture.MultiplyAdds <= text.MultiplyAdds || picture.WeightBytes == 0 || picture.ScratchBytes == 0 {
		t.Errorf("%+v and %+v", text, picture)
	}
	if duration := must[any](t)(c.Duration(picture)); duration == 0 {
		t.Error("a picture takes no time")
	}
	_, err = model.EstimateText(-1, nil)
	is(t, err, mmada.ErrInvalidArgument)
}

func TestAModelOpensFromAFileAndFromBytes(t *testing.T) {
	file := must[*os.File](t)(os.Open(modelPath()))
	behind := must[*mmada.Model](t)(mmada.OpenFile(file, nil))
	file.Close()
	bytes := must[[]byte](t)(os.ReadFile(modelPath()))
	// no 32 bytes fit this slice's address
	shifted := append([]byte{0}, bytes...)[1:]
	within := must[*mmada.Model](t)(mmada.OpenBytes("memory", shifted))
	read := must[*mmada.Model](t)(mmada.Open(modelPath(), &mmada.OpenOptions{NoMap: true}))
	clear(shifted)
	for _, model := range []*mmada.Model{behind, within, read} {
		c := must[*mmada.Context](t)(model.NewContext(nil))
		model.Close() // what the context keeps of it stays
		if answer := must[string](t)(c.Ask(background, question, nil)); answer != "42" {
			t.Errorf("%q", answer)
		}
		c.Close()
	}
	_, err := mmada.OpenFile(file, nil)
	is(t, err, mmada.ErrIO, fs.ErrClosed)
	_, err = mmada.OpenFile(nil, nil)
	is(t, err, mmada.ErrIO, fs.ErrInvalid)
	_, err = mmada.OpenBytes("half a model", bytes[:len(bytes)/2])
	is(t, err, mmada.ErrBadFormat)
	_, err = mmada.OpenBytes("nothing", nil)
	is(t, err, mmada.ErrBadFormat)
}

func TestBadInputIsAnErrorWithASentence(t *testing.T) {
	model, c := start(t, nil)
	folder := t.TempDir()
	_, err := mmada.Open(filepath.Join(folder, "none.gguf"), nil)
	is(t, err, mmada.ErrIO)
	if !strings.Contains(err.Error(), "none.gguf") {
		t.Errorf("%v does not name the file", err)
	}
	_, err = mmada.Open("a\x00b", nil)
	is(t, err, mmada.ErrIO)
	changed := func(change func(*mmada.TextOptions)) error {
		options := must[mmada.TextOptions](t)(model.TextOptions(false, false))
		change(&options)
		return errorOf(c.BeginText([]mmada.Message{mmada.User("Hi")}, &options))
	}
	drawing := func(change func(*mmada.ImageOptions)) error {
		options := must[mmada.ImageOptions](t)(model.ImageOptions(false))
		change(&options)
		return errorOf(c.BeginImage("a circle", &options))
	}
	two := image.NewGray(image.Rect(0, 0, 9, 9))
	for what, err := range map[string]error{
		"no messages":         errorOf(c.BeginText(nil, nil)),
		"an unknown role":     errorOf(c.BeginText([]mmada.Message{{Role: 9, Content: "Hi"}}, nil)),
		"zero options":        errorOf(c.BeginText([]mmada.Message{mmada.User("Hi")}, &mmada.TextOptions{})),
		"zero image options":  errorOf(c.BeginImage("a circle", &mmada.ImageOptions{})),
		"a negative length":   changed(func(o *mmada.TextOptions) { o.GenLength = -1 }),
		"a negative pin":      changed(func(o *mmada.TextOptions) { o.Pinned = []mmada.Pin{{Position: -1}} }),
		"a pin outside":       changed(func(o *mmada.TextOptions) { o.Pinned = []mmada.Pin{{Position: o.GenLength}} }),
		"no number":           changed(func(o *mmada.TextOptions) { o.Temperature = math.NaN() }),
		"an unknown enum":     changed(func(o *mmada.TextOptions) { o.Remasking = 77 }),
		"an empty stop text":  changed(func(o *mmada.TextOptions) { o.Stop = []string{""} }),
		"a forbidden number":  changed(func(o *mmada.TextOptions) { o.Forbid = []uint32{math.MaxUint32} }),
		"a width of 7":        drawing(func(o *mmada.ImageOptions) { o.Width = 7 }),
		"minus two pictures":  drawing(func(o *mmada.ImageOptions) { o.Count = -2 }),
		"an unknown schedule": drawing(func(o *mmada.ImageOptions) { o.Schedule = 77 }),
		"too many threads":    errorOf(model.NewContext(&mmada.ContextOptions{Threads: 5000})),
		"negative threads":    errorOf(model.NewContext(&mmada.ContextOptions{Threads: -1})),
		"a foreign processor": errorOf(model.NewContext(&mmada.ContextOptions{InstructionSet: "vax"})),
		"an unknown compute":  errorOf(model.NewContext(&mmada.ContextOptions{Compute: 9})),
		"codes without rows":  errorOf(c.DecodeImage([]uint32{1, 2, 3}, 2)),
		"a code outside":      errorOf(c.DecodeImage([]uint32{math.MaxUint32}, 1)),
		"an odd picture":      errorOf(c.EncodeImage(two)),
		"another ending":      mmada.WriteImage(filepath.Join(folder, "a.bmp"), two),
		"another format":      errorOf(mmada.FormatImage(two, 9)),
		"thinking in ids":     errorOf(c.BeginTextIDs([]uint32{1}, &mmada.TextOptions{Thinking: true, GenLength: 8, BlockLength: 8, Steps: 8})),
		"no context":          errorOf(c.Ask(nil, "Hi", nil)), //nolint:staticcheck
	} {
		if !errors.Is(err, mmada.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		is(t, err, mmada.ErrInvalidArgument)
	}
	_, err = c.BeginText([]mmada.Message{mmada.User("\xff")}, nil)
	is(t, err, mmada.ErrInvalidUTF8)
	_, err = c.BeginText([]mmada.Message{mmada.UserImage("Hi", two), mmada.UserImage("Hi", two)}, nil)
	is(t, err, mmada.ErrUnsupported, errors.ErrUnsupported)
	for _, picture := range []image.Image{image.NewRGBA(image.Rectangle{}), image.NewUniform(color.White), image.NewGray(image.Rect(0, 0, 20000, 1))} {
		_, err = c.Ask(background, "What is this?", picture)
		is(t, err, mmada.ErrBadImage)
	}
	is(t, mmada.WriteImage("a.png", nil), mmada.ErrBadImage)
	_, err = mmada.ParseImage([]byte("no picture"))
	is(t, err, mmada.ErrBadImage)
	limited := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{MemoryLimit: 1000}))
	defer limited.Close()
	_, err = limited.Ask(background, question, nil)
	is(t, err, mmada.ErrOutOfMemory)
	_, err = model.NewContext(&mmada.ContextOptions{MemoryLimit: 1000, Pack: true})
	is(t, err, mmada.ErrOutOfMemory)
}

func TestADeviceThatIsNotThereIsSaidToBeMissing(t *testing.T) {
	model, _ := start(t, nil)
	_, err := model.NewContext(&mmada.ContextOptions{Device: "gpu"})
	is(t, err, mmada.ErrInvalidArgument)
	layers := -1
	_, err = model.NewContext(&mmada.ContextOptions{GPULayers: &layers})
	is(t, err, mmada.ErrInvalidArgument)
	_, err = mmada.Unavailable("vulkan")
	is(t, err, mmada.ErrNotFound)
	if reason := must[string](t)(mmada.Unavailable("cpu")); reason != "" {
		t.Error(reason)
	}
	reason := must[string](t)(mmada.Unavailable("cuda"))
	if reason == "" {
		t.Skip("this machine has a card")
	}
	_, err = model.NewContext(&mmada.ContextOptions{Device: "cuda:7"})
	is(t, err, mmada.ErrInvalidArgument)
	if !strings.Contains(err.Error(), "cuda:7") || !strings.Contains(err.Error(), reason) {
		t.Error(err)
	}
	var log strings.Builder
	layers = 2
	c := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{
		Device: "auto", GPULayers: &layers, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Progress: func(done, total uint64) error { t.Error("told of progress"); return nil },
	}))
	defer c.Close()
	info := must[mmada.ContextInfo](t)(c.Info())
	if info.Device != "cpu" || info.GPULayers != 0 || !strings.Contains(log.String(), "running on the cpu") {
		t.Errorf("%+v, %q", info, log.String())
	}
}

func TestPackedWeightsAnswerTheSame(t *testing.T) {
	_, packed := start(t, &mmada.ContextOptions{Pack: true})
	info := must[mmada.ContextInfo](t)(packed.Info())
	if info.PackedBytes < 1<<20 || info.MemoryUsed != info.PackedBytes {
		t.Errorf("%+v", info)
	}
	if answer := must[string](t)(packed.Ask(background, question, nil)); answer != "42" {
		t.Error(answer)
	}
}

func TestPicturesKeepTheirPixelsThroughFiles(t *testing.T) {
	picture := image.NewNRGBA(image.Rect(-3, 2, 10, 9))
	for i := range picture.Pix {
		picture.Pix[i] = uint8(i*37 + i/5)
	}
	want := image.NewRGBA(image.Rect(0, 0, 13, 7))
	for y := range 7 {
		for x := range 13 {
			at := picture.NRGBAAt(x-3, y+2)
			want.SetRGBA(x, y, color.RGBA{at.R, at.G, at.B, 0xff}) // alpha is dropped
		}
	}
	path := filepath.Join(t.TempDir(), "a.png")
	if err := mmada.WriteImage(path, picture); err != nil {
		t.Fatal(err)
	}
	samePixels(t, must[*image.RGBA](t)(mmada.ReadImage(path)), want)
	file := must[[]byte](t)(mmada.FormatImage(picture, mmada.PNG))
	samePixels(t, must[*image.RGBA](t)(mmada.ParseImage(file)), want)
	must[*image.RGBA](t)(mmada.ParseImage(must[[]byte](t)(mmada.FormatImage(want, mmada.JPEG))))
	_, err := mmada.ReadImage(path + ".none")
	is(t, err, mmada.ErrIO)
	_, c := start(t, nil)
	codes := must[[]uint32](t)(c.EncodeImage(expectedPicture(t)))
	if again := must[*image.RGBA](t)(c.DecodeImage(codes, 8)); again.Bounds().Dx() == 0 {
		t.Error("an empty picture")
	}
}
