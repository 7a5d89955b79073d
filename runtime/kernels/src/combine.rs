//! Several chunks into one, element by element, in the order of the inputs.

use bytemuck::Pod;
use ebbtide_array::{DType, ReduceOp};
use ebbtide_buffer::{Buffer, Pool};

use crate::KernelError;
use crate::level::{Kernel, Level};
use crate::reduce::{Fold, Prod, Sum};

pub(crate) fn run(
    level: Level,
    (op, dtype): (ReduceOp, DType),
    inputs: &[&Buffer],
    pool: &Pool,
) -> Result<Buffer, KernelError> {
    let first = inputs.first().ok_or(KernelError::Program("nothing to combine"))?;
    for (input, given) in inputs.iter().enumerate() {
        if given.len() != first.len() || given.len() % 8 != 0 {
            let (bytes, expected) = (given.len(), first.len());
            return Err(KernelError::Input { input, bytes, expected });
        }
    }
    let mut output = pool.copy(first);
    for input in &inputs[1..] {
        match (dtype, op) {
            (DType::Float64, ReduceOp::Sum) => fold::<f64, Sum>(level, input, &mut output),
            (DType::Float64, ReduceOp::Prod) => fold::<f64, Prod>(level, input, &mut output),
            (DType::Int64, ReduceOp::Sum) => fold::<i64, Sum>(level, input, &mut output),
            (DType::Int64, ReduceOp::Prod) => fold::<i64, Prod>(level, input, &mut output),
            _ => return Err(KernelError::Program("a reduction of a dtype without kernels")),
        }
    }
    Ok(output)
}

fn fold<T: Pod, F: Fold<T>>(level: Level, from: &Buffer, to: &mut Buffer) {
    struct Into<'a, T, F>(&'a [T], &'a mut [T], std::marker::PhantomData<F>);
    impl<T: Pod, F: Fold<T>> Kernel for Into<'_, T, F> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for (to, from) in self.1.iter_mut().zip(self.0) {
                *to = F::fold(*to, *from);
            }
        }
    }
    level.run(Into::<T, F>(from.elements(), to.elements_mut(), std::marker::PhantomData));
}
