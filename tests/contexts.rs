//! One context in several hands: generations that take turns, threads that collide, work that is cancelled.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mmada::gguf::GgmlType;
use mmada::{
    Context, ContextOptions, DrawRequest, Error, Generation, Message, Model, SequenceRequest, TextOptions, TextRequest,
};
use mmada_quantize::ConvertOptions;

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("contexts.gguf");
        let options = ConvertOptions {
            vq: Some(checkpoint.join("vq")),
            ..ConvertOptions::new(checkpoint, &path, GgmlType::Q8_0)
        };
        mmada_quantize::convert(&options, &mut |_| {}).unwrap();
        Model::open(&path).unwrap()
    })
}

fn context() -> Context {
    Context::new(model(), ContextOptions { threads: 2, ..Default::default() }).unwrap()
}

fn answer(context: &Context, text: &str) -> Generation {
    let options = TextOptions { gen_length: 24, steps: 12, block_length: 8, cfg_scale: 0.5, ..Default::default() };
    let messages = vec![Message::user(text)];
    context.text(TextRequest { messages, image: None, squash: false, thinking: false, options }).unwrap()
}

fn drawing(context: &Context, text: &str) -> Generation {
    let (options, image) = model().draw_options(false);
    let (width, height) = (24, 12);
    let prompt = text.to_owned();
    context.draw(DrawRequest { prompt, think: false, width, height, count: 2, text: options, image }).unwrap()
}

/// Everything that a generation ended with.
fn outcome(generation: &Generation) -> (Vec<u32>, Vec<Vec<u32>>) {
    let ids = generation.text().map(|answer| answer.ids).unwrap_or_default();
    (ids, (0..generation.pictures()).map(|i| generation.codes(i).unwrap().to_vec()).collect())
}

fn finished(mut generation: Generation) -> (Vec<u32>, Vec<Vec<u32>>) {
    while !generation.is_done() {
        generation.step().unwrap();
    }
    outcome(&generation)
}

/// How often a step is tried to be stopped midway: on a busy machine it may end before the thread that stops it runs.
const TRIES: usize = 100;

/// An answer to a prompt so long that a step takes a while.
fn long(context: &Context) -> Generation {
    let prompt = (0..1200).map(|i| i % 400).collect();
    let options = TextOptions { gen_length: 8, steps: 8, block_length: 8, ..Default::default() };
    context.text_from_ids(prompt, options).unwrap()
}

#[test]
fn generations_that_take_turns_end_as_they_do_alone() {
    let alone = [
        finished(answer(&context(), "one")),
        finished(answer(&context(), "and two")),
        finished(drawing(&context(), "red")),
    ];
    let shared = context();
    let mut together = [answer(&shared, "one"), answer(&shared, "and two"), drawing(&shared, "red")];
    while !together.iter().all(Generation::is_done) {
        for generation in &mut together {
            generation.step().unwrap();
        }
    }
    assert_eq!(together.map(|generation| outcome(&generation)), alone);
}

#[test]
fn a_step_is_cancelled_from_another_thread_before_it_ends_and_the_context_goes_on() {
    let context = context();
    let mut whole = long(&context);
    whole.step().unwrap(); // makes the buffers
    let began = Instant::now();
    whole.step().unwrap();
    let step = began.elapsed();

    let mut generation = long(&context);
    let stopped = (0..TRIES).any(|_| {
        generation = long(&context);
        let canceller = generation.canceller();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(step / 8);
                canceller.cancel();
            });
            matches!(generation.step(), Err(Error::Cancelled))
        })
    });
    assert!(stopped, "no step was stopped");
    assert!(matches!(generation.step(), Err(Error::Cancelled)));
    assert_eq!(finished(answer(&context, "one")), finished(answer(&self::context(), "one")));
    whole.step().unwrap();
}

#[test]
fn a_flag_given_to_a_handle_stops_all_that_is_done_through_it_and_nothing_else() {
    let context = context();
    let flag = Arc::new(AtomicBool::new(false));
    let handle = context.clone().with_canceller(flag.clone().into());
    let ids: Vec<u32> = (0..1200).map(|i| i % 400).collect();
    let batch = [SequenceRequest { ids: &ids, rows: &[1199], vocab: 0..500 }];
    let expected = handle.logits(&batch).unwrap();
    let (mut answer, mut picture) = (answer(&handle, "one"), drawing(&handle, "two"));
    answer.step().unwrap();

    let began = Instant::now();
    handle.logits(&batch).unwrap();
    let forward = began.elapsed();
    let stopped = (0..TRIES).any(|_| {
        flag.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(forward / 8);
                flag.store(true, Ordering::Relaxed);
            });
            matches!(handle.logits(&batch), Err(Error::Cancelled))
        })
    });
    assert!(stopped, "no run was stopped");
    assert!(matches!(answer.step(), Err(Error::Cancelled)) && matches!(picture.step(), Err(Error::Cancelled)));
    assert!(matches!(handle.observe_inputs(&batch, &mut |_| ()), Err(Error::Cancelled)));
    let codes = vec![1; 32];
    assert!(matches!(handle.decode_image(&codes, 8, 4), Err(Error::Cancelled)));
    assert_eq!(context.logits(&batch).unwrap(), expected);
}

#[test]
fn a_second_thread_is_told_that_the_context_is_busy_and_disturbs_nothing() {
    let context = context();
    let expected = finished(long(&context));
    let ids: Vec<u32> = (0..50).collect();
    let request = || SequenceRequest { ids: &ids, rows: &[49], vocab: 3..9 };
    let logits = context.logits(&[request()]).unwrap();
    let (got, busy) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // what the other thread holds for a moment may make a step fail; it can be tried again
            let mut generation = long(&context);
            while !generation.is_done() {
                match generation.step() {
                    Ok(_) | Err(Error::Busy) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            outcome(&generation)
        });
        let mut busy = 0;
        while !worker.is_finished() {
            match context.logits(&[request()]) {
                Ok(same) => assert_eq!(same, logits),
                Err(Error::Busy) => busy += 1,
                Err(e) => panic!("{e}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        (worker.join().unwrap(), busy)
    });
    assert!(busy > 0, "the threads never met");
    assert_eq!(got, expected);
}

#[test]
fn estimates_of_impossible_requests_saturate() {
    let (options, image) = model().draw_options(false);
    let small = model().estimate_draw(5, (16, 16), 2, &image);
    assert!(small.multiply_adds > 0 && small.tokens > 0 && small.scratch_bytes > 0);
    let huge = model().estimate_draw(usize::MAX, (usize::MAX, usize::MAX), usize::MAX, &image);
    assert_eq!((huge.multiply_adds, huge.scratch_bytes), (u64::MAX, usize::MAX));
    let (gen_length, steps, block_length) = (usize::MAX, usize::MAX, usize::MAX);
    let options = TextOptions { gen_length, steps, block_length, cfg_scale: 1.0, ..options };
    assert_eq!(model().estimate_text(usize::MAX, &options).multiply_adds, u64::MAX);
}
