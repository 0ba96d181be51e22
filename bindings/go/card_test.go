// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada_test

import (
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/libmmada/libmmada/bindings/go"
)

// What stands in for NVIDIA's driver is found by a process that begins with its folder in LD_LIBRARY_PATH: the test runs
// itself again.
func TestOnACardTheSameSeedGivesWhatTheProcessorGives(t *testing.T) {
	if os.Getenv("MMADA_ON_A_CARD") == "" {
		command := exec.Command(os.Args[0], "-test.run", "^TestOnACard", "-test.v")
		command.Env = append(os.Environ(), "MMADA_ON_A_CARD=1", "LD_LIBRARY_PATH="+os.Getenv("MMADA_DRIVER"))
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		return
	}
	_, processor := start(t, nil)
	expected, codes := shortResults(t, processor)
	layers := 2
	for _, given := range []*int{nil, &layers} {
		var done, total uint64
		model, card := start(t, &mmada.ContextOptions{
			Device: "cuda", GPULayers: given,
			Progress: func(d, of uint64) error { done, total = d, of; return nil },
		})
		info := must[mmada.ContextInfo](t)(card.Info())
		want := must[mmada.ModelInfo](t)(model.Info()).Layers
		if given != nil {
			want = *given
		}
		if info.Device != "cuda:0 (Stand-in)" || info.GPULayers != want || done != total || total == 0 {
			t.Errorf("%+v after %d of %d bytes", info, done, total)
		}
		ids, drawn := shortResults(t, card)
		if !slices.Equal(ids, expected) {
			t.Errorf("%v, not %v", ids, expected)
		}
		same := 0
		for i := range codes {
			if drawn[i] == codes[i] {
				same++
			}
		}
		// a code whose share of the sum ends within rounding of its random number may be its neighbour
		if len(drawn) != 64 || same < 58 {
			t.Errorf("%d of %d codes are the same", same, len(drawn))
		}
	}
}

// shortResults are the ids of a short answer, and the codes of a picture after its first step.
func shortResults(t *testing.T, c *mmada.Context) ([]uint32, []uint32) {
	t.Helper()
	model := open(t)
	text := must[mmada.TextOptions](t)(model.TextOptions(false, false))
	text.GenLength, text.BlockLength, text.Steps = 8, 8, 4
	answer := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, &text))
	defer answer.Close()
	if err := answer.Run(background, nil); err != nil {
		t.Fatal(err)
	}
	picture := must[mmada.ImageOptions](t)(model.ImageOptions(false))
	picture.Steps, picture.Seed = 2, 7
	drawing := must[*mmada.Generation](t)(c.BeginImage("a red circle on a white background", &picture))
	defer drawing.Close()
	must[mmada.Step](t)(drawing.Step(background))
	return must[[]uint32](t)(answer.IDs()), must[[]uint32](t)(drawing.Codes(0))
}
