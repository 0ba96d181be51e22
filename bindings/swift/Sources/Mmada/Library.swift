import CMmada

/// What library is running, and on what.
public enum Library {
    /// The version of the C library that is running, such as "0.1.0".
    public static var version: String { String(cString: mmada_version()) }

    /// What the C library was built as: version, platform, "release" or "debug", optional parts.
    public static var buildInfo: String { String(cString: mmada_build_info()) }

    /// A device that the library can run on.
    public struct Device: Sendable, Hashable {
        /// The backend that runs it: "cpu" or "cuda".
        public let backend: String
        /// What its maker calls it.
        public let name: String
        /// Bytes of memory that it works in, free or not; 0 where the system does not tell.
        public let memoryBytes: UInt64
        /// The instruction sets that there are kernels for, the slowest first: what `ContextOptions.instructionSet`
        /// takes.
        public let instructionSets: [String]
        /// What `ContextOptions.device` takes: "cpu", "cuda:0".
        public let id: String
        /// A graphics card's compute capability; nil for a processor.
        public let computeCapability: ComputeCapability?
        /// Why models do not run on it; nil where they do.
        public let refusal: String?
    }

    /// What a graphics card's processors can do, such as 9.0.
    public struct ComputeCapability: Sendable, Hashable {
        /// The number before the point.
        public let major: Int
        /// The number behind it.
        public let minor: Int
    }

    /// The devices that this build of the library finds on this machine.
    public static func devices() throws -> [Device] {
        var count = 0
        try check { mmada_device_count(&count, $0) }
        return try (0..<count).map { index in
            var info = mmada_device_info()
            try initialize(&info, mmada_device_info_init)
            try check { mmada_device_get_info(index, &info, $0) }
            let (major, minor) = (Int(info.compute_capability_major), Int(info.compute_capability_minor))
            let refusal = text(ofTuple: info.refusal)
            return Device(
                backend: text(ofTuple: info.backend), name: text(ofTuple: info.name), memoryBytes: info.memory_bytes,
                instructionSets: text(ofTuple: info.instruction_sets).split(separator: " ").map(String.init),
                id: text(ofTuple: info.id),
                computeCapability: major == 0 ? nil : ComputeCapability(major: major, minor: minor),
                refusal: refusal.isEmpty ? nil : refusal)
        }
    }

    /// Why a backend ("cpu", "cuda") finds no devices on this machine; nil if it finds some.
    ///
    /// - Throws: `MmadaError` with `.notFound` for another name.
    public static func unavailable(_ backend: String) throws -> String? {
        try takeText { reason, error in
            backend.withC { mmada_backend_unavailable($0, $1, reason, error) }
        }
    }
}
