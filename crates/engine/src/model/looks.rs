//! Says what a file that cannot be used looks like, from the names of its tensors or of the folder
//! that it lies in.

use super::safetensors::Tensor;

/// The first row with a tensor name that begins so wins.
const BY_PREFIX: &[(&str, &str)] = &[
    ("conditioner.embedders.1.", "a Stable Diffusion XL checkpoint in one file"),
    ("model.diffusion_model.joint_blocks.", "a Stable Diffusion 3 checkpoint in one file"),
    ("model.diffusion_model.double_blocks.", "a Flux checkpoint in one file"),
    ("cond_stage_model.", "a Stable Diffusion 1 or 2 checkpoint in one file"),
    ("model.diffusion_model.", "a diffusion checkpoint in one file"),
    ("double_blocks.", "a Flux transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("emb_params", "a textual inversion embedding"),
    ("clip_l", "a textual inversion embedding"),
    ("decoder.conv_in.", "an autoencoder"),
    ("first_stage_model.", "an autoencoder"),
    ("text_model.", "a text encoder"),
    ("shared.", "a T5 text encoder"),
    ("down_blocks.", "a UNet"),
    ("conv_first.", "an upscaler"),
];

/// Marks in the middle of names.
const BY_PART: &[(&str, &str)] = &[
    (".lora_A.", "a LoRA"),
    (".lora_B.", "a LoRA"),
    (".lora_up.", "a LoRA"),
    (".lora.", "a LoRA"),
    ("hada_w1", "a LyCORIS adapter"),
    ("lokr_w1", "a LyCORIS adapter"),
];

/// The folders that people keep models in, and what lies there.
const BY_FOLDER: &[(&str, &str)] = &[
    ("checkpoints", "a checkpoint in one file"),
    ("diffusion_models", "a diffusion model without its other parts"),
    ("text_encoders", "a text encoder"),
    ("vae", "an autoencoder"),
    ("loras", "a LoRA"),
    ("controlnet", "a ControlNet"),
    ("embeddings", "a textual inversion embedding"),
    ("upscale_models", "an upscaler"),
];

/// What these tensors are, as far as their names tell.
pub(super) fn by_tensors(tensors: &[Tensor], folder: Option<&str>) -> &'static str {
    let starts = |prefix: &str| tensors.iter().any(|tensor| tensor.name.starts_with(prefix));
    let contains = |part: &str| tensors.iter().any(|tensor| tensor.name.contains(part));
    let part = BY_PART.iter().find(|(part, _)| contains(part));
    let found = part.or_else(|| BY_PREFIX.iter().find(|(prefix, _)| starts(prefix)));
    let found = found.or_else(|| BY_FOLDER.iter().find(|(name, _)| Some(*name) == folder));
    found.map_or("a safetensors file of an unknown kind", |(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::safetensors::TensorType;

    #[test]
    fn names_of_tensors_say_more_than_the_folder() {
        let tensor = |name: &str| Tensor {
            name: name.to_owned(),
            dtype: TensorType::F16,
            shape: vec![0],
            begin: 8,
            end: 8,
        };
        for (names, folder, what) in [
            (
                &["model.diffusion_model.x", "cond_stage_model.y"][..],
                None,
                "Stable Diffusion 1 or 2",
            ),
            (&["model.diffusion_model.x", "conditioner.embedders.1.y"], None, "XL"),
            (&["lora_unet_down_blocks_0.lora_up.weight"], Some("checkpoints"), "a LoRA"),
            (&["transformer.x.lora_A.weight"], None, "a LoRA"),
            (&["who.knows"], Some("upscale_models"), "an upscaler"),
            (&["who.knows"], Some("pictures"), "unknown kind"),
            (&[], None, "unknown kind"),
        ] {
            let tensors: Vec<Tensor> = names.iter().map(|name| tensor(name)).collect();
            assert!(by_tensors(&tensors, folder).contains(what), "{names:?}");
        }
    }
}
