import CMmada
import Foundation

/// The threads and buffers that run a model. Several generations of one context may take turns.
///
/// Asynchronous calls of one context and its generations wait for each other. Synchronous calls do not: of two that need
/// the buffers at once, one gets `.busy`. For work at the same time make a context each; the model is shared.
public final class Context: Sendable {
    let handle: Handle
    let logger: Logger?
    /// Where asynchronous calls run, one at a time.
    let queue = DispatchQueue(label: "mmada.context")
    private let recommended: Recommended

    /// Makes a context, which starts its threads; buffers are made when the first request needs them.
    ///
    /// - Parameters:
    ///   - model: The model; it may be closed before the context.
    ///   - options: Threads, limits, and the like.
    ///   - log: Who is told what happens; nobody by default.
    ///   - progress: Told how many of how many bytes of weights have been copied to a graphics card, by the thread that
    ///     called. What it throws ends the copying and is thrown on.
    /// - Throws: `MmadaError` with `.invalidArgument` for an instruction set that the processor does not have, more than
    ///   1024 threads, or a device that is not there or cannot be used; `.deviceError`; what `progress` throws.
    public init(
        _ model: Model, options: ContextOptions = ContextOptions(), log: LogHandler? = nil,
        progress: ((_ done: UInt64, _ total: UInt64) throws -> Void)? = nil
    ) throws {
        let logger = log.map { Logger($0) }
        (handle, recommended) = try model.handle.use { cModel in
            try withArena { arena in
                var c = mmada_context_options()
                try initialize(&c, mmada_context_options_init)
                c.threads = try size(options.threads, "threads")
                c.memory_limit = options.memoryLimit
                if let name = options.instructionSet {
                    c.instruction_set = arena.copy(name)
                    c.instruction_set_length = name.utf8.count
                }
                c.log_level = options.logLevel.rawValue
                c.compute = options.compute.rawValue
                c.pack = options.pack ? 1 : 0
                c.device = arena.copy(options.device)
                c.device_length = options.device.utf8.count
                if let layers = options.gpuLayers {
                    c.gpu_layers = try size(layers, "gpuLayers")
                }
                if let logger {
                    c.log = Logger.callback
                    c.log_user_data = Unmanaged.passUnretained(logger).toOpaque()
                }
                return try watching(logger) {
                    let context = try reporting(progress) { callback, user in
                        c.progress = callback
                        c.progress_user_data = user
                        return try take { mmada_context_new(cModel, &c, $0, $1) }
                    }
                    let keeping = model.handle.keeping + (logger.map { [$0] } ?? [])
                    let handle = Handle(context, name: "context", keeping: keeping) { mmada_context_free($0) }
                    return (handle, try Recommended(cModel))
                }
            }
        }
        self.logger = logger
    }

    /// Frees the context and ends its threads: at once, or when the calls that are using it and its generations have
    /// ended. Its generations go on. Every later use of the context is an error (`.invalidHandle`). Closing twice is
    /// harmless.
    public func close() {
        handle.close()
    }

    private func call<R>(_ body: (OpaquePointer) throws -> R) throws -> R {
        try watching(logger) { try handle.use(body) }
    }

    /// What the context is.
    public func info() throws -> ContextInfo {
        var info = mmada_context_info()
        try initialize(&info, mmada_context_info_init)
        try call { context in try check { mmada_context_get_info(context, &info, $0) } }
        return ContextInfo(info)
    }

    /// About how many seconds an estimate takes on the context's threads. Measures a product now, which takes up to a
    /// second on a large model.
    public func estimateSeconds(_ estimate: Estimate) throws -> Double {
        var seconds = 0.0
        var c = try estimate.makeC()
        try call { context in try check { mmada_context_estimate_seconds(context, &c, &seconds, $0) } }
        return seconds
    }

    // MARK: Generations

    /// Begins an answer to a chat. Nothing is computed before the first step.
    ///
    /// - Throws: `MmadaError` with `.invalidArgument` for options that cannot be or no messages, `.contextOverflow` if
    ///   prompt and answer do not fit, `.unsupported` for a picture that the model cannot see or a second one.
    public func beginText(_ messages: [Message], options: TextOptions = TextOptions()) throws -> Generation {
        let aboutImage = messages.contains { $0.image != nil }
        return try begin(options, aboutImage: aboutImage) { context, c, arena in
            let cMessages = try arena.messages(messages)
            return try take { mmada_context_begin_text(context, c, cMessages, messages.count, $0, $1) }
        }
    }

    /// Begins an answer to a prompt of ids (`Model.promptIDs` makes them of a chat). `options.thinking` must be false:
    /// it would shape the prompt.
    public func beginText(promptIDs: [TokenID], options: TextOptions = TextOptions()) throws -> Generation {
        try begin(options, aboutImage: false) { context, c, arena in
            let ids = arena.copy(promptIDs)
            return try take { mmada_context_begin_text_ids(context, c, ids, promptIDs.count, $0, $1) }
        }
    }

    /// Begins a picture, or several, of what the prompt says. Nothing is computed before the first step.
    ///
    /// - Parameters:
    ///   - prompt: What is to be seen.
    ///   - options: Size, count, seed and the like.
    ///   - description: With `options.thinking`, how the description is sampled that is thought out first; its own
    ///     `thinking` is not looked at.
    /// - Throws: `MmadaError` with `.invalidArgument` for options that cannot be, `.contextOverflow` if prompt and
    ///   picture do not fit, `.unsupported` for a model that cannot draw.
    public func beginImage(
        _ prompt: String, options: ImageOptions = ImageOptions(), description: TextOptions? = nil
    ) throws -> Generation {
        try generation { context in
            try withArena { arena in
                var c = try options.makeC(recommended.image(thinking: options.thinking))
                let cDescription = try description.map { description in
                    var c = try description.makeC(recommended.description, arena)
                    c.thinking = recommended.description.thinking
                    return arena.copy([c])
                }
                return try take { generation, error in
                    prompt.withC {
                        mmada_context_begin_image(context, &c, cDescription, $0, $1, generation, error)
                    }
                }
            }
        }
    }

    /// Begins a picture, or several, from prompts that are ids already: `promptIDs` is everything before the picture,
    /// `unconditionalIDs` the same of the empty prompt, which is not looked at without guidance. `options.thinking`
    /// must be false.
    public func beginImage(
        promptIDs: [TokenID], unconditionalIDs: [TokenID], options: ImageOptions = ImageOptions()
    ) throws -> Generation {
        try generation { context in
            var c = try options.makeC(recommended.image(thinking: options.thinking))
            return try take {
                mmada_context_begin_image_ids(
                    context, &c, promptIDs, promptIDs.count, unconditionalIDs, unconditionalIDs.count, $0, $1)
            }
        }
    }

    private func begin(
        _ options: TextOptions, aboutImage: Bool,
        _ body: (OpaquePointer, UnsafePointer<mmada_text_options>, Arena) throws -> OpaquePointer?
    ) throws -> Generation {
        try generation { context in
            try withArena { arena in
                let recommended = recommended.text(thinking: options.thinking, aboutImage: aboutImage)
                var c = try options.makeC(recommended, arena)
                return try body(context, &c, arena)
            }
        }
    }

    private func generation(_ begin: (OpaquePointer) throws -> OpaquePointer?) throws -> Generation {
        try call { context in
            let handle = Handle(try begin(context), name: "generation", keeping: handle.keeping) {
                mmada_generation_free($0)
            }
            return Generation(handle, logger: logger, queue: queue)
        }
    }

    // MARK: Whole requests

    /// Asks a question, about a picture if there is one, and returns the whole answer. Cancelling the task stops it
    /// within one layer of the network, with a `CancellationError`.
    ///
    /// - Parameters:
    ///   - question: What the user says.
    ///   - image: The picture that it is about.
    ///   - options: Thinking, seed, length and the like.
    ///   - onStep: Told of every step; what it throws stops the generation and is thrown on.
    public func ask(
        _ question: String, about image: RGBImage? = nil, options: TextOptions = TextOptions(),
        onStep: (@Sendable (Step) throws -> Void)? = nil
    ) async throws -> Answer {
        try await answer([.user(question, image: image)], options: options, onStep: onStep)
    }

    /// Answers a chat, as `ask`.
    public func answer(
        _ messages: [Message], options: TextOptions = TextOptions(), onStep: (@Sendable (Step) throws -> Void)? = nil
    ) async throws -> Answer {
        let generation = try beginText(messages, options: options)
        defer { generation.close() }
        try await generation.finish(onStep: onStep)
        return try await generation.result()
    }

    /// Draws what a prompt says: `options.count` pictures. Cancelling the task stops it within one layer of the network,
    /// with a `CancellationError`.
    ///
    /// - Parameters:
    ///   - prompt: What is to be seen.
    ///   - options: Size, count, seed and the like.
    ///   - description: With `options.thinking`, how the description is sampled that is thought out first.
    ///   - onStep: Told of every step; what it throws stops the generation and is thrown on.
    public func draw(
        _ prompt: String, options: ImageOptions = ImageOptions(), description: TextOptions? = nil,
        onStep: (@Sendable (Step) throws -> Void)? = nil
    ) async throws -> [RGBImage] {
        let generation = try beginImage(prompt, options: options, description: description)
        defer { generation.close() }
        try await generation.finish(onStep: onStep)
        return try await generation.images()
    }

    // MARK: The network itself

    /// Runs the network once on a sequence of ids, masks included, and returns the logits of the positions `rows`, in
    /// this order, for the ids of `vocabulary`: [rows, vocabulary], row by row.
    ///
    /// - Throws: `MmadaError` with `.invalidArgument` for an empty sequence, or ids, rows or a range outside the model,
    ///   `.contextOverflow`, `.busy`, `.cancelled`, `.outOfMemory`.
    public func forward(
        _ ids: [TokenID], rows: [Int], vocabulary: Range<TokenID>, canceller: Canceller?
    ) throws -> [Float] {
        try withCanceller(canceller) { canceller in
            try call { context in
                let rows = try rows.map { try size($0, "a row") }
                let (count, overflow) = rows.count.multipliedReportingOverflow(by: vocabulary.count)
                guard !overflow, count <= Int.max / 4 else {
                    throw MmadaError(.outOfMemory, "\(rows.count) rows of \(vocabulary.count) logits are too many")
                }
                return try [Float](unsafeUninitializedCapacity: count) { logits, initialized in
                    logits.initialize(repeating: 0)
                    initialized = count
                    try check {
                        mmada_context_forward(
                            context, ids, ids.count, rows, rows.count, vocabulary.lowerBound, vocabulary.upperBound,
                            logits.baseAddress, count, canceller, $0)
                    }
                }
            }
        }
    }

    /// Runs the network once, as the synchronous function; cancelling the task stops it.
    public func forward(_ ids: [TokenID], rows: [Int], vocabulary: Range<TokenID>) async throws -> [Float] {
        let canceller = try Canceller()
        return try await offload(to: queue, cancel: canceller.cancel) {
            try self.forward(ids, rows: rows, vocabulary: vocabulary, canceller: canceller)
        }
    }

    /// How likely the ids of an answer are after those of a prompt (`Model.promptIDs` makes them of a chat).
    ///
    /// - Throws: `MmadaError` with `.invalidArgument` for an empty answer, a mask in it, or ids outside the vocabulary,
    ///   `.contextOverflow`, `.busy`, `.cancelled`, `.outOfMemory`.
    public func score(
        prompt: [TokenID], answer: [TokenID], options: ScoreOptions = ScoreOptions(), canceller: Canceller?
    ) throws -> Score {
        var score = mmada_score()
        try initialize(&score, mmada_score_init)
        try withCanceller(canceller) { canceller in
            var c = mmada_score_options()
            try initialize(&c, mmada_score_options_init)
            c.samples = try size(options.samples, "samples")
            c.seed = options.seed
            c.cfg_scale = options.cfgScale
            c.canceller = canceller
            try call { context in
                try check {
                    mmada_context_score(context, &c, prompt, prompt.count, answer, answer.count, &score, $0)
                }
            }
        }
        return Score(score)
    }

    /// How likely an answer is, as the synchronous function; cancelling the task stops it.
    public func score(
        prompt: [TokenID], answer: [TokenID], options: ScoreOptions = ScoreOptions()
    ) async throws -> Score {
        let canceller = try Canceller()
        return try await offload(to: queue, cancel: canceller.cancel) {
            try self.score(prompt: prompt, answer: answer, options: options, canceller: canceller)
        }
    }

    private func withCanceller<R>(_ canceller: Canceller?, _ body: (OpaquePointer?) throws -> R) throws -> R {
        guard let canceller else { return try body(nil) }
        return try canceller.handle.use { try body($0) }
    }

    /// The codes of a picture, row by row, by the model's image tokenizer. Its sides must be multiples of the model's
    /// `imageDownsampling`. A code plus the model's `imageOffset` is an id.
    public func encode(_ image: RGBImage) throws -> [UInt32] {
        let c = try image.makeC()
        defer { mmada_image_free(c) }
        return try call { context in try takeIDs { mmada_context_encode_image(context, c, $0, $1) } }
    }

    /// The picture of `columns * rows` codes, given row by row.
    public func decode(_ codes: [UInt32], columns: Int, rows: Int) throws -> RGBImage {
        let columns = try size(columns, "columns")
        let rows = try size(rows, "rows")
        return try call { context in
            try RGBImage(
                taking: take { mmada_context_decode_image(context, codes, codes.count, columns, rows, $0, $1) })
        }
    }
}

/// What a context is.
public struct ContextInfo: Sendable, Hashable {
    /// Threads that it has.
    public let threads: Int
    /// Bytes of buffers that it and its generations have now.
    public let memoryUsed: UInt64
    /// The instruction set in use.
    public let instructionSet: String
    /// How exact products are.
    public let compute: Compute
    /// Bytes that its weights take when they are packed, whether or not they are.
    public let packedBytes: UInt64
    /// What it runs on: "cpu", or a graphics card with its name, such as "cuda:0 (NVIDIA H100 80GB HBM3)".
    public let device: String
    /// How many of the network's blocks run on a graphics card; 0 on the processor.
    public let gpuLayers: Int

    init(_ info: mmada_context_info) {
        threads = info.threads
        memoryUsed = info.memory_used
        instructionSet = text(ofTuple: info.instruction_set)
        compute = Compute(rawValue: info.compute) ?? .fast
        packedBytes = info.packed_bytes
        device = text(ofTuple: info.device)
        gpuLayers = info.gpu_layers
    }
}

/// How likely an answer is.
public struct Score: Sendable, Hashable {
    /// The estimate of a lower bound on ln p(answer | prompt), in nats; at most 0.
    public let logLikelihood: Double
    /// The same divided by the answer's tokens.
    public let perToken: Double
    /// How many maskings were averaged.
    public let samples: Int

    init(_ score: mmada_score) {
        logLikelihood = score.log_likelihood
        perToken = score.per_token
        samples = score.samples
    }
}
