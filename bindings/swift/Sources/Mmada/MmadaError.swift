import CMmada
import Foundation

/// Why a call failed: a status for programs and a sentence for people.
///
/// ```swift
/// do {
///     let model = try Model(path: "cat.png")
/// } catch let error as MmadaError where error.status == .badFormat {
///     print(error)  // cat.png: ...
/// }
/// ```
public struct MmadaError: Error, Equatable, Sendable, CustomStringConvertible, LocalizedError {
    /// What kind of failure it is.
    public let status: Status
    /// One sentence in English that names the file, tensor, option or size at fault.
    public let message: String

    /// Makes an error, for programs that report their own in the same way.
    public init(_ status: Status, _ message: String) {
        self.status = status
        self.message = message
    }

    /// The message.
    public var description: String { message }
    /// The message.
    public var errorDescription: String? { message }

    /// The kinds of failure. Their numbers never change; later versions may add some, so that this is no enum:
    /// treat one that you do not know as a failure.
    public struct Status: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        /// The number, as in mmada.h.
        public let rawValue: UInt32

        /// The status of that number.
        public init(rawValue: UInt32) {
            self.rawValue = rawValue
        }

        init(_ status: mmada_status) {
            rawValue = UInt32(status.rawValue)
        }

        /// Its name in C, such as `MMADA_BUSY`.
        public var description: String {
            String(cString: mmada_status_name(Int32(truncatingIfNeeded: rawValue)))
        }

        /// The operating system refused to open, read or write a file.
        public static let ioError = Status(MMADA_IO_ERROR)
        /// A model file is damaged, cut off, or not what it claims to be.
        public static let badFormat = Status(MMADA_BAD_FORMAT)
        /// A well-formed file or request that this version or this model cannot serve.
        public static let unsupported = Status(MMADA_UNSUPPORTED)
        /// An option or argument that cannot be, or options that contradict each other.
        public static let invalidArgument = Status(MMADA_INVALID_ARGUMENT)
        /// A sequence needs more positions than the model has.
        public static let contextOverflow = Status(MMADA_CONTEXT_OVERFLOW)
        /// A picture is damaged, empty, or larger than the limits.
        public static let badImage = Status(MMADA_BAD_IMAGE)
        /// An allocation failed, or would exceed the context's memory limit.
        public static let outOfMemory = Status(MMADA_OUT_OF_MEMORY)
        /// The generation or the canceller was cancelled, other than by its task, which gives a `CancellationError`.
        public static let cancelled = Status(MMADA_CANCELLED)
        /// Another call is using the context or the generation. Try again later; nothing has changed.
        public static let busy = Status(MMADA_BUSY)
        /// A defect of the library.
        public static let internalError = Status(MMADA_INTERNAL_ERROR)
        /// The context was made before a fork and is used in the child.
        public static let forked = Status(MMADA_FORKED)
        /// A graphics card failed. Contexts on it fail from then on; new ones on the CPU work.
        public static let deviceError = Status(MMADA_DEVICE_ERROR)
        /// A text is not UTF-8.
        public static let invalidUTF8 = Status(MMADA_INVALID_UTF8)
        /// An object is used after `close()`.
        public static let invalidHandle = Status(MMADA_INVALID_HANDLE)
        /// A step of a generation that is complete.
        public static let done = Status(MMADA_DONE)
        /// There is nothing by that name or index.
        public static let notFound = Status(MMADA_NOT_FOUND)
        /// A defect of the library, caught before it could harm the program.
        public static let panic = Status(MMADA_PANIC)
    }
}
