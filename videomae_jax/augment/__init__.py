"""Image operations on clips that run on the device, inside the training step."""
