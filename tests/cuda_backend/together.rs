//! Several contexts on one card, each used by a thread of its own.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys;
use mmada::{Context, DrawFromIds, TextOptions};

use crate::support::{Card, demo, run};

/// What a context says and draws, by numbers.
fn results(context: &Context, seed: u64) -> Vec<u32> {
    let options = TextOptions { gen_length: 6, block_length: 6, steps: 6, ..Default::default() };
    let prompt = (0..5 + seed as u32).collect();
    let mut all = run(context.text_from_ids(prompt, options).unwrap()).text().unwrap().ids;
    let (vocabulary, side) = (demo().vocabulary(), 2 * demo().downsampling().unwrap());
    let (_, image) = demo().draw_options(false);
    let request = DrawFromIds {
        prompt: vec![5, 6, 7],
        unconditional: vec![vocabulary.t2i.unwrap(), vocabulary.bos, vocabulary.eos],
        width: side,
        height: side,
        count: 1,
        image: mmada::ImageOptions { steps: 3, seed, ..image },
    };
    let drawn = run(context.draw_from_ids(request).unwrap());
    all.extend(drawn.codes(0).unwrap());
    all
}

#[test]
fn two_contexts_in_two_threads_give_what_they_give_one_after_the_other() {
    let card = Card::open();
    // recorded steps of one must not meet what the other queues, allocates or waits for; new contexts do all of that
    let expected: Vec<Vec<u32>> = [1, 2].map(|seed| results(&card.context(None), seed)).into();
    assert_ne!(expected[0], expected[1]);
    let contexts = [card.context(None), card.context(None)];
    let (begin, is_over) = (Barrier::new(3), AtomicBool::new(false));
    let before = card.driver().map(|driver| driver.count("graph_launches"));
    let got: Vec<Vec<Vec<u32>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = contexts
            .iter()
            .zip([1, 2])
            .map(|(context, seed)| {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    (0..2).map(|_| results(context, seed)).collect()
                })
            })
            .collect();
        let others = scope.spawn(|| {
            begin.wait();
            while !is_over.load(Ordering::Relaxed) {
                let context = card.context(None);
                context.logits(&[mmada::SequenceRequest { ids: &[5; 9], rows: &[8], vocab: 0..9 }]).unwrap();
            }
        });
        let got = workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>();
        is_over.store(true, Ordering::Relaxed);
        others.join().unwrap();
        got.into_iter().map(|got| got.unwrap()).collect()
    });
    for (got, expected) in got.iter().zip(&expected) {
        assert!(got.iter().all(|got| got == expected));
    }
    if let (Some(driver), Some(before)) = (card.driver(), before) {
        // of both, all but the first two steps of each kind
        assert!(driver.count("graph_launches") - before > 2 * 2 * 6);
    }
}

#[test]
fn what_a_program_has_made_current_is_current_again_after_every_call() {
    let card = Card::open();
    let Some(driver) = card.driver() else { return };
    driver.set("DEVICES", 2);
    let mut other = std::ptr::null_mut();
    // SAFETY: there are two devices; the pointer outlives the call, and the context is released at the end
    unsafe {
        assert_eq!(sys::cuInit(0), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuDevicePrimaryCtxRetain(&mut other, 1), sys::CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxSetCurrent(other), sys::CUresult::CUDA_SUCCESS);
    }
    let is_still_current = |after: &str| {
        let mut current = std::ptr::null_mut();
        // SAFETY: the driver has started; the pointer outlives the call
        assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut current) }, sys::CUresult::CUDA_SUCCESS);
        assert_eq!(current, other, "after {after}");
    };
    let context = card.context(None);
    is_still_current("a context is made");
    results(&context, 1);
    is_still_current("generations");
    context.decode_image(&[1; 4], 2, 2).unwrap();
    is_still_current("a picture");
    drop(context);
    is_still_current("all is freed");
    // SAFETY: it was retained above
    assert_eq!(unsafe { sys::cuDevicePrimaryCtxRelease_v2(1) }, sys::CUresult::CUDA_SUCCESS);
}
