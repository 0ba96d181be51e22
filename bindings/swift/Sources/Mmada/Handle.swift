import CMmada
import Foundation

/// A C object that is freed once, and only when no call is using it.
///
/// `@unchecked Sendable`: the pointer is read and written under the lock, and what is done with it is what mmada.h allows
/// any thread to do; of two calls that cannot run at once, the library answers one with MMADA_BUSY.
final class Handle: @unchecked Sendable {
    private let lock = NSLock()
    private var pointer: OpaquePointer?
    private var users = 0
    private var closed = false
    private let name: String
    private let free: @Sendable (OpaquePointer) -> Void
    /// What the library may still use until the object is freed: a logger, the bytes of a model.
    let keeping: [any AnyObject & Sendable]

    init(
        _ pointer: OpaquePointer?, name: String, keeping: [any AnyObject & Sendable] = [],
        free: @escaping @Sendable (OpaquePointer) -> Void
    ) {
        self.pointer = pointer
        self.name = name
        self.keeping = keeping
        self.free = free
    }

    // Stored properties, and with them what is kept, go after this.
    deinit {
        if let pointer { free(pointer) }
    }

    /// Calls with the object, which is not freed meanwhile. After `close`, an error.
    func use<R>(_ body: (OpaquePointer) throws -> R) throws -> R {
        guard let pointer = enter() else {
            throw MmadaError(.invalidHandle, "the \(name) is used after close()")
        }
        defer { leave() }
        return try body(pointer)
    }

    /// Calls with the object if it is open.
    func useIfOpen(_ body: (OpaquePointer) -> Void) {
        guard let pointer = enter() else { return }
        defer { leave() }
        body(pointer)
    }

    /// Frees the object: now, or at the end of the calls that are using it.
    func close() {
        let unused: OpaquePointer? = lock.withLock {
            closed = true
            return takeUnused()
        }
        if let unused { free(unused) }
    }

    var isClosed: Bool { lock.withLock { closed } }

    private func enter() -> OpaquePointer? {
        lock.withLock {
            guard !closed, let pointer else { return nil }
            users += 1
            return pointer
        }
    }

    private func leave() {
        let unused: OpaquePointer? = lock.withLock {
            users -= 1
            return takeUnused()
        }
        if let unused { free(unused) }
    }

    private func takeUnused() -> OpaquePointer? {
        guard closed, users == 0 else { return nil }
        defer { pointer = nil }
        return pointer
    }
}
