//! A device that runs the CUDA kernels: a card (`card.rs`), or the processor, by the program that `standin/` and the kernels
//! compile to, driven through its standard input and output. `MMADA_CUDA_RACES=1` builds that with ThreadSanitizer, which
//! ends it at the first race between threads of a block.

use std::cell::{Cell, RefCell};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use bytemuck::Pod;

use crate::card::{self, Card};
use crate::library::build::{Output, SERVER, build};

/// Whether races are looked for, which takes ten times as long: then tests take their smallest shapes.
pub fn races() -> bool {
    std::env::var_os("MMADA_CUDA_RACES").is_some()
}

/// The program, compiled if that has to be.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build(&Output { name: "device", own: SERVER, linker: &[], races: races() }))
}

/// Something that runs kernels.
pub enum Device {
    Card(Card),
    Processor(Processor),
}

impl Device {
    pub fn new() -> Self {
        match card::is_there() {
            true => Device::Card(Card::new()),
            false => Device::Processor(Processor::with_messages(Stdio::inherit())),
        }
    }

    /// Whether it has the tensor cores of compute capability 9.0.
    pub fn has_hopper(&self) -> bool {
        match self {
            Device::Card(card) => card.compute_capability() == (9, 0),
            Device::Processor(_) => true,
        }
    }

    /// Memory for `len` numbers, filled with bytes of ones: NaN, where they are floats.
    pub fn memory<T: Pod>(&self, len: usize) -> Memory<'_, T> {
        let bytes = len * size_of::<T>();
        let address = match self {
            Device::Card(card) => card.allocate(bytes),
            Device::Processor(processor) => processor.allocate(bytes),
        };
        Memory { device: self, address, len, kind: std::marker::PhantomData }
    }

    pub fn upload<T: Pod>(&self, data: &[T]) -> Memory<'_, T> {
        let memory = self.memory::<T>(data.len());
        match self {
            Device::Card(card) => card.write(memory.address, bytemuck::cast_slice(data)),
            Device::Processor(processor) => processor.write(memory.address, bytemuck::cast_slice(data)),
        }
        memory
    }

    /// A tensor map of `memory` as a matrix of bytes, in boxes of 128 bytes by `box_rows` rows that are swizzled.
    pub fn tensor_map<T: Pod>(&self, memory: &Memory<T>, row_bytes: usize, box_rows: usize) -> Argument {
        let rows = memory.len * size_of::<T>() / row_bytes;
        Argument(match self {
            Device::Card(card) => card.tensor_map(memory.address, rows, row_bytes, box_rows),
            Device::Processor(processor) => processor.tensor_map(memory.address, rows, row_bytes, box_rows),
        })
    }

    /// Runs a kernel.
    pub fn launch(&self, name: &str, grid: [usize; 3], threads: usize, shared: usize, arguments: &[Argument]) {
        match self {
            Device::Card(card) => {
                let arguments: Vec<&[u8]> = arguments.iter().map(|Argument(bytes)| &bytes[..]).collect();
                card.launch(name, grid, threads, shared, &arguments);
            }
            Device::Processor(processor) => processor.launch(name, grid, threads, shared, arguments),
        }
    }
}

/// The stand-in's program, which is running.
pub struct Processor {
    child: Child,
    to: RefCell<BufWriter<ChildStdin>>,
    from: RefCell<BufReader<ChildStdout>>,
    launches: Cell<u64>,
}

impl Processor {
    /// One that is expected to fail: its message is for [`Processor::failed_launch`].
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
        Processor { child, to, from, launches: Cell::new(0) }
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

    pub fn allocate(&self, bytes: usize) -> u64 {
        self.send(b'A', &[bytes as u64]);
        u64::from_le_bytes(self.receive(8).try_into().unwrap())
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.send(b'W', &[address, bytes.len() as u64]);
        self.to.borrow_mut().write_all(bytes).expect("the device has ended");
    }

    fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        self.send(b'R', &[address, bytes as u64]);
        self.receive(bytes)
    }

    pub fn tensor_map(&self, address: u64, rows: usize, row_bytes: usize, box_rows: usize) -> Vec<u8> {
        self.send(b'T', &[address, rows as u64, row_bytes as u64, box_rows as u64]);
        self.receive(128)
    }

    /// Runs a kernel. Threads take turns in another order at every launch.
    fn launch(&self, name: &str, grid: [usize; 3], threads: usize, shared: usize, arguments: &[Argument]) {
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

impl Drop for Processor {
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
        bytemuck::pod_collect_to_vec(&match self.device {
            Device::Card(card) => card.read(self.address, bytes),
            Device::Processor(processor) => processor.read(self.address, bytes),
        })
    }

    pub fn argument(&self) -> Argument {
        Argument(self.address.to_le_bytes().to_vec())
    }
}

/// The value of a kernel's parameter.
pub struct Argument(Vec<u8>);

impl Argument {
    /// One of more bytes than a number.
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Argument(bytes)
    }
}

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

impl From<&Argument> for Argument {
    fn from(argument: &Argument) -> Self {
        Argument(argument.0.clone())
    }
}

/// Arguments of any kinds.
#[macro_export]
macro_rules! arguments {
    ($($v:expr),* $(,)?) => { &[$($crate::device::Argument::from($v)),*] };
}
