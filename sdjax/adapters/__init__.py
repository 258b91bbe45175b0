"""What is added to a loaded model: parameters in, parameters out."""
