import CMmada
import Foundation

/// Takes the messages of a context, each one line without its end. It is called by the thread that runs the call that
/// logs, before that call returns, and must not use that context or its generations. What it throws ends the call: a
/// generation that was making a step is cancelled, and the caller gets what was thrown.
public typealias LogHandler = @Sendable (_ level: LogLevel, _ message: String) throws -> Void

/// Hands a context's messages to its handler, and keeps what that throws for the call that logged.
///
/// `@unchecked Sendable`: `thrown` is read and written under the lock.
final class Logger: @unchecked Sendable {
    private let handler: LogHandler
    private let lock = NSLock()
    /// By thread, as several may be calling one context at once.
    private var thrown: [ObjectIdentifier: any Error] = [:]

    init(_ handler: @escaping LogHandler) {
        self.handler = handler
    }

    /// What C calls; its user data is the logger.
    static let callback: mmada_log_callback = { level, message, length, user in
        guard let user, let message else { return }
        let text = UnsafeRawBufferPointer(start: message, count: length)
        Unmanaged<Logger>.fromOpaque(user).takeUnretainedValue()
            .receive(LogLevel(rawValue: level) ?? .debug, String(decoding: text, as: UTF8.self))
    }

    private func receive(_ level: LogLevel, _ message: String) {
        let thread = ObjectIdentifier(Thread.current)
        // A handler that threw hears no more of this call.
        guard lock.withLock({ thrown[thread] == nil }) else { return }
        do {
            try handler(level, message)
        } catch {
            lock.withLock { thrown[thread] = error }
        }
    }

    /// What the handler threw during the last call of this thread, if anything.
    func takeThrown() -> (any Error)? {
        lock.withLock { thrown.removeValue(forKey: ObjectIdentifier(Thread.current)) }
    }

    /// Forgets what it threw where nobody could be told: when something was freed.
    func forget() {
        _ = takeThrown()
    }
}

/// Runs a call of a context and throws what its logger's handler threw meanwhile, if anything.
func watching<R>(_ logger: Logger?, _ call: () throws -> R) throws -> R {
    guard let logger else { return try call() }
    logger.forget()
    let result = Result { try call() }
    if let thrown = logger.takeThrown() { throw thrown }
    return try result.get()
}

/// Runs a call on a queue, away from the threads that tasks share, and stops it if the task is cancelled.
///
/// - Throws: `CancellationError` if the call was stopped because of the task.
func offload<R: Sendable>(
    to queue: DispatchQueue, cancel: @escaping @Sendable () -> Void, _ call: @escaping @Sendable () throws -> R
) async throws -> R {
    do {
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                queue.async { continuation.resume(with: Result { try call() }) }
            }
        } onCancel: {
            cancel()
        }
    } catch let error as MmadaError where error.status == .cancelled && Task.isCancelled {
        throw CancellationError()
    }
}
