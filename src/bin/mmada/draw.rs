//! `mmada draw`: pictures of a description, which the model may think out first.

use std::path::{Path, PathBuf};
use std::time::Instant;

use mmada::{Confidence, DrawRequest, Generation, ImageOptions, Model, Stage, TextOptions};
use serde_json::json;

use crate::args::{Common, ConfidenceArg, DrawArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, Output};
use crate::session::{self, Session, Times};
use crate::trace::Trace;

pub fn run(common: &Common, args: &DrawArgs, output: &Output) -> Result<(), Failure> {
    check_targets(args)?;
    let session = Session::open(common, output)?;
    let (text, image) = options(&session.model, args)?;
    let (width, height) = match args.size {
        Some(size) => (size.width, size.height),
        None => (session.model.image_size(), session.model.image_size()),
    };
    let request = DrawRequest {
        prompt: args.prompt.clone(),
        think: args.think,
        width,
        height,
        count: args.count,
        text,
        image: image.clone(),
    };
    let mut generation = session.context.draw(request)?;
    let files = Files::of(args);
    let _guard = session::cancel_on_interrupt(&generation);
    session.warn_of(&generation);

    let mut times = draw(&session, &mut generation, args, &files)?;
    let began = Instant::now();
    for (i, path) in files.pictures.iter().enumerate() {
        let picture = generation.image(i)?;
        interrupt::check()?;
        output::written(mmada::image::save(&picture, path))?;
    }
    times.decoding = began.elapsed();

    report(&session, &generation, args, &files, &image, (width, height), &times)
}

/// All steps, with the previews and frames that were asked for on the way.
fn draw(session: &Session, generation: &mut Generation, args: &DrawArgs, files: &Files) -> Result<Times, Failure> {
    let mut traces =
        output::written(files.traces.iter().map(|path| Trace::image(path)).collect::<Result<Vec<_>, _>>())?;
    let times = session.run(generation, |generation, step| {
        if step.stage != Stage::Image {
            return Ok(());
        }
        for (i, trace) in traces.iter_mut().enumerate() {
            output::written(trace.push_frame(&generation.image(i)?))?;
        }
        // The last step's picture is the result itself.
        if args.preview_every.is_some_and(|n| step.index % n == 0) && !step.done {
            for (i, path) in files.pictures.iter().enumerate() {
                output::written(mmada::image::save(&generation.image(i)?, preview(path, step.index)))?;
            }
        }
        Ok(())
    })?;
    output::written(traces.into_iter().try_for_each(Trace::finish))?;
    Ok(times)
}

fn preview(path: &Path, step: usize) -> PathBuf {
    output::with_suffix(path, &format!("-step-{step:03}"))
}

/// What can be said of the files to write before any work is done.
fn check_targets(args: &DrawArgs) -> Result<(), Failure> {
    mmada::image::check_target(&args.output)?;
    args.trace.as_ref().map_or(Ok(()), |trace| output::check_animation(trace))
}

/// The names of the files to write.
struct Files {
    pictures: Vec<PathBuf>,
    /// One for each picture, or none.
    traces: Vec<PathBuf>,
}

impl Files {
    /// As many as there are pictures: to be called once the library has agreed to draw that many.
    fn of(args: &DrawArgs) -> Self {
        let numbered = |path: &PathBuf| match args.count {
            1 => vec![path.clone()],
            n => (1..=n).map(|i| output::with_suffix(path, &format!("-{i}"))).collect(),
        };
        Files { pictures: numbered(&args.output), traces: args.trace.as_ref().map(numbered).unwrap_or_default() }
    }
}

/// The file's defaults with what the caller says in their place.
fn options(model: &Model, args: &DrawArgs) -> Result<(TextOptions, ImageOptions), Failure> {
    let (mut text, mut image) = model.draw_options(args.think);
    image.steps = args.steps.unwrap_or(image.steps);
    image.guidance = args.guidance.unwrap_or(image.guidance);
    image.temperature = args.temperature.unwrap_or(image.temperature);
    if let Some(name) = &args.schedule {
        image.schedule = name.parse()?;
    }
    image.confidence = match args.confidence {
        Some(ConfidenceArg::Probability) => Confidence::Probability,
        Some(ConfidenceArg::Margin) => Confidence::Margin,
        None => image.confidence,
    };
    image.seed = session::seed(args.seed);
    text.seed = image.seed;
    Ok((text, image))
}

fn report(
    session: &Session,
    generation: &Generation,
    args: &DrawArgs,
    files: &Files,
    image: &ImageOptions,
    (width, height): (usize, usize),
    times: &Times,
) -> Result<(), Failure> {
    let description = generation.description()?;
    let names: Vec<String> = files.pictures.iter().map(|p| p.display().to_string()).collect();
    if session.output.json {
        let codes = (0..args.count).map(|i| generation.codes(i)).collect::<mmada::Result<Vec<_>>>()?;
        // Picture i is what `--seed` with its number draws alone.
        let seeds: Vec<u64> = (0..args.count as u64).map(|i| image.seed.wrapping_add(i)).collect();
        return output::print_json(&json!({
            "model": session.file,
            "instruction_set": session.context.instruction_set(),
            "device": session.context.device(),
            "files": names,
            "traces": files.traces.iter().map(|p| p.display().to_string()).collect::<Vec<_>>(),
            "width": width,
            "height": height,
            "description": description,
            "ids": codes,
            "seed": image.seed,
            "seeds": seeds,
            "options": {
                "steps": image.steps,
                "guidance": image.guidance,
                "temperature": image.temperature,
                "schedule": image.schedule.to_string(),
                "confidence": confidence_name(image.confidence),
            },
            "warnings": generation.warnings(),
            "timings": times.json(),
        }));
    }
    if let Some(description) = description {
        output::print_line(&description)?;
    }
    let line = format!(
        "{}: {width}x{height} pixels, seed {}, {:.1} s",
        names.join(", "),
        image.seed,
        times.total().as_secs_f64()
    );
    if args.seed.is_none() {
        session.output.record(&line)
    } else {
        session.output.note(&line)
    }
    Ok(())
}

fn confidence_name(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Probability => "probability",
        Confidence::Margin => "margin",
    }
}
