// The functions of ptx.cuh on a CPU, with the semantics of the hardware and none of its leniency.
//
// Each CUDA thread is a fiber with its own stack. A fiber runs until it waits for others: at a barrier, or in an instruction
// of a whole warp (shuffle, ldmatrix, mma). Blocks run one after another. Reported as errors, with kernel, block, thread
// and source line, are:
//   * accesses outside a tensor, a workspace or the launch's shared memory, and writes to inputs and tables;
//   * misaligned accesses;
//   * reads of shared memory or workspace that nobody wrote;
//   * reads of, and writes over, the destination of an asynchronous copy that is still in flight. Copies complete as late
//     as the program allows: in the wait that forces them;
//   * data races in shared memory: two accesses by different threads, one of them a write, with no barrier (or, inside a
//     warp, no sync_warp) between them, found by vector clocks, whatever order the fibers happened to run in;
//   * barriers and warp instructions that not every thread reaches.
//
// This is the one header to include. Each concept has its own:
//   machine.h    the state of a block in flight          barriers.h   barriers of a block, mbarriers
//   fibers.h     threads, and how they take turns        warps.h      shuffles, ldmatrix, mma
//   memory.h     checked accesses, races                 launch.h     kernels by name, launches
//   copies.h     cp.async                                tiles.h      TMA: tensor maps, swizzles, tiles
//   functions.h  all of this under the names of ptx.cuh
#pragma once

#include "functions.h"
