//! What a comparison found, as a table and as JSON.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mmada::{Compute, Result};
use serde_json::{Value, json};

use super::summary::Summary;
use crate::input::Input;
use crate::states::Task;

/// A model file and what it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    pub path: PathBuf,
    /// Of the file, or of all parts of it.
    pub bytes: u64,
    /// Elements of all tensors, and their bytes.
    pub weights: u64,
    pub weight_bytes: u64,
}

impl ModelFile {
    /// # Errors
    /// As opening it.
    pub fn of(path: &Path) -> Result<Self> {
        let input = Input::open(path)?;
        let tensors = &input.header.tensors;
        Ok(ModelFile {
            path: path.to_owned(),
            bytes: input.bytes(),
            weights: tensors.iter().map(|t| (t.cols() as u64).saturating_mul(t.rows() as u64)).sum(),
            weight_bytes: tensors.iter().map(|t| t.range.len() as u64).sum(),
        })
    }

    pub fn bits_per_weight(&self) -> f64 {
        self.weight_bytes as f64 * 8.0 / self.weights.max(1) as f64
    }

    /// Without its folder.
    pub fn name(&self) -> String {
        bare_name(&self.path)
    }

    fn to_json(&self) -> Value {
        json!({
            "file": self.path.to_string_lossy(),
            "bytes": self.bytes,
            "weights": self.weights,
            "weight_bytes": self.weight_bytes,
            "bits_per_weight": self.bits_per_weight(),
        })
    }
}

/// Which logits of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// Those that the sampler chooses by: of pictures the guided ones.
    Sampler,
    /// The two that are guided together.
    Conditional,
    Unconditional,
}

impl View {
    pub fn name(self) -> &'static str {
        match self {
            View::Sampler => "sampler",
            View::Conditional => "conditional",
            View::Unconditional => "unconditional",
        }
    }
}

/// States with a mask ratio above `from` and up to `to`.
#[derive(Clone, Debug, PartialEq)]
pub struct RatioSummary {
    pub from: f64,
    pub to: f64,
    pub summary: Summary,
}

/// One view of the states of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSummary {
    pub task: Task,
    pub view: View,
    pub all: Summary,
    /// Those ratios that there are states of.
    pub ratios: Vec<RatioSummary>,
}

/// Pictures drawn from beginning to end with the same random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawings {
    pub pictures: u64,
    /// Their image codes, and how many of them are those of the reference.
    pub codes: u64,
    pub equal: u64,
}

impl Drawings {
    /// From 0 to 1.
    pub fn agreement(&self) -> f64 {
        self.equal as f64 / self.codes as f64
    }
}

/// A model beside the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub file: ModelFile,
    /// All states in the sampler's view; every masked position counts once.
    pub all: Summary,
    /// By task and view, in the order of [`Task::ALL`].
    pub tasks: Vec<TaskSummary>,
    /// `None` where nothing was drawn.
    pub drawings: Option<Drawings>,
}

impl Compared {
    /// The share of masked image codes of which both models find the same most probable; `None` without pictures.
    pub fn image_codes(&self) -> Option<f64> {
        self.tasks.iter().find(|t| t.task == Task::Draw && t.view == View::Sampler).map(|t| t.all.top1)
    }
}

/// All models beside the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub reference: ModelFile,
    /// In the order asked for.
    pub models: Vec<Compared>,
    /// None: the reference's own answers and drawings.
    pub data: Vec<PathBuf>,
    pub samples: usize,
    pub states: usize,
    /// Masked positions of all states.
    pub positions: u64,
    pub per_sample: usize,
    pub seed: u64,
    /// Of the models; the reference is exact.
    pub compute: Compute,
    pub seconds: Duration,
}

impl Comparison {
    /// Everything, for programs. Divergences and truths are in nats, shares from 0 to 1; what could not be measured is
    /// null.
    pub fn to_json(&self) -> Value {
        json!({
            "reference": self.reference.to_json(),
            "compute": if self.compute == Compute::Exact { "exact" } else { "fast" },
            "data": self.data.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
            "samples": self.samples,
            "states_per_sample": self.per_sample,
            "seed": self.seed,
            "states": self.states,
            "positions": self.positions,
            "seconds": self.seconds.as_secs_f64(),
            "models": self.models.iter().map(model_json).collect::<Vec<_>>(),
        })
    }
}

fn model_json(model: &Compared) -> Value {
    let mut value = model.file.to_json();
    value["all"] = summary_json(&model.all);
    value["image_codes"] = json!(model.image_codes());
    value["drawings"] = json!(model.drawings.map(|d| json!({
        "pictures": d.pictures, "codes": d.codes, "equal": d.equal, "agreement": d.agreement(),
    })));
    let ratio = |r: &RatioSummary| json!({ "from": r.from, "to": r.to, "summary": summary_json(&r.summary) });
    value["tasks"] = model
        .tasks
        .iter()
        .map(|task| {
            json!({
                "task": task.task.name(),
                "view": task.view.name(),
                "all": summary_json(&task.all),
                "ratios": task.ratios.iter().map(ratio).collect::<Vec<_>>(),
            })
        })
        .collect();
    value
}

fn summary_json(s: &Summary) -> Value {
    json!({
        "states": s.states,
        "positions": s.positions,
        "kl_mean": s.kl_mean,
        "kl_median": s.kl_median,
        "kl_99": s.kl_99,
        "kl_max": s.kl_max,
        "top1": s.top1,
        "committed_set": s.committed_set,
        "committed_ids": s.committed_ids,
        "truth_nats_reference": s.truth_nats_reference,
        "truth_nats": s.truth_nats,
    })
}

fn bare_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The names of files without their folders, but where two would be the same.
pub fn names(paths: &[&Path]) -> Vec<String> {
    let bare: Vec<String> = paths.iter().map(|path| bare_name(path)).collect();
    let unique = |name: &String| bare.iter().filter(|other| *other == name).count() == 1;
    let name = |(name, path): (&String, &&Path)| if unique(name) { name.clone() } else { path.display().to_string() };
    bare.iter().zip(paths).map(name).collect()
}

/// Six places, or an exponent where these would be zeros.
fn nats(value: f64) -> String {
    if value == 0.0 || value >= 1e-4 { format!("{value:.6}") } else { format!("{value:.2e}") }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.2}", share * 100.0))
}

fn truth(nats: Option<f64>) -> String {
    nats.map_or("-".into(), |nats| format!("{nats:.4}"))
}

/// The files first, then every file by task and mask ratio.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { reference, states, positions, samples, .. } = self;
        let (mb, bits) = (reference.bytes as f64 / 1e6, reference.bits_per_weight());
        writeln!(f, "reference {}: {mb:.2} MB, {bits:.3} bits per weight", reference.path.display())?;
        writeln!(f, "{states} states of {samples} samples, {positions} masked positions; float products in f32")?;
        writeln!(f, "KL and truth in nats, agreement in %\n")?;
        let names = names(&self.models.iter().map(|m| m.file.path.as_path()).collect::<Vec<_>>());
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
        writeln!(
            f,
            "{:width$} {:>10} {:>7} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7} {:>9} {:>8}",
            "file", "MB", "bits", "KL mean", "KL 99%", "top-1", "set", "ids", "codes", "drawings", "truth"
        )?;
        for (model, name) in self.models.iter().zip(&names) {
            let s = &model.all;
            writeln!(
                f,
                "{:width$} {:>10.2} {:>7.3} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7} {:>9} {:>8}",
                name,
                model.file.bytes as f64 / 1e6,
                model.file.bits_per_weight(),
                nats(s.kl_mean),
                nats(s.kl_99),
                percent(Some(s.top1)),
                percent(s.committed_set),
                percent(s.committed_ids),
                percent(model.image_codes()),
                percent(model.drawings.map(|d| d.agreement())),
                truth(s.truth_nats),
            )?;
        }
        self.models.iter().zip(&names).try_for_each(|(model, name)| by_task(f, model, name))?;
        f.write_str(LEGEND)
    }
}

const LEGEND: &str = "
masked: share of the answer or picture that is masked. set: of the positions that the reference commits next, those that
the model commits too; ids: with the same token. codes: top-1 of image codes. drawings: equal codes in whole pictures
drawn with the same random numbers. truth: -ln of the true token's probability; ref: the reference's. Quantized weights
are multiplied with int8 activations, as always: that is a part of their divergence.
";

fn by_task(f: &mut fmt::Formatter<'_>, model: &Compared, name: &str) -> fmt::Result {
    writeln!(f, "\n{name}")?;
    writeln!(
        f,
        "  {:20} {:>8} {:>6} {:>9} {:>10} {:>10} {:>7} {:>7} {:>7} {:>8} {:>8}",
        "task", "masked", "states", "positions", "KL mean", "KL 99%", "top-1", "set", "ids", "truth", "ref"
    )?;
    for task in &model.tasks {
        let name = match task.view {
            View::Sampler => task.task.name().to_owned(),
            view => format!("  {} {}", task.task.name(), view.name()),
        };
        row(f, &name, "all", &task.all)?;
        // The parts of guidance are told as a whole.
        let ratios = if task.view == View::Sampler { task.ratios.as_slice() } else { &[] };
        for r in ratios {
            row(f, "", &format!("{:.0}-{:.0}%", r.from * 100.0, r.to * 100.0), &r.summary)?;
        }
    }
    Ok(())
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, masked: &str, s: &Summary) -> fmt::Result {
    writeln!(
        f,
        "  {name:20} {masked:>8} {:>6} {:>9} {:>10} {:>10} {:>7} {:>7} {:>7} {:>8} {:>8}",
        s.states,
        s.positions,
        nats(s.kl_mean),
        nats(s.kl_99),
        percent(Some(s.top1)),
        percent(s.committed_set),
        percent(s.committed_ids),
        truth(s.truth_nats),
        truth(s.truth_nats_reference),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_name_are_told_apart_by_their_folders() {
        let paths = ["ours/q4.gguf", "theirs/q4.gguf", "ours/q8.gguf"].map(Path::new);
        assert_eq!(names(&paths), ["ours/q4.gguf", "theirs/q4.gguf", "q8.gguf"]);
    }
}
