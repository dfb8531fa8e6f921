//! Backends: the choice of executor and device.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::Device;

use super::device::DeviceExecutor;
use super::native::{NativeExecutor, Pool, threads_to_use};
use super::{ExecError, Executor};
use incant_gguf::Gguf;
use incant_kernels::Isa;
use incant_model::DecoderSpec;

/// A device as named by the user: `cpu`, `reference`, `cuda`, `cuda:N`, `metal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, with incant's own kernels.
    Cpu,
    /// The CPU, with plain f32 tensors: slow, and the reference for the other executors.
    Reference,
    /// An NVIDIA GPU, by index.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

/// The error of a text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no device (cpu, cuda, cuda:N, metal or reference)")]
pub struct UnknownDevice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<DeviceChoice, UnknownDevice> {
        match text {
            "cpu" => return Ok(DeviceChoice::Cpu),
            "reference" => return Ok(DeviceChoice::Reference),
            "cuda" => return Ok(DeviceChoice::Cuda(0)),
            "metal" => return Ok(DeviceChoice::Metal),
            _ => {}
        }
        text.strip_prefix("cuda:")
            .and_then(|number| number.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| UnknownDevice(text.to_owned()))
    }
}

/// The backend that models are loaded onto. All models of a process share one.
#[derive(Clone, Debug)]
pub enum Backend {
    /// The native executor.
    Native {
        /// The instruction set to use.
        isa: Isa,
        /// The threads to use.
        pool: Arc<Pool>,
    },
    /// The device executor.
    Device(Device),
}

impl Backend {
    /// Opens the chosen device, or the best one that is compiled in and available. On the CPU,
    /// `threads` threads compute; `None` uses as many as the process may run.
    ///
    /// # Errors
    /// The chosen device is not compiled in or not available, or `INCANT_ISA` names an
    /// unsupported instruction set. Without a choice, the CPU is the fallback.
    pub fn open(
        choice: Option<DeviceChoice>,
        threads: Option<usize>,
    ) -> Result<Backend, ExecError> {
        if let Some(choice) = choice {
            return open(choice, threads);
        }
        let compiled_in = [
            cfg!(feature = "cuda").then_some(DeviceChoice::Cuda(0)),
            cfg!(feature = "metal").then_some(DeviceChoice::Metal),
        ];
        for choice in compiled_in.into_iter().flatten() {
            match open(choice, threads) {
                Ok(backend) => return Ok(backend),
                Err(error) => tracing::warn!("{error}; trying the next device"),
            }
        }
        open(DeviceChoice::Cpu, threads)
    }

    /// Loads the weights of a model. `kv_memory` limits the bytes of its KV cache; `None` means
    /// [`default_kv_memory`](super::default_kv_memory).
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or an unsupported type, or memory cannot be
    /// allocated.
    pub fn load(
        &self,
        gguf: &Gguf,
        spec: &DecoderSpec,
        kv_memory: Option<usize>,
    ) -> Result<Box<dyn Executor>, ExecError> {
        Ok(match self {
            Backend::Native { isa, pool } => {
                let pool = Arc::clone(pool);
                Box::new(NativeExecutor::load(gguf, spec, *isa, pool, kv_memory)?)
            }
            Backend::Device(device) => {
                Box::new(DeviceExecutor::load(gguf, spec, device, kv_memory)?)
            }
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Native { isa, pool } => {
                let threads = pool.threads();
                let s = if threads == 1 { "" } else { "s" };
                write!(f, "CPU ({isa}, {threads} thread{s})")
            }
            Backend::Device(Device::Cpu) => write!(f, "CPU (reference)"),
            Backend::Device(Device::Cuda(_)) => write!(f, "CUDA"),
            Backend::Device(Device::Metal(_)) => write!(f, "Metal"),
        }
    }
}

fn open(choice: DeviceChoice, threads: Option<usize>) -> Result<Backend, ExecError> {
    Ok(match choice {
        DeviceChoice::Cpu => Backend::Native {
            isa: Isa::from_env()
                .map_err(|error| ExecError::Device(format!("INCANT_ISA: {error}")))?,
            pool: Arc::new(
                Pool::new(threads_to_use(threads))
                    .map_err(|error| ExecError::Device(format!("no threads: {error}")))?,
            ),
        },
        DeviceChoice::Reference => Backend::Device(Device::Cpu),
        DeviceChoice::Cuda(number) => Backend::Device(
            Device::new_cuda(number)
                .map_err(|error| refused("cuda", cfg!(feature = "cuda"), &error))?,
        ),
        DeviceChoice::Metal => Backend::Device(
            Device::new_metal(0)
                .map_err(|error| refused("metal", cfg!(feature = "metal"), &error))?,
        ),
    })
}

fn refused(name: &str, compiled_in: bool, error: &candle_core::Error) -> ExecError {
    ExecError::Device(if compiled_in {
        format!("device {name} does not answer: {error}")
    } else {
        format!("this incant was built without {name} (build it with --features {name})")
    })
}
