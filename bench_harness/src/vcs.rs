//! What git knows: HEAD, branch, dirt, merge bases.
