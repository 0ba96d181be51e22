//! No allocation that is sized by a model or a request ends the process: for every N, the N-th request of 64 KiB or
//! more is refused, and what comes out is an error; everything that was allocated is given back.
//!
//! The crates that the library is built on do not survive being refused memory. One thing that they do takes so much
//! for this model: building the tokenizer, whose pattern for words `regex-automata` compiles (a large vocabulary's JSON
//! and maps would be others). It therefore happens while nothing is refused. Rendering the chat template, tokenizing the
//! text and starting the threads are inside what is counted: a large request of theirs would end these tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::SeqCst};

use mmada::image::RgbImage;
use mmada::{
    Context, ContextOptions, DrawRequest, Error, Generation, Message, Model, OpenOptions, Result, ScoreRequest,
    SequenceRequest, TextOptions, TextRequest,
};

/// Requests from this size on are counted and can be refused.
const LARGE: usize = 64 << 10;

struct Counting;

static COUNTED: AtomicBool = AtomicBool::new(false);
static LARGE_REQUESTS: AtomicUsize = AtomicUsize::new(0);
/// Which large request is refused, from 1 on; 0: none.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicIsize = AtomicIsize::new(0);
/// The most that LIVE has been.
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn add_live(bytes: isize) {
    let live = LIVE.fetch_add(bytes, SeqCst) + bytes;
    PEAK.fetch_max(live, SeqCst);
}

impl Counting {
    fn refuses(&self, size: usize) -> bool {
        size >= LARGE && COUNTED.load(SeqCst) && LARGE_REQUESTS.fetch_add(1, SeqCst) + 1 == REFUSED.load(SeqCst)
    }
}

// SAFETY: everything is the system allocator's; a null pointer says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        add_live(layout.size() as isize);
        // SAFETY: the caller's promise
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        add_live(layout.size() as isize);
        // SAFETY: the caller's promise
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() && self.refuses(size) {
            return std::ptr::null_mut();
        }
        add_live(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        add_live(-(layout.size() as isize));
        // SAFETY: the caller's promise
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they share the allocator's counters.
static TURN: Mutex<()> = Mutex::new(());

/// Does what is not looked at: nothing is counted or refused meanwhile.
fn uncounted<R>(work: impl FnOnce() -> R) -> R {
    let before = COUNTED.swap(false, SeqCst);
    let result = work();
    COUNTED.store(before, SeqCst);
    result
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")
}

/// A model and a context, both new. The tokenizer is built while nothing is refused.
fn open(mmap: bool) -> Result<Context> {
    let model = Model::open_with(demo(), &OpenOptions { mmap, ..Default::default() })?;
    uncounted(|| model.tokenizer().map(|_| ()))?;
    Context::new(&model, ContextOptions { threads: 2, ..Default::default() })
}

/// Steps; one that is refused its memory can be taken again.
fn step_twice(generation: &mut Generation) -> Result<()> {
    for _ in 0..2 {
        if let Err(error) = generation.step() {
            uncounted(|| generation.step()).unwrap();
            return Err(error);
        }
    }
    Ok(())
}

/// Runs `attempt` with every large request refused in turn, until there is none left to refuse.
fn refuse_each(name: &str, least: usize, attempt: impl Fn() -> Result<()>) {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    attempt().unwrap(); // what is made once for good is made now
    let live = LIVE.load(SeqCst);
    let mut refused = 0;
    loop {
        REFUSED.store(refused + 1, SeqCst);
        LARGE_REQUESTS.store(0, SeqCst);
        COUNTED.store(true, SeqCst);
        let result = attempt();
        COUNTED.store(false, SeqCst);
        match result {
            Ok(()) if LARGE_REQUESTS.load(SeqCst) <= refused => break,
            Ok(()) => panic!("{name}: request {} was refused and nobody noticed", refused + 1),
            Err(Error::OutOfMemory { what, bytes }) => {
                assert!(!what.is_empty() && bytes >= LARGE, "{name}: {what} needs {bytes} bytes");
            }
            Err(error) => panic!("{name}: request {} was refused, and the error is {error}", refused + 1),
        }
        refused += 1;
        // Threads of a pool, the epochs of its queues and the like keep some small things.
        let kept = LIVE.load(SeqCst) - live;
        assert!(kept < LARGE as isize, "{name}: {kept} bytes are left after request {refused} was refused");
    }
    assert!(refused >= least, "{name}: only {refused} large requests were made");
}

#[test]
fn opening_and_answering_survive_every_refusal() {
    refuse_each("an answer", 10, || {
        let context = open(false)?;
        let messages = vec![Message::user("What is 17 + 25?"), Message::assistant("42"), Message::user("And 3 + 4?")];
        let options = TextOptions { cfg_scale: 0.5, ..context.model().text_options(true, false) };
        let request = TextRequest { messages, image: None, squash: false, thinking: true, options };
        let mut generation = context.text(request)?;
        step_twice(&mut generation)?;
        generation.text().map(|_| ())
    });
}

#[test]
fn drawing_and_decoding_survive_every_refusal() {
    refuse_each("a drawing", 10, || {
        let context = open(true)?;
        let (text, image) = context.model().draw_options(false);
        let side = context.model().image_size();
        let prompt = "a red circle left of a blue square on a white background".to_owned();
        let mut generation =
            context.draw(DrawRequest { prompt, think: false, width: side, height: side, count: 2, text, image })?;
        step_twice(&mut generation)?;
        let picture = generation.image(1)?;
        mmada::image::encode_png(&picture).map(|_| ())
    });
}

#[test]
fn a_reasoned_drawing_survives_every_refusal() {
    refuse_each("a drawing with thinking", 10, || {
        let context = open(true)?;
        let (text, image) = context.model().draw_options(true);
        let side = context.model().image_size();
        let prompt = "two green triangles".to_owned();
        let mut generation =
            context.draw(DrawRequest { prompt, think: true, width: side, height: side, count: 1, text, image })?;
        step_twice(&mut generation)
    });
}

#[test]
fn a_question_about_a_picture_survives_every_refusal() {
    let pixels = (0..90 * 70 * 3).map(|i| (i * 37 % 251) as u8).collect();
    let picture = RgbImage::from_raw(90, 70, pixels).unwrap();
    refuse_each("a question", 10, || {
        let context = open(true)?;
        let picture = uncounted(|| picture.clone());
        let messages = vec![Message::user("What is on the left?")];
        let options = context.model().text_options(false, true);
        let request = TextRequest { messages, image: Some(picture), squash: false, thinking: false, options };
        let mut generation = context.text(request)?;
        step_twice(&mut generation)
    });
}

#[test]
fn scores_logits_and_hidden_states_survive_every_refusal() {
    refuse_each("scores", 10, || {
        let context = open(true)?;
        let ids: Vec<u32> = (0..40).collect();
        let request =
            ScoreRequest { prompt: ids[..9].to_vec(), answer: ids[9..].to_vec(), samples: 20, seed: 3, cfg_scale: 1.0 };
        context.score(&request)?;
        let rows: Vec<usize> = (0..40).chain(0..40).collect(); // twice: more rows than tokens
        context.logits(&[SequenceRequest { ids: &ids, rows: &rows, vocab: 0..context.model().vocabulary().rows }])?;
        context.hidden_states(&ids.repeat(3)).map(|_| ())
    });
}

#[test]
fn packing_survives_every_refusal() {
    refuse_each("packed weights", 10, || {
        let model = Model::open(demo())?;
        Context::new(&model, ContextOptions { threads: 2, pack: true, ..Default::default() }).map(|_| ())
    });
}

/// Bytes that `work` has allocated at most at a time.
fn peak_of<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = LIVE.load(SeqCst);
    PEAK.store(before, SeqCst);
    let result = work();
    (result, usize::try_from(PEAK.load(SeqCst) - before).unwrap())
}

/// Between what is counted and what there is: pictures that are handed out, statistics, and other small things.
fn close(counted: usize, peak: usize) {
    assert!(peak <= counted + counted / 16 + (512 << 10), "{counted} bytes are counted, {peak} were allocated");
    assert!(peak + (64 << 10) >= counted - counted / 8, "{counted} bytes are counted, {peak} were allocated");
}

#[test]
fn what_a_context_counts_is_what_it_allocates() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let context = open(true).unwrap();
    let model = context.model().clone();
    let (text, image) = model.draw_options(false);
    let request = DrawRequest {
        prompt: "a red circle".to_owned(),
        think: false,
        width: 64,
        height: 64,
        count: 5,
        text,
        image: mmada::ImageOptions { guidance: 2.0, ..image },
    };
    let (drawing, peak) = peak_of(|| {
        let mut drawing = context.draw(request).unwrap();
        drawing.step().unwrap();
        drawing.step().unwrap();
        drawing
    });
    close(context.memory_used(), peak);
    drop(drawing);
    let context = open(true).unwrap();
    let (answer, peak) = peak_of(|| {
        let options =
            TextOptions { cfg_scale: 1.0, gen_length: 128, steps: 64, block_length: 128, ..Default::default() };
        let mut answer = context.text_from_ids((0..300).collect(), options).unwrap();
        answer.step().unwrap();
        answer
    });
    close(context.memory_used(), peak);
    drop(answer);

    // the image tokenizer's buffers are gone when it is done: the least limit with which it works is what it counts
    let codes = [5; 64];
    let with = |limit: usize| {
        let options = ContextOptions { threads: 2, memory_limit: Some(limit), ..Default::default() };
        Context::new(&model, options).unwrap()
    };
    let (mut too_low, mut enough) = (0, 256 << 20);
    while enough - too_low > 4096 {
        let limit = (too_low + enough) / 2;
        match with(limit).decode_image(&codes, 8, 8) {
            Ok(_) => enough = limit,
            Err(_) => too_low = limit,
        }
    }
    let limited = with(enough);
    let (picture, peak) = peak_of(|| limited.decode_image(&codes, 8, 8));
    close(enough, peak);
    assert_eq!(picture.unwrap().dimensions(), (64, 64));
}

#[test]
fn a_step_that_was_refused_its_memory_changed_nothing() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let run = |refuse: usize| -> (usize, Vec<u32>) {
        let context = open(true).unwrap();
        let options = context.model().text_options(true, false);
        let prompt = context.prompt_ids(&[Message::user("What is 21 + 34?")], true).unwrap();
        let mut generation = context.text_from_ids(prompt, options).unwrap();
        LARGE_REQUESTS.store(0, SeqCst);
        REFUSED.store(refuse, SeqCst);
        COUNTED.store(true, SeqCst);
        let first = generation.step();
        COUNTED.store(false, SeqCst);
        assert_eq!(first.is_err(), refuse > 0 && refuse <= LARGE_REQUESTS.load(SeqCst));
        let requests = LARGE_REQUESTS.load(SeqCst);
        while !generation.step().unwrap().done {}
        (requests, generation.text().unwrap().ids)
    };
    let (requests, expected) = run(0);
    assert!(requests >= 5 && !expected.is_empty(), "{requests} large requests of a first step");
    for refuse in 1..=requests {
        assert_eq!(run(refuse).1, expected, "request {refuse} was refused");
    }
}
