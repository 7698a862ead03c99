"""What every model is built of. Activations are ``[T, B, H, W, C]``: time first, channels last."""
