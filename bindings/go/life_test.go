// SPDX-License-Identifier: MIT OR Apache-2.0

package mmada_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libmmada/libmmada/bindings/go"
)

func TestUseAfterCloseIsAnError(t *testing.T) {
	model, c := start(t, nil)
	generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
	for range 2 {
		if generation.Close() != nil || c.Close() != nil || model.Close() != nil {
			t.Fatal("closing failed")
		}
	}
	generation.Cancel()
	check := func(model *mmada.Model, c *mmada.Context, generation *mmada.Generation) {
		t.Helper()
		for _, err := range []error{
			errorOf(model.Info()),
			errorOf(model.MetadataKeys()),
			errorOf(model.Metadata("general.name")),
			errorOf(model.Tokenize("a", false)),
			errorOf(model.Detokenize(nil, false)),
			errorOf(model.PromptIDs(nil, false)),
			errorOf(model.TextOptions(false, false)),
			errorOf(model.ImageOptions(false)),
			errorOf(model.DescriptionOptions()),
			errorOf(model.EstimateText(1, nil)),
			errorOf(model.EstimateImage(1, nil)),
			errorOf(model.NewContext(nil)),
			errorOf(c.Info()),
			errorOf(c.Duration(mmada.Estimate{})),
			errorOf(c.Ask(background, question, nil)),
			errorOf(c.Draw(background, prompt, nil)),
			errorOf(c.BeginTextIDs([]uint32{1}, nil)),
			errorOf(c.BeginImageIDs([]uint32{1}, nil, nil)),
			errorOf(c.Logits(background, []uint32{1}, []int{0}, 0, 0)),
			errorOf(c.Score(background, nil, []uint32{1}, nil)),
			errorOf(c.EncodeImage(nil)),
			errorOf(c.DecodeImage(nil, 0)),
			errorOf(generation.Step(background)),
			generation.Run(background, nil),
			errorOf(generation.Info()),
			errorOf(generation.Text()),
			errorOf(generation.Thinking()),
			errorOf(generation.Answer()),
			errorOf(generation.Description()),
			errorOf(generation.Warnings()),
			errorOf(generation.IDs()),
			errorOf(generation.Canvas()),
			errorOf(generation.ImageCanvas(0)),
			errorOf(generation.Codes(0)),
			errorOf(generation.Image(background, 0)),
		} {
			is(t, err, mmada.ErrClosed, fs.ErrClosed)
		}
	}
	check(model, c, generation)
	check(&mmada.Model{}, &mmada.Context{}, &mmada.Generation{})
	new(mmada.Generation).Cancel()
	new(mmada.Generation).Close()
	new(mmada.Context).Close()
	new(mmada.Model).Close()
}

// stepping runs steps in a goroutine, and tells of what they end with. It waits after the first one until goOn is called.
func stepping(ctx context.Context, generation *mmada.Generation) (goOn func(), end <-chan error) {
	first, wait, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		ended <- generation.Run(ctx, func(mmada.Step) error {
			once.Do(func() {
				close(first)
				<-wait
			})
			return nil
		})
	}()
	<-first
	return func() { close(wait) }, ended
}

func TestAContextCancelsAGenerationInAnotherGoroutine(t *testing.T) {
	model, c := start(t, nil)
	ctx, cancel := context.WithCancelCause(background)
	generation := beginEndless(t, model, c)
	goOn, end := stepping(ctx, generation)
	why := errors.New("the user went away")
	cancel(why)
	goOn()
	err := <-end
	is(t, err, mmada.ErrCancelled, context.Canceled, why)
	if !strings.Contains(err.Error(), why.Error()) {
		t.Errorf("%v does not say why", err)
	}
	_, err = generation.Step(background)
	is(t, err, mmada.ErrCancelled, why)
	must[string](t)(generation.Text()) // results so far
	_, err = generation.Image(background, -1)
	is(t, err, mmada.ErrInvalidArgument)
	if answer := must[string](t)(c.Ask(background, question, nil)); answer != "42" {
		t.Errorf("afterwards the context says %q", answer)
	}
}

func TestDeadlinesAndContextsThatHaveEnded(t *testing.T) {
	model, c := start(t, nil)
	ctx, cancel := context.WithTimeout(background, 30*time.Millisecond)
	defer cancel()
	is(t, beginEndless(t, model, c).Run(ctx, func(mmada.Step) error {
		<-ctx.Done()
		return nil
	}), mmada.ErrCancelled, context.DeadlineExceeded)
	for range 3 {
		is(t, beginEndless(t, model, c).Run(ctx, nil), mmada.ErrCancelled, context.DeadlineExceeded)
		_, err := c.Score(ctx, []uint32{1}, []uint32{2}, nil)
		is(t, err, mmada.ErrCancelled, context.DeadlineExceeded)
		_, err = c.Ask(ctx, question, nil)
		is(t, err, mmada.ErrCancelled, context.DeadlineExceeded)
	}
}

func TestScoresAreCancelled(t *testing.T) {
	_, c := start(t, nil)
	ctx, cancel := context.WithCancel(background)
	time.AfterFunc(20*time.Millisecond, cancel)
	_, err := c.Score(ctx, []uint32{5, 6, 7}, []uint32{8, 9}, &mmada.ScoreOptions{Samples: 1 << 20})
	is(t, err, mmada.ErrCancelled, context.Canceled)
}

func TestCancelAndCloseEndARunInAnotherGoroutine(t *testing.T) {
	model, c := start(t, nil)
	generation := beginEndless(t, model, c)
	goOn, end := stepping(background, generation)
	generation.Cancel()
	goOn()
	is(t, <-end, mmada.ErrCancelled)
	generation = beginEndless(t, model, c)
	goOn, end = stepping(background, generation)
	generation.Close()
	goOn()
	is(t, <-end, mmada.ErrClosed)
}

// gate is a logger that holds a step in its middle, once it is armed.
type gate struct {
	armed            atomic.Bool
	entered, release chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan struct{}), release: make(chan struct{})} }

func (g *gate) options() *mmada.ContextOptions {
	h := &handler{handle: func(context.Context, slog.Record) error {
		if g.armed.CompareAndSwap(true, false) {
			close(g.entered)
			<-g.release
		}
		return nil
	}}
	h.level.Store(int64(slog.LevelDebug))
	return &mmada.ContextOptions{Logger: slog.New(h)}
}

// hold runs a step up to its middle, and gives what it will end with.
func (g *gate) hold(ctx context.Context, generation *mmada.Generation) <-chan error {
	g.armed.Store(true)
	end := make(chan error, 1)
	go func() { end <- errorOf(generation.Step(ctx)) }()
	<-g.entered
	return end
}

func TestASecondCallMeanwhileIsBusy(t *testing.T) {
	gate := newGate()
	model, c := start(t, gate.options())
	generation := beginEndless(t, model, c)
	end := gate.hold(background, generation)
	_, err := generation.Step(background)
	is(t, err, mmada.ErrBusy)
	_, err = generation.Text()
	is(t, err, mmada.ErrBusy)
	_, err = generation.Info()
	is(t, err, mmada.ErrBusy)
	close(gate.release)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	if step := must[mmada.Step](t)(generation.Step(background)); step.Index != 2 {
		t.Errorf("%+v", step)
	}
}

func TestAContextCancelsWhileAStepRuns(t *testing.T) {
	gate := newGate()
	model, c := start(t, gate.options())
	generation := beginEndless(t, model, c)
	ctx, cancel := context.WithCancel(background)
	end := gate.hold(ctx, generation)
	cancel()
	for !generation.Cancelled() { // by a goroutine, before the step returns
		time.Sleep(time.Millisecond)
	}
	close(gate.release)
	if err := <-end; err != nil { // what was computed already is not thrown away
		is(t, err, mmada.ErrCancelled, context.Canceled)
	}
	_, err := generation.Step(background)
	is(t, err, mmada.ErrCancelled, context.Canceled)
}

func TestClosingInTheMiddleOfAStepLetsItEnd(t *testing.T) {
	collected(t) // what earlier tests forgot
	gate := newGate()
	model := must[*mmada.Model](t)(mmada.Open(modelPath(), nil))
	c := must[*mmada.Context](t)(model.NewContext(gate.options()))
	generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
	end := gate.hold(background, generation)
	generation.Close()
	c.Close()
	model.Close()
	if mmada.Live() == 0 {
		t.Error("what a step uses was freed")
	}
	_, err := generation.Text()
	is(t, err, mmada.ErrClosed)
	close(gate.release)
	if err := <-end; err != nil {
		is(t, err, mmada.ErrClosed)
	}
	if left := mmada.Live(); left != 0 {
		t.Errorf("%d objects are left", left)
	}
}

// Everything at once, with closing in the middle: statuses are all that may come of it.
func TestClosingWhileOthersUseIsHarmless(t *testing.T) {
	collected(t) // what earlier tests forgot
	for round := range 20 {
		model := must[*mmada.Model](t)(mmada.Open(modelPath(), nil))
		c := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{Threads: 2, Logger: slog.New(slog.DiscardHandler)}))
		generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User("Tell me everything.")}, endless(t, model)))
		var users sync.WaitGroup
		use := func(call func() error) {
			users.Add(1)
			go func() {
				defer users.Done()
				for {
					err := call()
					switch {
					case errors.Is(err, mmada.ErrClosed):
						return
					case err == nil, errors.Is(err, mmada.ErrBusy), errors.Is(err, mmada.ErrCancelled):
					default:
						t.Error(err)
						return
					}
				}
			}()
		}
		use(func() error { return errorOf(generation.Step(background)) })
		use(func() error { return errorOf(generation.Step(background)) })
		use(func() error { return errorOf(generation.Canvas()) })
		use(func() error { generation.Cancel(); return errorOf(generation.Text()) })
		use(func() error { return errorOf(c.Logits(background, []uint32{1, 2, 3}, []int{0}, 0, 10)) })
		use(func() error { return errorOf(c.Ask(background, question, nil)) })
		use(func() error { return errorOf(model.Tokenize("What is this?", false)) })
		use(func() error {
			other, err := model.NewContext(&mmada.ContextOptions{Threads: 1})
			if err == nil {
				other.Close()
			}
			return err
		})
		random := rand.New(rand.NewPCG(1, uint64(round)))
		for _, i := range random.Perm(3) {
			time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
			[]func() error{model.Close, c.Close, generation.Close}[i]()
		}
		users.Wait()
	}
	if left := mmada.Live(); left != 0 {
		t.Errorf("%d objects are left", left)
	}
}

// collected waits until the collector has cleaned up everything that is forgotten, and no objects are left.
func collected(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); mmada.Live() != 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d objects are left after collection", mmada.Live())
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

func TestWhatIsForgottenIsFreed(t *testing.T) {
	collected(t) // what earlier tests forgot
	for i := range 10 {
		func() {
			model := must[*mmada.Model](t)(mmada.Open(modelPath(), nil))
			c := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{Threads: 1, Logger: slog.New(slog.DiscardHandler)}))
			generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
			if i%2 == 0 {
				must[mmada.Step](t)(generation.Step(background))
			}
		}()
	}
	collected(t)
}

// A collector that runs all the time must not free what a call is using.
func TestTheCollectorLeavesAloneWhatIsInUse(t *testing.T) {
	done := make(chan struct{})
	var collector sync.WaitGroup
	collector.Add(1)
	go func() {
		defer collector.Done()
		for {
			select {
			case <-done:
				return
			default:
				runtime.GC()
			}
		}
	}()
	ask := func() (string, error) {
		// nothing but the call itself keeps these
		c := must[*mmada.Context](t)(must[*mmada.Model](t)(mmada.Open(modelPath(), nil)).NewContext(&mmada.ContextOptions{Logger: slog.New(slog.DiscardHandler)}))
		generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(strings.Clone(question))}, nil))
		for _, err := range generation.Steps(background) {
			if err != nil {
				return "", err
			}
		}
		return generation.Answer()
	}
	var askers sync.WaitGroup
	for range 3 {
		askers.Add(1)
		go func() {
			defer askers.Done()
			for range 5 {
				if answer, err := ask(); err != nil || answer != "42" {
					t.Errorf("%q, %v", answer, err)
				}
			}
		}()
	}
	askers.Wait()
	close(done)
	collector.Wait()
}

func TestManyContextsOfOneModelSayTheSame(t *testing.T) {
	model := open(t)
	var wait sync.WaitGroup
	for range 4 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			c, err := model.NewContext(&mmada.ContextOptions{Threads: 1})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for range 3 {
				if answer, err := c.Ask(background, question, nil); err != nil || answer != "42" {
					t.Errorf("%q, %v", answer, err)
				}
			}
		}()
	}
	wait.Wait()
}

func TestAProgressFunctionIsToldAndCanStop(t *testing.T) {
	var last, size uint64
	calls := 0
	model := must[*mmada.Model](t)(mmada.Open(modelPath(), &mmada.OpenOptions{NoMap: true, Progress: func(done, total uint64) error {
		if done < last || done > total {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last, size, calls = done, total, calls+1
		return nil
	}}))
	defer model.Close()
	if last != size || size != uint64(must[mmada.ModelInfo](t)(model.Info()).FileBytes) || calls < 2 {
		t.Errorf("%d calls, the last of them %d of %d", calls, last, size)
	}
	enough := errors.New("enough")
	for _, unmapped := range []bool{false, true} {
		_, err := mmada.Open(modelPath(), &mmada.OpenOptions{NoMap: unmapped, Progress: func(done, total uint64) error { return enough }})
		is(t, err, mmada.ErrCancelled, enough)
	}
}

// outcome runs a call in a goroutine and says how it ended: returned, with a panic, or by Goexit.
func outcome(call func()) (returned bool, panicked any) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if !returned {
				panicked = recover()
			}
		}()
		call()
		returned = true
	}()
	<-done
	return returned, panicked
}

func isPanic(t *testing.T, panicked any, value error) {
	t.Helper()
	err, _ := panicked.(error)
	var e *mmada.PanicError
	if !errors.As(err, &e) || !errors.Is(err, value) || !strings.Contains(string(e.Stack), "life_test.go") {
		t.Fatalf("the call panicked with %v", panicked)
	}
}

func TestAPanicOfAProgressFunctionReachesTheCaller(t *testing.T) {
	collected(t) // what earlier tests forgot
	broken := errors.New("broken")
	for _, unmapped := range []bool{false, true} {
		returned, panicked := outcome(func() {
			mmada.Open(modelPath(), &mmada.OpenOptions{NoMap: unmapped, Progress: func(uint64, uint64) error { panic(broken) }})
		})
		if returned {
			t.Fatal("the panic was lost")
		}
		isPanic(t, panicked, broken)
		returned, panicked = outcome(func() {
			mmada.Open(modelPath(), &mmada.OpenOptions{NoMap: unmapped, Progress: func(uint64, uint64) error { runtime.Goexit(); return nil }})
		})
		if returned || panicked != nil {
			t.Fatalf("Goexit became %v, %v", returned, panicked)
		}
	}
	if left := mmada.Live(); left != 0 {
		t.Errorf("%d objects are left", left)
	}
}

// handler is a slog.Handler that does what it is told.
type handler struct {
	level  atomic.Int64
	handle func(context.Context, slog.Record) error
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.Level(h.level.Load())
}
func (h *handler) Handle(ctx context.Context, r slog.Record) error { return h.handle(ctx, r) }
func (h *handler) WithAttrs([]slog.Attr) slog.Handler              { return h }
func (h *handler) WithGroup(string) slog.Handler                   { return h }

func TestTheLoggerIsToldWithTheContextOfTheCall(t *testing.T) {
	type key struct{}
	var seen []slog.Record
	var values []any
	h := &handler{handle: func(ctx context.Context, r slog.Record) error {
		seen, values = append(seen, r), append(values, ctx.Value(key{}))
		return errors.New("the disk is full") // nobody's business, as with slog
	}}
	h.level.Store(int64(slog.LevelDebug))
	_, c := start(t, &mmada.ContextOptions{Logger: slog.New(h)})
	if answer := must[string](t)(c.Ask(context.WithValue(background, key{}, "mine"), question, nil)); answer != "42" {
		t.Errorf("%q", answer)
	}
	levels := map[slog.Level]int{}
	mine := 0
	for i, r := range seen {
		levels[r.Level]++
		if values[i] == "mine" {
			mine++
		}
		if r.Message == "" || r.Time.IsZero() {
			t.Errorf("%+v", r)
		}
	}
	if levels[slog.LevelInfo] == 0 || levels[slog.LevelDebug] == 0 || mine == 0 {
		t.Errorf("%v, %d with the context", levels, mine)
	}
	seen = nil
	h.level.Store(int64(slog.LevelWarn)) // levels may change any time
	must[string](t)(c.Ask(background, question, nil))
	if len(seen) > 0 {
		t.Errorf("%v", seen)
	}
}

func TestTwoLoggersDoNotMix(t *testing.T) {
	model := open(t)
	var a, b strings.Builder
	one := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{Logger: slog.New(slog.NewTextHandler(&a, nil))}))
	defer one.Close()
	two := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{Logger: slog.New(slog.NewTextHandler(&b, nil))}))
	defer two.Close()
	a.Reset()
	length := b.Len()
	must[string](t)(one.Ask(background, question, nil))
	if a.Len() == 0 || b.Len() != length {
		t.Errorf("%q and %q", a.String(), b.String())
	}
}

func TestAPanicOfALogHandlerStopsTheGenerationAndReachesTheCaller(t *testing.T) {
	collected(t) // what earlier tests forgot
	broken := errors.New("broken")
	var fail func()
	var armed atomic.Bool
	h := &handler{handle: func(context.Context, slog.Record) error {
		if armed.Load() {
			fail()
		}
		return nil
	}}
	h.level.Store(int64(slog.LevelDebug))
	model := must[*mmada.Model](t)(mmada.Open(modelPath(), nil))
	c := must[*mmada.Context](t)(model.NewContext(&mmada.ContextOptions{Logger: slog.New(h)}))
	for _, exits := range []bool{false, true} {
		fail = func() {
			if exits {
				runtime.Goexit()
			}
			panic(broken)
		}
		check := func(what string, call func()) {
			t.Helper()
			armed.Store(true)
			returned, panicked := outcome(call)
			armed.Store(false)
			if returned || exits && panicked != nil {
				t.Fatalf("%s: %v, %v", what, returned, panicked)
			}
			if !exits {
				isPanic(t, panicked, broken)
			}
		}
		generation := beginEndless(t, model, c)
		steps := 0
		must[mmada.Step](t)(generation.Step(background))
		check("run", func() {
			generation.Run(background, func(mmada.Step) error { steps++; return nil })
		})
		if steps > 1 {
			t.Errorf("%d steps after the panic", steps)
		}
		_, err := generation.Step(background)
		is(t, err, mmada.ErrCancelled)
		generation.Close()
		check("begin", func() { c.BeginText([]mmada.Message{mmada.User(question)}, nil) })
		check("new context", func() { model.NewContext(&mmada.ContextOptions{Logger: slog.New(h)}) })
		if answer := must[string](t)(c.Ask(background, question, nil)); answer != "42" {
			t.Errorf("afterwards the context says %q", answer)
		}
	}
	c.Close()
	model.Close()
	if left := mmada.Live(); left != 0 {
		t.Errorf("%d objects are left", left)
	}
}

func TestAPanicInAStepsLoopLeavesTheGenerationWhereItIs(t *testing.T) {
	_, c := start(t, nil)
	generation := must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
	defer generation.Close()
	broken := errors.New("broken")
	_, panicked := outcome(func() { generation.Run(background, func(mmada.Step) error { panic(broken) }) })
	if panicked != broken {
		t.Fatalf("%v", panicked)
	}
	if err := generation.Run(background, nil); err != nil {
		t.Fatal(err)
	}
	if answer := must[string](t)(generation.Answer()); answer != "42" {
		t.Errorf("%q", answer)
	}
}

func TestALogHandlerThatUsesItsContextIsTurnedAway(t *testing.T) {
	var c *mmada.Context
	var generation *mmada.Generation
	var armed atomic.Bool
	var errs []error
	h := &handler{handle: func(context.Context, slog.Record) error {
		if armed.Load() {
			errs = append(errs, errorOf(generation.Step(background)), errorOf(generation.Text()), errorOf(c.Logits(background, []uint32{1}, []int{0}, 0, 1)))
		}
		return nil
	}}
	h.level.Store(int64(slog.LevelDebug))
	_, c = start(t, &mmada.ContextOptions{Logger: slog.New(h)})
	generation = must[*mmada.Generation](t)(c.BeginText([]mmada.Message{mmada.User(question)}, nil))
	defer generation.Close()
	armed.Store(true)
	must[mmada.Step](t)(generation.Step(background))
	armed.Store(false)
	busy := 0
	for _, err := range errs {
		if err != nil {
			is(t, err, mmada.ErrBusy)
			busy++
		}
	}
	if busy == 0 {
		t.Errorf("%v", errs)
	}
}
