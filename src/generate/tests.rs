//! The loop around a model that is made up: its logits are a hash of the whole sequence, or what a test scripts.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::kernels::Kernels;
use crate::model::{Logits, SequenceRequest};
use crate::parallel::{Exec, Threads};
use crate::prompt::{ChatTemplate, Message, Vocabulary};
use crate::sampler::{Draw, Philox, Remasking, Schedule};
use crate::tokenizer::Tokenizer;

const EOS: u32 = 481;
const SOI: u32 = 483;
const EOI: u32 = 484;
const EOT: u32 = 496;
const MASK: u32 = 497;
const CODES: u32 = 498;

/// The partition of tests/golden/tiny, whose tokenizer is used: 498 entries, 256 image codes, 768 rows.
fn vocabulary() -> Vocabulary {
    Vocabulary {
        rows: 768,
        text: 498,
        code_offset: CODES,
        codes: 256,
        bos: 480,
        eos: EOS,
        eot: EOT,
        mask: MASK,
        start_header: Some(494),
        end_header: Some(495),
        soi: Some(SOI),
        eoi: Some(EOI),
        sov: None,
        eov: None,
        t2i: Some(487),
        mmu: Some(488),
        t2v: None,
        v2v: None,
        lvg: None,
        r2i: Some(493),
        ipad: Some(492),
        pad: Some(482),
    }
}

/// What the network was asked for: ids, rows and vocabulary of every sequence of a call.
type Call = Vec<(Vec<u32>, Vec<usize>, std::ops::Range<u32>)>;
/// (ids, row, id) -> logit
type Logit = dyn Fn(&[u32], usize, u32) -> f32 + Send + Sync;

struct Fake {
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    threads: Threads,
    context: usize,
    images: bool,
    logit: Box<Logit>,
    calls: Mutex<Vec<Call>>,
    /// this many calls fail with Busy
    busy: AtomicUsize,
}

impl Fake {
    fn new() -> Self {
        let json = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/tokenizer.json"));
        Fake {
            vocabulary: vocabulary(),
            tokenizer: Tokenizer::from_json(json, "tokenizer.json").unwrap(),
            template: ChatTemplate::mmada(),
            threads: Threads::new(2).unwrap(),
            context: 600,
            images: true,
            logit: Box::new(hashed),
            calls: Mutex::default(),
            busy: AtomicUsize::new(0),
        }
    }

    fn with(logit: impl Fn(&[u32], usize, u32) -> f32 + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Fake { logit: Box::new(logit), ..Fake::new() })
    }

    /// Writes `answer` after the last header or newline of a prompt of `prompt` ids, surest first, then eot.
    fn writing(prompt: usize, answer: &[u32]) -> Arc<Self> {
        let answer = answer.to_vec();
        Fake::with(move |_, row, id| {
            let at = row - prompt;
            let wanted = answer.get(at).copied().unwrap_or(EOT);
            if id == wanted { 12.0 - at as f32 * 0.1 } else { 0.0 }
        })
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

/// A number between -4 and 4 that depends on every id of the sequence.
fn hashed(ids: &[u32], row: usize, id: u32) -> f32 {
    let all = ids.iter().fold(7u64, |h, &id| (h ^ u64::from(id)).wrapping_mul(0x0100_0000_01b3).rotate_left(17));
    let place = Draw::new(Stage::Text, row, id as usize);
    Philox::new(all).order_uniform(place) * 8.0 - 4.0
}

impl Engine for Fake {
    fn file(&self) -> &str {
        "fake.gguf"
    }
    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
    fn context_length(&self) -> usize {
        self.context
    }
    fn tokenizer(&self) -> Result<&Tokenizer> {
        Ok(&self.tokenizer)
    }
    fn chat_template(&self) -> Result<&ChatTemplate> {
        Ok(&self.template)
    }
    fn downsampling(&self) -> Option<usize> {
        self.images.then_some(4)
    }
    fn question_codes(&self) -> usize {
        16
    }
    fn exec<'a>(&'a self, cancel: &'a AtomicBool) -> Exec<'a> {
        Exec::new(&self.threads, Kernels::best(), Some(cancel))
    }
    fn logits(&self, cancel: &AtomicBool, batch: &[SequenceRequest<'_>], out: Logits<'_>) -> Result<()> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.busy.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::Busy);
        }
        self.exec(cancel).check()?;
        let call = batch.iter().map(|s| (s.ids.to_vec(), s.rows.to_vec(), s.vocab.clone())).collect();
        self.calls.lock().unwrap().push(call);
        let fill = |out: &mut [f32], ids: &dyn Fn(&SequenceRequest) -> std::ops::Range<u32>| {
            let places = batch
                .iter()
                .flat_map(|s| s.rows.iter().flat_map(move |&row| ids(s).map(move |id| (self.logit)(s.ids, row, id))));
            let mut left = out.iter_mut();
            (&mut left).zip(places).for_each(|(out, logit)| *out = logit);
            assert_eq!(left.len(), 0);
        };
        match out {
            Logits::All(out) => fill(out, &|s| s.vocab.clone()),
            Logits::Parts(parts) => {
                let rows: usize = batch.iter().map(|s| s.rows.len()).sum();
                assert_eq!(parts.buffer.len(), rows * parts.width);
                let vocab = batch[0].vocab.clone();
                for start in vocab.clone().step_by(parts.width) {
                    let ids = start..vocab.end.min(start + parts.width as u32);
                    let logits = &mut parts.buffer[..rows * ids.len()];
                    fill(logits, &|_| ids.clone());
                    (parts.visit)(ids, logits)?;
                }
            }
        }
        Ok(())
    }
    fn encode_image(&self, cancel: &AtomicBool, picture: &RgbImage, squash: bool) -> Result<Vec<u32>> {
        self.exec(cancel).check()?;
        Ok((0..16).map(|i| u32::from(picture.get_pixel(0, 0)[0]) + i * u32::from(!squash)).collect())
    }
    fn decode_image(&self, cancel: &AtomicBool, codes: &[u32], width: usize, height: usize) -> Result<RgbImage> {
        self.exec(cancel).check()?;
        let pixel = |x: u32, y: u32| ::image::Rgb([codes[(y / 4) as usize * width + (x / 4) as usize] as u8; 3]);
        Ok(RgbImage::from_fn(4 * width as u32, 4 * height as u32, pixel))
    }
}

fn text_options(gen_length: usize, block_length: usize, steps: usize) -> TextOptions {
    TextOptions { gen_length, block_length, steps, ..TextOptions::default() }
}

fn image_options(steps: usize, guidance: f32) -> ImageOptions {
    ImageOptions { steps, guidance, max_text_len: 24, text_len: 160, ..ImageOptions::default() }
}

fn draw(prompt: &str, count: usize, image: ImageOptions) -> DrawRequest {
    let text = text_options(16, 8, 8);
    DrawRequest { prompt: prompt.to_owned(), think: false, width: 16, height: 16, count, text, image }
}

fn question(text: &str, options: TextOptions) -> TextRequest {
    TextRequest { messages: vec![Message::user(text)], image: None, squash: false, thinking: false, options }
}

fn run(generation: &mut Generation) -> Vec<Step> {
    let mut steps = Vec::new();
    while !generation.is_done() {
        steps.push(generation.step().unwrap());
        assert_eq!(steps.last().is_some_and(|step| step.done), generation.is_done());
    }
    steps
}

fn answer_ids(engine: Arc<Fake>, options: TextOptions) -> Vec<u32> {
    let mut generation = Generation::text_from_ids(engine, vec![480, 65, 66, 198], options).unwrap();
    run(&mut generation);
    generation.text().unwrap().ids
}

fn encode(text: &str) -> Vec<u32> {
    Fake::new().tokenizer.encode(text, crate::tokenizer::Special::Plain).unwrap()
}

#[test]
fn blocks_are_unmasked_one_after_the_other_in_equal_shares() {
    let engine = Fake::with(|ids, row, id| if id == EOT || id == EOS { -9.0 } else { hashed(ids, row, id) });
    let mut generation =
        Generation::text_request(engine.clone(), question("How many?", text_options(24, 8, 15))).unwrap();
    let prompt = generation.sequence(0).unwrap().len() - 24;
    assert!(generation.canvas().iter().all(|slot| *slot == Slot::Masked));
    let steps = run(&mut generation);
    assert_eq!(steps.iter().map(|s| s.changed.len()).collect::<Vec<_>>(), [2, 2, 2, 1, 1].repeat(3));
    for (i, step) in steps.iter().enumerate() {
        assert_eq!((step.stage, step.index, step.total), (Stage::Text, i + 1, 15));
        let block = i / 5 * 8;
        assert!(step.changed.iter().all(|c| c.sequence == 0 && (block..block + 8).contains(&c.position)));
    }
    assert!(steps.is_sorted_by_key(|step| step.prefix));
    assert_eq!(steps[4].prefix, 8);
    // The network is run on everything, but logits are asked for at the masks of the block only, and of text.
    for (i, call) in engine.calls().iter().enumerate() {
        let [(ids, rows, vocab)] = &call[..] else { panic!("one sequence was due") };
        assert_eq!((ids.len(), vocab.clone()), (prompt + 24, 0..498));
        let masked = (0..prompt + 8 * (i / 5 + 1)).filter(|&p| ids[p] == MASK).collect::<Vec<_>>();
        assert_eq!(rows, &masked);
    }
    let answer = generation.text().unwrap();
    assert_eq!(answer.ids, generation.sequence(0).unwrap()[prompt..]);
    let tokens: Vec<Slot> = answer.ids.iter().map(|&id| Slot::Token(id)).collect();
    assert_eq!(generation.canvas(), tokens);
    let after = generation.step().unwrap();
    assert!(after.done && after.changed.is_empty() && after.index == 15);
}

#[test]
fn the_most_confident_candidates_are_committed_first() {
    // position p of the answer is the surer the larger 5 p mod 8 is
    let engine = Fake::with(|_, row, id| if id == 70 + row as u32 { 3.0 + ((row - 4) * 5 % 8) as f32 } else { 0.0 });
    let mut generation = Generation::text_from_ids(engine, vec![480, 65, 66, 198], text_options(8, 8, 8)).unwrap();
    let order: Vec<usize> = run(&mut generation).iter().map(|step| step.changed[0].position).collect();
    assert_eq!(order, [3, 6, 1, 4, 7, 2, 5, 0]);
    assert_eq!(generation.text().unwrap().ids, (74..82).collect::<Vec<_>>());
}

#[test]
fn steps_beyond_the_tokens_of_a_block_change_nothing_and_cost_nothing() {
    let engine = Fake::with(|_, row, id| if id == 70 + row as u32 { 3.0 } else { 0.0 });
    let mut generation = Generation::text_from_ids(engine.clone(), vec![480], text_options(4, 2, 10)).unwrap();
    let counts: Vec<usize> = run(&mut generation).iter().map(|step| step.changed.len()).collect();
    assert_eq!(counts, [1, 1, 0, 0, 0, 1, 1, 0, 0, 0]);
    assert_eq!(engine.calls().len(), 4);
}

#[test]
fn an_answer_ends_with_its_end_token_whatever_is_behind_it() {
    let hello = encode("hello there");
    let engine = Fake::writing(4, &hello);
    let mut generation =
        Generation::text_from_ids(engine.clone(), vec![480, 65, 66, 198], text_options(32, 8, 32)).unwrap();
    let steps = run(&mut generation);
    assert_eq!(steps.len(), hello.len() + 1);
    let answer = generation.text().unwrap();
    assert_eq!((answer.raw.as_str(), answer.ids), ("hello there", hello.clone()));
    assert_eq!(generation.canvas()[hello.len()], Slot::Token(EOT));
    assert_eq!(generation.canvas()[hello.len() + 1], Slot::Masked);

    let unrestricted = TextOptions { unrestricted: true, ..text_options(32, 8, 32) };
    let mut generation = Generation::text_from_ids(engine, vec![480, 65, 66, 198], unrestricted).unwrap();
    assert_eq!(run(&mut generation).len(), 32);
    let answer = generation.text().unwrap();
    assert_eq!((answer.raw.as_str(), answer.ids.len()), ("hello there", 32));
}

#[test]
fn an_end_token_behind_a_mask_does_not_end_the_answer() {
    // the last position is the surest, and an end token
    let engine = Fake::with(|_, row, id| match id {
        EOS if row == 11 => 20.0,
        70 => 5.0,
        _ => 0.0,
    });
    let mut generation = Generation::text_from_ids(engine, vec![480, 65, 66, 198], text_options(8, 8, 8)).unwrap();
    let first = generation.step().unwrap();
    assert_eq!((first.changed[0].position, first.prefix, first.done), (7, 0, false));
    run(&mut generation);
    assert_eq!(generation.text().unwrap().ids, [70; 7]);
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let story = encode("one two three four");
    let engine = Fake::writing(1, &story);
    let options =
        |stop: &[&str]| TextOptions { stop: stop.iter().map(|s| s.to_string()).collect(), ..text_options(32, 32, 32) };
    for (stop, want) in [
        (&["three"][..], "one two "),
        (&["o th", "four"][..], "one tw"), // within words
        (&["four", "e "][..], "on"),
        (&["o"][..], ""),
        (&["five"][..], "one two three four"),
    ] {
        let mut generation = Generation::text_from_ids(engine.clone(), vec![480], options(stop)).unwrap();
        let steps = run(&mut generation);
        let answer = generation.text().unwrap();
        assert_eq!(answer.raw, want, "{stop:?}");
        assert!(want.starts_with(&engine.tokenizer.decode(&answer.ids, true)));
        assert!(stop == ["five"] || steps.len() < story.len());
    }
}

#[test]
fn image_codes_masks_and_unused_rows_are_chosen_only_by_unrestricted_runs() {
    // the unlikely first: unused rows, then codes, then [MASK], then text
    let engine = || {
        Fake::with(|ids, row, id| {
            let bonus = match id {
                754.. => 30.0,
                CODES.. => 20.0,
                MASK => 10.0,
                EOT | EOS => -9.0,
                _ => 0.0,
            };
            bonus + hashed(ids, row, id)
        })
    };
    for temperature in [0.0, 1.0] {
        let options = TextOptions { temperature, ..text_options(16, 8, 8) };
        assert!(answer_ids(engine(), options.clone()).iter().all(|&id| id < MASK));
        let ids = answer_ids(engine(), TextOptions { unrestricted: true, ..options });
        assert!(ids.iter().all(|&id| id >= 754));
    }
    let mut generation = {
        let options = TextOptions { unrestricted: true, ..text_options(16, 8, 8) };
        Generation::text_from_ids(engine(), vec![480], options).unwrap()
    };
    run(&mut generation);
    assert_eq!(generation.text().unwrap().raw, ""); // those ids have no text
}

#[test]
fn an_unrestricted_run_that_chooses_the_mask_leaves_the_position_masked() {
    let engine = Fake::with(|_, row, id| match id {
        MASK if row == 5 => 20.0,
        70 => 3.0,
        _ => 0.0,
    });
    let options = TextOptions { unrestricted: true, ..text_options(8, 4, 8) };
    let mut generation = Generation::text_from_ids(engine.clone(), vec![480, 65, 66, 198], options).unwrap();
    let steps = run(&mut generation);
    assert!(steps[0].changed.is_empty());
    assert_eq!(generation.canvas()[1], Slot::Masked);
    assert!(engine.calls().last().unwrap()[0].1.contains(&5)); // later blocks still look at it
}

#[test]
fn tokens_can_be_forbidden_or_allowed_alone() {
    let free = answer_ids(Fake::with(hashed), text_options(16, 8, 16));
    let forbidden = TextOptions { forbid: free.clone(), ..text_options(16, 8, 16) };
    assert!(answer_ids(Fake::with(hashed), forbidden).iter().all(|id| !free.contains(id)));
    let allowed =
        TextOptions { allow_only: Some(vec![70, 80, 90, MASK, CODES]), forbid: vec![80], ..text_options(16, 8, 16) };
    let ids = answer_ids(Fake::with(hashed), allowed);
    assert!(ids.iter().all(|id| [70, 90].contains(id)) && ids.contains(&70) && ids.contains(&90));
}

#[test]
fn the_same_seed_gives_the_same_answer_with_any_number_of_threads() {
    let options =
        |seed| TextOptions { seed, temperature: 1.0, remasking: Remasking::Random, ..text_options(32, 16, 16) };
    let with_threads = |count, seed| {
        let engine = Arc::new(Fake { threads: Threads::new(count).unwrap(), ..Fake::new() });
        answer_ids(engine, options(seed))
    };
    assert_eq!(with_threads(1, 5), with_threads(3, 5));
    assert_ne!(with_threads(1, 5), with_threads(1, 6));
}

#[test]
fn guidance_compares_with_an_answer_to_a_masked_prompt() {
    let plain = answer_ids(Fake::with(hashed), text_options(8, 8, 4));
    let engine = Fake::with(hashed);
    let guided = answer_ids(engine.clone(), TextOptions { cfg_scale: 1.5, ..text_options(8, 8, 4) });
    assert_ne!(plain, guided);
    for call in engine.calls() {
        let [(with, rows, _), (without, free_rows, _)] = &call[..] else { panic!("two sequences were due") };
        assert_eq!((with.len(), rows), (without.len(), free_rows));
        assert_eq!((&with[..4], &without[..4]), (&[480, 65, 66, 198][..], &[MASK; 4][..]));
        assert_eq!(with[4..], without[4..]);
    }
    // Where prompt and none agree, guidance changes nothing.
    let aloof = || Fake::with(|ids, row, id| hashed(&ids[4..], row, id));
    let guided = TextOptions { cfg_scale: 1.5, ..text_options(8, 8, 4) };
    assert_eq!(answer_ids(aloof(), guided), answer_ids(aloof(), text_options(8, 8, 4)));
}

#[test]
fn thinking_and_answer_come_back_apart() {
    let written = encode("<think>7 and 5 is 12</think>12");
    let prompt = {
        let fake = Fake::new();
        prompt::chat(&fake.tokenizer, &fake.vocabulary, &fake.template, &[Message::user("7 + 5?")], true).unwrap()
    };
    let engine = Fake::writing(prompt.len(), &written);
    let request = TextRequest { thinking: true, ..question("7 + 5?", text_options(48, 48, 24)) };
    let mut generation = Generation::text_request(engine, request).unwrap();
    assert_eq!(generation.sequence(0).unwrap()[..prompt.len()], prompt);
    run(&mut generation);
    let answer = generation.text().unwrap();
    assert_eq!(answer.raw, "<think>7 and 5 is 12</think>12");
    assert_eq!((answer.thinking.as_deref(), answer.answer.as_str()), (Some("7 and 5 is 12"), "12"));
    assert_eq!(generation.description().unwrap(), None);
}

#[test]
fn a_question_about_a_picture_is_asked_with_its_codes() {
    let picture = RgbImage::from_pixel(5, 9, ::image::Rgb([40, 0, 0]));
    for (squash, codes) in [(false, (40..56).collect::<Vec<u32>>()), (true, vec![40; 16])] {
        let engine = Fake::with(hashed);
        let request =
            TextRequest { image: Some(picture.clone()), squash, ..question("What is it?", text_options(8, 8, 4)) };
        let mut generation = Generation::text_request(engine.clone(), request).unwrap();
        generation.step().unwrap();
        let ids = &engine.calls()[0][0].0;
        assert_eq!(ids[..2], [488, SOI]);
        assert_eq!(ids[2..18], codes.iter().map(|c| CODES + c).collect::<Vec<_>>());
        assert_eq!(ids[18..20], [EOI, 480]);
    }
    let request = TextRequest { image: Some(picture), ..question("What is it?", text_options(8, 8, 4)) };
    let mut generation = Generation::text_request(Fake::with(hashed), request).unwrap();
    generation.canceller().cancel();
    assert!(matches!(generation.step(), Err(Error::Cancelled)));
}

#[test]
fn a_cancelled_generation_can_be_followed_by_another() {
    let engine = Fake::with(hashed);
    let mut undisturbed = Generation::draw_request(engine.clone(), draw("a ring", 1, image_options(6, 2.0))).unwrap();
    run(&mut undisturbed);

    let mut cancelled = Generation::draw_request(engine.clone(), draw("a ring", 1, image_options(6, 2.0))).unwrap();
    cancelled.step().unwrap();
    let canceller = cancelled.canceller();
    std::thread::spawn(move || canceller.cancel()).join().unwrap();
    assert!(matches!(cancelled.step(), Err(Error::Cancelled)));
    assert!(matches!(cancelled.image(0), Err(Error::Cancelled)));
    assert!(!cancelled.is_done() && cancelled.canceller().is_cancelled());

    let mut other = Generation::draw_request(engine, draw("a ring", 1, image_options(6, 2.0))).unwrap();
    run(&mut other);
    assert_eq!(other.codes(0).unwrap(), undisturbed.codes(0).unwrap());
}

#[test]
fn a_step_that_found_the_context_busy_can_be_tried_again() {
    let patient = |engine: Arc<Fake>, request: DrawRequest| {
        let mut generation = Generation::draw_request(engine.clone(), request).unwrap();
        while !generation.is_done() {
            engine.busy.store(1, Ordering::Relaxed);
            assert!(matches!(generation.step(), Err(Error::Busy)));
            generation.step().unwrap();
        }
        (generation.codes(0).unwrap().to_vec(), generation.description().unwrap())
    };
    for think in [false, true] {
        let request = DrawRequest { think, ..draw("a ring", 1, image_options(6, 2.0)) };
        let mut undisturbed = Generation::draw_request(Fake::with(hashed), request.clone()).unwrap();
        run(&mut undisturbed);
        let (codes, description) = patient(Fake::with(hashed), request);
        assert_eq!(codes, undisturbed.codes(0).unwrap());
        assert_eq!(description, undisturbed.description().unwrap());
    }
}

#[test]
fn generations_may_take_turns_on_one_context() {
    let alone = |seed| {
        let image = ImageOptions { seed, ..image_options(6, 2.0) };
        Generation::draw_request(Fake::with(hashed), draw("a ring", 1, image)).unwrap()
    };
    let engine = Fake::with(hashed);
    let both = [1, 2].map(|seed| {
        let image = ImageOptions { seed, ..image_options(6, 2.0) };
        Generation::draw_request(engine.clone(), draw("a ring", 1, image)).unwrap()
    });
    let [mut a, mut b] = both;
    for _ in 0..6 {
        a.step().unwrap();
        b.step().unwrap();
    }
    for (generation, seed) in [(a, 1), (b, 2)] {
        let mut single = alone(seed);
        run(&mut single);
        assert_eq!(generation.codes(0).unwrap(), single.codes(0).unwrap());
    }
}

#[test]
fn a_picture_is_drawn_as_its_schedule_says() {
    let engine = Fake::with(hashed);
    let mut generation =
        Generation::draw_request(engine.clone(), draw("a red ring", 1, image_options(6, 2.0))).unwrap();
    assert_eq!((generation.pictures(), generation.picture_tokens(), generation.total_steps()), (1, Some((4, 4)), 6));
    assert!(generation.codes(0).unwrap_err().to_string().contains("no step"));
    assert!(generation.text().is_err());
    let mut known = [false; 16];
    for (i, masked) in [15, 13, 11, 7, 4, 1].into_iter().enumerate() {
        let step = generation.step().unwrap();
        assert_eq!((step.stage, step.index, step.total, step.done), (Stage::Image, i + 1, 6, i == 5));
        for change in &step.changed {
            assert!(!std::mem::replace(&mut known[change.position], true), "a known position changed");
            assert_eq!(change.id, CODES + generation.codes(0).unwrap()[change.position]);
        }
        let ids = generation.sequence(0).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == MASK).count(), masked);
        let slots = generation.picture_canvas(0).unwrap();
        assert_eq!(slots.iter().filter(|&&s| s == Slot::Masked).count(), if i == 5 { 0 } else { masked });
        assert_eq!(generation.image(0).unwrap().dimensions(), (16, 16)); // a preview
    }
    assert!(known.iter().all(|&known| known));
    assert!(generation.codes(1).unwrap_err().to_string().contains("no picture 1"));

    let calls = engine.calls();
    let [(ids, rows, vocab), (free, free_rows, free_vocab)] = &calls[2][..] else { panic!("two sequences were due") };
    assert_eq!((vocab, free_vocab), (&(CODES..754), &(CODES..754)));
    let text = ids.len() - 18;
    assert_eq!((ids[0], ids[text - 1], ids[text], ids[text + 17]), (487, EOS, SOI, EOI));
    assert_eq!(free[..4], [487, 480, EOS, SOI]);
    assert_eq!(ids[text..], free[3..]);
    assert_eq!(rows.iter().map(|r| r - text).collect::<Vec<_>>(), free_rows.iter().map(|r| r - 3).collect::<Vec<_>>());
    assert!(rows.len() == 13 && rows.iter().all(|&row| ids[row] == MASK));
}

#[test]
fn without_guidance_the_unconditional_pass_is_spared() {
    let engine = Fake::with(hashed);
    let mut generation = Generation::draw_request(engine.clone(), draw("a ring", 1, image_options(3, 0.0))).unwrap();
    run(&mut generation);
    assert!(engine.calls().iter().all(|call| call.len() == 1));
}

#[test]
fn each_of_several_pictures_is_the_one_of_its_own_seed() {
    for guidance in [0.0, 2.5] {
        for schedule in [Schedule::Cosine, Schedule::Pow(0.5)] {
            let options = |seed| ImageOptions { seed, schedule, ..image_options(6, guidance) };
            let engine = Fake::with(hashed);
            let mut several = Generation::draw_request(engine.clone(), draw("a ring", 3, options(40))).unwrap();
            run(&mut several);
            let passes = if guidance > 0.0 { 2 } else { 1 };
            let sizes: Vec<usize> = engine.calls().iter().map(Vec::len).collect();
            assert_eq!(sizes, [1, 3, 3, 3, 3, 3].map(|n| n * passes));
            for i in 0..3 {
                let mut alone =
                    Generation::draw_request(Fake::with(hashed), draw("a ring", 1, options(40 + i))).unwrap();
                run(&mut alone);
                assert_eq!(several.codes(i as usize).unwrap(), alone.codes(0).unwrap());
            }
            assert_ne!(several.codes(0).unwrap(), several.codes(1).unwrap());
        }
    }
}

#[test]
fn pictures_need_not_be_square() {
    let request = DrawRequest { width: 24, height: 8, ..draw("a ring", 1, image_options(4, 1.0)) };
    let mut generation = Generation::draw_request(Fake::with(hashed), request).unwrap();
    run(&mut generation);
    let (picture, codes) = (generation.image(0).unwrap(), generation.codes(0).unwrap());
    assert_eq!((picture.dimensions(), codes.len()), ((24, 8), 12));
    assert_eq!(picture.get_pixel(23, 7)[0], codes[11] as u8);
    assert_eq!(picture.get_pixel(23, 0)[0], codes[5] as u8);
}

#[test]
fn a_picture_of_one_token_can_be_drawn() {
    let request = DrawRequest { width: 4, height: 4, ..draw("a ring", 2, image_options(3, 1.0)) };
    let mut generation = Generation::draw_request(Fake::with(hashed), request).unwrap();
    assert_eq!(run(&mut generation).len(), 3);
    assert_eq!(generation.codes(1).unwrap().len(), 1);
}

#[test]
fn a_picture_without_doubt_is_complete_before_its_last_step() {
    let engine = Fake::with(|_, row, id| if id == CODES + row as u32 { 500.0 } else { 0.0 });
    let image = ImageOptions { temperature: 0.0, ..image_options(9, 0.0) };
    let mut generation = Generation::draw_request(engine, draw("a ring", 1, image)).unwrap();
    let steps = run(&mut generation); // every score is ln 1: nothing is below the cut-off
    assert_eq!((steps.len(), steps[0].changed.len()), (1, 16));
    assert!(generation.picture_canvas(0).unwrap().iter().all(|slot| *slot != Slot::Masked));
}

#[test]
fn a_reasoned_drawing_is_described_first_and_drawn_from_the_description() {
    let written = encode("<think>a red ring</think>");
    let fake = Fake::new();
    let prompt = prompt::reasoned(&fake.tokenizer, &fake.vocabulary, "a ring").unwrap();
    let start = prompt.len();
    let scripted = written.clone();
    let engine = Fake::with(move |ids, row, id| match id {
        CODES.. => hashed(ids, row, id),
        id if id == scripted.get(row - start).copied().unwrap_or(EOT) => 12.0 - row as f32 * 0.01,
        _ => 0.0,
    });
    let request =
        DrawRequest { think: true, text: text_options(32, 16, 16), ..draw("a ring", 2, image_options(6, 2.0)) };
    let mut generation = Generation::draw_request(engine.clone(), request).unwrap();
    assert_eq!(generation.total_steps(), 22);
    let before = generation.sequence(0).unwrap().to_vec();
    assert_eq!(before.len(), 161 + 18);
    assert_eq!(before[..start], prompt);
    assert_eq!(before[start..start + 32], [MASK; 32]);
    assert!(before[start + 32..161].iter().all(|&id| id == EOS));
    assert_eq!((before[161], &before[162..178], before[178]), (SOI, &[MASK; 16][..], EOI));

    let steps = run(&mut generation);
    let text_steps = steps.iter().filter(|step| step.stage == Stage::Text).count();
    assert_eq!(steps.len(), text_steps + 6);
    assert_eq!(generation.description().unwrap().as_deref(), Some("a red ring"));
    assert_eq!(generation.text().unwrap().raw, "<think>a red ring</think>");

    let drawn = &engine.calls()[text_steps][0].0; // everything behind the description is eos
    assert_eq!(drawn[start..start + written.len()], written);
    assert!(drawn[start + written.len()..161].iter().all(|&id| id == EOS));
    let mut again = {
        let image = image_options(6, 2.0);
        let unconditional = vec![487, 480, EOS];
        let prompt = drawn[..161].to_vec();
        let draw = DrawFromIds { prompt, unconditional, width: 16, height: 16, count: 2, image };
        Generation::draw_from_ids(engine, draw).unwrap()
    };
    run(&mut again);
    for i in 0..2 {
        assert_eq!(again.codes(i).unwrap(), generation.codes(i).unwrap());
    }
}

#[test]
fn a_prompt_that_was_cut_is_reported() {
    let fits = Generation::draw_request(Fake::with(hashed), draw("a ring", 1, image_options(6, 2.0))).unwrap();
    assert!(fits.warnings().is_empty());
    let long = "a red ring and a blue star and ".repeat(4);
    let cut = Generation::draw_request(Fake::with(hashed), draw(&long, 1, image_options(6, 2.0))).unwrap();
    assert!(matches!(cut.warnings(), [warning] if warning.contains("24 tokens")));
    assert_eq!(cut.sequence(0).unwrap()[24..26], [EOS, SOI]);
}

/// Draws that say where they were asked for.
struct Recorder(Arc<Mutex<Vec<(char, usize, usize)>>>);

impl Recorder {
    fn note(&self, kind: char, draw: Draw) {
        self.0.lock().unwrap().push((kind, draw.step, draw.position));
    }
}

impl Noise for Recorder {
    fn token_uniform(&self, draw: Draw, id: u32) -> f64 {
        self.note('t', draw);
        if id == 77 { 1.0 - 1e-9 } else { 0.5 }
    }
    fn order_uniform(&self, draw: Draw) -> f32 {
        self.note('o', draw);
        (draw.position + 1) as f32 * 0.1 // the last position first
    }
    fn categorical_uniform(&self, draw: Draw) -> f64 {
        self.note('c', draw);
        (draw.position as f64 + 0.5) / 16.0
    }
    fn gumbel_uniform(&self, draw: Draw) -> f32 {
        self.note('g', draw);
        0.5
    }
}

#[test]
fn recorded_noise_takes_the_place_of_the_generator() {
    let flat = || Fake::with(|_, _, _| 0.0);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let options = TextOptions { temperature: 1.0, remasking: Remasking::Random, ..text_options(8, 4, 8) };
    let mut generation = Generation::text_from_ids(flat(), vec![480, 65], options)
        .unwrap()
        .with_noise(Box::new(Recorder(asked.clone())));
    let order: Vec<usize> = run(&mut generation).iter().map(|step| step.changed[0].position).collect();
    assert_eq!(order, [3, 2, 1, 0, 7, 6, 5, 4]);
    assert_eq!(generation.text().unwrap().ids, [77; 8]);
    // Steps are counted through the blocks, positions from the head of the answer.
    assert!(asked.lock().unwrap().contains(&('t', 7, 4)) && asked.lock().unwrap().contains(&('o', 5, 5)));

    asked.lock().unwrap().clear();
    let mut generation = Generation::draw_request(flat(), draw("a ring", 1, image_options(3, 0.0)))
        .unwrap()
        .with_noise(Box::new(Recorder(asked.clone())));
    generation.step().unwrap();
    let want: Vec<u32> = (0..16).map(|i| i * 16 + 8).collect();
    assert_eq!(generation.codes(0).unwrap(), want);
    assert_eq!(asked.lock().unwrap().iter().filter(|draw| draw.0 == 'g').count(), 16);
}

#[test]
fn a_damaged_models_logits_are_an_error_not_an_answer() {
    let engine = Fake::with(|_, row, _| if row == 5 { f32::NAN } else { 0.0 });
    let mut generation = Generation::text_from_ids(engine.clone(), vec![480, 65], text_options(8, 8, 8)).unwrap();
    assert!(generation.step().unwrap_err().to_string().contains("position 3"));
    let mut generation = Generation::draw_request(engine, draw("", 1, image_options(3, 0.0))).unwrap();
    assert!(generation.step().unwrap_err().to_string().contains("not finite"));
}

fn refused(result: Result<Generation>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(_) => panic!("this request should have been refused"),
    }
}

#[test]
fn text_requests_that_cannot_be_say_why() {
    let ok = || text_options(16, 8, 8);
    let cases: [(TextOptions, &str); 18] = [
        (TextOptions { gen_length: 0, ..ok() }, "gen_length is 0"),
        (TextOptions { steps: 0, ..ok() }, "steps is 0"),
        (TextOptions { block_length: 0, ..ok() }, "block_length is 0"),
        (TextOptions { gen_length: 15, ..ok() }, "gen_length 15 is not a multiple of block_length 8"),
        (TextOptions { block_length: 32, ..ok() }, "gen_length 16 is not a multiple of block_length 32"),
        (TextOptions { steps: 9, ..ok() }, "steps 9 is not a multiple of the 2 blocks"),
        (TextOptions { temperature: f64::NAN, ..ok() }, "temperature is NaN"),
        (TextOptions { temperature: -0.5, ..ok() }, "temperature is -0.5"),
        (TextOptions { temperature: f64::INFINITY, ..ok() }, "temperature is inf"),
        (TextOptions { cfg_scale: f64::NAN, ..ok() }, "cfg_scale is NaN"),
        (TextOptions { cfg_scale: -1.0, ..ok() }, "cfg_scale is -1"),
        (TextOptions { stop: vec!["a".into(), "".into()], ..ok() }, "a stop text is empty"),
        (TextOptions { forbid: vec![768], ..ok() }, "forbid holds the id 768"),
        (TextOptions { allow_only: Some(vec![u32::MAX]), ..ok() }, "allow_only holds the id 4294967295"),
        (TextOptions { allow_only: Some(vec![]), ..ok() }, "leave no token"),
        (TextOptions { allow_only: Some(vec![MASK, CODES, 767]), ..ok() }, "leave no token"),
        (TextOptions { gen_length: 800, block_length: 8, steps: 100, ..ok() }, "needs 8"),
        (TextOptions { gen_length: usize::MAX, block_length: usize::MAX, steps: 1, ..ok() }, "context is 600"),
    ];
    for (options, reason) in cases {
        let message = refused(Generation::text_request(Fake::with(hashed), question("hi", options)));
        assert!(message.contains(reason), "{message}");
    }
    let long = TextRequest { messages: vec![Message::user("word ".repeat(800))], ..question("", ok()) };
    let error = Generation::text_request(Fake::with(hashed), long).err().unwrap();
    assert!(matches!(error, Error::ContextOverflow { limit: 600, .. }), "{error}");
    let silent = TextRequest { messages: Vec::new(), ..question("", ok()) };
    assert!(Generation::text_request(Fake::with(hashed), silent).is_err());
    let message = refused(Generation::text_from_ids(Fake::with(hashed), vec![1, 768], ok()));
    assert!(message.contains("id 768"), "{message}");
}

#[test]
fn drawings_that_cannot_be_say_why() {
    let ok = || draw("a ring", 1, image_options(6, 2.0));
    let with = |image: ImageOptions| DrawRequest { image, ..ok() };
    let options = || image_options(6, 2.0);
    let think = |text, image| DrawRequest { think: true, text, image, ..ok() };
    let cases: [(DrawRequest, &str); 20] = [
        (DrawRequest { width: 15, ..ok() }, "15x16 pixels is not possible: width and height must be multiples of 4"),
        (DrawRequest { height: 0, ..ok() }, "multiples of 4"),
        (DrawRequest { width: 0, ..ok() }, "multiples of 4"),
        (DrawRequest { width: 400, height: 400, ..ok() }, "400x400 pixels (10000 tokens)"),
        (DrawRequest { width: usize::MAX - 3, height: usize::MAX - 3, ..ok() }, "context is 600"),
        (DrawRequest { count: 0, ..ok() }, "count is 0"),
        (DrawRequest { count: usize::MAX / 2, ..ok() }, "out of memory"),
        (with(ImageOptions { steps: 0, ..options() }), "steps is 0"),
        (with(ImageOptions { guidance: f32::NAN, ..options() }), "guidance is NaN"),
        (with(ImageOptions { guidance: -1.0, ..options() }), "guidance is -1"),
        (with(ImageOptions { temperature: f32::INFINITY, ..options() }), "temperature is inf"),
        (with(ImageOptions { temperature: f32::NAN, ..options() }), "temperature is NaN"),
        (with(ImageOptions { schedule: Schedule::Pow(f32::NAN), ..options() }), "power is NaN"),
        (with(ImageOptions { schedule: Schedule::Pow(0.0), ..options() }), "power is 0"),
        (with(ImageOptions { max_text_len: 1, ..options() }), "max_text_len is 1"),
        (think(text_options(160, 8, 20), options()), "do not fit in the 160 tokens"),
        (think(text_options(16, 8, 8), ImageOptions { text_len: 0, ..options() }), "do not fit in the 0 tokens"),
        (think(text_options(16, 8, 7), options()), "steps 7"),
        (think(TextOptions { cfg_scale: 1.0, ..text_options(16, 8, 8) }, options()), "without guidance"),
        (think(text_options(16, 8, 8), ImageOptions { text_len: 590, ..options() }), "needs 609 positions"),
    ];
    for (request, reason) in cases {
        let message = refused(Generation::draw_request(Fake::with(hashed), request));
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_model_without_image_tokenizer_neither_draws_nor_sees() {
    let blind = || Arc::new(Fake { images: false, ..Fake::new() });
    let message = refused(Generation::draw_request(blind(), draw("a ring", 1, image_options(6, 2.0))));
    assert!(message.starts_with("fake.gguf: the model has no image tokenizer"), "{message}");
    let request = TextRequest { image: Some(RgbImage::new(4, 4)), ..question("What is it?", text_options(8, 8, 4)) };
    let message = refused(Generation::text_request(blind(), request));
    assert!(message.starts_with("fake.gguf: the model has no image tokenizer"), "{message}");
    assert!(Generation::text_request(blind(), question("hi", text_options(8, 8, 4))).is_ok());
}

#[test]
fn a_generation_may_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Generation>();
    is_send::<Canceller>();
}
