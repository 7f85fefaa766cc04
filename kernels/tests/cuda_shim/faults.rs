//! The shim itself: every fault is found and named, and what is sound passes.

use super::shim::{Memory, compile, cuda_folder, launch};

const THREADS: u32 = 64;
const SHARED_BYTES: u32 = 4096;

/// Runs a kernel of `faults.cu` on 256 inputs (0, 1/4, 2/4, ..) and 128 outputs; `more` are further arguments.
fn run_with(entry: &str, more: &[(&str, u64)]) -> Result<Vec<f32>, String> {
    let slot = compile(&cuda_folder().join("shim/tests/faults.cu"), &[]);
    let mut input: Vec<f32> = (0..256).map(|index| index as f32 / 4.0).collect();
    let mut output = vec![f32::NAN; 128];
    let mut memory = Memory::default();
    let from = memory.add("input", input.as_mut_ptr().cast(), 4 * input.len(), false);
    let to = memory.add("output", output.as_mut_ptr().cast(), 4 * output.len(), true);
    let mut arguments = vec![("P".to_string(), vec![from as u64]), ("P".to_string(), vec![to as u64])];
    arguments.extend(more.iter().map(|(letter, word)| (letter.to_string(), vec![*word])));
    let compiled = slot.get().expect("compiled");
    launch(compiled, entry, [1, 1, 1], [THREADS, 1, 1], SHARED_BYTES, &arguments, &memory).map(|()| output)
}

fn run(entry: &str) -> Result<Vec<f32>, String> {
    run_with(entry, &[])
}

#[test]
fn what_is_sound_passes() {
    let copied = run("copy_sound").expect("sound");
    assert_eq!(copied[..64], (0..64).map(|thread| (63 - thread) as f32).collect::<Vec<_>>());
    run("exchange_sound").expect("sound");
    let exchanged = run("named_barriers_sound").expect("sound");
    assert_eq!(exchanged[..64], (0..64).map(|thread| (thread ^ 32) as f32).collect::<Vec<_>>());
    let sums = run("sums_sound").expect("sound");
    assert_eq!(sums[..8], [504.0, 0.0, 0.0, 0.0, 504.0, 64.0, 128.0, 192.0]);
    let consumed = run("producer_and_consumer").expect("sound");
    assert_eq!(consumed[32..64], (0..32).map(|lane| (31 - lane) as f32 / 4.0 + 3.0).collect::<Vec<_>>());
}

#[test]
fn every_fault_is_found() {
    // The kernel and what the report has to say.
    let faults = [
        ("copy_without_wait", "is in flight"),
        ("copy_waits_for_too_few", "is in flight"),
        ("copy_without_commit", "is in flight"),
        ("copy_without_barrier", "races with the write by thread"),
        ("copy_over_a_tile_in_use", "where a copy by thread 32 is in flight"),
        ("read_outside", "read of 4 bytes outside of input: byte 1024 of 1024"),
        ("write_outside", "write of 4 bytes outside of output: byte -4 of 512"),
        ("write_to_an_input", "write to input, which is read-only"),
        ("misaligned_sums", "read of 16 bytes at output + 8, which is not aligned"),
        ("sum_outside", "read of 4 bytes outside of output: byte 512 of 512"),
        ("misaligned_vector", "read of 16 bytes at input + 8, which is not aligned"),
        ("misaligned_copy", "asynchronous copy of 16 bytes at shared address 8, which is not aligned"),
        ("shared_outside", "write of 4 bytes at shared address 4096 of 4096 bytes"),
        ("shared_uninitialised", "which nobody wrote"),
        ("matrices_uninitialised", "which nobody wrote"),
        ("read_after_write_in_a_warp", "races with the write by thread"),
        ("read_after_write_across_warps", "races with the write by thread"),
        ("write_after_read", "races with"),
        ("write_after_write", "races with the write by thread"),
        ("barrier_missed", "not every thread arrives: 1 of 64 threads have ended; 63 of 64 are at barrier 0"),
        ("barriers_of_two_branches", "where others wait at line"),
        ("shuffle_of_half_a_warp", "lanes 0000ffff of warp 0 are in a warp's instruction"),
        ("lanes_in_two_instructions", "of which other lanes are in another at line"),
        ("producer_does_not_wait", "races with"),
        ("mbarrier_before_its_initialisation_is_visible", "races with the write by thread 0"),
        ("mbarrier_that_nobody_completes", "wait for the mbarrier"),
    ];
    for (entry, expected) in faults {
        let report = run(entry).expect_err(entry);
        assert!(report.contains(expected), "{entry}: {report}");
        assert!(report.starts_with(&format!("kernel {entry}, block (0, 0, 0), ")), "{report}");
    }
}

#[test]
fn reports_name_the_kernel_s_line() {
    let report = run("copy_without_wait").expect_err("a fault");
    let source = include_str!("../../cuda/shim/tests/faults.cu");
    let line = report.split("line ").nth(1).and_then(|rest| rest.split(':').next()).expect("a line number");
    let line: usize = line.parse().expect("a number");
    assert!(source.lines().nth(line - 1).is_some_and(|text| text.contains("load_shared_f32(at)")), "{report}");
}

/// Matrix fragments against a product by hand.
#[test]
fn matrices_follow_the_fragments_of_the_instruction_set() {
    for entry in ["product_bf16", "product_f16"] {
        let round = |index: usize| {
            let x = index as f32 / 4.0;
            if entry == "product_bf16" { half::bf16::from_f32(x).to_f32() } else { half::f16::from_f32(x).to_f32() }
        };
        let c = run(entry).expect("sound");
        for row in 0..16 {
            for column in 0..8 {
                let expected: f32 = (0..16).map(|k| round(row * 16 + k) * round(column * 16 + k)).sum();
                assert_eq!(c[row * 8 + column], expected, "{entry} {row} {column}");
            }
        }
    }
}

#[test]
fn parameters_are_checked_against_the_kernel_s() {
    let word = |x: f32| u64::from(x.to_bits());
    let more = [("U", 1), ("I", (-2i32 as u32).into()), ("F", word(0.5)), ("L", 8)];
    assert_eq!(run_with("typed_parameters", &more).expect("sound")[0], 7.5);
    let report = run_with("typed_parameters", &more[..3]).expect_err("an argument is missing");
    assert!(report.contains("has parameters P;P;U;I;F;L;, the plan gives P;P;U;I;F;"), "{report}");
    assert!(run("no_such_kernel").is_err_and(|report| report.contains("there is no kernel no_such_kernel")));
}
