//! The processor: maker, model, instruction sets, and whether it is a virtual or an emulated one.

use super::Root;

/// Instruction sets that matter to ternary kernels, by the kernel's names: x86, then ARM.
const RELEVANT: &[&str] = &[
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512vbmi",
    "amx_int8",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "sve",
    "sve2",
];

/// What is known of the processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// `x86_64` or `aarch64`, as the system's own words tell it; else what this program was built for.
    pub arch: &'static str,
    /// `GenuineIntel`, `AuthenticAMD`, `ARM`, …
    pub vendor: Option<String>,
    /// Name people know it by.
    pub model: Option<String>,
    /// Instruction sets that matter here, by the kernel's names; `None` if the system doesn't say.
    pub features: Option<Vec<String>>,
    /// Revision of its microcode.
    pub microcode: Option<String>,
    /// Runs under a hypervisor.
    pub hypervisor: Option<bool>,
    /// The hypervisor's name, where it tells.
    pub hypervisor_name: Option<String>,
    /// Name of the software that emulates this CPU, if one does: everything will be slow.
    pub emulator: Option<String>,
}

impl Cpu {
    pub(super) fn read(root: &Root) -> Cpu {
        let info = root.text("/proc/cpuinfo").unwrap_or_default();
        let flags = field(&info, &["flags", "Features"]);
        let model = field(&info, &["model name"]).map(str::to_owned);
        Cpu {
            arch: architecture(&info, flags),
            vendor: vendor(&info),
            model: model.or_else(|| board(root)),
            features: flags.map(relevant),
            microcode: field(&info, &["microcode"]).map(str::to_owned),
            hypervisor_name: hypervisor_name(root),
            hypervisor: hypervisor(root, flags),
            emulator: emulator(&info),
        }
    }

    /// Fills in what `/proc/cpuinfo` left open, by asking the processor.
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    pub(super) fn add_cpuid(&mut self) {
        let cpuid = raw_cpuid::CpuId::new();
        if self.vendor.is_none() {
            self.vendor = cpuid.get_vendor_info().map(|v| v.as_str().to_owned());
        }
        if self.model.is_none() {
            let brand = cpuid.get_processor_brand_string();
            self.model = brand
                .map(|b| b.as_str().trim().to_owned())
                .filter(|b| !b.is_empty());
        }
        if self.hypervisor.is_none() {
            self.hypervisor = cpuid.get_feature_info().map(|f| f.has_hypervisor());
        }
        if self.hypervisor_name.is_none()
            && let Some(hypervisor) = cpuid.get_hypervisor_info()
        {
            self.hypervisor_name = match hypervisor.identify() {
                raw_cpuid::Hypervisor::Unknown(..) => None,
                known => Some(format!("{known:?}")),
            };
        }
        if self.emulator.is_none()
            && let Some(hypervisor) = cpuid.get_hypervisor_info()
            && hypervisor.identify() == raw_cpuid::Hypervisor::QEMU
        {
            self.emulator = Some("QEMU without KVM".to_owned());
        }
    }

    /// Nothing to ask on this architecture.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
    pub(super) fn add_cpuid(&mut self) {}

    /// Whether it has an instruction set; `None` if unknown.
    pub(crate) fn has(&self, feature: &str) -> Option<bool> {
        let features = self.features.as_ref()?;
        Some(features.iter().any(|f| f == feature))
    }
}

fn architecture(info: &str, flags: Option<&str>) -> &'static str {
    if field(info, &["CPU implementer"]).is_some() {
        "aarch64"
    } else if is_x86(flags) {
        "x86_64"
    } else {
        std::env::consts::ARCH
    }
}

/// Xen tells in sysfs, others by the names of the machine's firmware.
fn hypervisor_name(root: &Root) -> Option<String> {
    if let Some(kind) = root.text("/sys/hypervisor/type") {
        return Some(kind);
    }
    let vendor = root.text("/sys/class/dmi/id/sys_vendor")?;
    let product = root
        .text("/sys/class/dmi/id/product_name")
        .unwrap_or_default();
    let is_virtual = ["QEMU", "VMware", "innotek", "Xen", "Parallels"]
        .iter()
        .any(|name| vendor.contains(name))
        || (vendor.contains("Amazon EC2") && !product.contains("metal"))
        || product.contains("Virtual Machine")
        || product.contains("KVM")
        || product.contains("Google Compute Engine");
    is_virtual.then(|| format!("{vendor} {product}").trim().to_owned())
}

/// First value of any of these names in `/proc/cpuinfo`.
fn field<'a>(info: &'a str, names: &[&str]) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        names
            .contains(&name.trim())
            .then_some(value.trim())
            .filter(|value| !value.is_empty())
    })
}

fn relevant(flags: &str) -> Vec<String> {
    let has = |name: &&&str| flags.split_ascii_whitespace().any(|flag| flag == **name);
    RELEVANT
        .iter()
        .filter(has)
        .map(|name| (*name).to_owned())
        .collect()
}

fn vendor(info: &str) -> Option<String> {
    if let Some(vendor) = field(info, &["vendor_id"]) {
        return Some(vendor.to_owned());
    }
    // Main ID Register, implementer field: Arm Architecture Reference Manual, MIDR_EL1.
    let implementer = field(info, &["CPU implementer"])?;
    Some(match implementer {
        "0x41" => "ARM".to_owned(),
        "0x43" => "Cavium".to_owned(),
        "0x48" => "HiSilicon".to_owned(),
        "0x4e" => "NVIDIA".to_owned(),
        "0x50" => "Applied Micro".to_owned(),
        "0x51" => "Qualcomm".to_owned(),
        "0x61" => "Apple".to_owned(),
        "0xc0" => "Ampere".to_owned(),
        other => format!("implementer {other}"),
    })
}

/// ARM boards tell their name in the device tree, old ones in `/proc/cpuinfo`.
fn board(root: &Root) -> Option<String> {
    let tree = [
        "/proc/device-tree/model",
        "/sys/firmware/devicetree/base/model",
    ];
    tree.iter()
        .find_map(|path| root.text(path).filter(|model| !model.is_empty()))
        .or_else(|| {
            let info = root.text("/proc/cpuinfo")?;
            field(&info, &["Model", "Hardware"]).map(str::to_owned)
        })
}

fn hypervisor(root: &Root, flags: Option<&str>) -> Option<bool> {
    if hypervisor_name(root).is_some() {
        return Some(true);
    }
    let flags = flags.filter(|_| is_x86(flags))?;
    Some(
        flags
            .split_ascii_whitespace()
            .any(|flag| flag == "hypervisor"),
    )
}

/// Only x86 lists the `fpu` flag.
fn is_x86(flags: Option<&str>) -> bool {
    flags.is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| flag == "fpu"))
}

fn emulator(info: &str) -> Option<String> {
    let model = field(info, &["model name"])?;
    model
        .contains("QEMU")
        .then(|| model.to_owned())
        .filter(|m| m.contains("TCG"))
}
