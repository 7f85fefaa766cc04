// Each CUDA thread is a fiber with its own stack, which runs until it waits for others.
#pragma once

#include "machine.h"

namespace shim {

#if defined(__x86_64__)
extern "C" void shim_switch(void **save, void *load);
// Saves what the System V ABI lets a callee keep, changes stacks, and returns on the other one.
asm(R"(
.text
.p2align 4
.local shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
#endif

inline void resume(Thread &from, Thread &to) {
    machine->current = &to;
#if defined(__x86_64__)
    shim_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
}
inline void leave(Thread &from) {
#if defined(__x86_64__)
    shim_switch(&from.stack_pointer, machine->scheduler);
#else
    swapcontext(&from.context, &machine->scheduler);
#endif
}
inline void enter(Thread &to) {
    machine->current = &to;
#if defined(__x86_64__)
    shim_switch(&machine->scheduler, to.stack_pointer);
#else
    swapcontext(&machine->scheduler, &to.context);
#endif
}

// Gives way to a lane of the same warp that can run, else to the scheduler.
inline void give_way(Thread &self) {
    u32 runnable = self.warp->runnable;
    if (!runnable) return leave(self);
    u32 above = runnable & ~((2u << self.lane) - 1);
    u32 lane = __builtin_ctz(above ? above : runnable);
    resume(self, machine->thread[self.warp->number * LANES + lane]);
}

// Reports an error and never comes back.
[[noreturn]] __attribute__((format(printf, 2, 3))) static void fail(int line, const char *format, ...) {
    Machine &m = *machine;
    if (!m.has_failed) {
        m.has_failed = true;
        const Thread *t = m.current;
        int length = snprintf(m.error, sizeof m.error, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u), line %d: ",
                              m.kernel, m.block.x, m.block.y, m.block.z, t->index.x, t->index.y, t->index.z, line);
        va_list list;
        va_start(list, format);
        vsnprintf(m.error + length, sizeof m.error - length, format, list);
        va_end(list);
    }
    for (;;) leave(*m.current);
}

static void fiber_main() {
    Machine &m = *machine;
    m.body(m.arguments);
    Thread &self = *m.current;
    self.warp->alive &= ~(1u << self.lane);
    if (!self.warp->alive && !m.products[self.warp->number].empty())
        fail(m.products[self.warp->number][0].line, "a product that nobody waits for");
    self.warp->runnable &= ~(1u << self.lane);
    m.finished++;
    for (;;) give_way(self);
}

inline void prepare(Thread &thread, u8 *stack) {
#if defined(__x86_64__)
    // As if shim_switch had been called at the entry of fiber_main: the stack is 8 off 16 after the return address.
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    thread.stack_pointer = top;
#else
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stack;
    thread.context.uc_stack.ss_size = STACK_BYTES;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, fiber_main, 0);
#endif
}

} // namespace shim
