//! The native half of the Python package: expressions, and whoever computes them. Thin: what
//! Python names and documents is in the package, what computes is in `node`.

mod compute;
mod expression;

use pyo3::create_exception;
use pyo3::exceptions::PyException;

create_exception!(
    ebbtide,
    EbbtideError,
    PyException,
    "Something that Ebbtide could not do. The message says what to do about it."
);
create_exception!(
    ebbtide,
    ConnectionLost,
    EbbtideError,
    "The cluster cannot be reached, or refuses this client."
);
create_exception!(ebbtide, TaskFailed, EbbtideError, "A task of a computation failed.");

#[pyo3::pymodule(name = "_native", module = "ebbtide")]
mod native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::compute::{Client, Job, compute, persist};
    #[pymodule_export]
    use super::expression::Expression;
    #[pymodule_export]
    use super::{ConnectionLost, EbbtideError, TaskFailed};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let end = wrap_pyfunction!(super::compute::end_functions, module)?;
        module.py().import("atexit")?.call_method1("register", (end,))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
