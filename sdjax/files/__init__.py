"""What lies on disk: model directories, tensors, pictures with their settings, the cache."""
