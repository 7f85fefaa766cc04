//! CUDA graphs: back-to-back calls without the host between them.

use cudarc::driver::sys;

use super::context::Context;
use super::driver::{Fault, check};

/// Work that was recorded once and is launched as a whole.
pub struct Graph {
    handle: sys::CUgraphExec,
}

impl Graph {
    /// Records what `work` enqueues on the context's stream; none of it runs.
    pub fn record(context: &Context, work: &mut dyn FnMut() -> Result<(), Fault>) -> Result<Graph, Fault> {
        let doing = "recording a graph";
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is a live one that nobody else captures.
        check(doing, unsafe { sys::cuStreamBeginCapture_v2(context.stream(), mode) })?;
        let worked = work();
        let (mut graph, mut handle) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the capture began above; the graph is valid for writes.
        let ended = check(doing, unsafe { sys::cuStreamEndCapture(context.stream(), &mut graph) });
        worked.and(ended)?;
        // SAFETY: the graph was captured just now; its executable form does not need it any more.
        unsafe {
            let instantiated = check(doing, sys::cuGraphInstantiateWithFlags(&mut handle, graph, 0));
            let _ = sys::cuGraphDestroy(graph);
            instantiated?;
        }
        Ok(Graph { handle })
    }

    /// Enqueues all of it.
    pub fn launch(&self, context: &Context) -> Result<(), Fault> {
        // SAFETY: graph and stream are live ones of one context.
        check("launching a graph", unsafe { sys::cuGraphLaunch(self.handle, context.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `record` and destroyed once; the stream has been waited for.
        let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
    }
}
