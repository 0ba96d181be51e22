//! The stand-in for the driver: what host code may rely on, and what it must be told.
//!
//! Most calls are made by [`Gpu`], which panics where one is refused; those that must be are made as they are. On a card
//! there is nothing to test: it has a driver of its own, which this one would take the place of in the process.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::*;

use crate::card;
use crate::library::Driver;

/// Unwraps a status. The calls are right as far as memory goes: that is what `Gpu` has its pointers from.
macro_rules! ok {
    ($call:expr) => {
        // SAFETY: pointers to variables that outlive the call, and memory of the stand-in's
        assert_eq!(unsafe { $call }, CUresult::CUDA_SUCCESS)
    };
}
macro_rules! refused {
    ($call:expr, $status:ident) => {
        // SAFETY: as above
        assert_eq!(unsafe { $call }, CUresult::$status)
    };
}

/// What is tested, where no card is.
pub fn stand_in() -> Option<Driver> {
    (!card::is_there()).then(Driver::open)
}

/// A context and a stream.
pub struct Gpu {
    device: CUdevice,
    stream: CUstream,
}

impl Gpu {
    pub fn new(device: i32) -> Gpu {
        let mut gpu = Gpu { device: 0, stream: null_mut() };
        let mut context = null_mut();
        ok!(cuInit(0));
        ok!(cuDeviceGet(&mut gpu.device, device));
        ok!(cuDevicePrimaryCtxRetain(&mut context, gpu.device));
        ok!(cuCtxSetCurrent(context));
        gpu.stream = gpu.stream();
        gpu
    }

    fn stream(&self) -> CUstream {
        let mut stream = null_mut();
        ok!(cuStreamCreate(&mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32));
        stream
    }

    pub fn memory(&self, floats: usize) -> CUdeviceptr {
        let mut at = 0;
        ok!(cuMemAlloc_v2(&mut at, 4 * floats));
        at
    }

    fn upload(&self, floats: &[f32]) -> CUdeviceptr {
        let at = self.memory(floats.len());
        ok!(cuMemcpyHtoDAsync_v2(at, floats.as_ptr().cast(), size_of_val(floats), self.stream));
        at
    }

    fn download(&self, at: CUdeviceptr, floats: usize) -> Vec<f32> {
        let mut to = vec![0.0f32; floats];
        ok!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), at, 4 * floats, self.stream));
        self.wait();
        to
    }

    fn pinned(&self, floats: usize) -> &'static mut [f32] {
        let mut at = null_mut();
        ok!(cuMemHostAlloc(&mut at, 4 * floats, 0));
        // SAFETY: there are that many, whose bytes are ones
        unsafe { std::slice::from_raw_parts_mut(at.cast(), floats) }
    }

    fn wait(&self) {
        ok!(cuStreamSynchronize(self.stream));
    }

    fn function(&self, name: &str) -> CUfunction {
        let mut function = null_mut();
        ok!(cuModuleGetFunction(&mut function, self.module(name), CString::new(name).unwrap().as_ptr()));
        function
    }

    fn module(&self, name: &str) -> CUmodule {
        let mut module = null_mut();
        let ptx = ptx("7.8", "sm_80", name);
        ok!(cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 0, null_mut(), null_mut()));
        module
    }

    /// A block of 32 threads of a kernel of standin/defects.cu.
    fn launch(&self, function: CUfunction, x: CUdeviceptr, n: i32) -> CUresult {
        launch(self.stream, function, x, n)
    }

    /// Turns 32 floats by so many places.
    fn turn(&self, x: CUdeviceptr, by: i32) {
        assert_eq!(self.launch(self.function("right_in_warp"), x, by), CUresult::CUDA_SUCCESS);
    }

    fn record(&self, work: impl FnOnce()) -> (CUresult, CUgraph) {
        let mut graph = null_mut();
        ok!(cuStreamBeginCapture_v2(self.stream, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        work();
        // SAFETY: the pointer outlives the call
        (unsafe { cuStreamEndCapture(self.stream, &mut graph) }, graph)
    }
}

fn launch(stream: CUstream, function: CUfunction, mut x: CUdeviceptr, mut n: i32) -> CUresult {
    let mut arguments: [*mut c_void; 2] = [(&raw mut x).cast(), (&raw mut n).cast()];
    // SAFETY: the parameters are a pointer and a number
    unsafe { cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, arguments.as_mut_ptr(), null_mut()) }
}

/// A module with one kernel of standin/defects.cu.
fn ptx(version: &str, target: &str, name: &str) -> CString {
    CString::new(format!(
        "// a comment with .entry in it\n.version {version}\n.target {target}\n.address_size 64\n\n\
         .shared .align 4 .b8 used[128];\n.shared .align 4 .b8 of_another[64];\n\n\
         .visible .entry {name}(\n\t.param .u64 {name}_param_0,\n\t.param .u32 {name}_param_1\n)\n\
         .maxntid 64, 1, 1\n{{\n\tmov.u32 %r1, used;\n\tret;\n\n}}\n"
    ))
    .unwrap()
}

fn counted(from: i32) -> Vec<f32> {
    (0..32).map(|i| ((i + from) % 32) as f32).collect()
}

#[test]
fn a_library_that_is_open_is_found_by_its_name() {
    let Some(driver) = stand_in() else { return };
    driver.set("DRIVER", "12.3");
    driver.set("NAME", "One of ours");
    let (mut version, mut name) = (0, [0i8; 32]);
    ok!(cuDriverGetVersion(&mut version));
    ok!(cuInit(0));
    ok!(cuDeviceGetName(name.as_mut_ptr(), 32, 0));
    assert_eq!((version, name.map(|c| c as u8).starts_with(b"One of ours\0")), (12030, true));
}

#[test]
fn devices_are_those_of_the_settings() {
    let Some(driver) = stand_in() else { return };
    let (mut count, mut bytes, mut value) = (0, 0, 0);
    refused!(cuDeviceGetCount(&mut count), CUDA_ERROR_NOT_INITIALIZED);
    driver.set("DEVICES", 0);
    refused!(cuInit(0), CUDA_ERROR_NO_DEVICE);
    driver.set("DEVICES", 2);
    driver.set("MEMORY", 12345);
    driver.set("CAPABILITY", "8.9");
    ok!(cuInit(0));
    ok!(cuDeviceGetCount(&mut count));
    ok!(cuDeviceTotalMem_v2(&mut bytes, 1));
    assert_eq!((count, bytes), (2, 12345));
    refused!(cuDeviceTotalMem_v2(&mut bytes, 2), CUDA_ERROR_INVALID_DEVICE);
    use CUdevice_attribute::*;
    for (attribute, expected) in [
        (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8),
        (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 9),
        (CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 99 << 10),
    ] {
        ok!(cuDeviceGetAttribute(&mut value, attribute, 0));
        assert_eq!(value, expected, "{attribute:?}");
    }
    let mut uuids = [CUuuid { bytes: [0; 16] }; 2];
    ok!(cuDeviceGetUuid_v2(&mut uuids[0], 0));
    ok!(cuDeviceGetUuid_v2(&mut uuids[1], 1));
    assert_ne!(uuids[0].bytes, uuids[1].bytes);
}

#[test]
fn a_thread_without_a_context_is_told_so() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let stream = gpu.stream as usize;
    std::thread::spawn(move || {
        let (mut free, mut total) = (0, 0);
        refused!(cuMemGetInfo_v2(&mut free, &mut total), CUDA_ERROR_INVALID_CONTEXT);
        refused!(cuStreamSynchronize(stream as CUstream), CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .unwrap();
    gpu.wait();
    ok!(cuDevicePrimaryCtxRelease_v2(gpu.device));
    refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn work_runs_when_it_is_waited_for() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let (mut pageable, pinned, result) = (counted(0), gpu.pinned(32), gpu.pinned(32));
    pinned.copy_from_slice(&counted(0));
    result.fill(-1.0);
    let (x, y) = (gpu.upload(&pageable), gpu.memory(32));
    ok!(cuMemcpyHtoDAsync_v2(y, pinned.as_ptr().cast(), 128, gpu.stream));
    // memory that the driver knows is read when the copy runs, other memory at once
    pageable.fill(7.0);
    pinned.copy_from_slice(&counted(5));
    gpu.turn(y, 1);
    ok!(cuMemcpyDtoHAsync_v2(result.as_mut_ptr().cast(), y, 128, gpu.stream));
    assert_eq!(result, [-1.0; 32], "nobody has waited");
    gpu.wait();
    assert_eq!(result, counted(6));
    assert_eq!(gpu.download(x, 32), counted(0));
}

#[test]
fn streams_wait_for_each_other_by_events_alone() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let other = gpu.stream();
    let (x, turn) = (gpu.upload(&counted(0)), gpu.function("right_in_warp"));
    gpu.wait();
    let mut event = null_mut();
    ok!(cuEventCreate(&mut event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32));
    let result = gpu.pinned(64);
    let (first, second) = result.split_at_mut(32);
    gpu.turn(x, 1);
    ok!(cuEventRecord(event, gpu.stream));
    gpu.turn(x, 1);
    // not ordered: it runs before what was queued earlier elsewhere
    ok!(cuMemcpyDtoHAsync_v2(first.as_mut_ptr().cast(), x, 128, other));
    ok!(cuStreamWaitEvent(other, event, 0));
    assert_eq!(launch(other, turn, x, 4), CUresult::CUDA_SUCCESS);
    ok!(cuMemcpyDtoHAsync_v2(second.as_mut_ptr().cast(), x, 128, other));
    ok!(cuStreamSynchronize(other));
    assert_eq!((&*first, &*second), (&counted(0)[..], &counted(5)[..]));
    gpu.wait();
    assert_eq!(gpu.download(x, 32), counted(6));
    // time passes for those who only look
    gpu.turn(x, 1);
    gpu.turn(x, 1);
    ok!(cuEventRecord(event, gpu.stream));
    // SAFETY: an event of this context
    let looks = (0..).take_while(|_| unsafe { cuEventQuery(event) } == CUresult::CUDA_ERROR_NOT_READY).count();
    assert!((2..10).contains(&looks), "{looks}");
    assert_eq!(gpu.download(x, 32), counted(8));
}

#[test]
fn the_legacy_stream_is_in_order_with_streams_that_block() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let mut blocking = null_mut();
    ok!(cuStreamCreate(&mut blocking, CUstream_flags::CU_STREAM_DEFAULT as u32));
    let (x, turn, result) = (gpu.upload(&counted(0)), gpu.function("right_in_warp"), gpu.pinned(32));
    gpu.wait();
    assert_eq!(launch(blocking, turn, x, 3), CUresult::CUDA_SUCCESS);
    ok!(cuMemcpyDtoHAsync_v2(result.as_mut_ptr().cast(), x, 128, null_mut()));
    ok!(cuStreamSynchronize(null_mut()));
    assert_eq!(result, counted(3));
}

#[test]
fn a_graph_repeats_what_was_recorded_with_the_arguments_of_then() {
    let Some(driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let (from, to, turn) = (gpu.pinned(32), gpu.pinned(32), gpu.function("right_in_warp"));
    let x = gpu.upload(&[0.0; 32]);
    gpu.wait();
    let (status, graph) = gpu.record(|| {
        ok!(cuMemcpyHtoDAsync_v2(x, from.as_ptr().cast(), 128, gpu.stream));
        // the arguments are gone after the call
        assert_eq!(gpu.launch(turn, x, 3), CUresult::CUDA_SUCCESS);
        ok!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), x, 128, gpu.stream));
        let mut capturing = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        ok!(cuStreamIsCapturing(gpu.stream, &mut capturing));
        assert_eq!(capturing, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    });
    assert_eq!(status, CUresult::CUDA_SUCCESS);
    let mut executable = null_mut();
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    ok!(cuGraphDestroy(graph));
    assert_eq!(gpu.download(x, 32), [0.0; 32], "recording runs nothing");
    for start in [0, 10] {
        from.copy_from_slice(&counted(start));
        ok!(cuGraphLaunch(executable, gpu.stream));
        gpu.wait();
        assert_eq!(to, counted(start + 3));
    }
    ok!(cuGraphExecDestroy(executable));
    refused!(cuGraphLaunch(executable, gpu.stream), CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(["launch_calls", "graph_launches", "kernels"].map(|name| driver.count(name)), [1, 2, 2]);
}

#[test]
fn what_must_not_be_done_while_recording_ends_it() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let (x, module) = (gpu.upload(&counted(0)), gpu.module("right_in_warp"));
    let (mut memory, mut host, mut pageable) = (0, null_mut(), [0.0f32; 32]);
    gpu.wait();
    let text = ptx("7.8", "sm_80", "right_in_warp");
    type Call<'a> = &'a mut dyn FnMut() -> CUresult;
    let mut another = null_mut();
    // SAFETY: pointers to variables that outlive the calls, and memory of the stand-in's
    let calls: [Call; 9] = unsafe {
        [
            &mut || cuStreamSynchronize(gpu.stream),
            &mut || cuCtxSynchronize(),
            &mut || cuMemAlloc_v2(&mut memory, 4),
            &mut || cuMemFree_v2(x),
            &mut || cuMemHostAlloc(&mut host, 4, 0),
            &mut || cuMemcpyHtoDAsync_v2(x, [0.0f32; 32].as_ptr().cast(), 128, gpu.stream),
            &mut || cuMemcpyDtoHAsync_v2(pageable.as_mut_ptr().cast(), x, 128, gpu.stream),
            &mut || cuModuleLoadDataEx(&mut another, text.as_ptr().cast(), 0, null_mut(), null_mut()),
            &mut || cuModuleUnload(module),
        ]
    };
    for (i, call) in calls.into_iter().enumerate() {
        let (status, graph) = gpu.record(|| {
            assert_eq!(call(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "call {i}");
            refused!(cuMemsetD8Async(x, 0, 128, gpu.stream), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        });
        assert_eq!((status, graph), (CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, null_mut()), "call {i}");
    }
    // the stream goes on
    gpu.turn(x, 2);
    assert_eq!(gpu.download(x, 32), counted(2));
    refused!(cuStreamEndCapture(gpu.stream, &mut null_mut()), CUDA_ERROR_ILLEGAL_STATE);
}

#[test]
fn another_thread_may_allocate_while_this_one_records() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let mut context = null_mut();
    ok!(cuCtxGetCurrent(&mut context));
    let context = context as usize;
    let (status, _) = gpu.record(|| {
        let other = std::thread::spawn(move || {
            let mut memory = 0;
            ok!(cuCtxSetCurrent(context as CUcontext));
            ok!(cuMemAlloc_v2(&mut memory, 4));
            ok!(cuMemFree_v2(memory));
        });
        other.join().unwrap();
    });
    assert_eq!(status, CUresult::CUDA_SUCCESS);
}

#[test]
fn memory_has_an_end() {
    let Some(driver) = stand_in() else { return };
    driver.set("MEMORY", 1000);
    let gpu = Gpu::new(0);
    let (mut more, mut free, mut total) = (0, 0, 0);
    let x = gpu.memory(150);
    refused!(cuMemAlloc_v2(&mut more, 401), CUDA_ERROR_OUT_OF_MEMORY);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert_eq!((free, total), (400, 1000));
    assert!(gpu.download(x, 150).iter().all(|v| v.is_nan()), "nobody has written it");
    let floats = [0.0f32; 151];
    // one too many, one before, and none too many from the middle on
    refused!(cuMemcpyHtoDAsync_v2(x, floats.as_ptr().cast(), 604, gpu.stream), CUDA_ERROR_INVALID_VALUE);
    refused!(cuMemsetD8Async(x - 4, 0, 4, gpu.stream), CUDA_ERROR_INVALID_VALUE);
    ok!(cuMemcpyHtoDAsync_v2(x + 300, floats.as_ptr().cast(), 300, gpu.stream));
    gpu.wait();
    ok!(cuMemFree_v2(x));
    refused!(cuMemFree_v2(x), CUDA_ERROR_INVALID_VALUE);
    refused!(cuMemsetD8Async(x, 0, 4, gpu.stream), CUDA_ERROR_INVALID_VALUE);
    ok!(cuMemAlloc_v2(&mut more, 1000));
    ok!(cuMemFree_v2(more));
    let counts = ["allocations", "bytes", "peak_bytes", "peak_bytes"].map(|name| driver.count(name));
    assert_eq!(counts, [0, 0, 1000, 0]);
}

#[test]
fn devices_do_not_share_memory() {
    let Some(driver) = stand_in() else { return };
    driver.set("DEVICES", 2);
    let first = Gpu::new(0);
    let x = first.memory(4);
    let second = Gpu::new(1);
    refused!(cuMemsetD8Async(x, 0, 4, second.stream), CUDA_ERROR_INVALID_VALUE);
    refused!(cuStreamSynchronize(first.stream), CUDA_ERROR_INVALID_HANDLE);
    second.wait();
}

#[test]
fn modules_are_taken_by_drivers_and_devices_that_know_them() {
    let Some(driver) = stand_in() else { return };
    let _gpu = Gpu::new(0);
    let load = |version: &str, target: &str| {
        let (text, mut module) = (ptx(version, target, "right_in_warp"), null_mut());
        // SAFETY: a text that ends with NUL
        unsafe { cuModuleLoadData(&mut module, text.as_ptr().cast()) }
    };
    use CUresult::*;
    for (driver_version, capability, version, target, expected) in [
        ("11.8", "8.0", "7.8", "sm_80", CUDA_SUCCESS),
        ("11.7", "8.0", "7.8", "sm_80", CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
        ("11.8", "9.0", "8.0", "sm_90", CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
        ("12.4", "9.0", "8.4", "sm_90", CUDA_SUCCESS),
        ("12.4", "9.0", "8.4", "sm_80", CUDA_SUCCESS),
        ("12.4", "9.0", "8.4", "sm_90a", CUDA_SUCCESS),
        ("12.4", "10.0", "8.4", "sm_90a", CUDA_ERROR_NO_BINARY_FOR_GPU),
        ("12.4", "8.9", "8.4", "sm_90", CUDA_ERROR_NO_BINARY_FOR_GPU),
        ("11.8", "7.5", "7.8", "sm_80", CUDA_ERROR_NO_BINARY_FOR_GPU),
        ("12.8", "8.0", "no number", "sm_80", CUDA_ERROR_INVALID_PTX),
    ] {
        driver.set("DRIVER", driver_version);
        driver.set("CAPABILITY", capability);
        assert_eq!(load(version, target), expected, "PTX {version} for {target}, {driver_version}, {capability}");
    }
}

#[test]
fn a_function_is_an_entry_point_and_a_kernel_with_its_parameters() {
    let Some(driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let (mut function, mut value) = (null_mut(), 0);
    let module = gpu.module("no_such_kernel");
    refused!(cuModuleGetFunction(&mut function, module, c"no_such_kernel".as_ptr()), CUDA_ERROR_NOT_FOUND);
    refused!(cuModuleGetFunction(&mut function, module, c"right_in_warp".as_ptr()), CUDA_ERROR_NOT_FOUND);
    // a kernel with other parameters
    let module = gpu.module("quantize");
    refused!(cuModuleGetFunction(&mut function, module, c"quantize".as_ptr()), CUDA_ERROR_NOT_FOUND);
    let function = gpu.function("right_in_warp");
    use CUfunction_attribute_enum::*;
    for (attribute, expected) in [
        (CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 64),
        (CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 128),
        (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (48 << 10) - 128),
    ] {
        ok!(cuFuncGetAttribute(&mut value, attribute, function));
        assert_eq!(value, expected, "{attribute:?}");
    }
    assert_eq!(driver.count("objects"), 4, "a stream and three modules");
}

#[test]
fn launches_keep_to_the_limits() {
    let Some(_driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let (mut x, mut n, function) = (gpu.upload(&counted(0)), 0, gpu.function("right_in_warp"));
    let mut arguments: [*mut c_void; 2] = [(&raw mut x).cast(), (&raw mut n).cast()];
    let mut launch = |[gx, gy, gz]: [u32; 3], threads: u32, shared: u32| {
        let (stream, arguments) = (gpu.stream, arguments.as_mut_ptr());
        // SAFETY: a pointer and a number; what is launched is within the memory, or refused
        unsafe { cuLaunchKernel(function, gx, gy, gz, threads, 1, 1, shared, stream, arguments, null_mut()) }
    };
    use CUresult::{CUDA_ERROR_INVALID_VALUE as INVALID, CUDA_SUCCESS as SUCCESS};
    assert_eq!(launch([1, 1, 1], 32, 0), SUCCESS);
    assert_eq!(launch([0, 1, 1], 32, 0), INVALID);
    assert_eq!(launch([1, 65536, 1], 32, 0), INVALID);
    assert_eq!(launch([1, 1, 1], 96, 0), INVALID, "the PTX says 64 threads");
    // 128 bytes are declared
    let (plain, most) = ((48 << 10) - 128, (99 << 10) - 128);
    assert_eq!(launch([1, 1, 1], 32, plain), SUCCESS);
    assert_eq!(launch([1, 1, 1], 32, plain + 1), INVALID);
    let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    refused!(cuFuncSetAttribute(function, attribute, most as i32 + 1), CUDA_ERROR_INVALID_VALUE);
    ok!(cuFuncSetAttribute(function, attribute, most as i32));
    assert_eq!(launch([1, 1, 1], 32, most), SUCCESS);
    gpu.wait();
}

#[test]
fn what_a_kernel_does_wrong_ends_its_context_alone() {
    let Some(driver) = stand_in() else { return };
    driver.set("DEVICES", 2);
    let gpu = Gpu::new(0);
    let x = gpu.memory(127);
    let function = gpu.function("defect_past_the_end");
    // into the padding
    assert_eq!(gpu.launch(function, x, 127 - 31), CUresult::CUDA_SUCCESS);
    refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_LAUNCH_FAILED);
    assert!(driver.message().contains("past the end of memory of 508 bytes"), "{}", driver.message());
    refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_LAUNCH_FAILED);
    refused!(cuMemFree_v2(x), CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(gpu.launch(function, x, 0), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // in the middle of a block's work: the other device has its threads next
    driver.restart();
    driver.set("DEVICES", 2);
    for device in [0, 1] {
        let gpu = Gpu::new(device);
        let x = gpu.upload(&counted(0));
        gpu.turn(x, 1);
        assert_eq!(gpu.download(x, 32), counted(1));
        assert_eq!(gpu.launch(gpu.function("defect_divergent_shuffle"), x, 30), CUresult::CUDA_SUCCESS);
        gpu.turn(x, 1);
        refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_LAUNCH_FAILED);
        assert!(driver.message().contains("different operations"), "{}", driver.message());
    }
    assert_eq!(driver.count("kernels"), 4, "none after the one that failed");
}

#[test]
fn failures_come_when_a_test_wants_them() {
    let Some(driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    let (x, turn, mut memory) = (gpu.upload(&counted(0)), gpu.function("right_in_warp"), 0);
    driver.set("FAIL_ALLOCATION", 2);
    ok!(cuMemAlloc_v2(&mut memory, 4));
    refused!(cuMemAlloc_v2(&mut memory, 4), CUDA_ERROR_OUT_OF_MEMORY);
    ok!(cuMemAlloc_v2(&mut memory, 4));
    driver.set("FAIL_LAUNCH", "2:701");
    assert_eq!(gpu.launch(turn, x, 1), CUresult::CUDA_SUCCESS);
    assert_eq!(gpu.launch(turn, x, 1), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(gpu.download(x, 32), counted(1));
    let (ptx, mut module) = (ptx("7.8", "sm_80", "right_in_warp"), null_mut());
    driver.set("FAIL_MODULE", 1);
    refused!(cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 0, null_mut(), null_mut()), CUDA_ERROR_OUT_OF_MEMORY);
    ok!(cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), 0, null_mut(), null_mut()));
    // one that stays is found later
    driver.set("FAIL_LAUNCH", "1:700");
    assert_eq!(gpu.launch(turn, x, 1), CUresult::CUDA_SUCCESS);
    refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_ILLEGAL_ADDRESS);
    refused!(cuMemAlloc_v2(&mut memory, 4), CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn an_error_that_stays_ends_with_its_context_where_a_test_wants_that() {
    let driver = Driver::open();
    for recovers in [0, 1] {
        driver.restart();
        driver.set("RECOVERS", recovers);
        let gpu = Gpu::new(0);
        let (x, turn, mut context) = (gpu.upload(&counted(0)), gpu.function("right_in_warp"), null_mut());
        ok!(cuDevicePrimaryCtxRetain(&mut context, gpu.device));
        driver.set("FAIL_LAUNCH", "1:719");
        assert_eq!(gpu.launch(turn, x, 1), CUresult::CUDA_SUCCESS);
        refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_LAUNCH_FAILED);
        // somebody else has it
        refused!(cuDevicePrimaryCtxRelease_v2(gpu.device), CUDA_ERROR_LAUNCH_FAILED);
        refused!(cuDevicePrimaryCtxRetain(&mut context, gpu.device), CUDA_ERROR_LAUNCH_FAILED);
        refused!(cuDevicePrimaryCtxRelease_v2(gpu.device), CUDA_ERROR_LAUNCH_FAILED);
        assert_eq!(driver.count("contexts"), 0);
        if recovers == 0 {
            refused!(cuDevicePrimaryCtxRetain(&mut context, gpu.device), CUDA_ERROR_LAUNCH_FAILED);
            continue;
        }
        let gpu = Gpu::new(0);
        let x = gpu.upload(&counted(0));
        gpu.turn(x, 1);
        assert_eq!(gpu.download(x, 32), counted(1));
    }
}

#[test]
fn what_is_left_is_counted() {
    let Some(driver) = stand_in() else { return };
    let left = || ["allocations", "pinned", "objects", "contexts"].map(|name| driver.count(name));
    let gpu = Gpu::new(0);
    let (x, module, pinned) = (gpu.memory(1), gpu.module("right_in_warp"), gpu.pinned(1).as_mut_ptr());
    assert_eq!(left(), [1, 1, 2, 1]);
    ok!(cuMemFree_v2(x));
    ok!(cuModuleUnload(module));
    ok!(cuMemFreeHost(pinned.cast()));
    ok!(cuStreamDestroy_v2(gpu.stream));
    refused!(cuStreamSynchronize(gpu.stream), CUDA_ERROR_INVALID_HANDLE);
    ok!(cuDevicePrimaryCtxRelease_v2(gpu.device));
    assert_eq!(left(), [0, 0, 0, 0]);
    // what ends with its context was not given back
    let gpu = Gpu::new(0);
    gpu.memory(1);
    ok!(cuDevicePrimaryCtxRelease_v2(gpu.device));
    assert_eq!(left(), [1, 0, 1, 0]);
}
