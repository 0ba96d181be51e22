//! Kernels, steps and pictures on a graphics card: `cargo bench --bench cuda`. Ends at once where there is none.
//!
//! Every line of numbers is `what <tab> number <tab> unit`, for people and for `scripts/gpu-check`, which sets the vendor's
//! libraries beside them. What goes wrong is a line of its own; the rest is measured all the same, and the status at the end
//! says that something did. Products are checked against the processor's before they are timed. Times are the best of several
//! runs of many launches, by the clock on the wall around a wait for all of them. The model of whole steps has the 8B's shape
//! and random weights (`mmada-quantize synth`), made in the target folder or the one that `--folder` names.
//!
//! ```text
//! cargo bench --bench cuda -- [--only check,products,hopper,attention,steps,pictures] [--device 0]
//!     [--types Q4_K,Q8_0] [--n 8,128,1024] [--recipes Q4_K_M,Q8_0] [--layers 32] [--folder DIR] [--quick] [--ampere]
//! ```
//!
//! | section | |
//! |---|---|
//! | `check` | which kernels a context would take, after it has compared them with the processor's |
//! | `products` | straight from the blocks of a file, as every card multiplies |
//! | `hopper` | of weights that were unpacked first, for Hopper's kernels; and how long unpacking takes |
//! | `attention` | by the kernels that contexts choose; where those are Hopper's, by the ones for every card too |
//! | `file` | nothing but the models' files, for the sections below |
//! | `first-step` | from opening a file that is in memory to the end of a first step; the process does nothing before it |
//! | `steps`, `pictures` | of a whole model |
//!
//! `--quick` takes one tiny shape of everything, once: whether all of it runs. `--ampere` leaves kernels for Hopper alone.

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod models;
#[cfg(feature = "cuda")]
mod options;
#[cfg(feature = "cuda")]
mod products;
#[cfg(feature = "cuda")]
mod timing;

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("built without the feature cuda");
}

#[cfg(feature = "cuda")]
fn main() -> std::process::ExitCode {
    let mut failures = timing::Failures::default();
    let outcome = options::Options::parse().and_then(|o| run(&o, &mut failures));
    failures.note("the bench", outcome);
    if failures.any() { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

#[cfg(feature = "cuda")]
fn run(o: &options::Options, failures: &mut timing::Failures) -> timing::Outcome<()> {
    use mmada::kernels::cuda::{Gpu, Queue, allow_hopper, cards};
    allow_hopper(o.device, !o.ampere);
    for recipe in &o.recipes {
        if o.wants("file") {
            failures.note(recipe, models::file(o, recipe).map(|_| ()));
        }
        // before anything below has started the driver
        if o.wants("first-step") {
            failures.note(recipe, models::first_step(o, recipe));
        }
    }
    if !["check", "products", "hopper", "attention", "steps", "pictures"].iter().any(|section| o.wants(section)) {
        return Ok(());
    }
    let found = match cards() {
        Ok(found) => found,
        Err(reason) => {
            println!("nothing to measure: {reason}");
            return Ok(());
        }
    };
    let card = found.into_iter().find(|card| card.index == o.device).ok_or("there is no such device")?;
    let (major, minor) = card.compute_capability;
    println!("card\t{}, compute capability {major}.{minor}, {} MiB\t", card.name, card.memory_bytes >> 20);
    let gpu = Gpu::open(o.device)?;
    if o.wants("check") || o.wants("hopper") || o.wants("attention") {
        // Hopper's kernels are taken once they were found to be right
        failures.note("the check", timing::check(&gpu, o.wants("check")));
    }
    let queue = Queue::new(&gpu)?;
    if o.wants("products") {
        products::from_blocks(o, &queue, failures)?;
    }
    if o.wants("hopper") {
        products::unpacked(o, &queue, failures)?;
    }
    if o.wants("attention") {
        attention::attention(o, &queue, failures);
    }
    drop(queue);
    if o.wants("steps") || o.wants("pictures") {
        for recipe in &o.recipes {
            models::steps(o, recipe, failures)?;
        }
    }
    Ok(())
}
