"""What a .tflite is and how it runs; no TensorFlow."""
