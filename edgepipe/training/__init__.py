"""The training loop that every training stage shares, for Keras 3 and tf_keras models alike."""
