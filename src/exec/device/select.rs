//! Which device to run on.

use std::str::FromStr;

use candle_core::Device;

use crate::exec::ExecError;

/// A device as a user names it: `cpu`, `cuda`, `cuda:N`, `metal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        match text {
            "cpu" => return Ok(DeviceChoice::Cpu),
            "cuda" => return Ok(DeviceChoice::Cuda(0)),
            "metal" => return Ok(DeviceChoice::Metal),
            _ => {}
        }
        text.strip_prefix("cuda:")
            .and_then(|number| number.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| format!("'{text}' is no device (cpu, cuda, cuda:N or metal)"))
    }
}

/// Opens the chosen device, or the best that is compiled in and answers.
///
/// # Errors
/// The chosen device is not compiled in or does not answer. Without a choice
/// there is always the CPU.
pub fn open_device(choice: Option<DeviceChoice>) -> Result<Device, ExecError> {
    let open = |choice| match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => Device::new_cuda(number)
            .map_err(|error| refused("cuda", cfg!(feature = "cuda"), &error)),
        DeviceChoice::Metal => {
            Device::new_metal(0).map_err(|error| refused("metal", cfg!(feature = "metal"), &error))
        }
    };
    if let Some(choice) = choice {
        return open(choice);
    }
    let compiled_in = [
        cfg!(feature = "cuda").then_some(DeviceChoice::Cuda(0)),
        cfg!(feature = "metal").then_some(DeviceChoice::Metal),
    ];
    for choice in compiled_in.into_iter().flatten() {
        match open(choice) {
            Ok(device) => return Ok(device),
            Err(error) => tracing::warn!("{error}; trying the next device"),
        }
    }
    Ok(Device::Cpu)
}

fn refused(name: &str, compiled_in: bool, error: &candle_core::Error) -> ExecError {
    ExecError::Device(if compiled_in {
        format!("device {name} does not answer: {error}")
    } else {
        format!("this incant was built without {name} (build it with --features {name})")
    })
}
