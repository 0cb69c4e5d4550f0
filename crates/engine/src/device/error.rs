//! What can go wrong when somebody asks for a device.

use atelier_protocol::{DeviceId, ErrorBody, ErrorCode};

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("no device is called `{asked}`; there {}", list(.known))]
    NotFound { asked: DeviceId, known: Vec<DeviceId> },
    #[error("the node is stopping")]
    Stopping,
}

impl DeviceError {
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::DeviceNotFound,
            Self::Stopping => ErrorCode::NodeStopping,
        }
    }
}

impl From<DeviceError> for ErrorBody {
    fn from(error: DeviceError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

fn list(known: &[DeviceId]) -> String {
    match known {
        [] => "is none at all".to_owned(),
        [one] => format!("is `{one}`"),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(|id| format!("`{id}`")).collect();
            format!("are {} and `{last}`", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_device_is_answered_with_the_known_ones() {
        let ids = |names: &[&str]| names.iter().map(|n| DeviceId((*n).to_owned())).collect();
        for (known, text) in [
            (ids(&[]), "no device is called `cuda:7`; there is none at all"),
            (ids(&["cpu"]), "no device is called `cuda:7`; there is `cpu`"),
            (
                ids(&["cpu", "cuda:0", "cuda:1"]),
                "no device is called `cuda:7`; there are `cpu`, `cuda:0` and `cuda:1`",
            ),
        ] {
            let error = DeviceError::NotFound { asked: DeviceId("cuda:7".to_owned()), known };
            assert_eq!(error.to_string(), text);
            assert_eq!(ErrorBody::from(error).code, ErrorCode::DeviceNotFound);
        }
    }
}
