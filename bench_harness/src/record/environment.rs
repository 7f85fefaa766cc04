//! The fingerprint and the provenance of this machine and this build.
