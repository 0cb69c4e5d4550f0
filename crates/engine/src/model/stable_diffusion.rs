//! What Stable Diffusion 1 and 2 are made of: which tensors must exist in which shapes, which
//! picture sizes are possible, and how much memory a run takes.
//!
//! Pure: works on configurations and tensor lists that somebody else has read.

use super::Problem;
use super::safetensors::{Tensor, TensorType};
use atelier_protocol::Bytes;
use atelier_protocol::worker::Dtype;
use serde::Deserialize;

/// The word for this family everywhere.
pub const FAMILY: &str = "stable_diffusion";

/// Facts of one model that planning needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StableDiffusion {
    /// Channels of a latent picture.
    pub latent_channels: u32,
    /// Pixels a side for one latent pixel.
    pub vae_factor: u32,
    /// Width and height must be multiples of this: the UNet halves latents once a level and must
    /// meet them again.
    pub multiple_of: u32,
    /// Size that the model was trained at.
    pub native_width: u32,
    pub native_height: u32,
    /// Tokens that the text encoder reads, the first and last included.
    pub max_tokens: u32,
    /// Whether the autoencoder must decode in float32.
    pub vae_in_float32: bool,
    unet_levels: Vec<Level>,
    /// Channels of the autoencoder at half the full resolution, the widest that reach the full one.
    vae_wide_channels: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Level {
    channels: u32,
    layers: u32,
    attention: bool,
}

/// A number, or one a side or level.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn at(&self, index: usize) -> u32 {
        match self {
            Self::One(value) => *value,
            Self::Many(values) => values.get(index).or(values.last()).copied().unwrap_or(0),
        }
    }
    fn all_are(&self, value: u32) -> bool {
        match self {
            Self::One(one) => *one == value,
            Self::Many(many) => !many.is_empty() && many.iter().all(|one| *one == value),
        }
    }
}

/// The part of `unet/config.json` that matters here. What is not written has the default of
/// diffusers.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default)]
pub(super) struct UnetConfig {
    sample_size: Option<OneOrMany>,
    in_channels: u32,
    out_channels: u32,
    block_out_channels: Vec<u32>,
    cross_attention_dim: OneOrMany,
    layers_per_block: OneOrMany,
    down_block_types: Vec<String>,
    conv_in_kernel: u32,
    class_embed_type: Option<String>,
    addition_embed_type: Option<String>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        let block = "CrossAttnDownBlock2D";
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            cross_attention_dim: OneOrMany::One(1280),
            layers_per_block: OneOrMany::One(2),
            down_block_types: [block, block, block, "DownBlock2D"].map(str::to_owned).to_vec(),
            conv_in_kernel: 3,
            class_embed_type: None,
            addition_embed_type: None,
        }
    }
}

/// The same of `vae/config.json`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default)]
pub(super) struct VaeConfig {
    in_channels: u32,
    out_channels: u32,
    latent_channels: u32,
    block_out_channels: Vec<u32>,
    force_upcast: Option<bool>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            force_upcast: Some(true),
        }
    }
}

/// The same of `text_encoder/config.json`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default)]
pub(super) struct TextConfig {
    hidden_size: u32,
    vocab_size: u32,
    max_position_embeddings: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self { hidden_size: 512, vocab_size: 49_408, max_position_embeddings: 77 }
    }
}

/// A component's tensors and the name for it in complaints.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) file: &'a str,
    pub(super) tensors: &'a [Tensor],
}

impl<'a> Weights<'a> {
    fn fail(&self, fact: String) -> Problem {
        Problem::Mismatch { file: self.file.to_owned(), fact }
    }

    fn find(&self, names: &[&str]) -> Result<&'a Tensor, Problem> {
        names
            .iter()
            .find_map(|name| self.tensors.iter().find(|tensor| tensor.name == *name))
            .ok_or_else(|| self.fail(format!("it has no tensor `{}`", names[0])))
    }

    fn expect(&self, names: &[&str], shape: &[u32]) -> Result<(), Problem> {
        let tensor = self.find(names)?;
        if !tensor.shape.iter().copied().eq(shape.iter().map(|side| u64::from(*side))) {
            let (name, given) = (&tensor.name, &tensor.shape);
            return Err(self.fail(format!("`{name}` is {given:?} and should be {shape:?}")));
        }
        match tensor.dtype {
            TensorType::F16 | TensorType::Bf16 | TensorType::F32 => Ok(()),
            other @ (TensorType::Bool
            | TensorType::U8
            | TensorType::I8
            | TensorType::U16
            | TensorType::I16
            | TensorType::U32
            | TensorType::I32
            | TensorType::U64
            | TensorType::I64
            | TensorType::F64
            | TensorType::C64
            | TensorType::F8E5M2
            | TensorType::F8E4M3
            | TensorType::F8E8M0
            | TensorType::F6E2M3
            | TensorType::F6E3M2
            | TensorType::F4) => {
                Err(Problem::Unsupported { what: format!("weights of type {}", other.word()) })
            }
        }
    }
}

/// More levels than any model of this family has; keeps a hostile configuration from overflowing
/// sizes.
const MAX_LEVELS: usize = 8;
const MAX_CHANNELS: u32 = 1 << 16;

/// Checks that configurations and tensors belong together, and gives the facts.
pub(super) fn check(
    (unet, unet_weights): (&UnetConfig, Weights<'_>),
    (vae, vae_weights): (&VaeConfig, Weights<'_>),
    (text, text_weights): (&TextConfig, Weights<'_>),
) -> Result<StableDiffusion, Problem> {
    check_levels("unet/config.json", &unet.block_out_channels)?;
    check_levels("vae/config.json", &vae.block_out_channels)?;
    if unet.class_embed_type.is_some() || unet.addition_embed_type.is_some() {
        return Err(Problem::Unsupported { what: "a UNet with extra conditioning".to_owned() });
    }
    if unet.in_channels > vae.latent_channels && unet.out_channels == vae.latent_channels {
        let channels = unet.in_channels;
        let what = format!("an inpainting or upscaling model (its UNet reads {channels} channels)");
        return Err(Problem::Unsupported { what });
    }
    let config = |fact: String| Problem::Mismatch { file: "unet/config.json".to_owned(), fact };
    if unet.in_channels != vae.latent_channels || unet.out_channels != vae.latent_channels {
        return Err(config(format!(
            "the UNet reads {} and writes {} channels, and latents of the autoencoder have {}",
            unet.in_channels, unet.out_channels, vae.latent_channels
        )));
    }
    if !unet.cross_attention_dim.all_are(text.hidden_size) {
        return Err(config(format!(
            "the UNet expects text of width {:?}, and the text encoder gives {}",
            unet.cross_attention_dim, text.hidden_size
        )));
    }
    check_unet_weights(unet, text, unet_weights)?;
    check_vae_weights(vae, vae_weights)?;
    let token = "embeddings.token_embedding.weight";
    let position = "embeddings.position_embedding.weight";
    text_weights
        .expect(&[&format!("text_model.{token}"), token], &[text.vocab_size, text.hidden_size])?;
    text_weights.expect(
        &[&format!("text_model.{position}"), position],
        &[text.max_position_embeddings, text.hidden_size],
    )?;
    facts(unet, vae, text)
}

fn check_levels(file: &str, channels: &[u32]) -> Result<(), Problem> {
    let sound = (1..=MAX_LEVELS).contains(&channels.len())
        && channels.iter().all(|c| (1..=MAX_CHANNELS).contains(c));
    if sound {
        return Ok(());
    }
    let fact = format!("block_out_channels is {channels:?}");
    Err(Problem::Mismatch { file: file.to_owned(), fact })
}

fn check_unet_weights(
    unet: &UnetConfig,
    text: &TextConfig,
    weights: Weights<'_>,
) -> Result<(), Problem> {
    let (first, kernel) = (unet.block_out_channels[0], unet.conv_in_kernel);
    weights.expect(&["conv_in.weight"], &[first, unet.in_channels, kernel, kernel])?;
    weights.expect(&["conv_in.bias"], &[first])?;
    weights.expect(&["time_embedding.linear_1.weight"], &[first * 4, first])?;
    let out = weights.find(&["conv_out.weight"])?;
    if out.shape.get(..2) != Some(&[u64::from(unet.out_channels), u64::from(first)]) {
        return Err(weights.fail(format!(
            "`conv_out.weight` is {:?} and should begin with [{}, {first}]",
            out.shape, unet.out_channels
        )));
    }
    let mut crossings =
        weights.tensors.iter().filter(|t| t.name.ends_with("attn2.to_k.weight")).peekable();
    if crossings.peek().is_none() {
        return Err(weights.fail("it has no cross-attention".to_owned()));
    }
    match crossings.find(|t| t.shape.get(1) != Some(&u64::from(text.hidden_size))) {
        None => Ok(()),
        Some(tensor) => Err(weights.fail(format!(
            "`{}` is {:?} and should read text of width {}",
            tensor.name, tensor.shape, text.hidden_size
        ))),
    }
}

fn check_vae_weights(vae: &VaeConfig, weights: Weights<'_>) -> Result<(), Problem> {
    let (first, last) = (vae.block_out_channels[0], *vae.block_out_channels.last().unwrap_or(&0));
    weights.expect(&["encoder.conv_in.weight"], &[first, vae.in_channels, 3, 3])?;
    weights.expect(&["decoder.conv_in.weight"], &[last, vae.latent_channels, 3, 3])?;
    weights.expect(&["decoder.conv_out.weight"], &[vae.out_channels, first, 3, 3])?;
    if vae.out_channels != 3 {
        let fact = format!("it draws {} channels and not 3", vae.out_channels);
        return Err(weights.fail(fact));
    }
    Ok(())
}

fn facts(
    unet: &UnetConfig,
    vae: &VaeConfig,
    text: &TextConfig,
) -> Result<StableDiffusion, Problem> {
    // Each level but the last halves the sides.
    let vae_factor = 1_u32 << (vae.block_out_channels.len() - 1);
    let unet_factor = 1_u32 << (unet.block_out_channels.len() - 1);
    // 64 latent pixels, as diffusers assumes where a model does not say.
    let sample = unet.sample_size.clone().unwrap_or(OneOrMany::One(64));
    let side = |index: usize| match sample.at(index) {
        latent @ 1..=4096 => Ok(latent * vae_factor),
        latent => Err(Problem::Mismatch {
            file: "unet/config.json".to_owned(),
            fact: format!("sample_size is {latent}"),
        }),
    };
    let levels = unet.block_out_channels.iter().enumerate().map(|(index, channels)| Level {
        channels: *channels,
        layers: unet.layers_per_block.at(index).min(16),
        attention: unet.down_block_types.get(index).is_some_and(|block| block.contains("Attn")),
    });
    Ok(StableDiffusion {
        latent_channels: vae.latent_channels,
        vae_factor,
        multiple_of: vae_factor * unet_factor,
        // Written as height, width where both are given.
        native_height: side(0)?,
        native_width: side(1)?,
        max_tokens: text.max_position_embeddings,
        vae_in_float32: vae.force_upcast.unwrap_or(true),
        unet_levels: levels.collect(),
        vae_wide_channels: vae
            .block_out_channels
            .get(1)
            .copied()
            .unwrap_or(vae.block_out_channels[0]),
    })
}

impl StableDiffusion {
    /// Memory beside the weights that a run of `batch` pictures needs at its fullest moment, with
    /// guidance.
    ///
    /// The larger of two moments, since the memory of the first is free when the second comes:
    ///
    /// - *UNet*, on two latents a picture: what the way down keeps for the way up (layers + 1
    ///   pictures a level), and the busiest level: in an up block the joined input and its
    ///   normalised copy (this level's channels and those from below, twice), two results, and 12
    ///   times the channels for a transformer block with its feed-forward part. All of it twice,
    ///   for what allocators and convolution libraries take on top. Half-precision types count
    ///   three bytes, because normalisation works in float32.
    /// - *Decoder*: seven pictures at full size of the channels that reach it, in float32.
    ///
    /// Compared with peaks measured on a processor: once to twice as much (see the tests). Not yet
    /// compared on a card.
    #[must_use]
    pub fn peak_bytes(&self, width: u32, height: u32, batch: u32, dtype: Dtype) -> Bytes {
        let area = |halvings: usize| {
            let side =
                |pixels: u32| u64::from(pixels.div_ceil(self.vae_factor).div_ceil(1 << halvings));
            side(width).saturating_mul(side(height))
        };
        let mut kept = 0_u64;
        let mut busiest = 0_u64;
        for (index, level) in self.unet_levels.iter().enumerate() {
            let channels = u64::from(level.channels);
            let below =
                self.unet_levels.get(index + 1).map_or(channels, |next| u64::from(next.channels));
            let transformer = if level.attention { 12 * channels } else { 0 };
            let working = 2 * (channels + below) + 2 * channels + transformer;
            kept = kept.saturating_add(
                (u64::from(level.layers) + 1).saturating_mul(channels).saturating_mul(area(index)),
            );
            busiest = busiest.max(working.saturating_mul(area(index)));
        }
        let element_bytes = match dtype {
            Dtype::Float32 => 4,
            Dtype::Float16 | Dtype::Bfloat16 => 3,
        };
        let batch = u64::from(batch);
        let unet = kept.saturating_add(busiest).saturating_mul(2 * 2 * element_bytes);
        let pixels = u64::from(width).saturating_mul(u64::from(height));
        let decoder = pixels.saturating_mul(u64::from(self.vae_wide_channels) * 7 * 4);
        let picture = pixels.saturating_mul(3 * 4);
        Bytes(unet.max(decoder).saturating_add(picture).saturating_mul(batch))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::model) fn demo() -> StableDiffusion {
        let unet = UnetConfig {
            sample_size: Some(OneOrMany::One(32)),
            block_out_channels: vec![96, 160, 224],
            layers_per_block: OneOrMany::One(1),
            down_block_types: ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
                .map(str::to_owned)
                .to_vec(),
            ..UnetConfig::default()
        };
        let vae = VaeConfig { block_out_channels: vec![32, 64, 128], ..VaeConfig::default() };
        facts(&unet, &vae, &TextConfig::default()).unwrap()
    }

    #[test]
    fn granularity_and_native_size_follow_from_the_levels() {
        let demo = demo();
        assert_eq!((demo.vae_factor, demo.multiple_of), (4, 16));
        assert_eq!((demo.native_width, demo.native_height), (128, 128));

        let first = first();
        assert_eq!((first.vae_factor, first.multiple_of, first.native_width), (8, 64, 512));

        let wide = UnetConfig {
            sample_size: Some(OneOrMany::Many(vec![64, 96])),
            ..UnetConfig::default()
        };
        let wide = facts(&wide, &vae_of_the_first(), &TextConfig::default()).unwrap();
        assert_eq!((wide.native_width, wide.native_height), (768, 512));
    }

    /// The shape of Stable Diffusion 1.5.
    fn first() -> StableDiffusion {
        facts(&UnetConfig::default(), &vae_of_the_first(), &TextConfig::default()).unwrap()
    }

    fn vae_of_the_first() -> VaeConfig {
        VaeConfig { block_out_channels: vec![128, 256, 512, 512], ..VaeConfig::default() }
    }

    #[test]
    fn the_estimate_covers_what_was_measured_without_being_wild() {
        // On a processor with two threads, channels last: growth of the process's high-water mark
        // in one UNet call with guidance and in the decoder, MiB.
        for (model, side, batch, dtype, unet, decoder) in [
            (demo(), 128, 1, Dtype::Float32, 9, 19),
            (demo(), 256, 1, Dtype::Float32, 58, 85),
            (demo(), 512, 1, Dtype::Float32, 182, 269),
            (demo(), 256, 4, Dtype::Float32, 252, 428),
            (demo(), 1024, 1, Dtype::Float32, 721, 929),
            (demo(), 512, 1, Dtype::Bfloat16, 144, 315),
            (first(), 256, 1, Dtype::Float32, 137, 257),
            (first(), 512, 1, Dtype::Float32, 348, 1023),
            (first(), 768, 1, Dtype::Float32, 715, 2303),
        ] {
            let measured = Bytes::mib(unet.max(decoder)).0;
            let predicted = model.peak_bytes(side, side, batch, dtype).0;
            assert!(predicted >= measured, "{side}² × {batch}: {predicted} < {measured}");
            assert!(predicted <= measured * 2, "{side}² × {batch}: {predicted} ≫ {measured}");
        }
    }

    #[test]
    fn absurd_sizes_saturate_instead_of_wrapping() {
        let peak = demo().peak_bytes(u32::MAX, u32::MAX, u32::MAX, Dtype::Float32);
        assert_eq!(peak, Bytes(u64::MAX));
    }
}
