// What requests are made of: values with defaults. Where an option is nil, the model's file says what it recommends.

import CMmada

/// A number that stands for a piece of text or an image code.
public typealias TokenID = UInt32

/// Who says a message.
public enum Role: UInt32, Sendable, CaseIterable {
    /// Instructions that stand above the chat.
    case system = 0
    /// The user.
    case user = 1
    /// The model.
    case assistant = 2
}

/// One turn of a chat.
public struct Message: Sendable, Hashable {
    /// Who says it.
    public var role: Role
    /// The text; white space at both ends is dropped. What looks like a special token is ordinary text.
    public var content: String
    /// The picture that the chat is about. Only one message of a chat may have one.
    public var image: RGBImage?

    /// A turn of a chat.
    public init(role: Role, content: String, image: RGBImage? = nil) {
        self.role = role
        self.content = content
        self.image = image
    }

    /// What the user says, about a picture if there is one.
    public static func user(_ content: String, image: RGBImage? = nil) -> Message {
        Message(role: .user, content: content, image: image)
    }

    /// What the model has said.
    public static func assistant(_ content: String) -> Message {
        Message(role: .assistant, content: content)
    }

    /// Instructions that stand above the chat.
    public static func system(_ content: String) -> Message {
        Message(role: .system, content: content)
    }
}

/// Which candidates of a step are kept.
public enum Remasking: UInt32, Sendable, CaseIterable {
    /// The most probable ones: positions of low confidence stay masked.
    case lowConfidence = 0
    /// Chance decides.
    case random = 1
}

/// How text is sampled. Options that are nil are what the model's file recommends for the request
/// (`Model.recommendedTextOptions` tells).
public struct TextOptions: Sendable, Hashable {
    /// Ask the model to think first; thinking and answer then come back apart.
    public var thinking: Bool
    /// Of the random numbers: the same seed gives the same answer, with any number of threads.
    public var seed: UInt64
    /// Tokens of the answer: a multiple of `blockLength`.
    public var genLength: Int?
    /// Denoising steps over the whole answer: a multiple of the number of blocks, `genLength / blockLength`.
    public var steps: Int?
    /// Tokens that are unmasked together, block after block.
    public var blockLength: Int?
    /// 0 takes the most probable token; above, Gumbel noise of this scale is added to the logits.
    public var temperature: Double?
    /// Classifier-free guidance against the answer to a masked prompt; 0 is none. It doubles the work.
    public var cfgScale: Double?
    /// Which candidates of a step are kept.
    public var remasking: Remasking?
    /// A picture that is no square is cropped to one (false) or resized to one (true: for diagrams and documents).
    public var squash: Bool
    /// Texts, none of them empty; the generation ends, and the answer is cut, before the first of them.
    public var stop: [String]
    /// Ids that must not be chosen.
    public var forbid: [TokenID]
    /// The ids that alone may be chosen; nil for all.
    public var allowOnly: [TokenID]?
    /// Positions of the answer, counted from 0, that are given from the start: the frame of a form to be filled in.
    public var pinned: [Int: TokenID]

    /// Options; what is left out is what the model's file recommends.
    public init(
        thinking: Bool = false, seed: UInt64 = 0, genLength: Int? = nil, steps: Int? = nil, blockLength: Int? = nil,
        temperature: Double? = nil, cfgScale: Double? = nil, remasking: Remasking? = nil, squash: Bool = false,
        stop: [String] = [], forbid: [TokenID] = [], allowOnly: [TokenID]? = nil, pinned: [Int: TokenID] = [:]
    ) {
        self.thinking = thinking
        self.seed = seed
        self.genLength = genLength
        self.steps = steps
        self.blockLength = blockLength
        self.temperature = temperature
        self.cfgScale = cfgScale
        self.remasking = remasking
        self.squash = squash
        self.stop = stop
        self.forbid = forbid
        self.allowOnly = allowOnly
        self.pinned = pinned
    }

    init(_ options: mmada_text_options) {
        self.init(
            thinking: options.thinking != 0, seed: options.seed, genLength: options.gen_length, steps: options.steps,
            blockLength: options.block_length, temperature: options.temperature, cfgScale: options.cfg_scale,
            remasking: Remasking(rawValue: options.remasking), squash: options.squash != 0)
    }

    /// The C struct, beginning from what is recommended.
    func makeC(_ recommended: mmada_text_options, _ arena: Arena) throws -> mmada_text_options {
        var options = recommended
        options.thinking = thinking ? 1 : 0
        options.seed = seed
        options.squash = squash ? 1 : 0
        if let genLength { options.gen_length = try size(genLength, "genLength") }
        if let steps { options.steps = try size(steps, "steps") }
        if let blockLength { options.block_length = try size(blockLength, "blockLength") }
        if let temperature { options.temperature = temperature }
        if let cfgScale { options.cfg_scale = cfgScale }
        if let remasking { options.remasking = remasking.rawValue }
        if !stop.isEmpty {
            options.stop = arena.copy(stop.map { mmada_string(data: arena.copy($0), length: $0.utf8.count) })
            options.stop_count = stop.count
        }
        if !forbid.isEmpty {
            options.forbid = arena.copy(forbid)
            options.forbid_count = forbid.count
        }
        if let allowOnly {
            options.allow_only = arena.copy(allowOnly)
            options.allow_only_count = allowOnly.count
        }
        if !pinned.isEmpty {
            options.pinned = arena.copy(
                try pinned.sorted { $0.key < $1.key }.map {
                    mmada_pin(position: try size($0.key, "a pinned position"), id: $0.value, reserved: 0)
                })
            options.pinned_count = pinned.count
        }
        return options
    }
}

/// How many positions of a picture stay masked after every step.
public enum Schedule: Sendable, Hashable {
    /// cos(πr/2), r being the share of the steps that is done.
    case cosine
    /// 1 - r.
    case linear
    /// 1 - r to the power of a number above 0.
    case power(Float)
    /// A sigmoid.
    case sigmoid
}

/// What makes a sampled image code worth keeping.
public enum Confidence: UInt32, Sendable, CaseIterable {
    /// Its probability.
    case probability = 0
    /// How far the position's best code is ahead of its second best.
    case margin = 1
}

/// How pictures are sampled. Options that are nil are what the model's file recommends
/// (`Model.recommendedImageOptions` tells).
public struct ImageOptions: Sendable, Hashable {
    /// Think out a detailed description first, then draw that.
    public var thinking: Bool
    /// Of the first picture's random numbers: the same seed gives the same picture, with any number of threads.
    public var seed: UInt64
    /// How many pictures, drawn together: picture i is the one that the seed plus i draws alone.
    public var count: Int
    /// Width in pixels, a multiple of the model's `imageDownsampling`.
    public var width: Int?
    /// Height in pixels, a multiple of the model's `imageDownsampling`.
    public var height: Int?
    /// Steps from nothing to the picture.
    public var steps: Int?
    /// Classifier-free guidance against an empty prompt; 0 is none and halves the work.
    public var guidance: Float?
    /// Of the noise in the order in which positions become known; it falls to 0 with the steps.
    public var temperature: Float?
    /// How many positions stay masked after every step.
    public var schedule: Schedule?
    /// What makes a sampled code worth keeping.
    public var confidence: Confidence?
    /// A longer prompt is cut to this many tokens, two leading special tokens included. Not used with `thinking`.
    public var maxTextLength: Int?
    /// With `thinking`: tokens of prompt and description together.
    public var textLength: Int?

    /// Options; what is left out is what the model's file recommends.
    public init(
        thinking: Bool = false, seed: UInt64 = 0, count: Int = 1, width: Int? = nil, height: Int? = nil,
        steps: Int? = nil, guidance: Float? = nil, temperature: Float? = nil, schedule: Schedule? = nil,
        confidence: Confidence? = nil, maxTextLength: Int? = nil, textLength: Int? = nil
    ) {
        self.thinking = thinking
        self.seed = seed
        self.count = count
        self.width = width
        self.height = height
        self.steps = steps
        self.guidance = guidance
        self.temperature = temperature
        self.schedule = schedule
        self.confidence = confidence
        self.maxTextLength = maxTextLength
        self.textLength = textLength
    }

    init(_ options: mmada_image_options) {
        let schedule: Schedule? =
            switch options.schedule {
            case MMADA_SCHEDULE_COSINE.rawValue: .cosine
            case MMADA_SCHEDULE_LINEAR.rawValue: .linear
            case MMADA_SCHEDULE_POWER.rawValue: .power(options.schedule_power)
            case MMADA_SCHEDULE_SIGMOID.rawValue: .sigmoid
            default: nil
            }
        self.init(
            thinking: options.thinking != 0, seed: options.seed, count: options.count, width: options.width,
            height: options.height, steps: options.steps, guidance: options.guidance,
            temperature: options.temperature, schedule: schedule,
            confidence: Confidence(rawValue: options.confidence), maxTextLength: options.max_text_length,
            textLength: options.text_length)
    }

    /// The C struct, beginning from what is recommended.
    func makeC(_ recommended: mmada_image_options) throws -> mmada_image_options {
        var options = recommended
        options.thinking = thinking ? 1 : 0
        options.seed = seed
        options.count = try size(count, "count")
        if let width { options.width = try size(width, "width") }
        if let height { options.height = try size(height, "height") }
        if let steps { options.steps = try size(steps, "steps") }
        if let guidance { options.guidance = guidance }
        if let temperature { options.temperature = temperature }
        if let confidence { options.confidence = confidence.rawValue }
        if let maxTextLength { options.max_text_length = try size(maxTextLength, "maxTextLength") }
        if let textLength { options.text_length = try size(textLength, "textLength") }
        switch schedule {
        case .cosine: options.schedule = MMADA_SCHEDULE_COSINE.rawValue
        case .linear: options.schedule = MMADA_SCHEDULE_LINEAR.rawValue
        case .sigmoid: options.schedule = MMADA_SCHEDULE_SIGMOID.rawValue
        case .power(let power):
            options.schedule = MMADA_SCHEDULE_POWER.rawValue
            options.schedule_power = power
        case nil: break
        }
        return options
    }
}

/// What a model's file recommends, as C structs whose pointers are all NULL.
struct Recommended: @unchecked Sendable {
    private let text: [mmada_text_options]
    private let image: [mmada_image_options]
    let description: mmada_text_options

    init(_ model: OpaquePointer) throws {
        let no: UInt32 = 0, yes: UInt32 = 1
        text = try [(no, no), (no, yes), (yes, no), (yes, yes)].map { (thinking, aboutImage) in
            var options = mmada_text_options()
            try check {
                mmada_text_options_init(
                    &options, MemoryLayout<mmada_text_options>.stride, model, thinking, aboutImage, $0)
            }
            return options
        }
        image = try [no, yes].map { thinking in
            var options = mmada_image_options()
            try check {
                mmada_image_options_init(&options, MemoryLayout<mmada_image_options>.stride, model, thinking, $0)
            }
            return options
        }
        var options = mmada_text_options()
        try check {
            mmada_description_options_init(&options, MemoryLayout<mmada_text_options>.stride, model, $0)
        }
        description = options
    }

    func text(thinking: Bool, aboutImage: Bool) -> mmada_text_options {
        text[(thinking ? 2 : 0) + (aboutImage ? 1 : 0)]
    }

    func image(thinking: Bool) -> mmada_image_options {
        image[thinking ? 1 : 0]
    }
}

/// How a model file is brought into memory.
public struct OpenOptions: Sendable, Hashable {
    /// Map the file: opening takes milliseconds, pages come in when they are used, and processes share them; nobody may
    /// change or cut off the file meanwhile. Otherwise all of it is read into memory.
    public var useMmap: Bool

    /// Options; by default the file is mapped.
    public init(useMmap: Bool = true) {
        self.useMmap = useMmap
    }
}

/// How exact products are.
public enum Compute: UInt32, Sendable, CaseIterable {
    /// 8- and 16-bit products wherever they do not change answers noticeably.
    case fast = 0
    /// Float weights meet float activations in 32-bit arithmetic.
    case exact = 1
}

/// How much a message of the log matters.
public enum LogLevel: UInt32, Sendable, CaseIterable, Comparable {
    /// Something failed that no call throws.
    case error = 0
    /// Something that a user should know of: a prompt that was cut.
    case warning = 1
    /// What happens, in a few lines.
    case info = 2
    /// What it takes: buffers that are made, how long every step took.
    case debug = 3

    /// The more important one is less.
    public static func < (left: LogLevel, right: LogLevel) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// How a context runs its model.
public struct ContextOptions: Sendable, Hashable {
    /// Threads of the context's own; 0 for one per core. Results do not depend on it.
    public var threads: Int
    /// Bytes of buffers that the context and its generations may have at a time; a request that needs more fails with
    /// `.outOfMemory`. 0: no limit.
    public var memoryLimit: UInt64
    /// An instruction set by name ("portable", "avx2", "avx512", "neon" and so on); nil for the best that the processor has.
    public var instructionSet: String?
    /// The level of the least important messages that the context's logger gets.
    public var logLevel: LogLevel
    /// How exact products are.
    public var compute: Compute
    /// Keeps the weights unpacked in memory (`ContextInfo.packedBytes`, which count against `memoryLimit`): several times
    /// as fast where few tokens run at a time, with the same answers. Making the context then takes the time to read the
    /// whole file.
    public var pack: Bool
    /// Where the model runs: "cpu", "cuda" or "cuda:0" for the first graphics card of NVIDIA's, "cuda:1" for the second,
    /// "auto" for the first card that can, or else the processor, which the logger is told.
    public var device: String
    /// How many of the network's blocks run on the graphics card, the last ones and the output; nil for as many as there
    /// is memory for.
    public var gpuLayers: Int?

    /// Options; by default a thread per core and no limit of memory.
    public init(
        threads: Int = 0, memoryLimit: UInt64 = 0, instructionSet: String? = nil, logLevel: LogLevel = .warning,
        compute: Compute = .fast, pack: Bool = false, device: String = "cpu", gpuLayers: Int? = nil
    ) {
        self.threads = threads
        self.memoryLimit = memoryLimit
        self.instructionSet = instructionSet
        self.logLevel = logLevel
        self.compute = compute
        self.pack = pack
        self.device = device
        self.gpuLayers = gpuLayers
    }
}

/// How a score is estimated.
public struct ScoreOptions: Sendable, Hashable {
    /// How many random maskings of the answer are averaged. One is enough for an answer of one token.
    public var samples: Int
    /// Of the maskings: the same seed gives the same score.
    public var seed: UInt64
    /// Classifier-free guidance against the masked prompt; 0 is none. It doubles the work.
    public var cfgScale: Double

    /// Options; by default 128 maskings and no guidance.
    public init(samples: Int = 128, seed: UInt64 = 0, cfgScale: Double = 0) {
        self.samples = samples
        self.seed = seed
        self.cfgScale = cfgScale
    }
}
