"""Post-training quantization of a float .tflite: ranges, schemes, sensitivity, mixed precision."""
