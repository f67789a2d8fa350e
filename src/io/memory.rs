//! A queue in memory: the device of tests.
