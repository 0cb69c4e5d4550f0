//! Commands that show what is here: `devices`, `memory`, `models`, `capabilities`.

use super::Context;
use super::client::segment;
use super::link::Link;
use super::render::{Table, pairs};
use atelier_protocol::http::{Capabilities, DeviceEntry, List, MemoryEntry, ModelEntry};
use atelier_protocol::{Bytes, ErrorBody};
use clap::Subcommand;

#[derive(Subcommand, Clone, Debug)]
pub(super) enum DevicesCommand {
    /// List the devices
    List,
    /// Show one device
    Show {
        /// Id of the device, such as `cpu` or `cuda:0`
        id: String,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum ModelsCommand {
    /// List the models that were found, usable or not
    List,
    /// Show one model with its components, limits and defaults
    Show {
        /// Id, folder name or hash prefix of the model
        id: String,
    },
}

pub(super) fn devices(context: &Context, command: &DevicesCommand) -> Result<(), ErrorBody> {
    let link = Link::open(context)?;
    match command {
        DevicesCommand::List => {
            let devices: List<DeviceEntry> = link.client().get("/v1/devices")?;
            context.output.answer(&devices, |devices| {
                let head = ["ID", "NAME", "KIND", "BACKEND", "MEMORY", "STATE", "WORKER"];
                let mut table = Table::new(&head, 1);
                for device in &devices.data {
                    table.row(vec![
                        device.id.clone(),
                        device.name.clone(),
                        device.kind.clone(),
                        device.backend.clone(),
                        device.memory_bytes.map_or_else(String::new, size),
                        device.state.clone(),
                        device.worker.as_ref().map_or_else(String::new, |w| w.state.clone()),
                    ]);
                }
                table.to_text()
            })
        }
        DevicesCommand::Show { id } => {
            let device: DeviceEntry = link.client().get(&format!("/v1/devices/{}", segment(id)))?;
            context.output.answer(&device, device_text)
        }
    }
}

fn device_text(device: &DeviceEntry) -> String {
    let DeviceEntry {
        id,
        name,
        kind,
        backend,
        vendor,
        uuid,
        pci,
        driver,
        memory_bytes,
        state,
        capabilities,
        worker,
    } = device;
    let worker = worker.as_ref().map_or_else(String::new, |worker| {
        let pid = worker.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        format!("{}{pid} since {}", worker.state, worker.since)
    });
    let numerics = capabilities.numerics.as_ref().and_then(|n| serde_json::to_string(n).ok());
    pairs(&[
        ("id", id.clone()),
        ("name", name.clone()),
        ("kind", kind.clone()),
        ("backend", backend.clone()),
        ("vendor", vendor.clone().unwrap_or_default()),
        ("uuid", uuid.clone().unwrap_or_default()),
        ("pci", pci.clone().unwrap_or_default()),
        ("driver", driver.clone().unwrap_or_default()),
        ("memory", memory_bytes.map_or_else(String::new, size)),
        ("state", state.clone()),
        ("worker", worker),
        ("cores", capabilities.cores.map_or_else(String::new, |cores| cores.to_string())),
        ("instructions", capabilities.instruction_sets.join(", ")),
        ("compute", capabilities.compute_capability.clone().unwrap_or_default()),
        ("numerics", numerics.unwrap_or_default()),
    ])
}

pub(super) fn memory(context: &Context) -> Result<(), ErrorBody> {
    let link = Link::open(context)?;
    let memory: List<MemoryEntry> = link.client().get("/v1/memory")?;
    context.output.answer(&memory, |memory| {
        let head = ["DEVICE", "TOTAL", "PROMISED", "OBSERVED", "FREE", "CACHE", "PRESSURE"];
        let mut table = Table::new(&head, 0);
        for entry in &memory.data {
            table.row(vec![
                entry.device.clone(),
                size(entry.total_bytes),
                size(entry.promised_bytes),
                size(entry.observed_bytes),
                size(entry.free_bytes),
                size(entry.cache_bytes),
                entry.pressure.clone(),
            ]);
        }
        table.to_text()
    })
}

pub(super) fn models(context: &Context, command: &ModelsCommand) -> Result<(), ErrorBody> {
    let link = Link::open(context)?;
    match command {
        ModelsCommand::List => {
            let models: List<ModelEntry> = link.client().get("/v1/models")?;
            context.output.answer(&models, |models| {
                let head = ["ID", "TITLE", "FAMILY", "PARAMETERS", "SIZE", "STATE"];
                let mut table = Table::new(&head, 1);
                for model in &models.data {
                    table.row(vec![
                        model.id.clone(),
                        model.title.clone(),
                        model.family.clone(),
                        parameters(model.parameters),
                        size(model.bytes),
                        model_state(model),
                    ]);
                }
                table.to_text()
            })
        }
        ModelsCommand::Show { id } => {
            let model: ModelEntry = link.client().get(&format!("/v1/models/{}", segment(id)))?;
            context.output.answer(&model, model_text)
        }
    }
}

fn model_state(model: &ModelEntry) -> String {
    let mut words = vec![if model.usable { "usable" } else { "unusable" }];
    if model.default {
        words.push("default");
    }
    if !model.resident_on.is_empty() {
        words.push("loaded");
    }
    words.join(", ")
}

fn model_text(model: &ModelEntry) -> String {
    let limits = model.limits.map_or_else(String::new, |limits| {
        format!(
            "{} to {} pixels in multiples of {}, up to {} steps",
            limits.min_size, limits.max_size, limits.multiple_of, limits.max_steps
        )
    });
    let defaults = model.defaults.as_ref().map_or_else(String::new, |defaults| {
        format!(
            "{} x {}, {} steps, guidance {}, {}",
            defaults.width,
            defaults.height,
            defaults.steps,
            defaults.guidance_scale,
            defaults.scheduler
        )
    });
    let problem = model.problem.as_ref();
    let mut text = pairs(&[
        ("id", model.id.clone()),
        ("title", model.title.clone()),
        ("state", model_state(model)),
        ("problem", problem.map_or_else(String::new, |p| format!("{p} ({})", p.code))),
        ("way out", problem.map_or_else(String::new, |p| p.hint.clone())),
        ("format", model.format.clone()),
        ("family", model.family.clone()),
        ("license", model.license.clone().unwrap_or_default()),
        ("parameters", parameters(model.parameters)),
        ("size", size(model.bytes)),
        ("blake3", model.blake3.clone().unwrap_or_default()),
        ("limits", limits),
        ("defaults", defaults),
        ("loaded on", model.resident_on.join(", ")),
    ]);
    if !model.components.is_empty() {
        let mut table = Table::new(&["COMPONENT", "CLASS", "PARAMETERS", "SIZE", "TYPES"], 1);
        for component in &model.components {
            table.row(vec![
                component.name.clone(),
                component.class.clone(),
                parameters(component.parameters),
                size(component.bytes),
                component.dtypes.join(", "),
            ]);
        }
        text.push('\n');
        text.push_str(&table.to_text());
    }
    text
}

pub(super) fn capabilities(context: &Context) -> Result<(), ErrorBody> {
    let link = Link::open(context)?;
    let capabilities: Capabilities = link.client().get("/v1/capabilities")?;
    context.output.answer(&capabilities, |capabilities| {
        let limits = &capabilities.limits;
        let mut text = pairs(&[
            ("kinds", capabilities.kinds.join(", ")),
            ("families", capabilities.families.join(", ")),
            ("formats", capabilities.output_formats.join(", ")),
            ("devices", capabilities.devices.join(", ")),
            ("prompt", format!("up to {} characters", limits.max_prompt_chars)),
            ("count", format!("up to {}", limits.max_count)),
            ("steps", format!("up to {}", limits.max_steps)),
            ("guidance", format!("up to {}", limits.max_guidance_scale)),
            ("seed", format!("up to {}", limits.max_seed)),
            ("body", format!("up to {}", Bytes(limits.max_body_bytes))),
        ]);
        let mut table = Table::new(&["SCHEDULER", "TITLE", "ALSO KNOWN AS"], 2);
        for scheduler in &capabilities.schedulers {
            let aliases = scheduler.aliases.join(", ");
            table.row(vec![scheduler.name.clone(), scheduler.title.clone(), aliases]);
        }
        text.push('\n');
        text.push_str(&table.to_text());
        text
    })
}

fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// A count of parameters in the words that people use: 24.1 M, 6.6 B.
#[expect(clippy::cast_precision_loss, reason = "two or three digits are shown")]
fn parameters(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.1} B", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_in_millions_and_billions() {
        assert_eq!(parameters(24_100_000), "24.1 M");
        assert_eq!(parameters(6_600_000_000), "6.6 B");
        assert_eq!(parameters(12), "12");
    }
}
