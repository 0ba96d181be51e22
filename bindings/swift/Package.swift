// swift-tools-version:6.0
// libmmada for Swift: the product `Mmada`, over the C interface of include/mmada.h.

import PackageDescription

// Where the C library comes from:
//
// - Linux: an installed libmmada, found by pkg-config (`./install.sh --prefix P`, PKG_CONFIG_PATH=P/lib/pkgconfig).
// - Apple platforms: an XCFramework in this folder, named in the environment variable MMADA_XCFRAMEWORK. README.md says
//   how to make one. An application that publishes its own copy of this package writes
//   `.binaryTarget(name: "CMmada", url: ..., checksum: ...)` here.
//
// Both give a module named CMmada; nothing else knows of the difference.
let library: Target =
    if let framework = Context.environment["MMADA_XCFRAMEWORK"] {
        .binaryTarget(name: "CMmada", path: framework)
    } else {
        .systemLibrary(name: "CMmada", pkgConfig: "mmada")
    }

let package = Package(
    name: "Mmada",
    platforms: [.macOS(.v12), .iOS(.v15)],
    products: [
        .library(name: "Mmada", targets: ["Mmada"]),
        .executable(name: "mmada-example", targets: ["mmada-example"]),
    ],
    targets: [
        library,
        .target(name: "Mmada", dependencies: ["CMmada"]),
        .executableTarget(name: "mmada-example", dependencies: ["Mmada"]),
        .testTarget(name: "MmadaTests", dependencies: ["Mmada"]),
    ],
    swiftLanguageModes: [.v6]
)
