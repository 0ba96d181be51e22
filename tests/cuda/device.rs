//! A device that runs the CUDA kernels on the processor: the program that `standin/` and the kernels compile to, driven
//! through its standard input and output. `MMADA_CUDA_RACES=1` builds it with ThreadSanitizer, which ends it at the first
//! race between threads of a block.

use std::cell::{Cell, RefCell};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use bytemuck::Pod;

/// Whether races are looked for, which takes ten times as long: then tests take their smallest shapes.
pub fn races() -> bool {
    std::env::var_os("MMADA_CUDA_RACES").is_some()
}

/// The program, compiled once per run of the tests.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (standin, kernels) = (root.join("tests/cuda/standin"), root.join("src/kernels/cuda"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if races() { "cuda-races" } else { "cuda" });
        std::fs::create_dir_all(&folder).unwrap();
        let files = |folder: &Path, extension: &str| {
            let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
            found.sort();
            found
        };
        let sources = [files(&standin, "cpp"), files(&standin, "cu"), files(&kernels, "cu")].concat();
        let objects: Vec<PathBuf> =
            sources.iter().map(|s| folder.join(s.file_name().unwrap()).with_extension("o")).collect();
        let compilers: Vec<Child> = sources
            .iter()
            .zip(&objects)
            .map(|(source, object)| {
                let mut compiler = compiler();
                // the stand-in itself is not looked at: it hands the processor from thread to thread
                if source.extension().is_some_and(|e| e == "cu") {
                    compiler.args(["-x", "c++", "-Wno-unknown-pragmas"]).args(races().then_some("-fsanitize=thread"));
                } else if races() {
                    compiler.arg("-DSTANDIN_THREADS");
                }
                compiler.args(["-std=c++17", "-O2", "-g1", "-Wall", "-Wextra", "-ffp-contract=off"]);
                compiler
                    .args(["-DMMADA_STANDIN", "-c"])
                    .arg("-I")
                    .arg(&standin)
                    .arg("-I")
                    .arg(&kernels)
                    .arg("-o")
                    .arg(object)
                    .arg(source);
                compiler.spawn().expect("a C++ compiler, c++ or what CXX names, is there")
            })
            .collect();
        for (mut compiler, source) in compilers.into_iter().zip(&sources) {
            assert!(compiler.wait().unwrap().success(), "{} does not compile", source.display());
        }
        let program = folder.join("device");
        let mut linker = compiler();
        linker.args(races().then_some("-fsanitize=thread")).arg("-o").arg(&program).args(&objects);
        assert!(linker.status().unwrap().success(), "the stand-in does not link");
        program
    })
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CXX").unwrap_or("c++".into()))
}

/// A running device.
pub struct Device {
    child: Child,
    to: RefCell<BufWriter<ChildStdin>>,
    from: RefCell<BufReader<ChildStdout>>,
    launches: Cell<u64>,
}

impl Device {
    pub fn new() -> Self {
        Self::with_messages(Stdio::inherit())
    }

    /// One that is expected to fail: its message is for [`Device::failed_launch`].
    pub fn quiet() -> Self {
        Self::with_messages(Stdio::piped())
    }

    fn with_messages(to: Stdio) -> Self {
        let mut child = Command::new(program())
            .env("TSAN_OPTIONS", "halt_on_error=1 exitcode=98 report_signal_unsafe=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(to)
            .spawn()
            .unwrap();
        let to = RefCell::new(BufWriter::new(child.stdin.take().unwrap()));
        let from = RefCell::new(BufReader::new(child.stdout.take().unwrap()));
        Device { child, to, from, launches: Cell::new(0) }
    }

    fn send(&self, request: u8, numbers: &[u64]) {
        let mut to = self.to.borrow_mut();
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes());
        to.write_all(&std::iter::once(request).chain(bytes).collect::<Vec<u8>>()).expect("the device has ended");
    }

    fn receive(&self, bytes: usize) -> Vec<u8> {
        self.to.borrow_mut().flush().expect("the device has ended");
        let mut answer = vec![0; bytes];
        self.from.borrow_mut().read_exact(&mut answer).expect("the device has ended: its message is above");
        answer
    }

    /// Memory for `len` numbers, filled with bytes of ones: NaN, where they are floats.
    pub fn memory<T: Pod>(&self, len: usize) -> Memory<'_, T> {
        self.send(b'A', &[(len * size_of::<T>()) as u64]);
        let address = u64::from_le_bytes(self.receive(8).try_into().unwrap());
        Memory { device: self, address, len, kind: std::marker::PhantomData }
    }

    pub fn upload<T: Pod>(&self, data: &[T]) -> Memory<'_, T> {
        let memory = self.memory::<T>(data.len());
        self.send(b'W', &[memory.address, size_of_val(data) as u64]);
        self.to.borrow_mut().write_all(bytemuck::cast_slice(data)).expect("the device has ended");
        memory
    }

    /// Runs a kernel. Threads take turns in another order at every launch.
    pub fn launch(&self, name: &str, grid: [usize; 3], threads: usize, shared: usize, arguments: &[Argument]) {
        let order = self.launches.replace(self.launches.get() + 1);
        let [x, y, z] = grid.map(|n| n as u64);
        self.send(b'L', &[order, x, y, z, threads as u64, 1, 1, shared as u64, name.len() as u64]);
        let mut to = self.to.borrow_mut();
        let mut rest = name.as_bytes().to_vec();
        rest.extend((arguments.len() as u64).to_le_bytes());
        for Argument(bytes) in arguments {
            rest.extend((bytes.len() as u64).to_le_bytes());
            rest.extend(bytes);
        }
        to.write_all(&rest).expect("the device has ended");
        drop(to);
        self.receive(8);
    }

    /// What the device says at a launch that is not right, and its exit status.
    pub fn failed_launch(mut self, name: &str, threads: usize, arguments: &[Argument]) -> (String, Option<i32>) {
        let launch = std::panic::AssertUnwindSafe(|| self.launch(name, [1, 1, 1], threads, 0, arguments));
        assert!(std::panic::catch_unwind(launch).is_err(), "{name} did run");
        let mut message = String::new();
        self.child.stderr.take().expect("a quiet device").read_to_string(&mut message).unwrap();
        (message, self.child.wait().unwrap().code())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory of a device.
pub struct Memory<'a, T> {
    device: &'a Device,
    address: u64,
    len: usize,
    kind: std::marker::PhantomData<T>,
}

impl<T: Pod> Memory<'_, T> {
    pub fn download(&self) -> Vec<T> {
        let bytes = self.len * size_of::<T>();
        self.device.send(b'R', &[self.address, bytes as u64]);
        bytemuck::pod_collect_to_vec(&self.device.receive(bytes))
    }

    pub fn argument(&self) -> Argument {
        Argument(self.address.to_le_bytes().to_vec())
    }
}

/// The value of a kernel's parameter.
pub struct Argument(Vec<u8>);

macro_rules! numbers {
    ($($number:ty),*) => {
        $(impl From<$number> for Argument {
            fn from(v: $number) -> Self {
                Argument(v.to_le_bytes().to_vec())
            }
        })*
    };
}
numbers!(i32, u32, u64, f32, f64);

impl<T: Pod> From<&Memory<'_, T>> for Argument {
    fn from(memory: &Memory<'_, T>) -> Self {
        memory.argument()
    }
}
impl<T: Pod> From<Option<&Memory<'_, T>>> for Argument {
    /// A pointer that may be null.
    fn from(memory: Option<&Memory<'_, T>>) -> Self {
        memory.map_or(Argument::from(0u64), Memory::argument)
    }
}

/// Arguments of any kinds.
#[macro_export]
macro_rules! arguments {
    ($($v:expr),* $(,)?) => { &[$($crate::device::Argument::from($v)),*] };
}
