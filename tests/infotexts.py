"""Last lines of A1111's "parameters" as its versions wrote them, with what A1111 ran and what we do not follow.

Each: the line; A1111's sampler, schedule type and steps; the fields that are not followed, as they are listed.
"""

# fmt: off
TREE = "the Brownian tree of {}, which its noise comes from"
V1_0 = [  # 1.0 to 1.5: the spacing in the sampler's name, no RNG, "Version" from 1.3 on
    ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b",
     "Euler a", "Uniform", 20, []),
    ("Steps: 28, Sampler: Euler, CFG scale: 12, Seed: 2870305590, "
     "Size: 512x768, Model hash: 925997e9, Clip skip: 2, ENSD: 31337",
     "Euler", "Uniform", 28, []),
    ("Steps: 30, Sampler: DDIM, CFG scale: 7.5, Seed: 3, "
     "Size: 512x512, Model hash: 81761151", "DDIM", "Uniform", 30, []),
    ("Steps: 50, Sampler: PLMS, CFG scale: 7.5, Seed: 42, Size: 512x512", "PLMS", "Uniform", 50, []),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Model: v1-5-pruned-emaonly",
     "DPM++ 2M", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 512x512", "DPM++ 2M", "Uniform", 20, []),
    ("Steps: 15, Sampler: DPM++ SDE Karras, CFG scale: 8, Seed: 5, Size: 640x448", "DPM++ SDE", "Karras", 15,
     [TREE.format("DPM++ SDE Karras")]),
    ("Steps: 12, Sampler: DPM++ SDE, CFG scale: 8, Seed: 5, Size: 640x448", "DPM++ SDE", "Uniform", 12,
     [TREE.format("DPM++ SDE")]),
    ("Steps: 25, Sampler: DPM++ 2S a Karras, CFG scale: 9, Seed: 77, Size: 512x704", "DPM++ 2S a", "Karras", 25, []),
    ("Steps: 25, Sampler: DPM++ 2S a, CFG scale: 9, Seed: 77, Size: 512x704", "DPM++ 2S a", "Uniform", 25, []),
    ("Steps: 20, Sampler: DPM2, CFG scale: 7, Seed: 8, Size: 512x512", "DPM2", "Uniform", 20, []),
    ("Steps: 20, Sampler: DPM2 a, CFG scale: 7, Seed: 8, Size: 512x512", "DPM2 a", "Uniform", 20, []),
    ("Steps: 20, Sampler: DPM2 Karras, CFG scale: 7, Seed: 8, Size: 512x512", "DPM2", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM2 a Karras, CFG scale: 7, Seed: 8, Size: 512x512", "DPM2 a", "Karras", 20, []),
    ("Steps: 40, Sampler: LMS, CFG scale: 7, Seed: 9, Size: 512x512", "LMS", "Uniform", 40, []),
    ("Steps: 40, Sampler: LMS Karras, CFG scale: 7, Seed: 9, Size: 512x512", "LMS", "Karras", 40, []),
    ("Steps: 10, Sampler: Heun, CFG scale: 7, Seed: 10, Size: 512x512", "Heun", "Uniform", 10, []),
    ("Steps: 20, Sampler: DPM fast, CFG scale: 7, Seed: 10, Size: 512x512", "DPM fast", "Uniform", 20, []),
    ("Steps: 20, Sampler: UniPC, CFG scale: 7, Seed: 10, Size: 512x512, Version: v1.3.2", "UniPC", "Uniform", 20, []),
    ("Steps: 30, Sampler: DPM++ 2M SDE Karras, CFG scale: 6, Seed: 11, Size: 512x512, Version: v1.3.2",
     "DPM++ 2M SDE", "Karras", 30, [TREE.format("DPM++ 2M SDE Karras")]),
    ("Steps: 30, Sampler: DPM++ 2M SDE, CFG scale: 6, Seed: 11, Size: 512x512", "DPM++ 2M SDE", "Uniform", 30,
     [TREE.format("DPM++ 2M SDE")]),
    ("Steps: 20, Sampler: Euler a, CFG scale: 11, Seed: 12, Size: 512x512, Model hash: e1441589a6, Variation seed: 99, "
     "Variation seed strength: 0.3", "Euler a", "Uniform", 20, []),
    ("Steps: 20, Sampler: Euler a, CFG scale: 11, Seed: 12, Size: 512x512, Eta: 0.5", "Euler a", "less noise", 20, []),
    ("Steps: 20, Sampler: DDIM, CFG scale: 11, Seed: 12, Size: 512x512, Eta DDIM: 0.6", "DDIM", "more noise", 20, []),
    ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.75, Mask blur: 4",
     "Euler a", "Uniform", 20, ["Denoising strength: 0.75", "Mask blur: 4"]),
    ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Face restoration: CodeFormer, Size: 512x512",
     "Euler a", "Uniform", 20, ["Face restoration: CodeFormer"]),
    ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Hypernet: anime, Hypernet strength: 0.8",
     "Euler a", "Uniform", 20, ["Hypernet: anime", "Hypernet strength: 0.8"]),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.5, "
     "Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent", "DPM++ 2M", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.5, "
     "Hires upscale: 1.5, Hires upscaler: Lanczos", "DPM++ 2M", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.4, "
     "Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+", "DPM++ 2M", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.4, "
     "Hires upscale: 2, Hires upscaler: Latent (nearest)", "DPM++ 2M", "Karras", 20,
     ["Hires upscaler: Latent (nearest)"]),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.4, "
     "Hires resize: 1024x1024, Hires upscaler: Latent", "DPM++ 2M", "Karras", 20,
     ["Denoising strength: 0.4", "Hires resize: 1024x1024", "Hires upscaler: Latent"]),
]
V1_6 = [  # 1.6 to 1.8: more samplers, RNG, discarded levels and schedules of one's own
    ("Steps: 25, Sampler: DPM++ 3M SDE Exponential, CFG scale: 7, Seed: 1, Size: 512x512, RNG: CPU, Version: v1.6.0",
     "DPM++ 3M SDE", "Exponential", 25, [TREE.format("DPM++ 3M SDE Exponential")]),
    ("Steps: 25, Sampler: DPM++ 3M SDE Karras, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.6.0",
     "DPM++ 3M SDE", "Karras", 25, [TREE.format("DPM++ 3M SDE Karras")]),
    ("Steps: 25, Sampler: DPM++ 3M SDE, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.6.0",
     "DPM++ 3M SDE", "Uniform", 25, [TREE.format("DPM++ 3M SDE")]),
    ("Steps: 25, Sampler: DPM++ 2M SDE Heun Karras, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.6.0",
     "DPM++ 2M SDE Heun", "Karras", 25, [TREE.format("DPM++ 2M SDE Heun Karras")]),
    ("Steps: 25, Sampler: DPM++ 2M SDE Heun Exponential, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.6.0",
     "DPM++ 2M SDE Heun", "Exponential", 25, [TREE.format("DPM++ 2M SDE Heun Exponential")]),
    ("Steps: 25, Sampler: DPM++ 2M SDE Exponential, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.6.0",
     "DPM++ 2M SDE", "Exponential", 25, [TREE.format("DPM++ 2M SDE Exponential")]),
    ("Steps: 20, Sampler: Restart, CFG scale: 7, Seed: 1, Size: 512x512, RNG: NV, Version: v1.6.0",
     "Restart", "Karras", 20, []),
    ("Steps: 40, Sampler: Restart, CFG scale: 7, Seed: 1, Size: 512x512, RNG: NV, Version: v1.7.0",
     "Restart", "Karras", 40, []),
    ("Steps: 4, Sampler: LCM, CFG scale: 1.5, Seed: 1, Size: 512x512, Version: v1.8.0", "LCM", "Uniform", 4, []),
    ("Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, "
     "Size: 512x512, Discard penultimate sigma: True, Version: v1.7.0",
     "Euler", "discarding", 20, []),
    ("Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, "
     "Size: 512x512, Sigma churn: 4, Sigma noise: 1.01, Version: v1.7.0",
     "Euler", "churning", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Schedule rho: 5, "
     "Schedule max sigma: 10, Schedule min sigma: 0.1, Version: v1.7.0", "DPM++ 2M", "ends", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, NGMS: 1, Version: v1.7.0",
     "DPM++ 2M", "Karras", 20, ["NGMS: 1"]),
    ("Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, Token merging ratio: 0.5, "
     "Version: v1.7.0", "DPM++ 2M", "Karras", 20, ["Token merging ratio: 0.5"]),
    ('Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512, '
     'Lora hashes: "add_detail: 7c6bad76eb54, '
     'x: 0123456789ab", Version: v1.7.0', "DPM++ 2M", "Karras", 20,
     ["Lora hashes: add_detail: 7c6bad76eb54, x: 0123456789ab"]),
    ('Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, TI hashes: "EasyNegative: c74b4e810b03", '
     "Version: v1.7.0", "Euler a", "Uniform", 20, ["TI hashes: EasyNegative: c74b4e810b03"]),
    ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, VAE hash: f921fb3f29, "
     "VAE: kl-f8-anime2.ckpt, Version: v1.7.0", "Euler a", "Uniform", 20, []),
    ("Steps: 20, Sampler: UniPC, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.5, Hires upscale: 2, "
     "Hires upscaler: Latent, Version: v1.7.0", "UniPC", "Uniform", 20,
     ["the levels that UniPC lays anew for the second pass"]),
    ("Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Refiner: sd_xl_refiner_1.0 [7440042bbd], "
     "Refiner switch at: 0.8, Version: v1.7.0", "Euler a", "Uniform", 20,
     ["Refiner: sd_xl_refiner_1.0 [7440042bbd]"]),
]
V1_9 = [  # from 1.9 on: "Schedule type"
    ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.9.4",
     "DPM++ 2M", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DPM++ 2M", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Uniform, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DPM++ 2M", "Uniform", 20, []),
    ("Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Euler a", "Uniform", 20, []),
    ("Steps: 6, Sampler: Euler a, Schedule type: SGM Uniform, CFG scale: 2, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Euler a", "SGM Uniform", 6, []),
    ("Steps: 10, Sampler: DPM++ 2M, Schedule type: KL Optimal, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DPM++ 2M", "KL Optimal", 10, []),
    ("Steps: 10, Sampler: DPM++ 2M, Schedule type: Align Your Steps, CFG scale: 7, Seed: 1, Size: 512x512, "
     "Version: v1.10.1", "DPM++ 2M", "Align Your Steps", 10, []),
    ("Steps: 20, Sampler: Heun, Schedule type: Simple, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Heun", "Simple", 20, []),
    ("Steps: 20, Sampler: Heun, Schedule type: Normal, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Heun", "Normal", 20, []),
    ("Steps: 20, Sampler: Euler, Schedule type: DDIM, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Euler", "DDIM", 20, []),
    ("Steps: 20, Sampler: Euler, Schedule type: Beta, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Euler", "Beta", 20, []),
    ("Steps: 20, Sampler: DPM2 a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DPM2 a", "Karras", 20, []),
    ("Steps: 20, Sampler: DPM2, Schedule type: Exponential, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DPM2", "Exponential", 20, []),
    ("Steps: 20, Sampler: LMS, Schedule type: Polyexponential, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "LMS", "Polyexponential", 20, []),
    ("Steps: 20, Sampler: DDIM, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DDIM", "Automatic", 20, []),
    ("Steps: 20, Sampler: PLMS, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "PLMS", "Automatic", 20, []),
    ("Steps: 20, Sampler: UniPC, Schedule type: SGM Uniform, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "UniPC", "Automatic", 20, []),
    ("Steps: 20, Sampler: DPM fast, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "DPM fast", "Automatic", 20, []),
    ("Steps: 25, Sampler: DPM++ 3M SDE, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, "
     "Version: v1.10.1", "DPM++ 3M SDE", "Exponential", 25, [TREE.format("DPM++ 3M SDE")]),
    ("Steps: 25, Sampler: Restart, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
     "Restart", "Karras", 25, []),
    ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, "
     "Denoising strength: 0.7, Hires upscale: 2, Hires steps: 15, Hires upscaler: Latent, Hires sampler: Euler a, "
     "Hires CFG Scale: 5, "
     "Version: v1.10.1", "DPM++ 2M", "Karras", 20, ["Hires sampler: Euler a", "Hires CFG Scale: 5"]),
    ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Emphasis: No norm, "
     "Version: v1.10.1", "DPM++ 2M", "Karras", 20, ["Emphasis: No norm"]),
    ("Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, "
     "Skip Early CFG: 0.2, Pad conds: True, Version: v1.10.1", "DPM++ 2M", "Karras", 20,
     ["Skip Early CFG: 0.2", "Pad conds: True"]),
]
# fmt: on
INFOTEXTS = [*V1_0, *V1_6, *V1_9]
