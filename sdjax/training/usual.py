"""How a plan is fitted where nothing else is asked, by `sdjax tune` and the studies.

No imports here, because the command's help shows it.
"""

# Spacings whose levels a fit begins on. ComfyUI's kl_optimal evaluates at the lowest level too, the other only above
# it; from the wrong one of them a fit may end with half as much error again.
BEGUN_ON = "kl_optimal,comfyui_kl_optimal,align_your_steps,trailing"
PACE = {
    "steps": 100,
    "batch_size": 12,
    "learning_rate": 0.07,
    "warmup_steps": 10,
    "cosine_decay": True,
    "ema_decay": 0.0,
}
