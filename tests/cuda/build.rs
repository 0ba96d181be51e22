//! Compiles the stand-in and the kernels with a C++ compiler: `c++`, or what CXX names. What is up to date is left alone.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// What is made of the stand-in and the kernels.
pub struct Output<'a> {
    pub name: &'a str,
    /// What it does not share with others: a file or a folder of `standin/`.
    pub own: &'a str,
    pub linker: &'a [&'a str],
    /// Under ThreadSanitizer.
    pub races: bool,
}

/// Has a main function, so that it is in one output alone.
pub const SERVER: &str = "server.cpp";

/// Makes it, and says where it is.
pub fn build(output: &Output) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (standin, kernels) = (root.join("tests/cuda/standin"), root.join("src/kernels/cuda"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if output.races { "cuda-races" } else { "cuda" });
    std::fs::create_dir_all(&folder).unwrap();
    // test programs may run at the same time
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();

    let own = standin.join(output.own);
    let own = if own.is_dir() { files(&own, &["cpp"]) } else { vec![own] };
    let mut sources = [files(&standin, &["cpp", "cu"]), files(&kernels, &["cu"])].concat();
    sources.retain(|source| !source.ends_with(SERVER));
    sources.extend(own);
    let headers = [&standin, &standin.join("driver"), &kernels].map(|folder| files(folder, &["h", "cuh"])).concat();

    let mut objects = Vec::new();
    let mut running = Vec::new();
    for source in &sources {
        let object = folder.join(object_name(&standin, source));
        let mut compiler = compiler();
        // the stand-in itself is not looked at: it hands the processor from thread to thread
        if source.extension().is_some_and(|e| e == "cu") {
            compiler.args(["-x", "c++", "-Wno-unknown-pragmas"]).args(output.races.then_some("-fsanitize=thread"));
        } else if output.races {
            compiler.arg("-DSTANDIN_THREADS");
        }
        compiler.args([
            "-std=c++17",
            "-O2",
            "-g1",
            "-Wall",
            "-Wextra",
            "-Wno-psabi",
            "-ffp-contract=off",
            "-DMMADA_STANDIN",
        ]);
        compiler.args(["-fPIC", "-fvisibility=hidden"]);
        compiler.arg("-I").arg(&standin).arg("-I").arg(&kernels).arg("-c").arg("-o").arg(&object).arg(source);
        running.extend(Job::start(compiler, &object, headers.iter().chain([source])));
        objects.push(object);
        if running.len() >= std::thread::available_parallelism().map_or(1, |n| n.get()) {
            running.remove(0).finish();
        }
    }
    running.into_iter().for_each(Job::finish);

    let made = folder.join(output.name);
    let mut linker = compiler();
    linker
        .args(output.races.then_some("-fsanitize=thread"))
        .args(["-pthread", "-o"])
        .arg(&made)
        .args(&objects)
        .args(output.linker);
    if let Some(job) = Job::start(linker, &made, &objects) {
        job.finish();
    }
    made
}

fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let has = |path: &PathBuf| path.extension().is_some_and(|e| extensions.iter().any(|extension| e == *extension));
    let mut found: Vec<PathBuf> = all.filter(has).collect();
    found.sort();
    found
}

/// `driver-memory.o` for `driver/memory.cpp`: one for each source.
fn object_name(standin: &Path, source: &Path) -> String {
    let inner = source.strip_prefix(standin).map_or(source.file_name().unwrap(), |inner| inner.as_os_str());
    inner.to_str().unwrap().replace('/', "-") + ".o"
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CXX").unwrap_or("c++".into()))
}

/// A command that makes a file. Beside it stands a fingerprint of what it was made of.
struct Job {
    child: Child,
    made: PathBuf,
    fingerprint: String,
}

impl Job {
    /// None if the file is there and was made by this command, of these files.
    fn start(mut command: Command, made: &Path, of: impl IntoIterator<Item = impl AsRef<Path>>) -> Option<Job> {
        let mut hasher = DefaultHasher::new();
        format!("{command:?}").hash(&mut hasher);
        of.into_iter().for_each(|file| std::fs::read(file).unwrap().hash(&mut hasher));
        let job = |child| Job { child, made: made.to_owned(), fingerprint: hasher.finish().to_string() };
        let stamp = stamp(made);
        if made.exists() && std::fs::read_to_string(&stamp).is_ok_and(|last| last == hasher.finish().to_string()) {
            return None;
        }
        let _ = std::fs::remove_file(&stamp);
        Some(job(command.spawn().expect("a C++ compiler, c++ or what CXX names, is there")))
    }

    fn finish(mut self) {
        assert!(self.child.wait().unwrap().success(), "{} cannot be made", self.made.display());
        std::fs::write(stamp(&self.made), &self.fingerprint).unwrap();
    }
}

fn stamp(made: &Path) -> PathBuf {
    let mut name = made.as_os_str().to_owned();
    name.push(".made");
    name.into()
}
