//! Errors within the device executor.

use crate::exec::ExecError;
use incant_model::ModelError;

/// candle's error, or another error of the executor. It becomes an [`ExecError`], without
/// candle's type, where the methods of [`Executor`](crate::exec::Executor) return it.
#[derive(Debug)]
pub(super) enum DeviceError {
    Tensor(candle_core::Error),
    Exec(ExecError),
}

impl From<candle_core::Error> for DeviceError {
    fn from(error: candle_core::Error) -> DeviceError {
        DeviceError::Tensor(error)
    }
}

impl From<ExecError> for DeviceError {
    fn from(error: ExecError) -> DeviceError {
        DeviceError::Exec(error)
    }
}

impl From<ModelError> for DeviceError {
    fn from(error: ModelError) -> DeviceError {
        DeviceError::Exec(error.into())
    }
}

impl From<DeviceError> for ExecError {
    fn from(error: DeviceError) -> ExecError {
        match error {
            DeviceError::Tensor(error) => ExecError::Tensor(Box::new(error)),
            DeviceError::Exec(error) => error,
        }
    }
}
