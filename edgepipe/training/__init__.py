"""The training loop that all training stages share, for Keras 3 and tf_keras models."""
