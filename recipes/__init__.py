"""Training: SFT, video DPO, rounds with extrapolation, and the controls they are compared with."""
