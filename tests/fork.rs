//! A process that forks: the parent goes on, the child is told that the context is not its own, and neither waits for
//! threads that do not exist.
#![cfg(unix)]

use std::path::{Path, PathBuf};

use mmada::{
    Context, ContextOptions, DrawRequest, Error, Generation, Model, ScoreRequest, SequenceRequest, TextOptions,
};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")
}

fn context(model: &Model) -> Context {
    Context::new(model, ContextOptions { threads: 3, ..Default::default() }).unwrap()
}

fn answer(context: &Context) -> Generation {
    let options = TextOptions { gen_length: 16, steps: 8, block_length: 8, ..Default::default() };
    context.text_from_ids((5..40).collect(), options).unwrap()
}

fn finished(mut generation: Generation) -> Vec<u32> {
    while !generation.step().unwrap().done {}
    generation.text().unwrap().ids
}

/// Runs `work` in a forked process and returns its answer. A child that waits for ever is killed, and fails the test.
fn in_child(work: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child has this thread alone; it runs `work` and ends without going back into the test's threads.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork failed");
        if child == 0 {
            libc::alarm(120);
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(99);
            libc::_exit(code);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        match libc::WIFEXITED(status) {
            true => libc::WEXITSTATUS(status),
            false => panic!("the child was ended by signal {}", libc::WTERMSIG(status)),
        }
    }
}

/// 0 if all of these are refused because of the fork, else the number of the first that is not, from 1 on.
fn first_not_refused(results: &[mmada::Result<()>]) -> i32 {
    let position = results.iter().position(|result| !matches!(result, Err(Error::Forked)));
    position.map_or(0, |i| i as i32 + 1)
}

#[test]
fn the_child_is_told_and_can_make_a_context_of_its_own_and_the_parent_goes_on() {
    let model = Model::open(demo()).unwrap();
    model.tokenizer().unwrap();
    let context = context(&model);
    let expected = finished(answer(&context));
    let mut begun = answer(&context);
    begun.step().unwrap();
    let (text, image) = model.draw_options(false);
    let mut drawing = {
        let (text, image) = (text.clone(), image.clone());
        let prompt = "a red circle".to_owned();
        context.draw(DrawRequest { prompt, think: false, width: 64, height: 64, count: 1, text, image }).unwrap()
    };
    drawing.step().unwrap();

    let ids: Vec<u32> = (5..40).collect();
    let code = in_child(|| {
        let score = ScoreRequest { prompt: vec![], answer: ids.clone(), samples: 2, seed: 0, cfg_scale: 0.0 };
        let draw = DrawRequest {
            prompt: "a red circle".into(),
            think: false,
            width: 64,
            height: 64,
            count: 1,
            text: text.clone(),
            image: image.clone(),
        };
        let results = [
            begun.step().map(|_| ()),
            drawing.image(0).map(|_| ()),
            context.text_from_ids(ids.clone(), TextOptions::default()).map(|_| ()),
            context.draw(draw).map(|_| ()),
            context.logits(&[SequenceRequest { ids: &ids, rows: &[1], vocab: 0..5 }]).map(|_| ()),
            context.hidden_states(&ids).map(|_| ()),
            context.score(&score).map(|_| ()),
            context.encode_image(&mmada::RgbImage::new(64, 64)).map(|_| ()),
            context.decode_image(&[0; 64], 8, 8).map(|_| ()),
        ];
        let refused = first_not_refused(&results);
        if refused != 0 {
            return refused;
        }
        if begun.text().is_err() {
            return 50; // what is there can still be looked at
        }
        let own = self::context(&model);
        if finished(answer(&own)) != expected {
            return 51;
        }
        drop((begun, drawing, own, context)); // must not wait for the threads of the parent
        0
    });
    assert_eq!(code, 0);
    // the parent: the child's copies were its own
    assert_eq!(Error::Forked.code(), 11);
    let model = Model::open(demo()).unwrap();
    assert_eq!(finished(answer(&self::context(&model))), expected);
}

#[test]
fn a_fork_while_a_context_works_disturbs_neither_process() {
    let model = Model::open(demo()).unwrap();
    let expected = finished(answer(&context(&model)));
    let context = context(&model);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| (0..6).map(|_| finished(answer(&context))).collect::<Vec<_>>());
        for _ in 0..8 {
            let code = in_child(|| {
                let used = answer_in(&context);
                drop(context.clone());
                let own = self::context(&model);
                i32::from(!used) + 2 * i32::from(finished(answer(&own)) != expected)
            });
            assert_eq!(code, 0);
        }
        for ids in worker.join().unwrap() {
            assert_eq!(ids, expected);
        }
    });
}

/// Whether beginning an answer is refused because of the fork.
fn answer_in(context: &Context) -> bool {
    let options = TextOptions { gen_length: 16, steps: 8, block_length: 8, ..Default::default() };
    matches!(context.text_from_ids((5..40).collect(), options), Err(Error::Forked))
}
