"""diffusers pipelines with random weights, of the families that pdfast imports."""

import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

# The configuration of google/ddpm-cifar10-32, and that of ddpm-celebahq-256 and ddpm-church-256.
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CELEBAHQ = CIFAR10 | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
# The fields that diffusers' training example leaves at their defaults.
EXAMPLE = {"attention_head_dim": 8, "downsample_padding": 1, "flip_sin_to_cos": True}
EXAMPLE |= {"freq_shift": 0, "norm_eps": 1e-5}
PUBLISHED = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
}
SMALL = CIFAR10 | {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
FAMILIES = {
    "ddpm-cifar10-32": CIFAR10
    | {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8, "sample_size": 16},
    "ddpm-celebahq-256": CELEBAHQ
    | {"block_out_channels": (16, 16, 32, 32, 64, 64), "norm_num_groups": 8, "sample_size": 32},
    "training example": SMALL | EXAMPLE,
    "published": SMALL | EXAMPLE | PUBLISHED,
    "one level, classes, one channel": SMALL
    | {
        "block_out_channels": (16,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "num_class_embeds": 5,
        "time_embedding_dim": 48,
        "in_channels": 1,
        "out_channels": 1,
    },
    "scales and convolutions": SMALL
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "act_fn": "swish"},
}


def unet(gain=1.0, **fields):
    """A network with random weights, none of them zero; `gain` scales its output."""
    net = UNet2DModel(**(SMALL | fields)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.parameters():
            std = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * std)
        for p in net.conv_out.parameters():
            p.mul_(gain)
    return net


def save(folder, net=None, scheduler=None, kind=DDPMPipeline):
    """Write a pipeline's folder and return it."""
    kind(net or unet(), scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def flatten(folder):
    """Move all files to the root and use attention's old names, as google/ddpm-cifar10-32 does."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
        weights = {name.replace(f".{new}.", f".{old}."): v for name, v in weights.items()}
    save_file({k.replace(".to_out.0.", ".proj_attn."): v for k, v in weights.items()}, file)


def opened(folder):
    """Load the pipeline as any user does, without progress bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipe = DDIMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(model, num=4, seed=3):
    """Return the noise that the pipeline draws from a generator of this seed."""
    return torch.randn(num, *model.image_shape, generator=torch.Generator().manual_seed(seed))


def by_pipeline(pipe, steps, labels=None, num=4, seed=3, clipped=True):
    """Sample images in [-1, 1]. With labels, which the pipeline does not take, run its parts."""
    generator = torch.Generator().manual_seed(seed)
    call = {"use_clipped_model_output": clipped, "eta": 0.0}
    if labels is None:
        call |= {"num_inference_steps": steps, "output_type": "np", "generator": generator}
        images = torch.from_numpy(pipe(batch_size=num, **call).images)
        return images.permute(0, 3, 1, 2) * 2 - 1
    size = (pipe.unet.config.sample_size,) * 2
    z = torch.randn(num, pipe.unet.config.in_channels, *size, generator=generator)
    pipe.scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            out = pipe.unet(z, t, class_labels=labels).sample
            z = pipe.scheduler.step(out, t, z, **call).prev_sample
    return z


def apart(a, b):
    """Return the largest difference."""
    return float((a.double() - b.double()).abs().max())
