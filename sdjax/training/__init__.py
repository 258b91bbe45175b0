"""Training: the diffusion process from its other side, as a small trainer to read.

`forward` puts noise on pictures, `losses` say what the networks are to learn, `step` is the one compiled step, `fit`
takes it again and again.
"""
