//! What a kernel's machine code is made of, as NVIDIA's disassemblers print it: needs the toolkit and no GPU.
//!
//! Counts are of instructions in the program, not of instructions executed: a kernel whose loop is unrolled twice has
//! twice as many. They tell what the compiler made of a source (whether copies became asynchronous, whether products
//! reached tensor cores), and a change of them tells that it made something else.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that names a `cuobjdump` or an `nvdisasm`.
pub const DISASSEMBLER_VARIABLE: &str = "ATTNBENCH_CUOBJDUMP";

/// Instructions of a kernel, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InstructionMix {
    /// Products of tensor cores.
    pub mma: u32,
    /// Loads of fragments from shared memory.
    pub ldmatrix: u32,
    /// Asynchronous copies from global to shared memory, those of whole tiles included.
    pub async_copy: u32,
    /// Loads from global memory.
    pub load_global: u32,
    /// Stores and atomics in global memory.
    pub store_global: u32,
    /// Other loads from shared memory.
    pub load_shared: u32,
    /// Stores and atomics in shared memory.
    pub store_shared: u32,
    /// Loads and stores of a thread's own memory: registers that were spilled, arrays that are no registers.
    pub local: u32,
    /// Exponentials, logarithms, reciprocals and the like on the special function unit.
    pub special: u32,
    /// Everything that may go on elsewhere.
    pub branch: u32,
    /// Barriers and waits for copies.
    pub barrier: u32,
    /// Everything else; what only fills space is not counted.
    pub other: u32,
}

impl InstructionMix {
    /// Instructions of all classes.
    pub fn total(&self) -> u32 {
        self.counts().iter().map(|(_, count)| count).sum()
    }

    /// Each class with its name, in the order of tables.
    pub fn counts(&self) -> [(&'static str, u32); 12] {
        [
            ("mma", self.mma),
            ("ldmatrix", self.ldmatrix),
            ("async copy", self.async_copy),
            ("ld global", self.load_global),
            ("st global", self.store_global),
            ("ld shared", self.load_shared),
            ("st shared", self.store_shared),
            ("local", self.local),
            ("special", self.special),
            ("branch", self.branch),
            ("barrier", self.barrier),
            ("other", self.other),
        ]
    }

    /// Counts an instruction by its mnemonic, without modifiers.
    fn count(&mut self, mnemonic: &str) {
        let class = match mnemonic {
            "NOP" => return,
            // HMMA, IMMA, DMMA, BMMA, QMMA, OMMA; with a G in the middle, of a warpgroup.
            _ if mnemonic.ends_with("MMA") => &mut self.mma,
            "LDSM" => &mut self.ldmatrix,
            "LDGSTS" | "UTMALDG" | "UBLKCP" | "UTMAPF" => &mut self.async_copy,
            "LDG" | "LD" => &mut self.load_global,
            "STG" | "ST" | "RED" | "REDG" | "ATOM" | "ATOMG" | "UTMASTG" | "UTMAREDG" | "UBLKRED" => {
                &mut self.store_global
            }
            "LDS" => &mut self.load_shared,
            "STS" | "STSM" | "ATOMS" => &mut self.store_shared,
            "LDL" | "STL" => &mut self.local,
            "MUFU" => &mut self.special,
            "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" | "CALL" | "RET" | "EXIT" | "BSSY" | "BSYNC" | "BREAK" => {
                &mut self.branch
            }
            "BAR" | "DEPBAR" | "LDGDEPBAR" | "WARPSYNC" | "WARPGROUP" | "SYNCS" | "ARRIVES" | "UCGABAR_ARV"
            | "UCGABAR_WAIT" | "MEMBAR" | "ERRBAR" => &mut self.barrier,
            _ => &mut self.other,
        };
        *class += 1;
    }
}

/// Why there is no instruction mix.
#[derive(Debug, thiserror::Error)]
pub enum SassError {
    /// No tool.
    #[error(
        "no instruction mix: neither cuobjdump nor nvdisasm is in PATH or in $CUDA_HOME/bin, and {DISASSEMBLER_VARIABLE} \
         names none; they come with the CUDA toolkit and with the Python packages nvidia-cuda-cuobjdump and \
         nvidia-cuda-nvdisasm"
    )]
    Missing,
    /// A tool that does not do its work.
    #[error("no instruction mix: running {}: {reason}", .tool.display())]
    Failed {
        /// Its path.
        tool: PathBuf,
        /// In words, with the end of what it wrote.
        reason: String,
    },
}

/// A disassembler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disassembler {
    tool: PathBuf,
}

impl Disassembler {
    /// The tool that [`DISASSEMBLER_VARIABLE`] names, else the first one in `PATH` or `$CUDA_HOME/bin`.
    ///
    /// # Errors
    /// [`SassError::Missing`]: there is none.
    pub fn find() -> Result<Disassembler, SassError> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(tool) = variable(DISASSEMBLER_VARIABLE) {
            return Ok(Disassembler::at(Path::new(&tool)));
        }
        let toolkit = variable("CUDA_HOME").map(|home| Path::new(&home).join("bin").into_os_string());
        Disassembler::search(variable("PATH").unwrap_or_default(), toolkit)
    }

    /// This executable.
    pub fn at(tool: &Path) -> Disassembler {
        Disassembler { tool: tool.to_owned() }
    }

    fn search(path: OsString, toolkit: Option<OsString>) -> Result<Disassembler, SassError> {
        let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(toolkit.map(PathBuf::from)).collect();
        ["cuobjdump", "nvdisasm"]
            .iter()
            .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
            .find(|tool| tool.is_file())
            .map(|tool| Disassembler { tool })
            .ok_or(SassError::Missing)
    }

    /// The instructions of every kernel of a cubin, by the kernel's name.
    ///
    /// # Errors
    /// [`SassError::Failed`]: the tool cannot be started, fails, or prints nothing that is a kernel.
    pub fn mixes(&self, cubin: &[u8]) -> Result<BTreeMap<String, InstructionMix>, SassError> {
        let failed = |reason: String| SassError::Failed { tool: self.tool.clone(), reason };
        let file = TemporaryFile::new(cubin).map_err(|error| failed(format!("writing its input: {error}")))?;
        let mut command = Command::new(&self.tool);
        let is_nvdisasm = self.tool.file_stem().is_some_and(|name| name == "nvdisasm");
        let output = command.args((!is_nvdisasm).then_some("-sass")).arg(&file.path).output();
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(format!("{}: {said}", output.status)));
        }
        let mixes = parse(&String::from_utf8_lossy(&output.stdout));
        if mixes.is_empty() { Err(failed("it printed no instruction of any kernel".to_owned())) } else { Ok(mixes) }
    }
}

/// A file that goes when this value does.
struct TemporaryFile {
    path: PathBuf,
}

impl TemporaryFile {
    fn new(bytes: &[u8]) -> std::io::Result<TemporaryFile> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("attn-kernels-{}-{number}.cubin", std::process::id()));
        OpenOptions::new().write(true).create_new(true).open(&path)?.write_all(bytes)?;
        Ok(TemporaryFile { path })
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads what `cuobjdump -sass` or `nvdisasm` prints. Both write an instruction as `/*0130*/ @!P0 LDG.E R8, [R2] ;`; the
/// one heads a kernel with `Function : NAME`, the other with the name of its section, `.text.NAME`.
fn parse(text: &str) -> BTreeMap<String, InstructionMix> {
    let mut mixes: BTreeMap<String, InstructionMix> = BTreeMap::new();
    let mut kernel: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("Function :") {
            kernel = Some(name.trim().to_owned());
        } else if let Some(section) = line.strip_prefix(".section").filter(|rest| rest.starts_with(char::is_whitespace))
        {
            // `.sectioninfo` and `.sectionflags` say more of the section that has begun.
            let name = section.trim_start().strip_prefix(".text.");
            kernel = name.and_then(|name| name.split(',').next()).map(|name| name.trim_matches('"').to_owned());
        } else if let (Some(kernel), Some(mnemonic)) = (&kernel, mnemonic(line)) {
            mixes.entry(kernel.clone()).or_default().count(mnemonic);
        }
    }
    mixes
}

/// The mnemonic of a line that is an instruction, without modifiers.
fn mnemonic(line: &str) -> Option<&str> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let is_address = !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_guard = |word: &&str| word.starts_with('@') || *word == "{";
    let word = rest.split_whitespace().find(|word| !is_guard(word))?;
    let name = word.split(['.', ';']).next()?;
    (is_address && name.starts_with(|c: char| c.is_ascii_uppercase())).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `flash.cu` for sm_80, as `cuobjdump -sass` 13.2 prints it, abridged.
    const CUOBJDUMP: &str = r#"
	code for sm_80
	.target	sm_80

		Function : flash
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;                /* 0x00000a00ff017624 */
                                                                                          /* 0x000fe400078e00ff */
        /*0010*/                   S2R R7, SR_CTAID.X ;                                   /* 0x0000000000077919 */
                                                                                          /* 0x000e620000002500 */
        /*00c0*/                   MUFU.RCP R5, R5 ;                                      /* 0x0000000500057308 */
                                                                                          /* 0x004fe20000001000 */
        /*0610*/              @!P0 BRA 0x3fa0 ;                                           /* 0x0000398000008947 */
                                                                                          /* 0x000fea0003800000 */
        /*0a30*/                   LDGSTS.E.BYPASS.128 [R13], [R10.64], P1 ;              /* 0x000000000a0d7fae */
                                                                                          /* 0x0003e20008901c44 */
        /*0a40*/                   LDGDEPBAR ;                                            /* 0x00000000000079af */
                                                                                          /* 0x000e220000000000 */
        /*0a50*/                   DEPBAR.LE SB0, 0x0 ;                                   /* 0x000080000000791a */
                                                                                          /* 0x000fc80000000000 */
        /*0a60*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;                          /* 0x0000000000007b1d */
                                                                                          /* 0x000fec0000010000 */
        /*0a70*/                   LDSM.16.M88.4 R20, [R3] ;                              /* 0x000000000314783b */
                                                                                          /* 0x000e680000000200 */
        /*0a80*/                   HMMA.16816.F32.BF16 R16, R20, R24, RZ ;                /* 0x000000181410723c */
                                                                                          /* 0x004fee00000418ff */
        /*0a90*/                   MUFU.EX2 R9, R8 ;                                      /* 0x0000000800097308 */
                                                                                          /* 0x000e220000000800 */
        /*0aa0*/                   STG.E.128 [R4.64], R8 ;                                /* 0x0000000804007986 */
                                                                                          /* 0x000fe2000c101d04 */
        /*0ab0*/                   EXIT ;                                                 /* 0x000000000000794d */
                                                                                          /* 0x000fea0003800000 */
        /*0ac0*/                   BRA 0xac0;                                             /* 0xfffffff000007947 */
                                                                                          /* 0x000fc0000383ffff */
        /*0ad0*/                   NOP;                                                   /* 0x0000000000007918 */
                                                                                          /* 0x000fc00000000000 */
		..........
"#;

    /// Of a kernel for sm_90a, as `nvdisasm` 13.2 prints it, abridged.
    const NVDISASM: &str = r#"
	.target	sm_90a
	.elftype	@"ET_EXEC"
//--------------------- .debug_frame              --------------------------
	.section	.debug_frame,"",@progbits
.debug_frame:
        /*0000*/ 	.byte	0xff, 0xff, 0xff, 0xff, 0x24, 0x00, 0x00, 0x00
        /*0044*/ 	.dword	wide
//--------------------- .text.wide                --------------------------
	.section	.text.wide,"ax",@progbits
	.align	128
.text.wide:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @UP0 UTMALDG.2D [UR8], [UR4], desc[UR6] ;
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R0 ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
.L_x_0:
        /*0040*/                   WARPGROUP.ARRIVE ;
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT ;
        /*0060*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0070*/                   LDS.128 R4, [R3] ;
        /*0080*/                   STS [R3], R4 ;
        /*0090*/                   STL [R1], R4 ;
        /*00a0*/                   EXIT ;
	.section	.nv.constant0.wide,"a",@progbits
        /*0000*/ 	.byte	0x00
"#;

    #[test]
    fn both_disassemblers_are_read() {
        let flash = parse(CUOBJDUMP);
        assert_eq!(flash.keys().collect::<Vec<_>>(), ["flash"]);
        let expected = InstructionMix {
            mma: 1,
            ldmatrix: 1,
            async_copy: 1,
            store_global: 1,
            special: 2,
            branch: 3,
            barrier: 3,
            other: 2,
            ..InstructionMix::default()
        };
        assert_eq!(flash["flash"], expected);
        assert_eq!(flash["flash"].total(), 14);
        let wide = parse(NVDISASM);
        let expected = InstructionMix {
            mma: 1,
            async_copy: 1,
            load_global: 1,
            load_shared: 1,
            store_shared: 1,
            local: 1,
            branch: 2,
            barrier: 2,
            other: 1,
            ..InstructionMix::default()
        };
        assert_eq!(wide, BTreeMap::from([("wide".to_owned(), expected)]));
        assert!(parse("nothing of the kind\n/*no*/ MOV").is_empty());
    }

    /// What the tools print of `timing.cu` for sm_80, whole: cuobjdump and nvdisasm 13.5, NVRTC 13.0.
    #[test]
    fn whole_listings_agree() {
        let listed = parse(include_str!("../../tests/data/sass/timing_sm_80.cuobjdump.txt"));
        assert_eq!(parse(include_str!("../../tests/data/sass/timing_sm_80.nvdisasm.txt")), listed);
        assert_eq!(listed.keys().collect::<Vec<_>>(), ["hold", "spin", "stamp"]);
        let expected = InstructionMix { branch: 3, other: 7, ..InstructionMix::default() };
        assert_eq!(listed["spin"], expected);
        assert_eq!((listed["stamp"].store_global, listed["hold"].load_global), (3, 1));
    }

    /// An executable that is called like a tool and does as the script says.
    #[cfg(unix)]
    fn stand_in(folder: &Path, name: &str, script: &str) -> Disassembler {
        use std::os::unix::fs::OpenOptionsExt;
        let path = folder.join(name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&path).unwrap();
        write!(file, "#!/bin/sh\n{script}\n").unwrap();
        Disassembler::at(&path)
    }

    #[test]
    #[cfg(unix)]
    fn a_tool_is_given_the_code_and_its_failures_are_named() {
        let folder = std::env::temp_dir().join(format!("attn-kernels-sass-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("recorded"), CUOBJDUMP).unwrap();
        let show = format!("[ \"$(cat $2)\" = code ] && [ $1 = -sass ] && cat '{}/recorded'", folder.display());
        let mixes = stand_in(&folder, "cuobjdump", &show).mixes(b"code").unwrap();
        assert_eq!(mixes["flash"].total(), 14);
        let plain = format!("[ \"$(cat $1)\" = code ] && cat '{}/recorded'", folder.display());
        assert_eq!(stand_in(&folder, "nvdisasm", &plain).mixes(b"code").unwrap(), mixes);
        let said = |tool: Disassembler| tool.mixes(b"code").expect_err("refused").to_string();
        let fails = said(stand_in(&folder, "cuobjdump", "echo 'unknown architecture' >&2; exit 3"));
        assert!(fails.contains("unknown architecture") && fails.contains("cuobjdump"), "{fails}");
        assert!(said(stand_in(&folder, "cuobjdump", "echo hello")).contains("printed no instruction"));
        assert!(said(Disassembler::at(&folder.join("none"))).contains("none"));
        // Found in the folders of PATH or of the toolkit, and missed with the way out.
        let found = Disassembler::search("/nowhere".into(), Some(folder.clone().into_os_string())).unwrap();
        assert_eq!(found.tool, folder.join("cuobjdump"));
        let missing = Disassembler::search("/nowhere".into(), None).unwrap_err().to_string();
        assert!(missing.contains("cuobjdump") && missing.contains(DISASSEMBLER_VARIABLE), "{missing}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
