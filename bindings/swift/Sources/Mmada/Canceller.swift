import CMmada

/// Stops the calls that it is given to: a score, a forward. A generation has `cancel()` of its own.
public final class Canceller: Sendable {
    let handle: Handle

    /// A canceller that has not been used.
    public init() throws {
        handle = Handle(try take(mmada_canceller_new), name: "canceller") { mmada_canceller_free($0) }
    }

    /// Stops the calls that have this canceller within one layer of the network, and every later one: they fail with
    /// `.cancelled`.
    public func cancel() {
        handle.useIfOpen { _ = mmada_canceller_cancel($0) }
    }

    /// Frees the canceller: at once, or at the end of the calls that are using it. Closing twice is harmless.
    public func close() {
        handle.close()
    }
}
