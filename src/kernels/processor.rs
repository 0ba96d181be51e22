//! What the processor calls itself.

/// The maker's name of the processor; `None` where it has none to tell.
#[cfg(target_arch = "x86_64")]
pub fn processor_name() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    /// The first and the last of the leaves that hold the name, 16 bytes each (Intel SDM volume 2A, CPUID).
    const LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
    #[allow(unused_unsafe)] // newer compilers know that it is safe here
    // SAFETY: every x86-64 processor has the instruction, which only reads.
    let cpuid = |leaf| unsafe { __cpuid(leaf) };
    if cpuid(0x8000_0000).eax < *LEAVES.end() {
        return None;
    }
    let words = LEAVES.map(cpuid).flat_map(|r| [r.eax, r.ebx, r.ecx, r.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|&b| b != 0).collect();
    let name = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The maker's name of the processor; `None` where it has none to tell.
#[cfg(not(target_arch = "x86_64"))]
pub fn processor_name() -> Option<String> {
    None
}
