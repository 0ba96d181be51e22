//! The ways in which a model comes into memory, and what becomes of a file that changes afterwards.

use std::fs::{self, File, OpenOptions as FileOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mmada::gguf::{Header, MetaValue, SplitWriter, TensorSpec};
use mmada::{Context, ContextOptions, Error, Model, OpenOptions, SequenceRequest, TextOptions};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mmada-shapes.gguf")
}

fn context(model: &Model) -> Context {
    Context::new(model, ContextOptions { threads: 2, ..Default::default() }).unwrap()
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..23).map(|i| i * 31 % 400).collect();
    let request = SequenceRequest { ids: &ids, rows: &[0, 7, 22], vocab: 0..1536 };
    context(model).logits(&[request]).unwrap().concat()
}

/// Bytes that stay for good, at an address that is `past` a multiple of 64.
fn forever(bytes: &[u8], past: usize) -> &'static [u8] {
    let mut padded = vec![0u8; bytes.len() + 128];
    let start = padded.as_ptr().align_offset(64) + past;
    padded[start..start + bytes.len()].copy_from_slice(bytes);
    &padded.leak()[start..start + bytes.len()]
}

#[test]
fn a_model_is_the_same_whichever_way_it_comes() {
    let by_path = Model::open(demo()).unwrap();
    let expected = logits(&by_path);
    let read = OpenOptions { mmap: false, ..Default::default() };
    for options in [OpenOptions::default(), read] {
        let mut file = File::open(demo()).unwrap();
        file.seek(SeekFrom::Start(12345)).unwrap(); // where others left it
        let model = Model::open_file(file, "given.gguf", &options).unwrap();
        assert_eq!(model.file(), "given.gguf");
        assert_eq!(logits(&model), expected);
        assert_eq!(logits(&Model::open_with(demo(), &options).unwrap()), expected);
    }
    let bytes = fs::read(demo()).unwrap();
    for past in [0, 32] {
        let model = Model::from_memory(forever(&bytes, past), "memory").unwrap();
        assert_eq!((model.file(), logits(&model)), ("memory", expected.clone()));
        assert!(model.bytes().as_ptr().align_offset(32) == 0 && model.bytes() == bytes);
    }
}

#[test]
fn bytes_that_cannot_be_a_model_are_refused_with_a_reason() {
    let bytes = fs::read(demo()).unwrap();
    for (bytes, reason) in [
        (forever(&bytes, 8), "m: the bytes of a model in memory must begin at a multiple of 32, not at 0x"),
        (forever(&bytes[..100_000], 0), "m: tensor "),
        (forever(b"no model", 0), "m: not a GGUF file"),
        (forever(b"", 0), "m: "),
    ] {
        let error = Model::from_memory(bytes, "m").err().unwrap().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let refused = |file: File| Model::open_file(file, "given", &OpenOptions::default()).err().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, []).unwrap();
    assert_eq!(refused(File::open(&empty).unwrap()).to_string(), "given: the file is empty");
    #[cfg(unix)]
    {
        let error = refused(File::open(folder.path()).unwrap()).to_string();
        assert!(error.starts_with("given: this is a folder"), "{error}");
        let error = refused(File::open("/dev/null").unwrap()).to_string();
        assert!(error.starts_with("given: this is a device or a pipe"), "{error}");
        let write_only = FileOptions::new().append(true).open(write(&folder, "w.gguf", &bytes)).unwrap();
        assert!(matches!(refused(write_only), Error::Io { .. }));
    }
}

fn write(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The demo model in two parts.
fn split(folder: &tempfile::TempDir) -> [PathBuf; 2] {
    let bytes = fs::read(demo()).unwrap();
    let header = Header::parse(&bytes, "demo").unwrap();
    let metadata: Vec<(String, MetaValue)> = header.owned_metadata(&bytes).unwrap();
    let half = header.tensors.len() / 2;
    let paths = [1, 2].map(|n| folder.path().join(format!("m-0000{n}-of-00002.gguf")));
    let spec = |t: &mmada::gguf::TensorInfo| TensorSpec { name: t.name.clone(), dtype: t.dtype, dims: t.dims.clone() };
    let specs = [&header.tensors[..half], &header.tensors[half..]].map(|part| part.iter().map(spec).collect());
    let parts: Vec<_> = paths.iter().cloned().zip(specs).collect();
    let mut writer = SplitWriter::create(&metadata, &parts).unwrap();
    header.tensors.iter().for_each(|tensor| writer.write(tensor.data(&bytes)).unwrap());
    writer.finish().unwrap();
    paths
}

#[test]
fn one_part_of_a_split_file_cannot_be_opened_without_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let paths = split(&folder);
    let expected = logits(&Model::open(demo()).unwrap());
    for mmap in [true, false] {
        let options = OpenOptions { mmap, ..Default::default() };
        assert_eq!(logits(&Model::open_with(&paths[1], &options).unwrap()), expected);
        for path in &paths {
            let error = Model::open_file(File::open(path).unwrap(), "part", &options).err().unwrap();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            assert!(error.to_string().starts_with("part: this is one part of a split file"), "{error}");
        }
    }
    let error = Model::from_memory(forever(&fs::read(&paths[0]).unwrap(), 0), "part").err().unwrap().to_string();
    assert!(error.contains("one part of a split file"), "{error}");
}

type Reports = Arc<Mutex<Vec<(u64, u64)>>>;

/// Options that note every report, and answer false from the `stop`-th on.
fn watched(mmap: bool, stop: usize) -> (OpenOptions, Reports) {
    let reports = Reports::default();
    let sink = reports.clone();
    let progress = move |done, total| {
        let mut reports = sink.lock().unwrap();
        reports.push((done, total));
        reports.len() < stop
    };
    (OpenOptions { mmap, progress: Some(Arc::new(progress)) }, reports)
}

#[test]
fn progress_is_told_after_every_piece_and_can_stop_it() {
    let total = fs::metadata(demo()).unwrap().len();
    let chunk = 8 << 20;
    assert!(total > chunk, "the demo model is read in several pieces");
    let (options, reports) = watched(false, 9);
    Model::open_with(demo(), &options).unwrap();
    assert_eq!(*reports.lock().unwrap(), [(chunk, total), (total, total)]);
    let (options, reports) = watched(true, 9);
    Model::open_file(File::open(demo()).unwrap(), "m", &options).unwrap();
    assert_eq!(*reports.lock().unwrap(), [(total, total)]);
    for mmap in [true, false] {
        let (options, reports) = watched(mmap, 1);
        assert!(matches!(Model::open_with(demo(), &options), Err(Error::Cancelled)));
        assert_eq!(reports.lock().unwrap().len(), 1);
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = split(&folder);
    let total: u64 = paths.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    for mmap in [true, false] {
        let (options, reports) = watched(mmap, 9);
        Model::open_with(&paths[0], &options).unwrap();
        let reports = reports.lock().unwrap();
        assert_eq!(reports.last(), Some(&(total, total)));
        assert!(reports.is_sorted() && reports.len() == if mmap { 1 } else { 2 }, "{reports:?}");
    }
    assert_eq!(format!("{options:?}"), "OpenOptions { mmap: true, progress: Some(\"function\") }");
}

#[test]
fn a_file_that_was_cut_off_under_the_map_is_noticed_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(demo()).unwrap();
    let path = write(&folder, "cut.gguf", &bytes);
    let (mapped, read) = (Model::open(&path).unwrap(), {
        Model::open_with(&path, &OpenOptions { mmap: false, ..Default::default() }).unwrap()
    });
    let options = || TextOptions { gen_length: 8, steps: 4, block_length: 8, ..Default::default() };
    let prompt = || (3..20).collect::<Vec<u32>>();
    let (context, unharmed) = (context(&mapped), context(&read));
    let mut begun = context.text_from_ids(prompt(), options()).unwrap();
    begun.step().unwrap();

    let len = bytes.len() as u64;
    FileOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
    let ids = prompt();
    let request = || [SequenceRequest { ids: &ids, rows: &[1], vocab: 0..5 }];
    let errors = [
        begun.step().err(),
        context.text_from_ids(prompt(), options()).err(),
        context.logits(&request()).err(),
        context.decode_image(&[0; 64], 8, 8).err(),
    ];
    for error in errors {
        let error = error.expect("the file was cut off");
        assert!(matches!(error, Error::Format { .. }), "{error}");
        let want = format!(
            "{}: the file became shorter since it was opened: {} bytes instead of {len}",
            path.display(),
            len / 2
        );
        assert_eq!(error.to_string(), want);
    }
    unharmed.logits(&request()).unwrap();
    // the file as it was: the pages are there again
    fs::write(&path, &bytes).unwrap();
    begun.step().unwrap();
}

#[test]
fn the_position_of_a_descriptor_that_others_hold_is_left_alone() {
    let mut file = File::open(demo()).unwrap();
    file.seek(SeekFrom::Start(777)).unwrap();
    let options = OpenOptions { mmap: false, ..Default::default() };
    Model::open_file(file.try_clone().unwrap(), "m", &options).unwrap();
    if cfg!(unix) {
        assert_eq!(file.stream_position().unwrap(), 777);
    }
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
}
