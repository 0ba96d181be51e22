import CMmada
import Foundation

/// An answer or pictures in the making, step by step.
///
/// ```swift
/// let generation = try context.beginText([.user("What is 17 + 25?")])
/// defer { generation.close() }
/// for try await step in generation.steps {
///     print(step.index, try generation.text())
/// }
/// ```
public final class Generation: Sendable {
    private let handle: Handle
    private let logger: Logger?
    private let queue: DispatchQueue

    init(_ handle: Handle, logger: Logger?, queue: DispatchQueue) {
        self.handle = handle
        self.logger = logger
        self.queue = queue
    }

    /// Cancels a step that is running, and frees the generation: at once, or at the end of the calls that are using it.
    /// Every later use is an error (`.invalidHandle`). Closing twice is harmless.
    public func close() {
        cancel()
        handle.close()
    }

    /// Cancels the generation: the step that is running fails with `.cancelled` within one layer of the network, and so
    /// does every later one. Results so far can still be had, except pictures. The context and its other generations go
    /// on. May be called by any thread.
    public func cancel() {
        handle.useIfOpen { _ = mmada_generation_cancel($0) }
    }

    private func call<R>(_ body: (OpaquePointer) throws -> R) throws -> R {
        try watching(logger) { try handle.use(body) }
    }

    // MARK: Steps

    /// Runs one step in the calling thread. A step that failed changed nothing and can be tried again, except after
    /// `.cancelled`, which lasts.
    ///
    /// - Throws: `MmadaError` with `.done` if the generation is complete, `.busy` if another call is using it or its
    ///   context, `.cancelled`, `.outOfMemory`; what the context's logger throws, after which the generation is
    ///   cancelled.
    @discardableResult
    public func step() throws -> Step {
        logger?.forget()
        let outcome = Result {
            try handle.use { generation in
                var step = mmada_step()
                try initialize(&step, mmada_step_init)
                try check { mmada_generation_step(generation, &step, $0) }
                return Step(step)
            }
        }
        if let thrown = logger?.takeThrown() {
            cancel()
            throw thrown
        }
        return try outcome.get()
    }

    /// Runs all steps that are left in the calling thread.
    ///
    /// - Parameter onStep: Told of every step; what it throws cancels the generation and is thrown on.
    public func run(onStep: (Step) throws -> Void = { _ in }) throws {
        while let step = try ended({ try step() }) {
            try stopping { try onStep(step) }
        }
    }

    /// The steps that are left. Each runs when it is asked for, on a thread of its own; between two steps the generation
    /// stands still, and what it has so far can be asked of it.
    ///
    /// Cancelling the task that iterates cancels the generation: a step that is running ends within one layer of the
    /// network, with a `CancellationError`. As with every `AsyncThrowingStream`, a task that is cancelled between two
    /// steps sees the end of the stream instead: `try Task.checkCancellation()` after the loop tells. Leaving the loop
    /// leaves the generation as it is, and new `steps` go on with it.
    public var steps: AsyncThrowingStream<Step, any Error> {
        let watch = StreamWatch(self)
        return AsyncThrowingStream { try await watch.generation.nextStep() }
    }

    /// Runs one step on a thread of its own; nil if the generation is complete. Steps of several generations of one
    /// context wait for each other. Cancelling the task cancels the generation, with a `CancellationError`.
    @discardableResult
    public func nextStep() async throws -> Step? {
        try await offload(to: queue, cancel: cancel) {
            try self.ended { try self.step() }
        }
    }

    /// Runs all steps that are left, each on a thread of its own. Cancelling the task cancels the generation, with a
    /// `CancellationError`, at whatever moment it comes.
    ///
    /// - Parameter onStep: Told of every step; what it throws cancels the generation and is thrown on.
    public func finish(onStep: (@Sendable (Step) throws -> Void)? = nil) async throws {
        while let step = try await nextStep() {
            if let onStep {
                try stopping { try onStep(step) }
            }
        }
    }

    /// nil in the place of the error that says that the generation is complete.
    private func ended(_ step: () throws -> Step) throws -> Step? {
        do {
            return try step()
        } catch let error as MmadaError where error.status == .done {
            return nil
        }
    }

    /// What a callback throws cancels the generation.
    private func stopping(_ callback: () throws -> Void) throws {
        do {
            try callback()
        } catch {
            cancel()
            throw error
        }
    }

    // MARK: What it is and has

    /// What the generation is and how far it has come. `.busy` while a step runs.
    public func info() throws -> GenerationInfo {
        var info = mmada_generation_info()
        try initialize(&info, mmada_generation_info_init)
        try call { generation in try check { mmada_generation_get_info(generation, &info, $0) } }
        return GenerationInfo(info)
    }

    /// The answer as the model wrote it (with thinking: `<think>...</think>answer`), or a drawing's description. While it
    /// is being made, what stands before its first mask: that part will not change any more.
    ///
    /// - Throws: `MmadaError` with `.invalidArgument` for a drawing without thinking, `.busy` while a step runs.
    public func text() throws -> String {
        try call { generation in try takeText { mmada_generation_text(generation, $0, $1) } ?? "" }
    }

    /// What the model thought: the part between the tags; nil if it set none. Otherwise as `text()`.
    public func thinking() throws -> String? {
        try call { generation in try takeText { mmada_generation_thinking(generation, $0, $1) } }
    }

    /// The answer without the thinking. Otherwise as `text()`.
    public func answer() throws -> String {
        try call { generation in try takeText { mmada_generation_answer(generation, $0, $1) } ?? "" }
    }

    /// The ids of the text, up to the token that ended it or to the first mask. Otherwise as `text()`.
    public func ids() throws -> [TokenID] {
        try call { generation in try takeIDs { mmada_generation_ids(generation, $0, $1) } }
    }

    /// The description that a picture with thinking is drawn from; nil for anything else. `.busy` while a step runs.
    public func imageDescription() throws -> String? {
        try call { generation in try takeText { mmada_generation_description(generation, $0, $1) } }
    }

    /// What a user should be told, such as that a prompt was cut. `.busy` while a step runs.
    public func warnings() throws -> [String] {
        try call { generation in
            let lines = try takeText { mmada_generation_warnings(generation, $0, $1) } ?? ""
            return lines.split(separator: "\n").map(String.init)
        }
    }

    /// Text, answer, thinking, ids and warnings together.
    public func result() async throws -> Answer {
        try await offload(to: queue, cancel: {}) {
            Answer(
                answer: try self.answer(), thinking: try self.thinking(), text: try self.text(), ids: try self.ids(),
                warnings: try self.warnings())
        }
    }

    /// The codes that picture `index` has now, row by row; positions that are still masked have the code that was
    /// sampled last. A code plus the model's `imageOffset` is an id.
    ///
    /// - Throws: `MmadaError` with `.invalidArgument` if there is no such picture, or no step of it has been taken,
    ///   `.busy` while a step runs.
    public func codes(ofImage index: Int = 0) throws -> [UInt32] {
        let index = try size(index, "the index of a picture")
        return try call { generation in try takeIDs { mmada_generation_codes(generation, index, $0, $1) } }
    }

    /// Picture `index` in pixels: the result or, midway, a preview of it. Computed by every call.
    ///
    /// - Throws: `MmadaError` with `.invalidArgument` if there is no such picture, or no step of it has been taken,
    ///   `.busy` while a step runs, `.cancelled`, `.outOfMemory`.
    public func image(_ index: Int = 0) throws -> RGBImage {
        let index = try size(index, "the index of a picture")
        return try call { generation in
            try RGBImage(taking: take { mmada_generation_image(generation, index, $0, $1) })
        }
    }

    /// All pictures, computed on a thread of their own. Cancelling the task cancels the generation, with a
    /// `CancellationError`.
    public func images() async throws -> [RGBImage] {
        try await offload(to: queue, cancel: cancel) {
            try (0..<self.info().imageCount).map { try self.image($0) }
        }
    }

    /// The positions of the text (of the first picture where there is no text): their ids, nil where nothing has been
    /// decided. For showing how an answer comes about. `.busy` while a step runs.
    public func canvas() throws -> [TokenID?] {
        try call { generation in decided(try takeIDs { mmada_generation_canvas(generation, $0, $1) }) }
    }

    /// The positions of picture `index`, row by row: their ids, nil where nothing has been decided.
    ///
    /// - Throws: `MmadaError` with `.notFound` if there is no such picture, `.busy` while a step runs.
    public func canvas(ofImage index: Int) throws -> [TokenID?] {
        let index = try size(index, "the index of a picture")
        return try call { generation in
            decided(try takeIDs { mmada_generation_image_canvas(generation, index, $0, $1) })
        }
    }

    /// MMADA_MASKED, which Swift does not see as a number, is the largest id.
    private func decided(_ ids: [TokenID]) -> [TokenID?] {
        ids.map { $0 == .max ? nil : $0 }
    }
}

/// Lives as long as a stream of steps. A stream lets go of it when it is cancelled between two steps, in the task that is
/// cancelled: then the generation is cancelled, too.
private final class StreamWatch: Sendable {
    let generation: Generation

    init(_ generation: Generation) {
        self.generation = generation
    }

    deinit {
        if Task.isCancelled { generation.cancel() }
    }
}

/// What a step is about.
public enum Stage: UInt32, Sendable, CaseIterable {
    /// An answer, or the description that is thought out before a picture.
    case text = 0
    /// Pictures.
    case image = 1
}

/// What a step did.
public struct Step: Sendable, Hashable {
    /// What the step was about.
    public let stage: Stage
    /// Steps of this stage that are done.
    public let index: Int
    /// Steps that there are of this stage, at most.
    public let total: Int
    /// Text: how many tokens of the answer stand before its first mask; these will not change. 0 for pictures.
    public let prefix: Int
    /// The positions that this step decided for good.
    public let changes: [Change]
    /// Whether the generation is complete.
    public let isDone: Bool

    /// A position that has been decided.
    public struct Change: Sendable, Hashable {
        /// Which picture; 0 for text.
        public let sequence: Int
        /// The position in the answer, or the place in the picture, row by row.
        public let position: Int
        /// The token; of a picture the image code plus the model's `imageOffset`.
        public let id: TokenID
    }

    init(_ step: mmada_step) {
        stage = Stage(rawValue: step.stage) ?? .text
        index = step.index
        total = step.total
        prefix = step.prefix
        changes = UnsafeBufferPointer(start: step.changes, count: step.change_count).map {
            Change(sequence: $0.sequence, position: $0.position, id: $0.id)
        }
        isDone = step.done != 0
    }
}

/// What a generation is.
public struct GenerationInfo: Sendable, Hashable {
    /// Steps of all stages together; an answer that ends early takes fewer.
    public let totalSteps: Int
    /// How many pictures are drawn; 0 for an answer.
    public let imageCount: Int
    /// Width of the pictures in image codes; 0 for an answer.
    public let imageColumns: Int
    /// Height of the pictures in image codes; 0 for an answer.
    public let imageRows: Int
    /// Whether every stage is complete.
    public let isDone: Bool
    /// Whether there is text: an answer, or a description before a picture.
    public let hasText: Bool

    init(_ info: mmada_generation_info) {
        totalSteps = info.total_steps
        imageCount = info.image_count
        imageColumns = info.image_columns
        imageRows = info.image_rows
        isDone = info.done != 0
        hasText = info.has_text != 0
    }
}

/// An answer.
public struct Answer: Sendable, Hashable, CustomStringConvertible {
    /// The answer without the thinking.
    public let answer: String
    /// What the model thought; nil if it did not.
    public let thinking: String?
    /// Thinking and answer as the model wrote them.
    public let text: String
    /// The ids of the text.
    public let ids: [TokenID]
    /// What a user should be told, such as that a prompt was cut.
    public let warnings: [String]

    /// The answer without the thinking.
    public var description: String { answer }
}
