"""What looks at pictures: CLIP's way to read them, and the safety checker."""
