// How C functions are called: errors become thrown ones, buffers become Swift values, and options become C structs.

import CMmada

/// Calls a function that gives an error object, and throws what it gives.
func check(_ call: (UnsafeMutablePointer<OpaquePointer?>) -> mmada_status) throws {
    var error: OpaquePointer?
    let status = call(&error)
    guard status != MMADA_OK else { return }
    defer { mmada_error_free(error) }
    let message = mmada_error_message(error).map { String(cString: $0) } ?? ""
    let kind = MmadaError.Status(status)
    throw MmadaError(kind, message.isEmpty ? kind.description : message)
}

/// Calls one of the functions that initialize a struct. They fail only for a size that no version of the library has.
func initialize<T>(_ value: UnsafeMutablePointer<T>, _ call: (UnsafeMutablePointer<T>, Int) -> mmada_status) throws {
    try check { _ in call(value, MemoryLayout<T>.stride) }
}

/// Calls a function that gives a handle or a buffer.
func take(
    _ call: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mmada_status
) throws -> OpaquePointer? {
    var result: OpaquePointer?
    try check { call(&result, $0) }
    return result
}

/// Calls a function that gives a text, or nothing.
func takeText(
    _ call: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mmada_status
) throws -> String? {
    guard let buffer = try take(call) else { return nil }
    defer { mmada_buffer_free(buffer) }
    guard let start = mmada_buffer_text(buffer) else { return "" }
    return start.withMemoryRebound(to: UInt8.self, capacity: mmada_buffer_length(buffer)) {
        String(decoding: UnsafeBufferPointer(start: $0, count: mmada_buffer_length(buffer)), as: UTF8.self)
    }
}

/// Calls a function that gives ids.
func takeIDs(
    _ call: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mmada_status
) throws -> [TokenID] {
    let buffer = try take(call)
    defer { mmada_buffer_free(buffer) }
    return Array(UnsafeBufferPointer(start: mmada_buffer_ids(buffer), count: mmada_buffer_length(buffer)))
}

/// A number that C takes as size_t: a negative one is an error and not an enormous size.
func size(_ value: Int, _ name: String) throws -> Int {
    guard value >= 0 else { throw MmadaError(.invalidArgument, "\(name) is \(value), which is below 0") }
    return value
}

/// An array of characters in a C struct, up to its NUL.
func text<T>(ofTuple tuple: T) -> String {
    withUnsafeBytes(of: tuple) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
}

extension String {
    /// Calls with the text as pointer and length.
    func withC<R>(_ body: (UnsafePointer<CChar>, Int) throws -> R) rethrows -> R {
        var copy = self
        return try copy.withUTF8 { bytes in
            try bytes.withMemoryRebound(to: CChar.self) { characters in
                guard let start = characters.baseAddress else {
                    return try withUnsafePointer(to: CChar(0)) { try body($0, 0) }
                }
                return try body(start, characters.count)
            }
        }
    }
}

/// What C structs point to during a call.
final class Arena {
    private var release: [() -> Void] = []

    deinit {
        for free in release { free() }
    }

    /// A copy of an array; never NULL, as NULL would stand for "no array".
    func copy<T>(_ values: [T]) -> UnsafePointer<T> {
        let memory = UnsafeMutablePointer<T>.allocate(capacity: max(values.count, 1))
        memory.initialize(from: values, count: values.count)
        release.append {
            memory.deinitialize(count: values.count)
            memory.deallocate()
        }
        return UnsafePointer(memory)
    }

    func copy(_ text: String) -> UnsafePointer<CChar> {
        copy(text.utf8.map { CChar(bitPattern: $0) })
    }

    func picture(_ image: RGBImage) throws -> OpaquePointer? {
        let handle = try image.makeC()
        release.append { mmada_image_free(handle) }
        return handle
    }

    func messages(_ messages: [Message]) throws -> UnsafePointer<mmada_message> {
        copy(
            try messages.map { message in
                mmada_message(
                    content: copy(message.content), content_length: message.content.utf8.count,
                    image: try message.image.map(picture) ?? nil, role: message.role.rawValue, reserved: 0)
            })
    }
}

/// Runs a call whose structs point into an arena.
func withArena<R>(_ body: (Arena) throws -> R) rethrows -> R {
    let arena = Arena()
    return try withExtendedLifetime(arena) { try body(arena) }
}
