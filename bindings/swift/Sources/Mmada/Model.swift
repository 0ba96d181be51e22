import CMmada
import Foundation

/// An opened and checked model file. It never changes, so that any number of tasks and contexts may use it at once.
public final class Model: Sendable {
    let handle: Handle

    /// Opens a GGUF file and checks its metadata and the names, shapes and extents of its tensors.
    ///
    /// - Parameters:
    ///   - path: The file; of a split file any part.
    ///   - options: How the file is brought into memory.
    ///   - progress: Told how many of how many bytes have been read, by the thread that called. What it throws ends the
    ///     opening and is thrown on: `try Task.checkCancellation()` in it makes opening cancellable.
    /// - Throws: `MmadaError` with `.ioError`, `.badFormat` (damaged or cut off), `.unsupported` (another architecture)
    ///   or `.outOfMemory`; what `progress` throws.
    public init(
        path: String, options: OpenOptions = OpenOptions(),
        progress: ((_ done: UInt64, _ total: UInt64) throws -> Void)? = nil
    ) throws {
        let model = try openModel(options, progress) { c, model, error in
            path.withC { mmada_model_open($0, $1, c, model, error) }
        }
        handle = Handle(model, name: "model") { mmada_model_free($0) }
    }

    /// Opens a GGUF file, as `init(path:options:progress:)`.
    public convenience init(contentsOf file: URL, options: OpenOptions = OpenOptions()) throws {
        try self.init(path: try Mmada.path(of: file), options: options)
    }

    /// Opens the model file behind a file descriptor, from its beginning; the descriptor stays the caller's, who may
    /// close it afterwards. `name` stands for the path in messages.
    public init(
        fileDescriptor: Int32, name: String, options: OpenOptions = OpenOptions(),
        progress: ((_ done: UInt64, _ total: UInt64) throws -> Void)? = nil
    ) throws {
        let model = try openModel(options, progress) { c, model, error in
            name.withC { mmada_model_open_fd(fileDescriptor, $0, $1, c, model, error) }
        }
        handle = Handle(model, name: "model") { mmada_model_free($0) }
    }

    /// Opens a model file that is in memory; the bytes are copied. `name` stands for the path in messages.
    public init(bytes: some ContiguousBytes, name: String) throws {
        let copy = bytes.withUnsafeBytes { ModelBytes($0) }
        let model = try take { model, error in
            name.withC { mmada_model_open_memory(copy.start, copy.count, $0, $1, model, error) }
        }
        handle = Handle(model, name: "model", keeping: [copy]) { mmada_model_free($0) }
    }

    /// Frees the model: at once, or at the end of the calls that are using it. Contexts that were made with it go on.
    /// Every later use of the model is an error (`.invalidHandle`). Closing twice is harmless.
    public func close() {
        handle.close()
    }

    /// What the model is.
    public func info() throws -> ModelInfo {
        var info = mmada_model_info()
        try initialize(&info, mmada_model_info_init)
        try handle.use { model in try check { mmada_model_get_info(model, &info, $0) } }
        return ModelInfo(info)
    }

    /// The keys of the file's metadata, in its order, such as "general.name".
    public func metadataKeys() throws -> [String] {
        try handle.use { model in
            var count = 0
            try check { mmada_model_metadata_count(model, &count, $0) }
            return try (0..<count).map { index in
                try takeText { mmada_model_metadata_key(model, index, $0, $1) } ?? ""
            }
        }
    }

    /// The value of a metadata key: a string as it is, anything else as JSON. nil if there is no such key.
    public func metadata(_ key: String) throws -> String? {
        do {
            return try handle.use { model in
                try takeText { value, error in key.withC { mmada_model_metadata(model, $0, $1, value, error) } }
            }
        } catch let error as MmadaError where error.status == .notFound {
            return nil
        }
    }

    /// The ids of a text. Unless `parseSpecial` is set, text that looks like a special token is ordinary text; never set
    /// it for what a user supplies. No token is added at either end.
    public func tokenize(_ text: String, parseSpecial: Bool = false) throws -> [TokenID] {
        try handle.use { model in
            try takeIDs { ids, error in
                text.withC { mmada_model_tokenize(model, $0, $1, parseSpecial ? 1 : 0, ids, error) }
            }
        }
    }

    /// The text of ids. Ids that are no text (image codes) are left out, and so are special tokens unless
    /// `skipSpecial` is false. Bytes that are not UTF-8 become U+FFFD.
    public func detokenize(_ ids: [TokenID], skipSpecial: Bool = true) throws -> String {
        try handle.use { model in
            try takeText { mmada_model_detokenize(model, ids, ids.count, skipSpecial ? 1 : 0, $0, $1) } ?? ""
        }
    }

    /// The ids of a chat without a picture, up to where the answer begins: for counting tokens and for
    /// `Context.score`.
    public func promptIDs(_ messages: [Message], thinking: Bool = false) throws -> [TokenID] {
        try handle.use { model in
            try withArena { arena in
                let c = try arena.messages(messages)
                return try takeIDs { mmada_model_prompt_ids(model, c, messages.count, thinking ? 1 : 0, $0, $1) }
            }
        }
    }

    /// What the model's file recommends for a text, with thinking or without, about a picture or not.
    public func recommendedTextOptions(thinking: Bool = false, aboutImage: Bool = false) throws -> TextOptions {
        TextOptions(try handle.use { try Recommended($0) }.text(thinking: thinking, aboutImage: aboutImage))
    }

    /// What the model's file recommends for drawing.
    public func recommendedImageOptions(thinking: Bool = false) throws -> ImageOptions {
        ImageOptions(try handle.use { try Recommended($0) }.image(thinking: thinking))
    }

    /// What the model's file recommends for the description that is thought out before a picture.
    public func recommendedDescriptionOptions() throws -> TextOptions {
        TextOptions(try handle.use { try Recommended($0) }.description)
    }

    /// What answering takes after a prompt of `promptTokens` tokens (a picture's among them), before anything is loaded.
    public func estimateText(
        promptTokens: Int, options: TextOptions = TextOptions(), aboutImage: Bool = false
    ) throws -> Estimate {
        try estimate { model, estimate in
            try withArena { arena in
                let recommended = try Recommended(model).text(thinking: options.thinking, aboutImage: aboutImage)
                var c = try options.makeC(recommended, arena)
                let tokens = try size(promptTokens, "promptTokens")
                try check { mmada_model_estimate_text(model, tokens, &c, estimate, $0) }
            }
        }
    }

    /// What drawing takes after a prompt of `promptTokens` tokens, without the thinking that may come first and without
    /// decoding.
    public func estimateImage(promptTokens: Int, options: ImageOptions = ImageOptions()) throws -> Estimate {
        try estimate { model, estimate in
            var c = try options.makeC(try Recommended(model).image(thinking: options.thinking))
            let tokens = try size(promptTokens, "promptTokens")
            try check { mmada_model_estimate_image(model, tokens, &c, estimate, $0) }
        }
    }

    private func estimate(
        _ call: (OpaquePointer, UnsafeMutablePointer<mmada_estimate>) throws -> Void
    ) throws -> Estimate {
        var estimate = mmada_estimate()
        try initialize(&estimate, mmada_estimate_init)
        try handle.use { try call($0, &estimate) }
        return Estimate(estimate)
    }
}

/// What a model is.
public struct ModelInfo: Sendable, Hashable {
    /// Size of the file.
    public let fileBytes: Int
    /// Most positions of one sequence, prompt and answer together.
    public let contextLength: Int
    /// Layers of the network.
    public let layers: Int
    /// Width of the residual stream.
    public let dModel: Int
    /// Ids are below this.
    public let vocabulary: Int
    /// Ids below this are text.
    public let textVocabulary: Int
    /// The id of image code 0.
    public let imageOffset: Int
    /// Size of the codebook; 0 for a model without pictures.
    public let imageCodes: Int
    /// Pixels of a side of the pictures that the model was trained on; 0 without an image tokenizer.
    public let imageSize: Int
    /// Pixels of a side of one image code: widths and heights are multiples of it. 0 without an image tokenizer.
    public let imageDownsampling: Int
    /// Whether the model can see and draw pictures.
    public let hasImages: Bool
    /// Begins a prompt.
    public let bosID: TokenID
    /// Ends a text.
    public let eosID: TokenID
    /// Ends a turn of a chat.
    public let eotID: TokenID
    /// What is to be filled in.
    public let maskID: TokenID

    init(_ info: mmada_model_info) {
        fileBytes = info.file_bytes
        contextLength = info.context_length
        layers = info.layers
        dModel = info.d_model
        vocabulary = info.vocabulary
        textVocabulary = info.text_vocabulary
        imageOffset = info.image_offset
        imageCodes = info.image_codes
        imageSize = info.image_size
        imageDownsampling = info.image_downsampling
        hasImages = info.has_images != 0
        bosID = info.bos_id
        eosID = info.eos_id
        eotID = info.eot_id
        maskID = info.mask_id
    }
}

/// What a request will take: bounds, as an answer may end early.
public struct Estimate: Sendable, Hashable {
    /// Bytes of the model file: mapped, shared with other processes, given back under pressure.
    public let weightBytes: UInt64
    /// Bytes of buffers that the context allocates for the request.
    public let scratchBytes: UInt64
    /// Multiply-adds of all steps together.
    public let multiplyAdds: UInt64
    /// Tokens that run through the network, over all steps.
    public let tokens: UInt64

    init(_ estimate: mmada_estimate) {
        weightBytes = estimate.weight_bytes
        scratchBytes = estimate.scratch_bytes
        multiplyAdds = estimate.multiply_adds
        tokens = estimate.tokens
    }

    func makeC() throws -> mmada_estimate {
        var estimate = mmada_estimate()
        try initialize(&estimate, mmada_estimate_init)
        estimate.weight_bytes = weightBytes
        estimate.scratch_bytes = scratchBytes
        estimate.multiply_adds = multiplyAdds
        estimate.tokens = tokens
        return estimate
    }
}

/// A model file in memory, aligned as the library asks for it. Written once, when it is made.
private final class ModelBytes: @unchecked Sendable {
    private let memory: UnsafeMutableRawBufferPointer
    let count: Int
    var start: UnsafePointer<UInt8>? {
        UnsafeRawPointer(memory.baseAddress)?.assumingMemoryBound(to: UInt8.self)
    }

    init(_ bytes: UnsafeRawBufferPointer) {
        count = bytes.count
        memory = .allocate(byteCount: max(count, 1), alignment: 32)
        memory.copyMemory(from: bytes)
    }

    deinit {
        memory.deallocate()
    }
}

/// Whom a C callback tells of progress, and what it threw.
private final class ProgressReceiver {
    let report: (UInt64, UInt64) throws -> Void
    var thrown: (any Error)?

    init(_ report: @escaping (UInt64, UInt64) throws -> Void) {
        self.report = report
    }
}

/// Makes a call of C with a callback that reports to `progress`; what that throws is thrown instead of the call's error.
func reporting<R>(
    _ progress: ((UInt64, UInt64) throws -> Void)?,
    _ call: (mmada_progress_callback?, UnsafeMutableRawPointer?) throws -> R
) throws -> R {
    guard let progress else { return try call(nil, nil) }
    let receiver = ProgressReceiver(progress)
    return try withExtendedLifetime(receiver) {
        do {
            return try call(
                { done, total, user in
                    guard let user else { return 1 }
                    let receiver = Unmanaged<ProgressReceiver>.fromOpaque(user).takeUnretainedValue()
                    do {
                        try receiver.report(done, total)
                        return 0
                    } catch {
                        receiver.thrown = error
                        return 1
                    }
                }, Unmanaged.passUnretained(receiver).toOpaque())
        } catch {
            throw receiver.thrown ?? error
        }
    }
}

private func openModel(
    _ options: OpenOptions, _ progress: ((UInt64, UInt64) throws -> Void)?,
    _ open: (
        UnsafePointer<mmada_open_options>, UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>
    ) -> mmada_status
) throws -> OpaquePointer? {
    var c = mmada_open_options()
    try initialize(&c, mmada_open_options_init)
    c.use_mmap = options.useMmap ? 1 : 0
    return try reporting(progress) { callback, user in
        c.progress = callback
        c.progress_user_data = user
        return try take { open(&c, $0, $1) }
    }
}
