//! Tiles by tensor maps in the shim, against the layouts that the PTX ISA documents.

use std::ffi::{CStr, c_char, c_void};

use super::shim::{Compiled, Memory, compile, cuda_folder, launch};

const THREADS: u32 = 64;
const SHARED_BYTES: u32 = 64 << 10;

/// As `cuTensorMapEncodeTiled` takes it: sizes and box innermost first, strides in bytes of all dimensions but the first.
#[derive(Clone)]
struct Map {
    element_bytes: u32,
    size: Vec<u32>,
    stride: Vec<u64>,
    dims: Vec<u32>,
    swizzle: u32,
}

impl Map {
    /// A dense matrix of 16-bit elements.
    fn matrix(columns: u32, rows: u32, dims: [u32; 2], swizzle: u32) -> Map {
        let stride = vec![2 * u64::from(columns)];
        Map { element_bytes: 2, size: vec![columns, rows], stride, dims: dims.to_vec(), swizzle }
    }

    fn bytes(&self) -> u32 {
        self.element_bytes * self.dims.iter().product::<u32>()
    }

    fn encode(&self, compiled: &Compiled, base: *mut u8) -> Result<Vec<u64>, String> {
        type Encode = unsafe extern "C" fn(
            *mut u64,
            *mut c_void,
            u32,
            u32,
            *const u32,
            *const u64,
            *const u32,
            u32,
        ) -> *const c_char;
        let mut words = vec![0u64; 16];
        let rank = self.size.len() as u32;
        let (size, stride, dims) = (self.size.as_ptr(), self.stride.as_ptr(), self.dims.as_ptr());
        // SAFETY: the type is that of tiles.h, and every array has `rank` elements, the strides one less.
        let refusal = unsafe {
            let encode = compiled.get::<Encode>(b"shim_tensor_map");
            encode(words.as_mut_ptr(), base.cast(), rank, self.element_bytes, size, stride, dims, self.swizzle)
        };
        if refusal.is_null() {
            return Ok(words);
        }
        // SAFETY: the shim returns a static string.
        Err(unsafe { CStr::from_ptr(refusal) }.to_string_lossy().into_owned())
    }
}

/// Element `index` of the tensor.
fn element(index: usize) -> u16 {
    (index * 7919 % 65_521 + 1) as u16
}

/// Runs a kernel of `tiles.cu` on a tensor of this many elements and gives back what it wrote, as 16-bit elements.
fn run(entry: &str, map: &Map, elements: usize, integers: &[i32], bytes: u32) -> Result<Vec<u16>, String> {
    let slot = compile(&cuda_folder().join("shim/tests/tiles.cu"), &[]);
    let compiled = slot.get().expect("compiled");
    // 16 bytes aligned, as every allocation of a device is.
    let mut input: Vec<u128> = vec![0; elements.div_ceil(8)];
    let base: *mut u8 = input.as_mut_ptr().cast();
    for index in 0..elements {
        // SAFETY: the vector has room for as many elements of two bytes.
        unsafe { base.cast::<u16>().add(index).write(element(index)) };
    }
    let words = map.encode(compiled, base)?;
    let mut output = vec![0u32; (bytes as usize).div_ceil(4).max(THREADS as usize)];
    let mut memory = Memory::default();
    memory.add("tensor", base, 2 * elements, false);
    let to = memory.add("output", output.as_mut_ptr().cast(), 4 * output.len(), true);
    let mut arguments = vec![("S128".to_string(), words), ("P".to_string(), vec![to as u64])];
    arguments.extend(integers.iter().map(|&integer| ("I".to_string(), vec![u64::from(integer as u32)])));
    arguments.push(("U".to_string(), vec![bytes.into()]));
    launch(compiled, entry, [1, 1, 1], [THREADS, 1, 1], SHARED_BYTES, &arguments, &memory)?;
    Ok(output.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]).collect())
}

/// The byte of a tile at which the documentation's tables put chunk `chunk` of row `row`, rows of as many bytes as the swizzle is
/// wide: with 128 bytes, chunk c of row r is at place c xor (r mod 8); with 64 and 32, the pattern repeats every 512 and 256
/// bytes, in which two and four rows share a line of 128 bytes.
fn documented(swizzle: u32, row: usize, chunk: usize) -> usize {
    let width = [0, 32, 64, 128][swizzle as usize];
    let line = row * width / 128;
    let place = match swizzle {
        1 => chunk ^ (line % 2),
        2 => chunk ^ (line % 4),
        _ => chunk ^ (line % 8),
    };
    row * width + place * 16
}

#[test]
fn swizzled_tiles_lie_as_documented() {
    let (columns, rows) = (200, 90);
    for swizzle in [1, 2, 3] {
        let width = [0, 16, 32, 64][swizzle as usize];
        for (x, y) in [(0, 0), (64, 8), (3, 5), (-5, -3), (190, 80), (500, 0), (0, -100)] {
            let map = Map::matrix(columns, rows, [width, 24], swizzle);
            let tile = run("tile", &map, (columns * rows) as usize, &[x, y], map.bytes()).expect("sound");
            for row in 0..24 {
                for column in 0..width as usize {
                    let (at_x, at_y) = (x as i64 + column as i64, y as i64 + row as i64);
                    let exists = (0..columns.into()).contains(&at_x) && (0..rows.into()).contains(&at_y);
                    let expected = if exists { element((at_y * i64::from(columns) + at_x) as usize) } else { 0 };
                    let at = documented(swizzle, row, column / 8) / 2 + column % 8;
                    assert_eq!(tile[at], expected, "swizzle {swizzle}, box at {x}, {y}: row {row}, column {column}");
                }
            }
        }
    }
}

#[test]
fn four_dimensions_with_strides_that_skip() {
    // (batch, token, head, dim) of 2 x 9 x 3 x 32, seen as dim, token, head, batch.
    let map = Map {
        element_bytes: 2,
        size: vec![32, 9, 3, 2],
        stride: vec![3 * 64, 64, 9 * 3 * 64],
        dims: vec![32, 4, 2, 1],
        swizzle: 0,
    };
    for [x, y, z, w] in [[0, 0, 0, 0], [0, 7, 2, 1], [16, -1, 1, 0], [0, 0, 0, 2]] {
        let tile = run("tile_4d", &map, 2 * 9 * 3 * 32, &[x, y, z, w], map.bytes()).expect("sound");
        for head in 0..2 {
            for token in 0..4 {
                for dim in 0..32 {
                    let [d, t, h] = [x + dim, y + token, z + head];
                    let exists = d < 32 && (0..9).contains(&t) && h < 3 && w < 2;
                    let expected = if exists { element((((w * 9 + t) * 3 + h) * 32 + d) as usize) } else { 0 };
                    let at = ((head * 4 + token) * 32 + dim) as usize;
                    assert_eq!(tile[at], expected, "{d} {t} {h} {w}");
                }
            }
        }
    }
}

#[test]
fn a_ring_of_stages_reads_every_tile_once() {
    for count in [1, 2, 3, 7] {
        let rows = 8 * count as u32;
        let map = Map::matrix(64, rows, [64, 8], 3);
        let sums = run("ring", &map, 64 * rows as usize, &[count], map.bytes()).expect("sound");
        let total = sums.chunks(2).take(32).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16);
        let total = total.fold(0u32, u32::wrapping_add);
        let words =
            (0..32 * rows as usize).map(|word| u32::from(element(2 * word)) | u32::from(element(2 * word + 1)) << 16);
        assert_eq!(total, words.fold(0u32, u32::wrapping_add), "{count} tiles");
    }
}

#[test]
fn faults_of_tiles_are_found() {
    let map = Map::matrix(64, 64, [64, 8], 3);
    let bytes = map.bytes();
    for (entry, announced, expected) in [
        ("without_wait", bytes, "is in flight"),
        ("wrong_parity", bytes, "read of shared address"),
        ("ring_without_empty", bytes, "races with a read by warp"),
        ("expects", bytes + 16, "wait for the mbarrier"),
        ("expects", bytes - 16, "copies bring 16 bytes more to the mbarrier at 0 than were announced"),
        ("without_fence", bytes, "whose initialisation no fence shows to the copy engine"),
        ("misaligned", bytes, "a tile at shared address 1088, which is not aligned to 128 bytes"),
    ] {
        let report = run(entry, &map, 64 * 64, &[0, 0], announced).expect_err(entry);
        assert!(report.contains(expected), "{entry}: {report}");
    }
    // The map reaches further than the tensor does.
    let report = run("tile", &map, 64 * 63, &[0, 56], bytes).expect_err("outside");
    assert!(report.contains("outside of tensor"), "{report}");
    let large = Map::matrix(64, 512, [64, 256], 3);
    let report = run("tile", &Map { dims: vec![64, 256], ..large }, 64 * 512, &[0, 0], 32 << 10).map(|_| ());
    assert_eq!(report, Ok(()), "256 rows are the most that a box has");
}

#[test]
fn maps_that_the_driver_refuses_are_refused() {
    let map = Map::matrix(64, 64, [64, 8], 3);
    for (map, expected) in [
        (Map { dims: vec![64, 257], ..map.clone() }, "1 to 256 elements"),
        (Map { dims: vec![128, 8], size: vec![128, 64], ..map.clone() }, "wider than the swizzle"),
        (Map { dims: vec![4, 8], ..map.clone() }, "multiple of 16 bytes"),
        (Map { stride: vec![136], ..map.clone() }, "stride is a multiple of 16 bytes"),
        (Map { size: vec![64, 0], ..map.clone() }, "no elements"),
        (Map { element_bytes: 3, ..map.clone() }, "1, 2, 4 or 8 bytes"),
    ] {
        let refusal = run("tile", &map, 64 * 64, &[0, 0], 1024).expect_err(expected);
        assert!(refusal.contains(expected), "{refusal}");
    }
}
