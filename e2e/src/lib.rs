//! Rules about the repository: see `tests/tidy.rs`. The end-to-end tests are in Python.
