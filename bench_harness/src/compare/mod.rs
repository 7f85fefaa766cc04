//! Records against records: verdicts.
