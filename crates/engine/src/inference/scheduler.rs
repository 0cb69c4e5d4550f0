//! The schedulers that can be asked for by name, and what each is in diffusers.
//!
//! One table: names people know from other programs are aliases of one entry. Entries name a diffusers class and the values
//! that are laid over the model's own scheduler configuration; what needs packages outside the lock is not listed.

use atelier_protocol::http::SchedulerEntry;
use atelier_protocol::worker::SchedulerPlan;
use serde_json::{Value, json};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Scheduler {
    /// Our name, as in requests.
    pub name: &'static str,
    /// The name that A1111 and its metadata use.
    pub title: &'static str,
    pub aliases: &'static [&'static str],
    /// Class in diffusers.
    pub class: &'static str,
    config: &'static [(&'static str, Setting)],
}

#[derive(Clone, Copy, Debug)]
enum Setting {
    True,
    Text(&'static str),
}

/// Every scheduler, in the order in which lists show them.
pub const SCHEDULERS: &[Scheduler] = &[
    row("ddim", "DDIM", &[], "DDIMScheduler", &[]),
    row("ddpm", "DDPM", &[], "DDPMScheduler", &[]),
    row("pndm", "PLMS", &["plms"], "PNDMScheduler", &[]),
    row("euler", "Euler", &["k_euler"], "EulerDiscreteScheduler", &[]),
    row(
        "euler_a",
        "Euler a",
        &["euler_ancestral", "k_euler_ancestral", "k_euler_a"],
        "EulerAncestralDiscreteScheduler",
        &[],
    ),
    row("heun", "Heun", &["k_heun"], "HeunDiscreteScheduler", &[]),
    row("dpmpp_2m", "DPM++ 2M", &["k_dpmpp_2m", "dpm++_2m"], "DPMSolverMultistepScheduler", &[]),
    row(
        "dpmpp_2m_karras",
        "DPM++ 2M Karras",
        &["k_dpmpp_2m_karras", "dpm++_2m_karras"],
        "DPMSolverMultistepScheduler",
        &[("use_karras_sigmas", Setting::True)],
    ),
    row(
        "dpmpp_2m_sde",
        "DPM++ 2M SDE",
        &["k_dpmpp_2m_sde", "dpm++_2m_sde"],
        "DPMSolverMultistepScheduler",
        &[("algorithm_type", Setting::Text("sde-dpmsolver++"))],
    ),
    row("unipc", "UniPC", &["uni_pc"], "UniPCMultistepScheduler", &[]),
    row("deis", "DEIS", &[], "DEISMultistepScheduler", &[]),
];

const fn row(
    name: &'static str,
    title: &'static str,
    aliases: &'static [&'static str],
    class: &'static str,
    config: &'static [(&'static str, Setting)],
) -> Scheduler {
    Scheduler { name, title, aliases, class, config }
}

impl Scheduler {
    /// By name, title or alias; case, spaces and hyphens do not matter.
    #[must_use]
    pub fn find(asked: &str) -> Option<&'static Self> {
        let asked = fold(asked);
        SCHEDULERS.iter().find(|row| {
            fold(row.name) == asked
                || fold(row.title) == asked
                || row.aliases.iter().any(|alias| fold(alias) == asked)
        })
    }

    /// The first one that is this diffusers class.
    #[must_use]
    pub fn of_class(class: &str) -> Option<&'static Self> {
        SCHEDULERS.iter().find(|row| row.class == class)
    }

    #[must_use]
    pub fn plan(&self) -> SchedulerPlan {
        let value = |setting: &Setting| match setting {
            Setting::True => Value::Bool(true),
            Setting::Text(text) => json!(text),
        };
        SchedulerPlan {
            class: self.class.to_owned(),
            config: self.config.iter().map(|(k, v)| ((*k).to_owned(), value(v))).collect(),
        }
    }

    #[must_use]
    pub fn entry(&self) -> SchedulerEntry {
        SchedulerEntry {
            name: self.name.to_owned(),
            title: self.title.to_owned(),
            aliases: self.aliases.iter().map(|&alias| alias.to_owned()).collect(),
        }
    }
}

fn fold(name: &str) -> String {
    let letters = name.trim().chars().map(|c| if c == ' ' || c == '-' { '_' } else { c });
    letters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_schedulers_answer_to_one_name() {
        let mut seen = BTreeSet::new();
        for row in SCHEDULERS {
            let names = [row.name, row.title].into_iter().chain(row.aliases.iter().copied());
            for name in names.map(fold).collect::<BTreeSet<_>>() {
                assert!(seen.insert(name.clone()), "{name} is taken twice");
            }
        }
    }

    #[test]
    fn names_of_other_programs_find_ours() {
        for (asked, name) in [
            ("Euler a", "euler_a"),
            ("DPM++ 2M Karras", "dpmpp_2m_karras"),
            ("k_euler", "euler"),
            ("UniPC", "unipc"),
            ("dpmpp-2m", "dpmpp_2m"),
        ] {
            assert_eq!(Scheduler::find(asked).map(|row| row.name), Some(name), "{asked}");
        }
    }
}
