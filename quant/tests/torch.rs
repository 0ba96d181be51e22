//! PyTorch `.bin` files, written here as torch.save writes them: a zip of stored entries with a protocol 2 pickle.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use mmada::gguf::GgmlType;
use safetensors::tensor::Dtype;
use support::{Fixture, Tensor, Tensors, read_tensors};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A tensor's view of its storage.
struct View<'a> {
    name: &'a str,
    class: &'a str,
    key: usize,
    storage_len: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

fn class(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        other => panic!("{other}"),
    }
}

fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// The opcodes that Python's pickler emits for an OrderedDict of tensors.
#[derive(Default)]
struct Pickler {
    out: Vec<u8>,
    memo: u32,
}

impl Pickler {
    fn memoize(&mut self) {
        match u8::try_from(self.memo) {
            Ok(n) => self.out.extend([b'q', n]),
            Err(_) => {
                self.out.push(b'r');
                self.out.extend(self.memo.to_le_bytes());
            }
        }
        self.memo += 1;
    }

    fn text(&mut self, text: &str) {
        self.out.push(b'X');
        self.out.extend((text.len() as u32).to_le_bytes());
        self.out.extend(text.as_bytes());
        self.memoize();
    }

    fn int(&mut self, n: usize) {
        match n {
            0..256 => self.out.extend([b'K', n as u8]),
            256..65536 => self.out.extend([&b"M"[..], &(n as u16).to_le_bytes()].concat()),
            _ => self.out.extend([&b"J"[..], &(n as i32).to_le_bytes()].concat()),
        }
    }

    fn ints(&mut self, list: &[usize]) {
        if list.len() > 3 {
            self.out.push(b'(');
        }
        list.iter().for_each(|&n| self.int(n));
        self.out.push([b')', 0x85, 0x86, 0x87, b't'][list.len().min(4)]);
        self.memoize();
    }

    fn global(&mut self, module: &str, name: &str) {
        self.out.extend(format!("c{module}\n{name}\n").as_bytes());
        self.memoize();
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.out.extend(b")R");
        self.memoize();
    }

    fn tensor(&mut self, view: &View) {
        self.text(view.name);
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.out.extend(b"((");
        self.text("storage");
        self.global("torch", view.class);
        self.text(&view.key.to_string());
        self.text("cpu");
        self.int(view.storage_len);
        self.out.push(b't');
        self.memoize();
        self.out.push(b'Q');
        self.int(view.offset);
        self.ints(&view.shape);
        self.ints(&view.strides);
        self.out.push(0x89); // requires_grad = False
        self.ordered_dict(); // backward hooks
        self.out.push(b't');
        self.memoize();
        self.out.push(b'R');
        self.memoize();
    }

    fn state_dict(mut self, views: &[View]) -> Vec<u8> {
        self.out.extend([0x80, 2]);
        self.ordered_dict();
        self.out.push(b'(');
        views.iter().for_each(|view| self.tensor(view));
        self.out.push(b'u');
        // The attribute that torch hangs on the dictionary.
        self.out.push(b'}');
        self.memoize();
        self.text("_metadata");
        self.ordered_dict();
        self.out.extend(b"sb.");
        self.out
    }
}

fn write_zip(path: &Path, method: CompressionMethod, pickle: &[u8], storages: &[Vec<u8>], byteorder: &str) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(method);
    let mut put = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    put("data.pkl", pickle);
    put("byteorder", byteorder.as_bytes());
    for (key, storage) in storages.iter().enumerate() {
        put(&format!("data/{key}"), storage);
    }
    put("version", b"3\n");
    zip.finish().unwrap();
}

/// Each tensor in a storage of its own.
fn views(tensors: &Tensors) -> (Vec<View<'_>>, Vec<Vec<u8>>) {
    let views = tensors.iter().enumerate().map(|(key, (name, t))| View {
        name,
        class: class(t.dtype),
        key,
        storage_len: t.shape.iter().product(),
        offset: 0,
        shape: t.shape.clone(),
        strides: row_major(&t.shape),
    });
    (views.collect(), tensors.values().map(|t| t.bytes.clone()).collect())
}

fn save(path: &Path, tensors: &Tensors) {
    let (views, storages) = views(tensors);
    write_zip(path, CompressionMethod::Stored, &Pickler::default().state_dict(&views), &storages, "little");
}

/// The golden checkpoint with its image tokenizer as `pytorch_model.bin`, after a change.
fn with_bin(change: impl FnOnce(&mut Vec<View>, &mut Vec<Vec<u8>>)) -> Fixture {
    let fixture = Fixture::tiny();
    let tensors = read_tensors(&fixture.path("vq"));
    let (mut views, mut storages) = views(&tensors);
    change(&mut views, &mut storages);
    let pickle = Pickler::default().state_dict(&views);
    write_zip(&fixture.path("vq/pytorch_model.bin"), CompressionMethod::Stored, &pickle, &storages, "little");
    fixture.remove("vq/model.safetensors");
    fixture
}

#[test]
fn a_bin_file_gives_the_same_output_as_safetensors() {
    let expected = Fixture::tiny().convert(GgmlType::Q8_0).bytes;
    assert!(with_bin(|_, _| {}).convert(GgmlType::Q8_0).bytes == expected);

    // Everything from .bin: the backbone as two shards with an index.
    let fixture = with_bin(|_, _| {});
    let tensors = read_tensors(fixture.dir.path());
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), format!("pytorch_model-{}.bin", i % 2).into());
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        save(&fixture.path(&format!("pytorch_model-{i}.bin")), shard);
    }
    fixture.remove("model.safetensors.index.json");
    fixture.write("pytorch_model.bin.index.json", serde_json::json!({"weight_map": map}).to_string());
    fixture.remove("model-00001-of-00002.safetensors").remove("model-00002-of-00002.safetensors");
    assert!(fixture.convert(GgmlType::Q8_0).bytes == expected);
}

#[test]
fn tensors_may_share_a_storage() {
    let expected = Fixture::tiny().convert(GgmlType::F16).bytes;
    let fixture = with_bin(|views, storages| {
        let whole: Vec<u8> = storages.concat();
        let mut offset = 0;
        let len = whole.len() / 2; // all are f16
        for view in views {
            (view.key, view.offset, view.storage_len) = (0, offset, len);
            offset += view.shape.iter().product::<usize>();
        }
        *storages = vec![whole];
    });
    assert!(fixture.convert(GgmlType::F16).bytes == expected);
}

#[test]
fn f32_weights_of_the_image_tokenizer_are_rounded_to_f16() {
    let expected = Fixture::tiny().convert(GgmlType::F16).bytes;
    let fixture = Fixture::tiny();
    let mut tensors = read_tensors(&fixture.path("vq"));
    for tensor in tensors.values_mut() {
        // A hundredth of an f16 step more: gone after rounding.
        let values: Vec<f32> = tensor.values().iter().map(|x| x * (1.0 + 1e-5)).collect();
        let exact = tensor.shape.len() == 1;
        *tensor = Tensor::f32(&tensor.shape, &if exact { tensor.values() } else { values });
    }
    save(&fixture.path("vq/weights.bin"), &tensors);
    fixture.remove("vq/model.safetensors");
    assert!(fixture.convert(GgmlType::F16).bytes == expected);
}

fn refusal(fixture: &Fixture, words: &[&str]) {
    let error = fixture.refusal(&fixture.options(GgmlType::F16));
    assert!(error.contains(".bin") && words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn only_contiguous_tensors_of_weight_types_are_read_if_they_are_needed() {
    let find = |views: &mut Vec<View>, name: &str| views.iter().position(|v| v.name == name).unwrap();
    let transposed = with_bin(|views, _| {
        let at = find(views, "decoder.conv_in.weight");
        views[at].strides = vec![72, 1, 24, 8];
    });
    refusal(&transposed, &["decoder.conv_in.weight", "contiguous"]);
    let long = with_bin(|views, storages| {
        let at = find(views, "encoder.conv_in.bias");
        views[at].class = "LongStorage";
        let key = views[at].key;
        storages[key] = storages[key].repeat(4);
    });
    refusal(&long, &["encoder.conv_in.bias", "i64"]);
    // The same in a tensor that nobody needs.
    let unused = with_bin(|views, storages| {
        let at = find(views, "quantize.embedding");
        views[at].class = "LongStorage";
        let key = views[at].key;
        storages[key] = storages[key].repeat(4);
    });
    unused.convert(GgmlType::F16);
}

#[test]
fn tensors_outside_their_storages_are_refused() {
    refusal(&with_bin(|views, _| views[3].offset = 1), &["outside its storage"]);
    refusal(&with_bin(|views, _| views[0].storage_len += 1), &["outside its storage"]);
    refusal(&with_bin(|views, _| views[1].key = 100000), &["data/100000"]);
    refusal(&with_bin(|views, _| views[2].shape = vec![1 << 20, 1 << 20, 1 << 20, 1 << 20]), &[]);
    let missing = with_bin(|views, _| drop(views.remove(5)));
    refusal(&missing, &["decoder.mid.attn_1.k.weight", "missing"]);
}

#[test]
fn files_that_are_no_state_dicts_are_refused() {
    let fixture = with_bin(|_, _| {});
    let path = fixture.path("vq/pytorch_model.bin");
    let whole = fs::read(&path).unwrap();
    for cut in [0, 1, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..cut]).unwrap();
        refusal(&fixture, &[]);
    }
    fs::write(&path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    refusal(&fixture, &["1.6"]);
    let hostile = b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.";
    write_zip(&path, CompressionMethod::Stored, hostile, &[], "little");
    refusal(&fixture, &["posix.system"]);
    write_zip(&path, CompressionMethod::Stored, b"\x80\x02}.", &[], "little");
    refusal(&fixture, &["no tensors"]);
    write_zip(&path, CompressionMethod::Stored, b"\x80\x02}.", &[], "big");
    refusal(&fixture, &["big-endian"]);
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    zip.start_file("readme.txt", SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
    zip.finish().unwrap();
    refusal(&fixture, &["data.pkl"]);
}
