//! What a program relies on that has several contexts in itself: limits, loggers, and models that are shared.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use rayon::prelude::*;

use mmada::{
    Canceller, Context, ContextOptions, DrawRequest, Error, Generation, LogLevel, Logger, Message, Model, ScoreRequest,
    SequenceRequest, TextOptions, TextRequest,
};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::open(demo()).unwrap())
}

fn limited(bytes: usize) -> Context {
    Context::new(model(), ContextOptions { threads: 2, memory_limit: Some(bytes), ..Default::default() }).unwrap()
}

fn ask(context: &Context, text: &str) -> mmada::Result<Generation> {
    let options = TextOptions { gen_length: 16, steps: 8, block_length: 16, ..model().text_options(false, false) };
    let messages = vec![Message::user(text)];
    context.text(TextRequest { messages, image: None, squash: false, thinking: false, options })
}

fn draw(context: &Context, prompt: &str, seed: u64) -> mmada::Result<Generation> {
    let (text, image) = model().draw_options(false);
    let image = mmada::ImageOptions { seed, steps: 4, ..image };
    context.draw(DrawRequest { prompt: prompt.into(), think: false, width: 64, height: 64, count: 2, text, image })
}

fn finish(mut generation: Generation) -> Generation {
    while !generation.step().unwrap().done {}
    generation
}

/// What a context asks for at most while it does everything.
fn everything(context: &Context) -> mmada::Result<(Vec<u32>, Vec<u8>, f64)> {
    let mut answer = ask(context, "What is 17 + 25?")?;
    while !answer.step()?.done {}
    let ids = answer.text()?.ids;
    drop(answer);
    let mut drawing = draw(context, "a red circle", 3)?;
    while !drawing.step()?.done {}
    let picture = drawing.image(1)?.into_raw();
    context.encode_image(&drawing.image(0)?)?;
    let request = ScoreRequest { prompt: vec![3, 4], answer: (5..40).collect(), samples: 9, seed: 1, cfg_scale: 0.5 };
    Ok((ids, picture, context.score(&request)?.log_likelihood))
}

#[test]
fn a_memory_limit_is_kept_and_named_and_enough_is_enough() {
    let free = Context::new(model(), ContextOptions { threads: 2, ..Default::default() }).unwrap();
    let expected = everything(&free).unwrap();
    // the least limit with which everything runs, to a kilobyte
    let (mut too_low, mut enough) = (0, 1 << 30);
    while enough - too_low > 1024 {
        let limit = (too_low + enough) / 2;
        let context = limited(limit);
        match everything(&context) {
            Ok(got) => {
                assert_eq!(got, expected, "a limit of {limit} bytes");
                enough = limit;
            }
            Err(error) => {
                assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
                let begins = format!("out of memory: the context may have {limit} bytes of buffers and has ");
                assert!(error.to_string().starts_with(&begins), "{error}");
                too_low = limit;
            }
        }
        assert!(context.memory_used() <= limit);
    }
    assert!((1 << 20..64 << 20).contains(&enough), "{enough} bytes are needed");
    let estimate = model().estimate_draw(20, (64, 64), 2, &model().draw_options(false).1);
    assert!(estimate.scratch_bytes <= enough, "{estimate:?}");
}

#[test]
fn a_limit_of_what_is_estimated_is_enough() {
    let ids: Vec<u32> = (3..3 + 13).collect();
    for (cfg_scale, gen_length, block_length) in [(0.0, 24, 8), (1.5, 32, 32), (0.0, 45, 45)] {
        let options =
            mmada::TextOptions { gen_length, block_length, steps: gen_length, cfg_scale, ..Default::default() };
        let estimate = model().estimate_text(ids.len(), &options);
        let mut generation = limited(estimate.scratch_bytes).text_from_ids(ids.clone(), options).unwrap();
        while !generation.step().unwrap().done {}
    }
    for (count, guidance) in [(1, 0.0), (2, 3.0), (3, 0.0)] {
        let image = mmada::ImageOptions { guidance, steps: 3, ..model().draw_options(false).1 };
        let estimate = model().estimate_draw(ids.len(), (64, 48), count, &image);
        let (prompt, unconditional) = (ids.clone(), ids[..3].to_vec());
        let request = mmada::DrawFromIds { prompt, unconditional, width: 64, height: 48, count, image };
        let mut generation = limited(estimate.scratch_bytes).draw_from_ids(request).unwrap();
        while !generation.step().unwrap().done {}
    }
}

#[test]
fn memory_of_a_generation_is_given_back_with_it() {
    let context = limited(1 << 30);
    assert_eq!(context.memory_used(), 0);
    let mut first = draw(&context, "a red circle", 1).unwrap();
    let begun = context.memory_used();
    assert!(begun > 2 * 64 * 1024 * 4, "{begun} bytes of logits");
    first.step().unwrap();
    let buffers = context.memory_used() - begun;
    assert!(buffers > 64 << 10, "{buffers} bytes of buffers");
    let second = draw(&context, "a blue square", 1).unwrap();
    assert!(context.memory_used() >= 2 * begun);
    drop(first);
    drop(second);
    assert_eq!(context.memory_used(), buffers, "what the context itself keeps");
    context.decode_image(&[7; 64], 8, 8).unwrap();
    assert_eq!(context.memory_used(), buffers);
}

fn packed(options: ContextOptions) -> mmada::Result<Context> {
    Context::new(model(), ContextOptions { threads: 2, pack: true, ..options })
}

#[test]
fn packed_weights_change_no_answer_on_any_instruction_set() {
    for device in &mmada::backends()[0].devices {
        for name in &device.instruction_sets {
            for compute in [mmada::Compute::Fast, mmada::Compute::Exact] {
                let options =
                    || ContextOptions { compute, instruction_set: Some((*name).into()), ..Default::default() };
                let plain = Context::new(model(), ContextOptions { threads: 1, ..options() }).unwrap();
                let packed = packed(options()).unwrap();
                assert!(packed.is_packed() && !plain.is_packed());
                let ids: Vec<u32> = (3..40).collect();
                let text = 0..model().vocabulary().text;
                let codes = model().vocabulary().image_ids();
                for vocab in [text.clone(), codes, text.start + 3..text.start + 24] {
                    let request = SequenceRequest { ids: &ids, rows: &[0, 5, 36], vocab };
                    let bits = |context: &Context| -> Vec<u32> {
                        context.logits(std::slice::from_ref(&request)).unwrap()[0].iter().map(|v| v.to_bits()).collect()
                    };
                    assert_eq!(bits(&packed), bits(&plain), "{name} {compute:?} {:?}", request.vocab);
                }
            }
        }
    }
}

#[test]
fn packed_weights_are_shared_counted_and_refused_by_name() {
    let one = packed(ContextOptions::default()).unwrap();
    let bytes = one.packed_bytes();
    assert!(bytes > 1 << 20, "{bytes}");
    assert_eq!(
        (one.memory_used(), Context::new(model(), ContextOptions::default()).unwrap().packed_bytes()),
        (bytes, bytes)
    );
    let limit = |bytes| packed(ContextOptions { memory_limit: Some(bytes), ..Default::default() });
    assert_eq!(limit(bytes).unwrap().memory_used(), bytes);
    let Err(refused) = limit(bytes - 1) else { panic!("{bytes} bytes of weights were packed with a byte less") };
    let want = format!(
        "out of memory: the context may have {} bytes of buffers and has 0; a packed copy of the model's weights needs \
         {bytes} bytes",
        bytes - 1
    );
    assert_eq!(refused.to_string(), want);
    // a copy ends with the last context that uses it, and can be made again
    let two = one.clone();
    drop(one);
    assert_eq!(ask(&two, "What is 17 + 25?").map(finish).unwrap().text().unwrap().answer, "42");
    drop(two);
    assert_eq!(packed(ContextOptions::default()).unwrap().memory_used(), bytes);
}

#[test]
fn packed_contexts_can_be_made_by_the_workers_of_a_pool_at_once() {
    // a worker that waits for a context's threads is given the next context to make
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for _ in 0..8 {
        let contexts: Vec<Context> = pool
            .install(|| (0..12).into_par_iter().map(|_| packed(ContextOptions::default())).collect::<Result<_, _>>())
            .unwrap();
        assert!(contexts.iter().all(Context::is_packed));
    }
}

type Lines = Arc<Mutex<Vec<(LogLevel, String)>>>;

fn logged(threads: usize) -> (Context, Lines) {
    let lines = Lines::default();
    let sink = lines.clone();
    let logger = Logger::new(move |level, line| sink.lock().unwrap().push((level, line.to_owned())));
    let options = ContextOptions { threads, logger: Some(logger), ..Default::default() };
    (Context::new(model(), options).unwrap(), lines)
}

#[test]
fn a_logger_hears_its_own_context_alone() {
    let ((one, heard_by_one), (two, heard_by_two)) = (logged(1), logged(3));
    let silent = Context::new(model(), ContextOptions { threads: 2, ..Default::default() }).unwrap();
    finish(ask(&silent, "What is 2 + 2?").unwrap());
    assert_eq!((heard_by_one.lock().unwrap().len(), heard_by_two.lock().unwrap().len()), (1, 1));
    std::thread::scope(|scope| {
        scope.spawn(|| finish(ask(&one, "What is 2 + 2?").unwrap()));
        scope.spawn(|| finish(draw(&two, &"very ".repeat(200), 0).unwrap()));
    });
    let (one, two) = (heard_by_one.lock().unwrap(), heard_by_two.lock().unwrap());
    let of = |lines: &[(LogLevel, String)], level| -> Vec<String> {
        lines.iter().filter(|line| line.0 == level).map(|line| line.1.clone()).collect()
    };
    let info = of(&one, LogLevel::Info);
    assert!(info[0].contains("a context of 1 threads with "), "{info:?}");
    assert!(info[1].starts_with("an answer is begun: 16 tokens of text after a prompt of "), "{info:?}");
    assert_eq!(info[2..], ["an answer is complete"]);
    assert!(of(&one, LogLevel::Warn).is_empty());
    assert!(of(&one, LogLevel::Debug)[0].starts_with("text: step 1 of 8 decided 2 positions"), "{one:?}");

    let info = of(&two, LogLevel::Info);
    assert!(info[0].contains("a context of 3 threads with "), "{info:?}");
    assert!(info[1].starts_with("a drawing is begun: 2 pictures of 8x8 tokens"), "{info:?}");
    let warn = of(&two, LogLevel::Warn);
    assert!(warn.len() == 1 && warn[0].contains("its end was left out"), "{warn:?}");
    assert_eq!(of(&two, LogLevel::Debug).len(), 4, "one line for each step");
    assert!(two.iter().all(|(_, line)| !line.contains("an answer") && !line.contains('\n')), "{two:?}");
}

#[test]
fn levels_have_numbers_and_names() {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
    assert_eq!(levels.map(|level| level as u32), [0, 1, 2, 3]);
    assert_eq!(levels.map(LogLevel::name), ["error", "warn", "info", "debug"]);
}

#[test]
fn eight_threads_with_four_contexts_each_get_what_one_gets() {
    let work = |context: &Context, n: usize| -> (Vec<u32>, Vec<u32>) {
        let answer = finish(ask(context, &format!("What is {n} + {n}?")).unwrap()).text().unwrap().ids;
        let drawing = finish(draw(context, "a green triangle", n as u64).unwrap());
        (answer, drawing.codes(1).unwrap().to_vec())
    };
    let context = |threads| Context::new(model(), ContextOptions { threads, ..Default::default() }).unwrap();
    let alone: Vec<_> = (0..4).map(|n| work(&context(1), n)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let alone = &alone;
            scope.spawn(move || {
                let contexts: Vec<Context> = (0..4).map(|i| context(1 + (thread + i) % 3)).collect();
                for (n, context) in contexts.iter().enumerate() {
                    assert_eq!(work(context, n), alone[n], "thread {thread}, context {n}");
                }
            });
        }
    });
}

#[test]
fn the_library_knows_what_it_is_and_runs_on() {
    let info = mmada::build_info();
    assert_eq!(info.version, mmada::VERSION);
    assert!(info.target.starts_with(std::env::consts::ARCH) && info.target.contains('-'), "{info}");
    assert!(["debug", "release"].contains(&info.profile), "{info}");
    assert_eq!(info.features.contains(&"cli"), cfg!(feature = "cli"));
    assert!(info.to_string().starts_with(&format!("{} {} {}", info.version, info.target, info.profile)));
    assert!(!info.to_string().contains('/'), "no path of the machine it was built on");

    let backends = mmada::backends();
    let cpu = &backends[0];
    assert_eq!((cpu.name, cpu.devices.len()), ("cpu", 1));
    let device = &cpu.devices[0];
    assert!(!device.name.trim().is_empty() && device.instruction_sets[0] == "portable", "{device:?}");
    if cfg!(target_os = "linux") {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(device.memory_bytes.abs_diff(kib << 10) < 1 << 20, "{} bytes, {kib} KiB", device.memory_bytes);
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        if let (Some((_, model)), true) = (model, cfg!(target_arch = "x86_64")) {
            assert_eq!(device.name, model.trim());
        }
    }
    for name in &device.instruction_sets {
        let options = ContextOptions { instruction_set: Some((*name).to_owned()), threads: 1, ..Default::default() };
        assert_eq!(Context::new(model(), options).unwrap().instruction_set(), *name);
    }
}

#[test]
fn logits_go_to_memory_of_the_caller_and_can_be_stopped() {
    let context = limited(1 << 30);
    let ids: Vec<u32> = (3..30).collect();
    let batch = || {
        let one = mmada::SequenceRequest { ids: &ids, rows: &[0, 26], vocab: 0..7 };
        [one.clone(), mmada::SequenceRequest { ids: &ids[..9], rows: &[8], vocab: 2..5 }]
    };
    let mut out = vec![f32::NAN; 2 * 7 + 3];
    context.logits_into(&batch(), &mut out, &Canceller::new()).unwrap();
    assert_eq!(out, context.logits(&batch()).unwrap().concat());
    let error = context.logits_into(&batch(), &mut out[1..], &Canceller::new()).unwrap_err().to_string();
    assert_eq!(error, "there is room for 16 logits, 17 are asked for");
    let cancelled = Canceller::new();
    cancelled.clone().cancel();
    assert!(matches!(context.logits_into(&batch(), &mut out, &cancelled), Err(Error::Cancelled)));
}

#[test]
fn a_chat_has_the_ids_that_it_is_answered_after() {
    let context = limited(1 << 30);
    let messages = [Message::user("What is 17 + 25?")];
    for thinking in [false, true] {
        let ids = context.prompt_ids(&messages, thinking).unwrap();
        let options = model().text_options(thinking, false);
        let image = None;
        let request = TextRequest { messages: messages.to_vec(), image, squash: false, thinking, options };
        assert!(context.text(request).unwrap().sequence(0).unwrap().starts_with(&ids));
        assert_eq!(model().prompt_ids(&messages, thinking).unwrap(), ids);
    }
    assert!(context.prompt_ids(&[], false).is_err());
}
