//! `mmada ask`: one question, one answer.

use mmada::{Answer, Message, Model, Remasking, RgbImage, TextOptions, TextRequest};
use serde_json::{Value as Json, json};

use crate::args::{AskArgs, Common, RemaskingArg, TextArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, Output};
use crate::session::{self, Session, Times};
use crate::trace::Trace;

pub fn run(common: &Common, args: &AskArgs, output: &Output) -> Result<(), Failure> {
    if let Some(path) = &args.trace {
        output::check_animation(path)?;
    }
    let session = Session::open(common, output)?;
    let picture = picture(&session.model, &args.text)?;
    let options = options(&session.model, &args.text)?;
    let messages = vec![Message::user(&args.question)];
    let request = request(messages, picture, &args.text, options.clone());

    let mut generation = session.context.text(request)?;
    let _guard = session::cancel_on_interrupt(&generation);
    session.warn_of(&generation);
    let mut trace = output::written(args.trace.as_deref().map(Trace::text).transpose())?;
    let times = session.run(&mut generation, |generation, step| match &mut trace {
        Some(trace) => output::written(trace.push_canvas(&session.cells(generation, step)?)),
        None => Ok(()),
    })?;
    interrupt::check()?;
    if let Some(trace) = trace {
        output::written(trace.finish())?;
    }
    let answer = generation.text()?;
    if output.json {
        let mut object = answer_json(&answer, &options, &times);
        object["model"] = json!(session.file);
        object["instruction_set"] = json!(session.context.instruction_set());
        object["device"] = json!(session.context.device());
        object["warnings"] = json!(generation.warnings());
        object["files"] = json!(args.trace.iter().map(|p| p.display().to_string()).collect::<Vec<_>>());
        output::print_json(&object)?;
    } else {
        output::print_line(shown(&answer, &args.text))?;
    }
    report_seed(output, &args.text, &options);
    Ok(())
}

/// The picture of the question. That the model can look at pictures is checked before the file is read.
pub fn picture(model: &Model, args: &TextArgs) -> Result<Option<RgbImage>, Failure> {
    let Some(path) = &args.image else { return Ok(None) };
    if !model.has_images() {
        return Err(Failure::Input(format!(
            "{}: has no image tokenizer, so --image {} cannot be looked at",
            model.file(),
            path.display()
        )));
    }
    Ok(Some(mmada::image::open(path)?))
}

/// The file's defaults for this kind of question, with what the caller says in their place.
pub fn options(model: &Model, args: &TextArgs) -> Result<TextOptions, Failure> {
    let mut options = model.text_options(args.think, args.image.is_some());
    options.gen_length = args.gen_length.unwrap_or(options.gen_length);
    options.steps = args.steps.unwrap_or(options.steps);
    options.block_length = args.block_length.unwrap_or(options.block_length);
    options.temperature = args.temperature.unwrap_or(options.temperature);
    options.cfg_scale = args.cfg_scale.unwrap_or(options.cfg_scale);
    options.remasking = match args.remasking {
        Some(RemaskingArg::LowConfidence) => Remasking::LowConfidence,
        Some(RemaskingArg::Random) => Remasking::Random,
        None => options.remasking,
    };
    options.seed = session::seed(args.seed);
    options.stop = args.stop.clone();
    Ok(options)
}

pub fn request(messages: Vec<Message>, image: Option<RgbImage>, args: &TextArgs, options: TextOptions) -> TextRequest {
    TextRequest { messages, image, squash: args.squash, thinking: args.think, options }
}

/// What goes to standard output.
pub fn shown<'a>(answer: &'a Answer, args: &TextArgs) -> &'a str {
    if args.answer_only { &answer.answer } else { &answer.raw }
}

pub fn answer_json(answer: &Answer, options: &TextOptions, times: &Times) -> Json {
    let remasking = match options.remasking {
        Remasking::LowConfidence => "low_confidence",
        Remasking::Random => "random",
    };
    json!({
        "text": answer.raw,
        "thinking": answer.thinking,
        "answer": answer.answer,
        "ids": answer.ids,
        "seed": options.seed,
        "options": {
            "gen_length": options.gen_length,
            "steps": options.steps,
            "block_length": options.block_length,
            "temperature": options.temperature,
            "cfg_scale": options.cfg_scale,
            "remasking": remasking,
        },
        "timings": times.json(),
    })
}

/// A seed that was drawn and that mattered cannot be found out later.
pub fn report_seed(output: &Output, args: &TextArgs, options: &TextOptions) {
    let random = options.temperature > 0.0 || options.remasking == Remasking::Random;
    if args.seed.is_none() && random && !output.json {
        output.record(&format!("seed {}", options.seed));
    }
}
