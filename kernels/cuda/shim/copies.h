// Asynchronous copies of a thread (cp.async), which complete as late as the program allows: in the wait that forces them.
#pragma once

#include "memory.h"

namespace shim {

// Completes this thread's copies of groups before `end`.
inline void complete_copies(u32 end, int line) {
    Machine &m = *machine;
    Thread &self = *m.current;
    size_t done = 0;
    for (; done < self.copies.size() && self.copies[done].group < end; done++) {
        const Copy &copy = self.copies[done];
        u32 offset = copy.to - SHARED_BASE;
        if (copy.from) {
            check_global(copy.from, 16, 16, false, line);
            memcpy(m.shared.data() + offset, copy.from, 16);
        } else {
            memset(m.shared.data() + offset, 0, 16);
        }
        for (u32 g = offset / GRANULE; g < (offset + 16) / GRANULE; g++) {
            m.granules[g].state = DEFINED;
            m.granules[g].write_epoch = self.warp->epoch;
        }
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + done);
}

} // namespace shim
